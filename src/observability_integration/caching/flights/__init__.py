"""Single flight: one computation for each key, shared by all callers that wait for it."""
