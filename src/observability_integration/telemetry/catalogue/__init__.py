"""Every metric of this library, declared once: its description and the instrument that records it.

Exporters, tests and the tables in the documentation are made from it. Names are OpenTelemetry instrument names;
`MetricSpec.prometheus_name` is the name in a scrape. Units follow UCUM. A USD counter carries no unit, because the
exporter would append it (``..._usd_USD_total``).
"""

from __future__ import annotations

from observability_integration.telemetry.metrics.instruments import SPECS
from observability_integration.telemetry.metrics.spec import Kind, MetricSpec, Profile

# The order of the imports is the order of `CATALOGUE`, and so of the tables in the documentation.
from . import router, cache, timeout, resilience, gen_ai, own  # isort: skip
from .common import GEN_AI_SECONDS, LLM_SECONDS, LOOKUP_SECONDS, WAIT_SECONDS

CATALOGUE: tuple[MetricSpec, ...] = tuple(SPECS.values())

__all__ = [
    "CATALOGUE",
    "GEN_AI_SECONDS",
    "LLM_SECONDS",
    "LOOKUP_SECONDS",
    "WAIT_SECONDS",
    "Kind",
    "MetricSpec",
    "Profile",
    "cache",
    "gen_ai",
    "own",
    "resilience",
    "router",
    "timeout",
]
