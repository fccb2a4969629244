"""Labels and bucket bounds that several metrics share."""

from __future__ import annotations

OPERATION = ("operation",)

# An LLM call takes from 10 ms (a warm, tiny model) to minutes (a reasoning model): 0.01 s to 120 s, about ×2 apart.
LLM_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
# A lookup takes from microseconds (memory) to 1 s (a Redis near its timeout).
LOOKUP_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
# An answer has from a few bytes (a label) to a megabyte, the largest entry that is stored by default.
ENTRY_BYTES = (64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
# An entry is hit from a second after its computation (a retry) to the end of a TTL of days.
AGE_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0, 604800.0)
# A wait in a queue or before a retry takes from one iteration of the event loop to a minute.
WAIT_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# elapsed / limit: a timeout of which calls use 10 % is too long, one of which they use 90 % is about to fire.
UTILIZATION = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5)
# OpenTelemetry semantic conventions v1.41, gen-ai metrics: the recommended boundaries.
GEN_AI_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
GEN_AI_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
