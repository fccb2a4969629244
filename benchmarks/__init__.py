"""Measures what a call costs, compared with hand-written code and with other libraries: `python -m benchmarks`."""
