"""The model form of the router: chooses one of two models by the complexity of a question."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from observability_integration.checks import check_cost, check_share
from observability_integration.errors import ConfigurationError
from observability_integration.routing.complexity import estimate_complexity
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import NO_SPAN, OperationSpan

from .record import RouteRecord

T = TypeVar("T")

BELOW = "complexity_below_threshold"
ABOVE = "complexity_above_threshold"
UNKNOWN = "complexity_error_fallback"


class Route(Enum):
    """The two routes of the model form."""

    CHEAP = "cheap"
    PREMIUM = "premium"


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """The decision of the model form.

    Attributes:
        route: cheap or premium.
        model: the model's name.
        cost_savings: USD saved against the dearer of the two models, if the call succeeds.
        reason: ``complexity_below_threshold``, ``complexity_above_threshold`` or ``complexity_error_fallback``.
        complexity_score: the score that decided, from 0 to 1; None if `complexity_fn` failed.
    """

    route: Route
    model: str
    cost_savings: float
    reason: str
    complexity_score: float | None


class ModelChoice:
    """Chooses between a cheap and a premium model.

    Args:
        owner: the router; its series are exported as long as it lives.
        models: name of the model of each route.
        costs: USD per call of each route.
        threshold: from 0 to 1; a question with a lower score goes to the cheap model.
        complexity_fn: scores a question from 0 to 1; None for the heuristic of `routing.complexity`.
        span_name: of each call.

    Raises:
        ConfigurationError: a model without a name, a bad cost or threshold.
    """

    def __init__(
        self,
        owner: object,
        models: dict[Route, str | None],
        costs: dict[Route, float],
        threshold: float,
        complexity_fn: Callable[[str], float] | None,
        span_name: str,
    ) -> None:
        named = {route: model for route, model in models.items() if model}
        if len(named) < len(models):
            raise ConfigurationError("cheap_model and premium_model belong together")
        for route, cost in costs.items():
            check_cost(f"{route.value}_cost_per_call", cost)
        check_share("complexity_threshold", threshold)
        self.models = named
        self._threshold = threshold
        self._complexity_fn = complexity_fn or estimate_complexity
        self._span_name = span_name
        dearest = max(costs.values())
        reasons = {Route.CHEAP: [BELOW], Route.PREMIUM: [ABOVE, UNKNOWN]}
        self._records = {
            route: RouteRecord(owner, route.value, dearest - cost, reasons[route]) for route, cost in costs.items()
        }

    def decide(self, query: str, complexity_score: float | None, span: OperationSpan = NO_SPAN) -> RoutingDecision:
        """Chooses a model, and counts the decision; see `RouterPrimitive.decide_route`."""
        score = complexity_score
        if score is None:
            score = self._score(query)
        else:
            check_share("complexity_score", score)
        if score is None:
            route, reason = Route.PREMIUM, UNKNOWN
        elif score < self._threshold:
            route, reason = Route.CHEAP, BELOW
        else:
            route, reason = Route.PREMIUM, ABOVE
        record = self._records[route]
        record.decided(span, reason)
        return RoutingDecision(route, self.models[route], record.saving, reason, score)

    async def run(
        self, func: Callable[..., Awaitable[T]], query: str, complexity_score: float | None, given: dict[str, Any]
    ) -> T:
        """Chooses a model, and calls `func`; see `RouterPrimitive.execute_async`."""
        tracing = spans.tracing
        span = tracing.begin(self._span_name, {})
        token = tracing.activate(span)
        outcome = "cancelled"
        try:
            decision = self.decide(query, complexity_score, span)
            record = self._records[decision.route]
            started = time.perf_counter()
            try:
                value = await _start(func, {"model": decision.model, "query": query}, given)
            except BaseException as error:
                record.ended(span, started, error)
                raise
            record.ended(span, started, None)
        except Exception as error:
            outcome = "error"
            tracing.mark_failed(span, error)
            raise
        else:
            outcome = "success"
            return value
        finally:
            span.set_attribute("outcome", outcome)
            tracing.deactivate(token)
            span.end()

    def _score(self, query: str) -> float | None:
        try:
            score = float(self._complexity_fn(query))
            check_share("complexity_fn's result", score)
        except Exception as error:  # noqa: BLE001 - the user's function must not fail the user's call
            note_fault("router.complexity_fn", error)
            return None
        return score


def _start(func: Callable[..., Awaitable[T]], optional: dict[str, Any], given: dict[str, Any]) -> Awaitable[T]:
    result = func(**_accepted(func, optional), **given)
    if not inspect.isawaitable(result):
        raise ConfigurationError("execute_async needs an async func; this one returned no awaitable")
    return result


def _accepted(func: Callable[..., Any], optional: dict[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(func).parameters
    except (TypeError, ValueError):
        return optional
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return optional
    named = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in optional.items() if name in named}
