"""In front of a lone target, the attempts of one caller at one question are one failure."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from observability_integration.errors import CircuitOpenError
from observability_integration.primitives import (
    Backoff,
    Breaker,
    BreakerPolicy,
    CircuitBreakerPrimitive,
    FallbackPrimitive,
    HedgePrimitive,
    RetryPrimitive,
    TimeoutPrimitive,
    pipeline,
)
from observability_integration.primitives.circuit_breaker.shared import SharedBreaker
from observability_integration.primitives.circuit_breaker.verdict import Answer, Verdict
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop
pytestmark = [pytest.mark.once, pytest.mark.promise("K1", "K2")]

FORMS = pytest.mark.parametrize("streams", [False, True], ids=["execute", "stream"])
SOON = Backoff(base_seconds=0.01, max_seconds=0.01)
POLICY = BreakerPolicy(jitter=0.0)


class Target:
    """Fails as it is told, one fault after the other and the last one for ever; without a fault it answers."""

    def __init__(self, *faults: type[Exception] | None) -> None:
        self.faults = list(faults)
        self.calls = 0

    def _next(self) -> str:
        self.calls += 1
        fault = self.faults.pop(0) if len(self.faults) > 1 else self.faults[0]
        if fault is not None:
            raise fault
        return "fine"

    async def __call__(self, _: Any) -> str:
        await asyncio.sleep(0)
        return self._next()


class Limited(Exception):
    """A rate limit, by its shape."""

    status_code = 429


class Down(Exception):
    """A fault of the target, by its shape."""

    status_code = 503


class Translated(Exception):
    """The error of an application that hides its provider's."""


class Nowhere:
    """A store of verdicts that never has one."""

    @asynccontextmanager
    async def link(self, target: str) -> AsyncIterator[Any]:
        yield self

    async def fetch(self, token: str, lease_seconds: float, claim: int) -> Answer:
        return Answer(None, "free")

    async def publish(self, token: str, verdict: Verdict, tail_seconds: float, *, keep: bool) -> Answer:
        return Answer(verdict, "free")


def breaker(step: Any, **knobs: Any) -> CircuitBreakerPrimitive[Any, Any]:
    clock = asyncio.get_running_loop().time
    return CircuitBreakerPrimitive(step, **{"breaker": Breaker(POLICY, clock=clock), "target": "t", **knobs})


def retry(step: Any, attempts: int = 3, **knobs: Any) -> RetryPrimitive[Any, Any]:
    return RetryPrimitive(step, attempts, **{"backoff": SOON, "budget": None, **knobs})


async def ask(primitive: Any, streams: bool = False) -> Any:
    """The answer, or the type of the error."""
    try:
        if not streams:
            return await primitive.execute("q")
        async with primitive.stream("q") as chunks:
            return "".join([chunk async for chunk in chunks])
    except Exception as error:
        return type(error)


def _translating(step: Any) -> Any:
    async def call(question: Any) -> Any:
        try:
            return await step.execute(question)
        except ConnectionError:
            raise Translated from None

    def as_transient(error: BaseException) -> Any:
        return "transient" if isinstance(error, Translated) else None

    return lambda attempts: retry(call, attempts, classifier=as_transient)


AROUND: dict[str, Callable[[Any], Callable[[int], Any]]] = {
    "retry": lambda step: lambda attempts: retry(step, attempts),
    "fallback of one": lambda step: lambda attempts: FallbackPrimitive([retry(step, attempts)]),
    "fallback of one of one": lambda step: (
        lambda attempts: FallbackPrimitive([FallbackPrimitive([retry(step, attempts)])])
    ),
    "fallback inside": lambda step: lambda attempts: retry(FallbackPrimitive([step]), attempts),
    "another task": lambda step: lambda attempts: retry(TimeoutPrimitive(step, 9.0), attempts),
    "two retries": lambda step: lambda attempts: retry(retry(step, 2), attempts),
    "hedged": lambda step: lambda attempts: retry(HedgePrimitive(step, delay_seconds=0.0, budget=None), attempts),
    "translated": _translating,
}


@FORMS
@pytest.mark.parametrize("attempts", [1, 2, 3, 7])
@pytest.mark.parametrize("around", AROUND)
async def test_three_questions_open_it(around: str, attempts: int, streams: bool) -> None:
    """However many attempts each of them takes; and it stays open."""
    guarded = breaker(Target(ConnectionError))
    primitive = AROUND[around](guarded)(attempts)
    for question in (1, 2):
        assert ask_failed(await ask(primitive, streams))
        counts = guarded.breaker.counts()
        assert (question, question, question) == (counts.consecutive_failures, counts.calls, counts.failures)
    assert ask_failed(await ask(primitive, streams))
    assert "open" == guarded.state
    assert CircuitOpenError is await ask(primitive, streams)


def ask_failed(outcome: Any) -> bool:
    return outcome in (ConnectionError, Translated, CircuitOpenError)


@FORMS
@pytest.mark.parametrize("shared", ["one object", "two primitives", "with other processes"])
async def test_a_shared_breaker_counts_so_too(shared: str, streams: bool) -> None:
    """The rule is the question's, whatever else uses the breaker."""
    target = Target(ConnectionError)
    clock = asyncio.get_running_loop().time
    kept: Any = Breaker(POLICY, clock=clock)
    if shared == "with other processes":
        kept = SharedBreaker("t", Nowhere(), POLICY, clock=clock)
    first = retry(breaker(target, breaker=kept))
    second = retry(breaker(target, breaker=kept)) if shared == "two primitives" else first
    for primitive in (first, second):
        assert ConnectionError is await ask(primitive, streams)
    assert (2, "closed") == (kept.counts().consecutive_failures, kept.state)
    await ask(first, streams)
    assert "open" == kept.state
    if isinstance(kept, SharedBreaker):
        await kept.aclose()


@FORMS
async def test_callers_at_the_same_time_ask_a_question_each(streams: bool) -> None:
    """Two are no reason to open it for the third; three that fail are."""
    for callers, state in ((2, "closed"), (3, "open")):
        guarded = breaker(Target(ConnectionError))
        primitive = retry(guarded)
        await asyncio.gather(*(ask(primitive, streams) for _ in range(callers)))
        assert (state, callers % 3) == (guarded.state, guarded.breaker.counts().failures), "an open one has none"


@FORMS
async def test_the_next_user_is_served(streams: bool) -> None:
    """A blip of three attempts costs one user an answer, and no other."""
    target = Target(ConnectionError, ConnectionError, ConnectionError, None)
    primitive = pipeline([target], backoff=SOON)
    assert ConnectionError is await ask(primitive, streams)
    assert "fine" == await ask(primitive, streams)


@FORMS
async def test_a_success_counts_as_always(streams: bool, metrics: Any) -> None:
    """The attempt that serves ends the row; the others between are told as ignored."""
    guarded = breaker(Target(Down, Down, None))
    assert "fine" == await ask(retry(guarded), streams)
    assert (0, 2, 1) == (
        guarded.breaker.counts().consecutive_failures,
        guarded.breaker.counts().calls,
        guarded.breaker.counts().failures,
    )
    told = {name: metrics("circuit_breaker.calls", target="t", outcome=name) for name in _OUTCOMES}
    assert {"success": 1, "failure": 1, "ignored": 1} == told


_OUTCOMES = ("success", "failure", "ignored")


@FORMS
@pytest.mark.parametrize(
    ("faults", "failures"), [((Limited, Down, Down), 1), ((Limited, Limited, Down), 1), ((Down, Limited, Down), 1)]
)
async def test_the_first_failure_that_counts_is_counted(faults: Any, failures: int, streams: bool) -> None:
    """A rate limit is none: what follows it is the first."""
    guarded = breaker(Target(*faults))
    await ask(retry(guarded), streams)
    assert failures == guarded.breaker.counts().consecutive_failures


@FORMS
async def test_each_target_of_a_question_counts_its_own(streams: bool) -> None:
    """A second attempt that goes elsewhere, as a router sends it, is the first one there."""
    guarded = [breaker(Target(Down)), breaker(Target(Down)), breaker(Target(Down))]
    turns = iter(guarded * 3)

    async def route(question: Any) -> Any:
        return await ask_one(next(turns), question)

    async def ask_one(step: Any, question: Any) -> Any:
        if not streams:
            return await step.execute(question)
        async with step.stream(question) as chunks:
            return [chunk async for chunk in chunks]

    await ask(retry(route, 6), streams)
    assert [1, 1, 1] == [each.breaker.counts().consecutive_failures for each in guarded]


@FORMS
async def test_with_another_target_each_attempt_counts(streams: bool) -> None:
    """There a circuit that opens soon costs no caller an answer, and spares all of them the wait."""
    first, last = breaker(Target(Down)), breaker(Target(Down))
    primitive = FallbackPrimitive([retry(first), retry(last)])
    await ask(primitive, streams)
    assert ("open", "open") == (first.state, last.state)
    inner = breaker(Target(Down))
    await ask(FallbackPrimitive([FallbackPrimitive([retry(inner)]), Target(None)]), streams)
    assert "open" == inner.state, "the other target is further out"


@FORMS
async def test_the_two_calls_of_a_hedge_are_one_question(streams: bool) -> None:
    """Both fail, in either order; another target of a hedge counts for itself."""
    for times in ((3.0, 1.0), (3.0, 3.0)):
        seconds = iter(times)

        async def call(_: Any, seconds: Any = seconds) -> None:
            await asyncio.sleep(next(seconds))
            raise Down

        guarded = breaker(call)
        assert Down is await ask(HedgePrimitive(guarded, delay_seconds=1.0), streams)
        assert 1 == guarded.breaker.counts().consecutive_failures

    async def slow(_: Any) -> None:
        await asyncio.sleep(3.0)
        raise Down

    first, second = breaker(slow), breaker(slow)
    await ask(HedgePrimitive(first, second, delay_seconds=1.0), streams)
    assert (1, 1) == (first.breaker.counts().failures, second.breaker.counts().failures)


@FORMS
async def test_a_probe_that_is_a_further_attempt_still_decides(streams: bool) -> None:
    """Else a target that is down would be probed by call after call, without the pause."""
    target = Target(Down)
    guarded = breaker(target)
    primitive = retry(guarded, backoff=Backoff(base_seconds=30.0, max_seconds=30.0, jitter="none"))
    waiting = asyncio.create_task(ask(primitive, streams))
    await asyncio.sleep(1.0)
    guarded.force_open(5.0)
    await asyncio.sleep(32.0)
    assert (2, "open") == (target.calls, guarded.state)
    assert CircuitOpenError is await ask(guarded, streams)
    waiting.cancel()
    await asyncio.wait([waiting])


@FORMS
@pytest.mark.parametrize("hedged", [False, True], ids=["retried", "hedged"])
async def test_work_that_outlives_its_question_counts_for_itself(hedged: bool, streams: bool) -> None:
    """A task that the last call has started, and that asks questions of others later."""
    guarded = breaker(Target(Down))
    started: list[asyncio.Task[Any]] = []
    over = asyncio.Event()

    async def later() -> None:
        await over.wait()
        for _ in range(2):
            await ask(guarded)

    async def call(question: Any) -> Any:
        for earlier in started:
            earlier.cancel()
        started.append(asyncio.create_task(later()))
        await asyncio.sleep(1.0)
        return await guarded.execute(question)

    await ask(HedgePrimitive(call, delay_seconds=0.5) if hedged else retry(call, 2), streams)
    assert 1 == guarded.breaker.counts().failures
    over.set()
    await started[-1]
    assert "open" == guarded.state


@FORMS
async def test_questions_one_after_the_other_in_one_task(streams: bool) -> None:
    """The question ends with its call, also when that is cancelled or closed in between."""
    guarded = breaker(Target(Down))
    primitive = retry(guarded, backoff=Backoff(base_seconds=5.0, jitter="none"))
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7.0):
                await ask(primitive, streams)
    assert 2 == guarded.breaker.counts().consecutive_failures
    await ask(guarded, streams)
    assert "open" == guarded.state


@pytest.mark.parametrize("error", [Down(), ConnectionError("same")], ids=repr)
async def test_an_error_that_is_raised_again_and_again(error: Exception) -> None:
    """A provider's client may raise one object for ever: each question counts once all the same."""

    async def call(_: Any) -> None:
        raise error

    guarded = breaker(call)
    for question in (1, 2):
        await ask(retry(guarded))
        assert question == guarded.breaker.counts().consecutive_failures
    assert type(error) is type(pickle.loads(pickle.dumps(error)))
    assert type(error) is type(copy.copy(error))


async def test_an_error_that_hides_its_attributes() -> None:
    """What cannot be noted is counted as an attempt of its own, and breaks nothing."""

    class Hidden(ConnectionError):
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise RuntimeError

    guarded = breaker(Target(Hidden))
    assert Hidden is await ask(retry(guarded, 2))
    assert 2 == guarded.breaker.counts().consecutive_failures


@FORMS
@pytest.mark.parametrize(("targets", "attempts"), [(1, 9), (2, 5)], ids=["a lone target", "one of two"])
async def test_the_arithmetic_of_the_defaults(targets: int, attempts: int, streams: bool) -> None:
    """As the policy's docstring has it: down for a minute, and asked every 4 s with up to three attempts."""
    down = Target(Down)
    guarded = CircuitBreakerPrimitive(down, breaker=Breaker(clock=asyncio.get_running_loop().time))
    steps: list[Any] = [retry(guarded), Target(None)]
    primitive = FallbackPrimitive(steps[:targets])
    for _ in range(15):
        asked_at = asyncio.get_running_loop().time()
        await ask(primitive, streams)
        await asyncio.sleep(asked_at + 4.0 - asyncio.get_running_loop().time())
    assert attempts == down.calls
