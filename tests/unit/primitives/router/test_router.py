"""The router: which route is taken and why, what is counted for it, and what may go wrong on the way."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from typing import Any
from unittest.mock import AsyncMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability_integration import WorkflowContext
from observability_integration.errors import ConfigurationError
from observability_integration.primitives import LLMCallPrimitive, RouterPrimitive, WorkflowPrimitive
from observability_integration.primitives.router import Route, RoutingDecision
from observability_integration.routing.complexity import estimate_complexity

Metrics = Callable[..., float | None]
COSTS = {"fast": 0.001, "premium": 0.01}


async def fast(question: Any) -> str:
    return f"fast: {question}"


async def premium(question: Any) -> str:
    return f"premium: {question}"


def to(route: Any, **options: Any) -> RouterPrimitive[Any, Any]:
    """A router whose function always gives `route`."""
    return RouterPrimitive({"fast": fast, "premium": premium}, lambda question, context: route, **options)


def by_model(**options: Any) -> RouterPrimitive[Any, Any]:
    return RouterPrimitive(cheap_model="small", premium_model="large", **options)


async def asked(model: str, query: str) -> str:
    return f"{model}: {query}"


def decisions(metrics: Metrics) -> dict[tuple[str, str], float | None]:
    """What was counted as decided, without what stands at 0."""
    routes = ("fast", "premium", "cheap")
    reasons = (
        *("routing_function", "invalid_route_fallback", "routing_error_fallback"),
        *("complexity_below_threshold", "complexity_above_threshold", "complexity_error_fallback"),
    )
    found = {
        (route, reason): metrics("router.decisions", route=route, reason=reason)
        for route in routes
        for reason in reasons
    }
    return {key: value for key, value in found.items() if value}


class Named(StrEnum):
    PREMIUM = "premium"


class Least(WorkflowContext):
    """A context that is less than any text."""

    def __gt__(self, other: object) -> bool:
        return False


class ProviderError(Exception):
    pass


@pytest.mark.promise("R1")
@pytest.mark.parametrize("named", ["premium", Named.PREMIUM])
async def test_the_function_names_the_route(named: str, metrics: Metrics, tracing: Any) -> None:
    """The normal case: the named route runs, and the reason says that the function chose it."""
    assert "premium: hi" == await to(named, name="shop").execute("hi")
    assert {("premium", "routing_function"): 1} == decisions(metrics)
    assert 1 == metrics("router.execution", route="premium")
    assert {
        "router.route": "premium",
        "router.reason": "routing_function",
        "outcome": "success",
    } == tracing.named("router shop").attributes
    assert [] == tracing.unended()


@pytest.mark.promise("R1")
async def test_an_async_function_is_awaited(metrics: Metrics) -> None:
    """A function that asks a classifier is async; its coroutine must not be taken for an unknown route."""

    async def choose(question: str, context: WorkflowContext) -> str:
        await asyncio.sleep(0)
        return "premium"

    router = RouterPrimitive[str, str]({"fast": fast, "premium": premium}, choose)
    assert "premium: hi" == await router.execute("hi")
    assert {("premium", "routing_function"): 1} == decisions(metrics)


@pytest.mark.promise("R1")
async def test_a_synchronous_function_may_return_an_awaitable() -> None:
    """A lambda around an async function is not itself async, and is still meant to be awaited."""

    async def choose() -> str:
        return "premium"

    router = RouterPrimitive[str, str]({"fast": fast, "premium": premium}, lambda question, context: choose())
    assert "premium: hi" == await router.execute("hi")


@pytest.mark.promise("R1")
async def test_the_function_may_take_the_input_alone() -> None:
    """Most functions look at the question only; a second parameter just for the form would be noise."""
    router = RouterPrimitive[str, str]({"fast": fast, "premium": premium}, lambda question: "premium")
    assert "premium: hi" == await router.execute("hi")
    assert "premium: hi" == await router.execute("hi", WorkflowContext("w-1"))


@pytest.mark.promise("R1")
async def test_a_function_that_tells_no_signature_gets_both_arguments() -> None:
    """Compiled functions have none to read; input and context are the contract."""
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(max)
    router = RouterPrimitive[str, str]({"fast": fast, "premium": premium}, max)
    assert "premium: premium" == await router.execute("premium", Least())


@pytest.mark.promise("R1", "R2", "S10")
async def test_without_telemetry_it_routes_the_same() -> None:
    """Counting is a by-product: choice, fallback and errors are the same where nobody counts."""

    async def failing(question: str) -> str:
        raise ProviderError

    async def choose(question: str, context: WorkflowContext) -> str:
        return question

    router = RouterPrimitive[str, str]({"fast": fast, "premium": premium, "failing": failing}, choose)
    assert "premium: premium" == await router.execute("premium")
    assert "fast: unknown" == await router.execute("unknown")
    with pytest.raises(ProviderError):
        await router.execute("failing")
    assert "fast: hi" == await RouterPrimitive[str, str]({"fast": fast}, lambda question: 1 / 0).execute("hi")  # type: ignore[arg-type,return-value]


@pytest.mark.promise("R1")
@pytest.mark.parametrize(
    "result", ["unknown", "", "FAST", None, 7, True, 0.5, b"fast", ["premium"], {}, object(), fast]
)
async def test_an_unknown_route_leads_to_the_default(result: Any, metrics: Metrics) -> None:
    """Whatever a function returns, hashable or not, the user's call is answered, and the slip is counted as one."""
    assert "fast: hi" == await to(result).execute("hi")
    assert {("fast", "invalid_route_fallback"): 1} == decisions(metrics)
    assert metrics("router.errors", route="fast", error_type="TypeError") is None


@pytest.mark.promise("R1")
async def test_an_async_function_that_gives_no_name_leads_to_the_default(metrics: Metrics) -> None:
    """The same holds for what is awaited."""

    async def choose(question: str, context: WorkflowContext) -> Any:
        return ["premium"]

    assert "fast: hi" == await RouterPrimitive({"fast": fast}, choose).execute("hi")
    assert {("fast", "invalid_route_fallback"): 1} == decisions(metrics)


@pytest.mark.promise("R1")
@pytest.mark.parametrize("is_async", [False, True])
async def test_an_error_in_the_function_leads_to_the_default_and_is_counted(
    is_async: bool, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken classifier must cost its decisions, not the user's calls, and must be visible; its message may quote."""

    def choose(question: str, context: WorkflowContext) -> str:
        raise KeyError(question)

    async def choose_async(question: str, context: WorkflowContext) -> str:
        raise KeyError(question)

    router = RouterPrimitive[str, str](
        {"fast": fast, "premium": premium}, choose_async if is_async else choose, default="premium"
    )
    assert "premium: the secret" == await router.execute("the secret")
    assert {("premium", "routing_error_fallback"): 1} == decisions(metrics)
    assert 1 == metrics("router.errors", route="premium", error_type="KeyError")
    assert 1 == metrics("telemetry.faults", site="router.router_fn")
    assert "the secret" not in caplog.text


async def test_a_cancellation_inside_the_function_is_not_an_error(metrics: Metrics) -> None:
    """A caller who goes away while the classifier is asked must not have the default route called for them."""
    called: list[str] = []

    async def route(question: str) -> None:
        called.append(question)

    async def choose(question: str, context: WorkflowContext) -> str:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await RouterPrimitive({"fast": route}, choose).execute("hi")
    assert [] == called
    assert {} == decisions(metrics)


@pytest.mark.promise("R2", "B3")
async def test_the_routes_own_error_passes_unchanged_and_is_counted(metrics: Metrics, tracing: Any) -> None:
    """Callers catch the provider's exceptions; a router that wraps, retries or hides them breaks their handling."""
    error = ProviderError("down")

    async def failing(question: str) -> str:
        raise error

    router = RouterPrimitive[str, str]({"fast": fast, "premium": failing}, lambda question, context: "premium")
    with pytest.raises(ProviderError) as caught:
        await router.execute("hi")
    assert error is caught.value
    assert 1 == metrics("router.errors", route="premium", error_type=f"{__name__}.ProviderError")
    assert 1 == metrics("router.execution", route="premium")
    assert {("premium", "routing_function"): 1} == decisions(metrics)
    assert error is tracing.named("router").error
    assert [] == tracing.unended()


@pytest.mark.promise("R2")
async def test_a_cancelled_route_is_no_error(metrics: Metrics, tracing: Any) -> None:
    """Users who close their browser must not raise the error rate; the cancellation itself passes through."""
    running = asyncio.Event()

    async def hanging(question: str) -> None:
        running.set()
        await asyncio.Event().wait()

    router = RouterPrimitive({"fast": hanging}, lambda question, context: "fast", cost_per_route={"fast": 0.0})
    task = asyncio.create_task(router.execute("hi"))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert metrics("router.errors", route="fast", error_type="CancelledError") is None
    assert metrics("router.errors", route="fast", error_type="asyncio.exceptions.CancelledError") is None
    assert 1 == metrics("router.execution", route="fast")
    assert tracing.named("router").error is None
    assert [] == tracing.unended()


@pytest.mark.promise("B3")
async def test_the_input_is_handed_on_as_it_is() -> None:
    """The route gets the caller's own object, and it is not changed on the way."""
    seen: list[Any] = []

    async def keep(request: Any) -> None:
        seen.append(request)

    request = {"messages": [{"role": "user", "content": "hi"}], "model": "small"}
    before = copy.deepcopy(request)
    await RouterPrimitive({"fast": keep}, lambda request, context: "fast").execute(request)
    assert request is seen[0]
    assert before == request


async def test_function_and_route_see_the_callers_context() -> None:
    """Tenant and session travel in the context, and both the choice and the work may depend on them."""
    seen: list[WorkflowContext] = []

    async def work(question: str, context: WorkflowContext) -> str:
        seen.append(context)
        return "done"

    def choose(question: str, context: WorkflowContext) -> str:
        seen.append(context)
        return "fast"

    router = RouterPrimitive[str, str]({"fast": work}, choose)
    context = WorkflowContext("w-1")
    assert "done" == await router.execute("hi", context)
    assert "done" == await router.execute("hi")
    assert [context, context] == seen[:2]
    assert seen[2] is seen[3]


async def test_the_span_carries_the_ids_of_the_workflow(tracing: Any) -> None:
    """Without them nobody finds the trace of a session."""
    await to("fast").execute("hi", WorkflowContext("w-1", "s-1"))
    attributes = tracing.named("router").attributes
    assert ("w-1", "s-1") == (attributes["workflow.id"], attributes["session.id"])


@pytest.mark.promise("R3")
@pytest.mark.parametrize(
    ("route", "costs", "saved"),
    [
        ("fast", COSTS, 0.009),
        ("premium", COSTS, 0),
        ("fast", None, 0),
        ("fast", {"premium": 0.01}, 0),
        ("premium", {"premium": 0.01}, 0),
        ("fast", {"fast": 0.0, "premium": 0.3}, 0.3),
        ("fast", {"fast": 0.001, "premium": 0.01, "retired": 5.0}, 0.009),
    ],
)
async def test_a_success_saves_the_difference_to_the_dearest_route(
    route: str, costs: dict[str, float] | None, saved: float, metrics: Metrics
) -> None:
    """Somebody reports these dollars: exactly the difference, nothing for a cost nobody stated or a route not there."""
    await to(route, cost_per_route=costs).execute("hi")
    assert saved == metrics("router.cost_savings_usd", route=route)


@pytest.mark.promise("R3")
async def test_savings_add_up_exactly(metrics: Metrics) -> None:
    """Ten thousandths of a dollar each, a thousand times over: no noise of adding floats in what is shown."""
    router = to("fast", cost_per_route=COSTS)
    for _ in range(1000):
        await router.execute("hi")
    assert 9 == metrics("router.cost_savings_usd", route="fast")


@pytest.mark.promise("R3")
async def test_a_failed_call_saves_nothing(metrics: Metrics) -> None:
    """An answer that never came has saved nothing."""

    async def failing(question: str) -> str:
        raise ProviderError

    router = RouterPrimitive[str, str](
        {"fast": failing, "premium": premium}, lambda question, context: "fast", cost_per_route=COSTS
    )
    with pytest.raises(ProviderError):
        await router.execute("hi")
    assert 0 == metrics("router.cost_savings_usd", route="fast")


@pytest.mark.promise("M7")
def test_every_known_series_stands_at_0_from_the_start(metrics: Metrics) -> None:
    """An alert on a fallback rate must see the first fallback, which it cannot if the series begins with it."""
    router = to("fast", cost_per_route=COSTS)
    reasons = ("routing_function", "invalid_route_fallback", "routing_error_fallback")
    assert [0, 0, 0] == [metrics("router.decisions", route="fast", reason=reason) for reason in reasons]
    assert 0 == metrics("router.decisions", route="premium", reason="routing_function")
    assert metrics("router.decisions", route="premium", reason="invalid_route_fallback") is None
    assert 0 == metrics("router.execution", route="fast")
    assert router.name == "router"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"routes": {}, "router_fn": lambda x, c: "fast"}, "Routes cannot be empty"),
        ({"routes": {"a": fast}, "router_fn": lambda x, c: "a"}, "Default route 'fast' not in routes"),
        ({"routes": {"fast": fast}, "router_fn": lambda x, c: "a", "default": "b"}, "Default route 'b' not in routes"),
        ({"routes": {"fast": fast}}, "router_fn is required"),
        ({"routes": {"fast": fast}, "router_fn": "fast"}, "router_fn must be a function, got 'fast'"),
        ({"routes": {"fast": lambda x: x}, "router_fn": lambda x, c: "fast"}, "synchronous"),
        ({}, "Routes cannot be empty"),
        ({"cheap_model": "small"}, "cheap_model and premium_model belong together"),
        ({"premium_model": "large"}, "cheap_model and premium_model belong together"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    """A slip must surface where the router is made; callers of the older interface expect a ValueError."""
    with pytest.raises(ValueError, match=message) as caught:
        RouterPrimitive(**arguments)
    assert isinstance(caught.value, ConfigurationError)


@pytest.mark.parametrize(
    "arguments",
    [
        {"routes": {"fast": fast}, "router_fn": lambda x, c: "fast", "cheap_model": "a", "premium_model": "b"},
        {"routes": {"fast": fast}, "router_fn": lambda x, c: "fast", "complexity_threshold": 0.7},
        {"cheap_model": "a", "premium_model": "b", "default": "fast"},
        {"cheap_model": "a", "premium_model": "b", "cost_per_route": COSTS},
    ],
)
def test_keywords_of_both_forms_are_refused_with_both_sets(arguments: dict[str, Any]) -> None:
    """Whoever mixes the forms has to learn which keywords belong together."""
    with pytest.raises(ConfigurationError) as caught:
        RouterPrimitive(**arguments)
    for keyword in ("routes", "router_fn", "default_route", "cost_per_route", "cheap_model", "premium_model"):
        assert keyword in str(caught.value)


@pytest.mark.promise("B5")
def test_it_prints_well() -> None:
    """What a log or a debugger shows of it."""
    assert "RouterPrimitive(routes=['fast', 'premium'], default='fast')" == repr(to("fast"))
    assert "RouterPrimitive(cheap='small', premium='large')" == repr(by_model())
    nested = RouterPrimitive[str, str]({"fast": fast, "deep": to("fast")}, lambda x, c: "fast", name="shop")
    assert (
        "router shop (default: fast)\n"
        "  fast: fast\n"
        "  deep: router router (default: fast)\n"
        "    fast: fast\n"
        "    premium: premium"
    ) == nested.describe()


# The form with two models


@pytest.mark.promise("R3", "R4")
def test_the_worked_example_saves_nine_tenths_of_a_cent() -> None:
    """The figure in everybody's documentation, to the last digit and without awaiting anything."""
    router = by_model()
    decision = router.decide_route(query="What is 2+2?", complexity_score=0.1)
    expected = RoutingDecision(Route.CHEAP, "small", 0.009, "complexity_below_threshold", 0.1)
    assert expected == decision
    assert not inspect.iscoroutinefunction(router.decide_route)


@pytest.mark.promise("R4")
@pytest.mark.parametrize(
    ("score", "threshold", "route"),
    [
        (0, 0.5, Route.CHEAP),
        (0.4999, 0.5, Route.CHEAP),
        (0.5, 0.5, Route.PREMIUM),
        (1, 0.5, Route.PREMIUM),
        (0.0, 0.0, Route.PREMIUM),
        (0.99, 1.0, Route.CHEAP),
        (0.6, 0.7, Route.CHEAP),
    ],
)
def test_the_score_decides(score: float, threshold: float, route: Route, metrics: Metrics) -> None:
    """Below the threshold is cheap, at it is not; and every decision is counted with its reason."""
    decision = by_model(complexity_threshold=threshold).decide_route("hi", score)
    reason = "complexity_below_threshold" if route is Route.CHEAP else "complexity_above_threshold"
    assert (route, reason, score) == (decision.route, decision.reason, decision.complexity_score)
    assert ("small" if route is Route.CHEAP else "large") == decision.model
    assert (0.009 if route is Route.CHEAP else 0) == decision.cost_savings
    assert {(route.value, reason): 1} == decisions(metrics)


@pytest.mark.promise("R4")
@pytest.mark.parametrize("score", [float("nan"), -0.01, 1.01, float("inf"), True, "0.5"])
def test_a_score_out_of_range_is_the_callers_mistake(score: Any, metrics: Metrics) -> None:
    """A score on another scale (0 to 10, per cent) would send everything to one model without anybody noticing."""
    with pytest.raises(ConfigurationError, match="complexity_score"):
        by_model().decide_route("hi", score)
    assert {} == decisions(metrics)


@pytest.mark.promise("R4")
@pytest.mark.parametrize("scored", [float("nan"), 7, -1, None, "hard", ZeroDivisionError("the secret")])
def test_a_function_that_cannot_score_leads_to_the_premium_model(
    scored: Any, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the difficulty is unknown, the answer's quality comes first; the reason says so, no score is claimed."""

    def score(query: str) -> float:
        if isinstance(scored, Exception):
            raise scored
        return scored  # type: ignore[no-any-return]

    decision = by_model(complexity_fn=score).decide_route("the secret")
    assert RoutingDecision(Route.PREMIUM, "large", 0, "complexity_error_fallback", None) == decision
    assert {("premium", "complexity_error_fallback"): 1} == decisions(metrics)
    assert 1 == metrics("telemetry.faults", site="router.complexity_fn")
    assert "the secret" not in caplog.text


def test_a_function_of_the_users_scores_in_place_of_ours() -> None:
    """The heuristic is a first guess; whoever has a classifier brings it."""
    router = by_model(complexity_fn=lambda query: len(query) / 10)
    assert 0.2 == router.decide_route("hi").complexity_score
    assert Route.PREMIUM is router.decide_route("much longer"[:9]).route


def test_our_own_guess_tells_the_trivial_from_the_hard() -> None:
    """Out of the box, small talk is cheap and a demanding task is not."""
    router = by_model()
    hard = (
        "Prove step by step why the algorithm below is correct, analyze its complexity, compare it with quicksort and "
        "evaluate the trade-offs:\n```def f(x): ...```\nFirst derive the recurrence; also give the equation 2 * 3."
    )
    assert Route.CHEAP is router.decide_route("What is 2+2?").route
    assert Route.PREMIUM is router.decide_route(hard).route


@given(st.text())
def test_our_own_guess_is_always_a_score(text: str) -> None:
    """Whatever is asked, in whatever script, the guess is a number from 0 to 1."""
    assert 0 <= estimate_complexity(text) <= 1


@pytest.mark.promise("R4")
async def test_the_function_gets_what_its_signature_takes() -> None:
    """Existing functions come in every shape, and each gets `model=` and `query=` only if it has a place for them."""
    router = by_model()

    async def only_query(query: str) -> str:
        return query

    async def only_model(*, model: str) -> str:
        return model

    async def neither() -> str:
        return "nothing"

    async def everything(**given: Any) -> Any:
        return given

    async def more(query: str, model: str, temperature: float) -> Any:
        return query, model, temperature

    class Caller:
        async def __call__(self, query: str, model: str) -> str:
            return f"{model}: {query}"

    mock = AsyncMock(return_value="mocked")
    bound: Callable[..., Any] = functools.partial(more, temperature=0.5)

    assert "small: hi" == await router.execute_async(asked, "hi", 0.1)
    assert "hi" == await router.execute_async(only_query, "hi", 0.1)
    assert "small" == await router.execute_async(only_model, "hi", 0.1)
    assert "nothing" == await router.execute_async(neither, "hi", 0.1)
    assert {"model": "large", "query": "hi", "top_p": 1} == await router.execute_async(everything, "hi", 0.9, top_p=1)
    assert ("hi", "small", 0.2) == await router.execute_async(more, "hi", 0.1, temperature=0.2)
    assert ("hi", "small", 0.5) == await router.execute_async(bound, "hi", 0.1)
    assert "small: hi" == await router.execute_async(Caller(), "hi", 0.1)
    assert "small: hi" == await router.execute_async(lambda query, model: asked(model, query), "hi", 0.1)
    assert "mocked" == await router.execute_async(mock, "hi", 0.1)
    mock.assert_awaited_once_with(model="small", query="hi")


async def test_a_function_that_tells_no_signature_gets_both() -> None:
    """Compiled callables have none; the two arguments are what they were promised."""

    class Opaque:
        __signature__ = "none that can be read"

        async def __call__(self, model: str, query: str) -> str:
            return f"{model}: {query}"

    assert "small: hi" == await by_model().execute_async(Opaque(), "hi", 0.1)


@pytest.mark.promise("R3", "R4")
async def test_a_call_through_the_models_is_counted(metrics: Metrics, tracing: Any) -> None:
    """Decision, duration, saving and span of one call, each once."""
    seen: list[str] = []

    async def work(model: str) -> str:
        seen.append(tracing.current.name)
        return model

    assert "small" == await by_model(name="shop").execute_async(work, "hi", 0.1)
    assert {("cheap", "complexity_below_threshold"): 1} == decisions(metrics)
    assert 1 == metrics("router.execution", route="cheap")
    assert 0.009 == metrics("router.cost_savings_usd", route="cheap")
    assert ["router shop"] == seen
    expected = {"router.route": "cheap", "router.reason": "complexity_below_threshold", "outcome": "success"}
    assert expected == tracing.named("router shop").attributes
    assert [] == tracing.unended()


@pytest.mark.promise("R2", "R3")
async def test_an_error_of_the_function_passes_and_saves_nothing(metrics: Metrics, tracing: Any) -> None:
    """As with routes: unchanged, counted with its type, no dollars."""
    error = ProviderError("down")

    async def failing(query: str) -> str:
        raise error

    with pytest.raises(ProviderError) as caught:
        await by_model().execute_async(failing, "hi", 0.1)
    assert error is caught.value
    assert 1 == metrics("router.errors", route="cheap", error_type=f"{__name__}.ProviderError")
    assert 0 == metrics("router.cost_savings_usd", route="cheap")
    assert error is tracing.named("router").error
    assert [] == tracing.unended()


@pytest.mark.promise("B1")
async def test_a_synchronous_function_is_refused() -> None:
    """It has already blocked the loop by the time it returns; the message says what is wanted."""
    with pytest.raises(ConfigurationError, match="async"):
        await by_model().execute_async(lambda query: query, "hi", 0.1)  # type: ignore[arg-type,return-value]


async def test_a_score_out_of_range_ends_the_span_too(tracing: Any) -> None:
    """A refusal must not leave an open span behind."""
    with pytest.raises(ConfigurationError):
        await by_model().execute_async(asked, "hi", 2)
    assert [] == tracing.unended()
    assert tracing.current is None


async def test_each_form_points_to_the_other() -> None:
    """Calling the method of the other form is a slip that the message can resolve."""
    with pytest.raises(ConfigurationError, match="execute_async"):
        await by_model().execute("hi")
    with pytest.raises(ConfigurationError, match="execute_async"):
        async with by_model().stream("hi"):
            pass
    with pytest.raises(ConfigurationError, match="cheap_model"):
        to("fast").decide_route("hi")
    with pytest.raises(ConfigurationError, match="cheap_model"):
        await to("fast").execute_async(asked, "hi")
    assert [] == by_model().steps()


# Streams


async def words(question: str) -> AsyncIterator[str]:
    for word in ("one ", "two ", "three"):
        yield word


def streaming(route: Any = "fast", **options: Any) -> RouterPrimitive[Any, Any]:
    return RouterPrimitive({"fast": words, "premium": premium}, lambda question, context: route, **options)


@pytest.mark.promise("R1", "R3")
async def test_a_stream_comes_from_the_chosen_route(metrics: Metrics, tracing: Any) -> None:
    """The decision is made when the stream is opened; time and saving are counted at its end."""
    async with streaming(cost_per_route=COSTS).stream("hi") as chunks:
        assert {("fast", "routing_function"): 1} == decisions(metrics)
        assert 0 == metrics("router.execution", route="fast")
        assert ["one ", "two ", "three"] == [chunk async for chunk in chunks]
    assert 1 == metrics("router.execution", route="fast")
    assert 0.009 == metrics("router.cost_savings_usd", route="fast")
    span = tracing.named("router")
    assert ("fast", "success") == (span.attributes["router.route"], span.attributes["outcome"])
    assert [] == tracing.unended()


async def test_a_route_that_does_not_stream_gives_one_chunk() -> None:
    """Routes of one router may be of both kinds."""
    async with streaming("premium").stream("hi", WorkflowContext("w-1")) as chunks:
        assert ["premium: hi"] == [chunk async for chunk in chunks]
    assert "one two three" == await streaming().execute("hi")


@pytest.mark.promise("R3")
async def test_a_stream_left_early_saves_nothing(metrics: Metrics) -> None:
    """The answer was not had; nor was it an error."""
    async with streaming(cost_per_route=COSTS).stream("hi") as chunks:
        assert "one " == await anext(chunks)
    assert 0 == metrics("router.cost_savings_usd", route="fast")
    assert 1 == metrics("router.execution", route="fast")
    assert metrics("router.errors", route="fast", error_type="asyncio.exceptions.CancelledError") is None


@pytest.mark.promise("R2")
async def test_an_error_in_the_middle_of_a_stream_passes_and_is_counted(metrics: Metrics, tracing: Any) -> None:
    """After a few chunks the reader must still get the provider's own error."""
    error = ProviderError("cut")

    async def cut(question: str) -> AsyncIterator[str]:
        yield "one "
        raise error

    router = RouterPrimitive[str, Any]({"fast": cut}, lambda question, context: "fast")
    with pytest.raises(ProviderError) as caught:
        async with router.stream("hi") as chunks:
            assert ["one "] == [chunk async for chunk in chunks]
    assert error is caught.value
    assert 1 == metrics("router.errors", route="fast", error_type=f"{__name__}.ProviderError")
    assert 1 == metrics("router.execution", route="fast")
    assert error is tracing.named("router").error
    assert [] == tracing.unended()


@pytest.mark.promise("R1")
async def test_a_stream_falls_back_like_a_call(metrics: Metrics) -> None:
    """A broken routing function must not take the streaming users down either."""

    def choose(question: str, context: WorkflowContext) -> str:
        raise KeyError(question)

    router = RouterPrimitive[str, Any]({"fast": words}, choose)
    async with router.stream("hi") as chunks:
        assert "one " == await anext(chunks)
    assert {("fast", "routing_error_fallback"): 1} == decisions(metrics)
    assert 1 == metrics("router.errors", route="fast", error_type="KeyError")


@pytest.mark.promise("R2")
async def test_a_stream_that_does_not_open_is_an_error_of_its_route(metrics: Metrics, tracing: Any) -> None:
    """A provider that refuses the request at once has still been routed to."""
    error = ProviderError("refused")

    async def refused(question: str) -> Any:
        raise error

    router = RouterPrimitive[str, Any]({"fast": LLMCallPrimitive(refused)}, lambda question: "fast")
    with pytest.raises(ProviderError) as caught:
        async with router.stream("hi"):
            pytest.fail("it opened")
    assert error is caught.value
    assert 1 == metrics("router.errors", route="fast", error_type=f"{__name__}.ProviderError")
    assert [] == tracing.unended()


async def test_a_stream_cancelled_while_its_route_is_chosen_counts_for_no_route(metrics: Metrics, tracing: Any) -> None:
    """Nothing was decided, so nothing was taken."""

    async def choose(question: str, context: WorkflowContext) -> str:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        async with RouterPrimitive[str, Any]({"fast": words}, choose).stream("hi"):
            pytest.fail("it opened")
    assert {} == decisions(metrics)
    assert 0 == metrics("router.execution", route="fast")
    assert [] == tracing.unended()


async def test_a_streamed_route_gets_a_context() -> None:
    """Also from a router whose function does not ask for one."""
    seen: list[Any] = []

    class Route(WorkflowPrimitive[Any, Any]):
        async def execute(self, input_data: Any, context: WorkflowContext | None = None) -> str:
            seen.append(context)
            return "answer"

    async with RouterPrimitive({"fast": Route()}, lambda _: "fast").stream("question") as chunks:
        assert ["answer"] == [chunk async for chunk in chunks]
    assert isinstance(seen[0], WorkflowContext)
