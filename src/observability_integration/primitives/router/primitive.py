"""RouterPrimitive: sends each call to one of several routes, and counts the reason and the saving."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, overload

from observability_integration.checks import check_callable, check_cost
from observability_integration.context import WorkflowContext
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.base import ChunkStream, In, Out, Step, WorkflowPrimitive
from observability_integration.primitives.guard import GuardPrimitive
from observability_integration.primitives.lifting import lift
from observability_integration.telemetry.catalogue.router import ROUTER_ERRORS
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.metrics.instruments import switch
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import NO_SPAN, OperationSpan

from .model_choice import ModelChoice, Route, RoutingDecision
from .record import RouteRecord

T = TypeVar("T")
RouterFunction = Callable[[Any, WorkflowContext], str | Awaitable[str]] | Callable[[Any], str | Awaitable[str]]

CHOSEN = "routing_function"
INVALID = "invalid_route_fallback"
FAILED = "routing_error_fallback"
_NO_ROUTES = "the model form of RouterPrimitive has execute_async(func, query); there are no routes to run"


class RouterPrimitive(GuardPrimitive[In, Out, RouteRecord]):
    """Routes calls. The keywords select one of two forms.

    *Wrapper form*: ``RouterPrimitive(routes, router_fn, default_route="fast")``. `router_fn` returns the name of
    the route. An unknown name or an error is counted, and the default route serves the call.

    *Model form*: ``RouterPrimitive(cheap_model=..., premium_model=...)`` with `decide_route` and `execute_async`.

    Args:
        routes: route name → primitive or async callable.
        router_fn: function of ``(input, context)`` or ``(input)``, synchronous or not, that returns a route name.
        default_route: the route when `router_fn` fails or names no route; ``default`` is the same.
        cost_per_route: USD per call by route; the saving of a call is the cost of the dearest route minus its own.
        name: shown in spans and descriptions.
        cheap_model: name of the cheap model.
        premium_model: name of the premium model.
        complexity_threshold: from 0 to 1; a question with a lower score goes to the cheap model.
        cheap_cost_per_call: USD.
        premium_cost_per_call: USD.
        complexity_fn: scores a question from 0 to 1; by default the heuristic of `routing.complexity`.

    Raises:
        ConfigurationError: empty routes, an unknown default, a bad cost, or keywords of both forms.
    """

    observes_only = True
    timed = True

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
        span_name = f"router {name}" if name else "router"
        super().__init__(None, span_name)
        self._router_fn: Any = router_fn
        self._models: ModelChoice | None = None
        self._routes: dict[str, RouteRecord] = {}
        is_wrapper_form = routes is not None or router_fn is not None or cost_per_route is not None
        is_wrapper_form = is_wrapper_form or default is not None or default_route != "fast"
        is_model_form = cheap_model is not None or premium_model is not None or complexity_fn is not None
        is_model_form = is_model_form or (complexity_threshold, cheap_cost_per_call, premium_cost_per_call) != (
            0.5,
            0.001,
            0.01,
        )
        if is_wrapper_form and is_model_form:
            raise ConfigurationError(
                "RouterPrimitive takes either routes, router_fn, default_route, cost_per_route "
                "or cheap_model, premium_model, complexity_threshold, complexity_fn, *_cost_per_call; not both"
            )
        if is_model_form:
            self.needs_context = True  # `enter` finds out by it
            self._models = ModelChoice(
                self,
                {Route.CHEAP: cheap_model, Route.PREMIUM: premium_model},
                {Route.CHEAP: cheap_cost_per_call, Route.PREMIUM: premium_cost_per_call},
                complexity_threshold,
                complexity_fn,
                span_name,
            )
            self._default_route = Route.PREMIUM.value
            return
        if not routes:
            raise ConfigurationError("Routes cannot be empty")
        if router_fn is None:
            raise ConfigurationError("router_fn is required with routes")
        check_callable("router_fn", router_fn)
        self._default_route = default if default is not None else default_route
        self.needs_context = _takes_context(router_fn)
        if self._default_route not in routes:
            raise ConfigurationError(f"Default route '{self._default_route}' not in routes")
        costs = dict(cost_per_route or {})
        for route, cost in costs.items():
            check_cost(f"cost_per_route[{route!r}]", cost)
        dearest = max((costs[route] for route in routes if route in costs), default=0.0)
        self._routes = {
            route: RouteRecord(
                self,
                route,
                # The saving of a route without a stated cost is unknown, and counts as none.
                dearest - costs[route] if route in costs else 0.0,
                [CHOSEN, INVALID, FAILED] if route == self._default_route else [CHOSEN],
                lift(step),
            )
            for route, step in routes.items()
        }

    @property
    def name(self) -> str:
        """The configured name, or ``router``."""
        return self._name

    def __repr__(self) -> str:
        if self._models is not None:
            models = self._models.models
            return f"RouterPrimitive(cheap={models[Route.CHEAP]!r}, premium={models[Route.PREMIUM]!r})"
        return f"RouterPrimitive(routes={list(self._routes)}, default='{self._default_route}')"

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The routes, by name."""
        return [(name, route.step) for name, route in self._routes.items() if route.step is not None]

    def _label(self) -> str:
        return f"router {self._name} (default: {self._default_route})"

    def enter(
        self, span: OperationSpan, input_data: Any, context: WorkflowContext | None
    ) -> RouteRecord | Coroutine[Any, Any, RouteRecord]:
        """Asks the routing function.

        Raises:
            ConfigurationError: in the model form, which has `execute_async` instead.
        """
        if self.needs_context and self._models is not None:
            raise ConfigurationError(_NO_ROUTES)
        try:
            chosen = self._router_fn(input_data, context) if self.needs_context else self._router_fn(input_data)
        except Exception as error:  # noqa: BLE001 - the user's function must not fail the user's call
            return self._failed(span, error)
        try:
            route = self._routes[chosen]
        except (KeyError, TypeError):  # TypeError: a value that cannot be hashed
            return self._wait(span, chosen) if inspect.isawaitable(chosen) else self._decided(span, INVALID)
        if span is not NO_SPAN or switch.on:
            route.decided(span, CHOSEN)
        return route

    def leave(
        self,
        ticket: RouteRecord,
        span: OperationSpan,
        error: BaseException | None,
        began: float,
        answer: Any = None,
        seen: Any = None,
    ) -> None:
        """Counts the call on its route."""
        ticket.ended(span, began, error)

    async def _wait(self, span: OperationSpan, choosing: Awaitable[Any]) -> RouteRecord:
        try:
            chosen = await choosing
        except Exception as error:  # noqa: BLE001 - as above
            return self._failed(span, error)
        try:
            route = self._routes[chosen]
        except (KeyError, TypeError):
            return self._decided(span, INVALID)
        route.decided(span, CHOSEN)
        return route

    def _failed(self, span: OperationSpan, error: Exception) -> RouteRecord:
        note_fault("router.router_fn", error)
        ROUTER_ERRORS.series(self._default_route, spans.error_type(error)).add()
        return self._decided(span, FAILED)

    def _decided(self, span: OperationSpan, reason: str) -> RouteRecord:
        route = self._routes[self._default_route]
        route.decided(span, reason)
        return route

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Streams from the chosen route.

        Raises:
            ConfigurationError: in the model form.
        """
        if self._models is not None:
            raise ConfigurationError(_NO_ROUTES)
        return super().stream(input_data, WorkflowContext() if context is None else context)

    def decide_route(self, query: str, complexity_score: float | None = None) -> RoutingDecision:
        """Chooses one of the two models, and counts the decision.

        Args:
            query: the question.
            complexity_score: from 0 to 1; overrides `complexity_fn`.

        Raises:
            ConfigurationError: the score is not a number from 0 to 1, or this is the wrapper form.
        """
        return self._model_form("decide_route").decide(query, complexity_score)

    async def execute_async(
        self, func: Callable[..., Awaitable[T]], query: str, complexity_score: float | None = None, **kwargs: Any
    ) -> T:
        """Chooses a model, and calls ``func`` with it.

        Args:
            func: async callable; receives ``model=`` and ``query=`` if its signature takes them.
            query: the question.
            complexity_score: from 0 to 1; overrides `complexity_fn`.
            **kwargs: passed on to `func`.

        Raises:
            ConfigurationError: this is the wrapper form, or `func` returned no awaitable.
        """
        return await self._model_form("execute_async").run(func, query, complexity_score, kwargs)

    def _model_form(self, method: str) -> ModelChoice:
        if self._models is None:
            raise ConfigurationError(f"{method} belongs to the model form (cheap_model=, premium_model=)")
        return self._models


def _takes_context(func: Callable[..., Any]) -> bool:
    try:
        inspect.signature(func).bind(None, None)
    except TypeError:
        return False  # the function takes the input alone
    except ValueError:
        return True  # no signature; the contract is (input, context)
    return True
