"""Token usage and cost of calls."""
