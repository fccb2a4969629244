"""The part "failover": what callers get while a provider fails."""
