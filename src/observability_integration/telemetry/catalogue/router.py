"""Metrics of RouterPrimitive."""

from __future__ import annotations

from .spec import LLM_SECONDS, Kind, MetricSpec

ROUTER_DECISIONS = MetricSpec(
    "router.decisions", Kind.COUNTER, ("route", "reason"), "Routing decisions, by chosen route and why it was chosen."
)
ROUTER_EXECUTION = MetricSpec(
    "router.execution", Kind.HISTOGRAM, ("route",), "Time a routed call took, success or not.", "s", LLM_SECONDS
)
ROUTER_COST_SAVINGS = MetricSpec(
    "router.cost_savings_usd",
    Kind.COUNTER,
    ("route",),
    "Estimated USD saved by successful calls against always taking the dearest route.",
)
ROUTER_ERRORS = MetricSpec(
    "router.errors",
    Kind.COUNTER,
    ("route", "error_type"),
    "Errors of the routing function (counted under the default route) and of the routed calls.",
)
