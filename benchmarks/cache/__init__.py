"""The part "cache": hits in Redis, stampedes, a replay of chat traffic, and eviction policies."""
