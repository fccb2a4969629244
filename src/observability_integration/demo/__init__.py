"""The demonstration: a local OpenAI-compatible provider, a corpus of questions and answers, and a workload."""
