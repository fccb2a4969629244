"""RouterPrimitive: sends each call to one of several routes, and counts why and what it saved."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar, overload

from observability_integration.context import WorkflowContext
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.base import ChunkStream, In, Out, Step, WorkflowPrimitive
from observability_integration.primitives.lifting import lift
from observability_integration.routing.complexity import estimate_complexity
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.metrics.instruments import ROUTER_ERRORS, switch
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .record import RouteRecord
from .stream import RouterStream

T = TypeVar("T")
RouterFunction = Callable[[Any, WorkflowContext], str | Awaitable[str]] | Callable[[Any], str | Awaitable[str]]
_Choice = tuple[RouteRecord, str]

CHOSEN = "routing_function"
INVALID = "invalid_route_fallback"
FAILED = "routing_error_fallback"
BELOW = "complexity_below_threshold"
ABOVE = "complexity_above_threshold"
UNKNOWN = "complexity_error_fallback"
_NO_ROUTES = "the model form of RouterPrimitive has execute_async(func, query); there are no routes to run"


class Route(Enum):
    """The two routes of the model form."""

    CHEAP = "cheap"
    PREMIUM = "premium"


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """What the model form decided.

    Attributes:
        route: cheap or premium.
        model: the model's name.
        cost_savings: USD saved against the dearer of the two models, if the call succeeds.
        reason: ``complexity_below_threshold``, ``complexity_above_threshold`` or ``complexity_error_fallback``.
        complexity_score: the score that decided, from 0 to 1; None if it could not be had.
    """

    route: Route
    model: str
    cost_savings: float
    reason: str
    complexity_score: float | None


class RouterPrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Routes calls. Two forms, told apart by their keywords.

    *Wrapper form*: ``RouterPrimitive(routes, router_fn, default_route="fast")``. `router_fn` names the route; an
    unknown name or an error in it leads to the default route, and is counted.

    *Model form*: ``RouterPrimitive(cheap_model=..., premium_model=...)`` with `decide_route` and `execute_async`.

    Args:
        routes: route name → primitive or async callable.
        router_fn: function of ``(input, context)`` or ``(input)``, synchronous or not, that returns a route name.
        default_route: where to go when `router_fn` fails or names no route; ``default`` is the same.
        cost_per_route: USD per call by route; the saving of a call is the dearest route's cost minus its own.
        name: shown in spans and descriptions.
        cheap_model: name of the cheap model.
        premium_model: name of the premium model.
        complexity_threshold: from 0 to 1; a question that scores below goes to the cheap model.
        cheap_cost_per_call: USD.
        premium_cost_per_call: USD.
        complexity_fn: scores a question from 0 to 1; a heuristic of ours by default.

    Raises:
        ConfigurationError: empty routes, an unknown default, a bad cost, or keywords of both forms.
    """

    @overload
    def __init__(
        self,
        routes: Mapping[str, Step[In, Out]],
        router_fn: RouterFunction,
        default_route: str = "fast",
        cost_per_route: Mapping[str, float] | None = None,
        *,
        default: str | None = None,
        name: str | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        *,
        cheap_model: str,
        premium_model: str,
        complexity_threshold: float = 0.5,
        cheap_cost_per_call: float = 0.001,
        premium_cost_per_call: float = 0.01,
        complexity_fn: Callable[[str], float] | None = None,
        name: str | None = None,
    ) -> None: ...

    def __init__(
        self,
        routes: Mapping[str, Any] | None = None,
        router_fn: RouterFunction | None = None,
        default_route: str = "fast",
        cost_per_route: Mapping[str, float] | None = None,
        *,
        default: str | None = None,
        name: str | None = None,
        cheap_model: str | None = None,
        premium_model: str | None = None,
        complexity_threshold: float = 0.5,
        cheap_cost_per_call: float = 0.001,
        premium_cost_per_call: float = 0.01,
        complexity_fn: Callable[[str], float] | None = None,
    ) -> None:
        self._name = name or "router"
        self._span_name = f"router {name}" if name else "router"
        self._router_fn: Any = router_fn
        self._with_context = True  # in the model form too, which `execute` finds out by it
        self._models: dict[Route, str] = {}
        self._threshold = complexity_threshold
        self._complexity_fn = complexity_fn or estimate_complexity
        wraps = routes is not None or router_fn is not None or cost_per_route is not None
        wraps = wraps or default is not None or default_route != "fast"
        chooses = cheap_model is not None or premium_model is not None or complexity_fn is not None
        chooses = chooses or (complexity_threshold, cheap_cost_per_call, premium_cost_per_call) != (0.5, 0.001, 0.01)
        if wraps and chooses:
            raise ConfigurationError(
                "RouterPrimitive takes either routes, router_fn, default_route, cost_per_route "
                "or cheap_model, premium_model, complexity_threshold, complexity_fn, *_cost_per_call; not both"
            )
        if chooses:
            if not cheap_model or not premium_model:
                raise ConfigurationError("cheap_model and premium_model belong together")
            _check_cost("cheap_cost_per_call", cheap_cost_per_call)
            _check_cost("premium_cost_per_call", premium_cost_per_call)
            _check_score("complexity_threshold", complexity_threshold)
            self._models = {Route.CHEAP: cheap_model, Route.PREMIUM: premium_model}
            self._default_route = Route.PREMIUM.value
            dearest = max(cheap_cost_per_call, premium_cost_per_call)
            self._routes = {
                "cheap": RouteRecord(self, "cheap", dearest - cheap_cost_per_call, [BELOW]),
                "premium": RouteRecord(self, "premium", dearest - premium_cost_per_call, [ABOVE, UNKNOWN]),
            }
            return
        if not routes:
            raise ConfigurationError("Routes cannot be empty")
        if router_fn is None:
            raise ConfigurationError("router_fn is required with routes")
        if not callable(router_fn):
            raise ConfigurationError(f"router_fn must be a function, got {type(router_fn).__name__}")
        self._default_route = default if default is not None else default_route
        self._with_context = _takes_context(router_fn)
        if self._default_route not in routes:
            raise ConfigurationError(f"Default route '{self._default_route}' not in routes")
        costs = dict(cost_per_route or {})
        for route, cost in costs.items():
            _check_cost(f"cost_per_route[{route!r}]", cost)
        dearest = max((costs[route] for route in routes if route in costs), default=0.0)
        self._routes = {
            route: RouteRecord(
                self,
                route,
                # A route without a stated cost has an unknown saving, which is none.
                dearest - costs[route] if route in costs else 0.0,
                [CHOSEN, INVALID, FAILED] if route == self._default_route else [CHOSEN],
                lift(step),
            )
            for route, step in routes.items()
        }
        self._chosen: dict[Any, _Choice] = {name: (route, CHOSEN) for name, route in self._routes.items()}
        self._invalid: _Choice = self._routes[self._default_route], INVALID

    @property
    def name(self) -> str:
        """The name given, or ``router``."""
        return self._name

    def __repr__(self) -> str:
        if self._models:
            return f"RouterPrimitive(cheap={self._models[Route.CHEAP]!r}, premium={self._models[Route.PREMIUM]!r})"
        return f"RouterPrimitive(routes={list(self._routes)}, default='{self._default_route}')"

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The routes, by name."""
        return [(name, route.step) for name, route in self._routes.items() if route.step is not None]

    def _label(self) -> str:
        return f"router {self._name} (default: {self._default_route})"

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Runs the chosen route.

        Raises:
            ConfigurationError: in the model form, which has `execute_async` instead.
        """
        if self._with_context:
            if self._models:
                raise ConfigurationError(_NO_ROUTES)
            if context is None:
                context = WorkflowContext()
        if not switch.on and not spans.tracing.enabled:
            choice = self._choose(input_data, context)
            route = choice[0] if isinstance(choice, tuple) else (await choice)[0]
            return await route.call(input_data, context)  # type: ignore[no-any-return]
        span = self._begin(context)
        token = spans.tracing.activate(span)
        try:
            choice = self._choose(input_data, context)
            route, reason = choice if isinstance(choice, tuple) else await choice
            self._note(span, route, reason)
            started = time.perf_counter()
            try:
                result: Out = await route.call(input_data, context)
            except BaseException as error:
                route.ended(span, started, error)
                raise
            route.ended(span, started, None)
            return result
        finally:
            spans.tracing.deactivate(token)
            span.end()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Streams from the chosen route."""
        if self._models:
            raise ConfigurationError(_NO_ROUTES)
        given = WorkflowContext() if context is None else context

        async def choose(span: OperationSpan) -> RouteRecord:
            choice = self._choose(input_data, given)
            route, reason = choice if isinstance(choice, tuple) else await choice
            self._note(span, route, reason)
            return route

        return RouterStream(lambda: self._begin(given), choose, input_data, given)

    def _begin(self, context: WorkflowContext | None) -> OperationSpan:
        span = spans.tracing.begin(self._span_name, {})
        if context is not None:
            spans.identify(span, context)
        return span

    def _note(self, span: OperationSpan, route: RouteRecord, reason: str) -> None:
        route.decided(reason)
        span.set_attribute("router.route", route.name)
        span.set_attribute("router.reason", reason)

    def _choose(self, input_data: In, context: WorkflowContext | None) -> _Choice | Awaitable[_Choice]:
        # No coroutine of its own: most routing functions are synchronous, and this is half of what routing costs.
        try:
            chosen: Any = self._router_fn(input_data, context) if self._with_context else self._router_fn(input_data)
        except Exception as error:  # noqa: BLE001 - the user's function must not fail the user's call
            return self._fall_back(error)
        try:
            return self._chosen[chosen]
        except (KeyError, TypeError):  # TypeError: what cannot be hashed names no route
            return self._choose_later(chosen) if inspect.isawaitable(chosen) else self._invalid

    async def _choose_later(self, choosing: Awaitable[Any]) -> _Choice:
        try:
            chosen = await choosing
        except Exception as error:  # noqa: BLE001 - as above
            return self._fall_back(error)
        try:
            return self._chosen[chosen]
        except (KeyError, TypeError):
            return self._invalid

    def _fall_back(self, error: Exception) -> _Choice:
        note_fault("router.router_fn", error)
        ROUTER_ERRORS.series(self._default_route, spans.error_type(error)).add()
        return self._routes[self._default_route], FAILED

    def decide_route(self, query: str, complexity_score: float | None = None) -> RoutingDecision:
        """Decides between the two models, and counts the decision.

        Args:
            query: the question.
            complexity_score: from 0 to 1, if you know better than `complexity_fn`.

        Raises:
            ConfigurationError: the score is not a number from 0 to 1, or this is the wrapper form.
        """
        if not self._models:
            raise ConfigurationError("decide_route belongs to the model form (cheap_model=, premium_model=)")
        score = complexity_score
        if score is None:
            score = self._score(query)
        else:
            _check_score("complexity_score", score)
        if score is None:
            route, reason = Route.PREMIUM, UNKNOWN
        elif score < self._threshold:
            route, reason = Route.CHEAP, BELOW
        else:
            route, reason = Route.PREMIUM, ABOVE
        record = self._routes[route.value]
        record.decided(reason)
        return RoutingDecision(route, self._models[route], record.saving, reason, score)

    def _score(self, query: str) -> float | None:
        try:
            score = float(self._complexity_fn(query))
            _check_score("complexity_fn's result", score)
        except Exception as error:  # noqa: BLE001 - the user's function must not fail the user's call
            note_fault("router.complexity_fn", error)
            return None
        return score

    async def execute_async(
        self, func: Callable[..., Awaitable[T]], query: str, complexity_score: float | None = None, **kwargs: Any
    ) -> T:
        """Decides, and calls ``func`` with the decision.

        Args:
            func: async callable; gets ``model=`` and ``query=`` where its signature takes them.
            query: the question.
            complexity_score: from 0 to 1, if you know better than `complexity_fn`.
            **kwargs: passed on to `func`.

        Raises:
            ConfigurationError: this is the wrapper form, or `func` returned no awaitable.
        """
        span = spans.tracing.begin(self._span_name, {})
        token = spans.tracing.activate(span)
        try:
            decision = self.decide_route(query, complexity_score)
            route = self._routes[decision.route.value]
            span.set_attribute("router.route", route.name)
            span.set_attribute("router.reason", decision.reason)
            started = time.perf_counter()
            try:
                value = await _begun(func, {"model": decision.model, "query": query}, kwargs)
            except BaseException as error:
                route.ended(span, started, error)
                raise
            route.ended(span, started, None)
            return value
        finally:
            spans.tracing.deactivate(token)
            span.end()


def _begun(func: Callable[..., Awaitable[T]], offered: dict[str, Any], given: dict[str, Any]) -> Awaitable[T]:
    result = func(**_accepted(func, offered), **given)
    if not inspect.isawaitable(result):
        raise ConfigurationError("execute_async needs an async func; this one returned no awaitable")
    return result


def _accepted(func: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(func).parameters
    except (TypeError, ValueError):
        return offered
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return offered
    named = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in offered.items() if name in named}


def _takes_context(func: Callable[..., Any]) -> bool:
    try:
        inspect.signature(func).bind(None, None)
    except TypeError:
        return False  # it takes the input alone
    except ValueError:
        return True  # it has no signature; the contract is (input, context)
    return True


def _check_cost(knob: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConfigurationError(f"{knob} must be a finite number of USD >= 0, got {value!r}")


def _check_score(knob: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigurationError(f"{knob} must be a number from 0 to 1, got {value!r}")
