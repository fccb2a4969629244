"""The part "calls": time per call, by telemetry mode, compared with equivalents and peers; imports and memory."""
