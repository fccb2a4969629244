"""The part "calls": what one call costs, by telemetry mode, beside equivalents and peers; imports and memory."""
