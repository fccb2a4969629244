"""Single flight: one computation a key, and what it does while callers wait."""
