"""Every metric, once: the table from which instruments, documentation and tests are made.

Names are OpenTelemetry instrument names; `MetricSpec.prometheus_name` is what a scrape shows. Units follow UCUM. A
USD counter carries no unit, because the exporter would append it (``..._usd_USD_total``).
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import cast

from . import cache, gen_ai, own, resilience, router, timeout
from .spec import GEN_AI_SECONDS, LLM_SECONDS, LOOKUP_SECONDS, WAIT_SECONDS, Kind, MetricSpec, Profile


def _specs(room: ModuleType) -> Iterator[MetricSpec]:
    for value in vars(room).values():
        if isinstance(value, MetricSpec):
            yield value
        elif isinstance(value, dict):
            yield from (spec for spec in cast("dict[str, object]", value).values() if isinstance(spec, MetricSpec))


# In the order in which each module defines them.
CATALOGUE: tuple[MetricSpec, ...] = tuple(
    spec for room in (router, cache, timeout, resilience, gen_ai, own) for spec in _specs(room)
)

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
