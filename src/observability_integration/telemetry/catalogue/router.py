"""Metrics of RouterPrimitive."""

from __future__ import annotations

from observability_integration.telemetry.metrics.instruments import counter, histogram

from .common import LLM_SECONDS

ROUTER_DECISIONS = counter(
    "router.decisions", ("route", "reason"), "Routing decisions, by chosen route and why it was chosen."
)
ROUTER_EXECUTION = histogram(
    "router.execution", ("route",), "Time a routed call took, success or not.", "s", LLM_SECONDS
)
ROUTER_COST_SAVINGS = counter(
    "router.cost_savings_usd",
    ("route",),
    "Estimated USD saved by successful calls against always taking the dearest route.",
)
ROUTER_ERRORS = counter(
    "router.errors",
    ("route", "error_type"),
    "Errors of the routing function (counted under the default route) and of the routed calls.",
)
