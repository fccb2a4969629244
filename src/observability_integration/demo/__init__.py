"""A runnable demonstration: a local OpenAI-compatible provider, a corpus of questions it can answer, and a workload."""
