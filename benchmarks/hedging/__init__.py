"""The part "hedging": the latency that a second call saves, and what it costs."""
