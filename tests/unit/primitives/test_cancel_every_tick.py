"""Cancelled at every turn of the loop: whatever the moment, a cancellation gets out, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observability_integration import WorkflowContext
from observability_integration.caching.policy import CachePolicy
from observability_integration.context import current_deadline
from observability_integration.errors import AllTargetsFailedError, PrimitiveTimeoutError, StreamInterruptedError
from observability_integration.primitives import (
    CachePrimitive,
    ConditionalPrimitive,
    FallbackPrimitive,
    LLMCallPrimitive,
    ParallelPrimitive,
    RateLimitPrimitive,
    RetryPrimitive,
    RouterPrimitive,
    SequentialPrimitive,
    SwitchPrimitive,
    TimeoutPrimitive,
    pipeline,
)
from observability_integration.testing import FakeClockLoop
from tests.cache_doubles import clocks_of_the_loop

pytestmark = [pytest.mark.once, pytest.mark.unmeasured]

MAX_TURNS_AFTER = 60  # in which everything that a call started must have ended
LIMIT_SECONDS = 10.0
_OWN = AllTargetsFailedError | PrimitiveTimeoutError | StreamInterruptedError


class TickLoop(FakeClockLoop):
    """A loop that counts its turns, and does something before a given one."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0
        self.before_turn: dict[int, Callable[[], None]] = {}

    def _run_once(self) -> None:
        self.turn += 1
        self.before_turn.pop(self.turn, lambda: None)()
        super()._run_once()  # type: ignore[misc]


@dataclass(frozen=True)
class Work:
    """What is inside the primitive.

    Args:
        turns: of the loop that it takes.
        seconds: that it takes after them.
        fails: whether it then raises.
        cleanup_turns: of the loop that it takes to obey a cancel.
    """

    turns: int = 2
    seconds: float = 0.0
    fails: bool = False
    cleanup_turns: int = 1

    async def _go(self) -> None:
        try:
            for _ in range(self.turns):
                await asyncio.sleep(0)
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            for _ in range(self.cleanup_turns):
                await asyncio.sleep(0)
            raise

    async def call(self, _: Any = None) -> str:
        await self._go()
        if self.fails:
            raise LookupError
        return "answer"

    async def stream(self, _: Any = None) -> AsyncIterator[Any]:
        for letter in "ab":
            yield letter
            await self._go()
        if self.fails:
            raise LookupError

    async def answer(self, _: Any = None) -> AsyncIterator[Any]:
        yield {"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}
        await asyncio.sleep(0)
        yield {"choices": [{"delta": {}, "finish_reason": "stop"}]}
        await self._go()


class SlowStore:
    """A shared store whose every access takes turns of the loop and time, within the budget or beyond it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.kept: dict[str, bytes] = {}

    async def get(self, key: str) -> bytes | None:
        await asyncio.sleep(self.seconds)
        return self.kept.get(key)

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        await asyncio.sleep(self.seconds)
        self.kept[key] = value

    async def delete(self, *keys: str) -> None:
        await asyncio.sleep(self.seconds)

    async def clear(self, prefix: str) -> None:
        await asyncio.sleep(self.seconds)

    async def aclose(self) -> None:
        pass


async def read(primitive: Any) -> list[Any]:
    async with primitive.stream("question", WorkflowContext("w-1")) as chunks:
        return [chunk async for chunk in chunks]


async def slowly(*_: Any) -> str:
    await asyncio.sleep(0)
    return "a"


def router(step: Any) -> Any:
    return RouterPrimitive({"a": step}, slowly, default_route="a")


def model_router(work: Work) -> Awaitable[Any]:
    primitive: Any = RouterPrimitive(cheap_model="cheap", premium_model="premium")
    return primitive.execute_async(work.call, "question")


def cache(step: Any, backend_seconds: float | None = None) -> Any:
    backend = None if backend_seconds is None else SlowStore(backend_seconds)
    return CachePrimitive(step, lambda question: question, operation_name="ask", backend=backend)


async def cache_twice(work: Work, backend_seconds: float | None) -> Any:
    """A miss, then a hit."""
    primitive = cache(work.call, backend_seconds)
    await primitive.execute("question")
    return await primitive.execute("question")


REQUEST = {"model": "m", "messages": [{"role": "user", "content": "question"}]}


async def cache_stale(work: Work, **policy: Any) -> Any:
    """A call that works, then twice what has expired meanwhile, and is to be replaced by a call that may not."""
    first = iter([Work()])

    async def call(_: Any) -> str:
        return await next(first, work).call()

    options = CachePolicy(ttl_jitter=0.0, **policy)
    with clocks_of_the_loop():
        primitive = CachePrimitive(call, lambda question: question, 5.0, operation_name="ask", policy=options)
        await primitive.execute("question")
        await asyncio.sleep(6.0)
        await primitive.execute("question")
        return await primitive.execute("question")


def timeout(step: Any, **options: Any) -> Any:
    return TimeoutPrimitive(step, LIMIT_SECONDS, operation_name="ask", **options)


def model_timeout(work: Work) -> Awaitable[Any]:
    primitive: Any = TimeoutPrimitive(timeout_seconds=LIMIT_SECONDS)
    return primitive.execute_with_timeout(work.call)


def nested(step: Any) -> Any:
    return router(cache(timeout(timeout(LLMCallPrimitive(step, model="m")))))


def retry(step: Any) -> Any:
    return RetryPrimitive(step, classifier=lambda _: "transient", operation_name="ask")


def fallback(step: Any) -> Any:
    return FallbackPrimitive([step, step], operation_name="ask")


async def twice(primitive: Any) -> Any:
    await primitive.execute("question")
    return await primitive.execute("question")


def watched(step: Any) -> Any:
    return timeout(step, first_chunk_seconds=8.0, idle_seconds=5.0)


SCENARIOS: dict[str, Callable[[Work], Awaitable[Any]]] = {
    "router": lambda work: router(work.call).execute("question"),
    "router, model form": model_router,
    "cache in memory": lambda work: cache_twice(work, None),
    "cache with a store": lambda work: cache_twice(work, 0.0),
    "cache with a store beyond its budget": lambda work: cache_twice(work, 1.0),
    "cache, model form": lambda work: CachePrimitive().get_or_compute("key", work.call),  # type: ignore[arg-type]
    "cache of requests": lambda work: CachePrimitive.for_requests(work.call, scope="tenant").execute(REQUEST),
    "cache with a soft limit": lambda work: cache_stale(work, soft_timeout_seconds=0.5, stale_if_error_seconds=100.0),
    "cache with a hard limit": lambda work: cache_stale(work, hard_timeout_seconds=2.0),
    "cache that revalidates": lambda work: cache_stale(work, stale_while_revalidate_seconds=100.0),
    "timeout": lambda work: timeout(work.call).execute("question"),
    "timeout without grace": lambda work: timeout(work.call, grace_period_seconds=0).execute("question"),
    "timeout that lets finish": lambda work: timeout(work.call, grace_mode="finish").execute("question"),
    "timeout with a fallback": lambda work: timeout(work.call, fallback=slowly).execute("question"),
    "timeout, model form": model_timeout,
    "timeout in a timeout": lambda work: timeout(timeout(work.call)).execute("question"),
    "llm call": lambda work: LLMCallPrimitive(work.call).execute("question"),
    "sequence": lambda work: SequentialPrimitive([work.call, slowly, work.call]).execute("question"),
    "parallel": lambda work: ParallelPrimitive([work.call, slowly, work.call]).execute("question"),
    "parallel, one at a time": lambda work: ParallelPrimitive([work.call] * 3, max_concurrency=1).execute("question"),
    "conditional": lambda work: ConditionalPrimitive(slowly, work.call).execute("question"),
    "switch": lambda work: SwitchPrimitive(slowly, {"a": work.call}).execute("question"),
    "timeout that watches a stream": lambda work: watched(work.stream).execute("question"),
    "retry": lambda work: retry(work.call).execute("question"),
    "fallback": lambda work: fallback(work.call).execute("question"),
    "pipeline": lambda work: pipeline([work.call, work.stream], timeout_seconds=LIMIT_SECONDS).execute("question"),
    "nested": lambda work: nested(work.call).execute("question"),
    "stream of a router": lambda work: read(router(work.stream)),
    "stream of a cache": lambda work: read(cache(work.stream)),
    "stream of a timeout": lambda work: read(timeout(work.stream, idle_seconds=5.0)),
    "stream of a timeout with a fallback": lambda work: read(timeout(work.call, fallback=work.stream)),
    "llm call that hangs after its reason": lambda work: LLMCallPrimitive(work.answer).execute("question"),
    "stream of an answer that hangs after its reason": lambda work: read(LLMCallPrimitive(work.answer)),
    "pipeline of an answer that hangs after its reason": lambda work: pipeline(
        [work.answer], timeout_seconds=LIMIT_SECONDS
    ).execute("question"),
    "stream of an llm call": lambda work: read(LLMCallPrimitive(work.stream)),
    "stream of a sequence": lambda work: read(SequentialPrimitive([slowly, work.stream])),
    "stream of a parallel": lambda work: read(ParallelPrimitive([work.call, slowly])),
    "stream of a conditional": lambda work: read(ConditionalPrimitive(slowly, work.stream)),
    "stream of a switch": lambda work: read(SwitchPrimitive(slowly, {"a": work.stream})),
    "rate limit": lambda work: twice(RateLimitPrimitive(work.call, requests_per_minute=60, burst_seconds=0)),
    "stream of a rate limit": lambda work: read(RateLimitPrimitive(work.stream, requests_per_minute=60)),
    "stream of a retry": lambda work: read(retry(work.stream)),
    "stream of a fallback": lambda work: read(fallback(work.stream)),
    "stream of a pipeline": lambda work: read(pipeline([work.stream, work.call], timeout_seconds=LIMIT_SECONDS)),
    "nested streams": lambda work: read(nested(work.stream)),
}


class Complaints(list[str]):
    """What the event loop complained of, such as an exception that was never retrieved."""

    def note(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.append(context["message"])


def run(
    scenario: Callable[[Work], Awaitable[Any]],
    work: Work,
    cancels: list[int],
    tracing: Any,
    complaints: Complaints,
) -> int:
    """Runs it, cancels it before each of these turns, checks everything, and returns the turns that it took."""

    async def watched() -> Any:
        assert (current_deadline(), tracing.current) == (None, None)
        try:
            return await scenario(work)
        finally:
            assert (current_deadline(), tracing.current) == (None, None)

    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, TickLoop)
        loop.set_exception_handler(complaints.note)
        heard: list[bool] = []
        task = loop.create_task(watched())
        began = loop.turn
        for turn in cancels:
            loop.before_turn[began + 1 + turn] = lambda: heard.append(task.cancel())
        await asyncio.wait({task})
        ended = loop.turn
        loop.before_turn.clear()
        while left := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(left, timeout=1000.0)
            assert loop.turn - ended < MAX_TURNS_AFTER, left
        assert sum(heard) == task.cancelling()
        if any(heard):
            assert task.cancelled()
        else:
            assert isinstance(task.exception(), _OWN | LookupError | None)
        return ended - began

    with asyncio.Runner(loop_factory=TickLoop) as runner:
        turns = runner.run(main())
    assert [] == tracing.unended()
    return turns


WORKS = {
    "works": Work(),
    "fails": Work(fails=True),
    "hangs": Work(seconds=100.0),
    "hangs and is slow to obey": Work(seconds=100.0, cleanup_turns=5),
}


@pytest.mark.promise("B4")
@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_cancelled_at_every_turn(scenario: Any, work: Work, new_tracing: Any) -> None:
    """From before it began to after it ended: CancelledError, no task, no open span, no unretrieved error."""
    complaints = Complaints()
    turns = run(scenario, work, [], new_tracing(), complaints)
    for turn in range(turns + 2):
        run(scenario, work, [turn], new_tracing(), complaints)
    gc.collect()
    assert [] == complaints


@pytest.mark.promise("B4", "T5")
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    work=st.builds(
        Work,
        turns=st.integers(0, 6),
        seconds=st.sampled_from([0.0, 1.0, LIMIT_SECONDS, 100.0]),
        fails=st.booleans(),
        cleanup_turns=st.integers(0, 8),
    ),
    first=st.integers(0, 40),
    gaps=st.lists(st.integers(1, 8), max_size=3),
)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_cancelled_again_and_again(scenario: Any, work: Work, first: int, gaps: list[int], new_tracing: Any) -> None:
    """However the work behaves, and however often and closely the caller is cancelled."""
    cancels = [first]
    for gap in gaps:
        cancels.append(cancels[-1] + gap)
    complaints = Complaints()
    run(scenario, work, cancels, new_tracing(), complaints)
    assert [] == complaints


@pytest.mark.promise("B4", "C2")
@pytest.mark.parametrize("backend_seconds", [None, 0.0])
def test_cancelled_leader_harms_no_follower(backend_seconds: float | None, new_tracing: Any) -> None:
    """Whichever of two callers of one call is cancelled, and whenever: the other gets its answer, from one call."""
    for leads in (True, False):
        for turn in range(1, 40):
            calls: list[str] = []

            async def ask(question: str, calls: list[str] = calls) -> str:
                calls.append(question)
                return await Work(turns=4).call()

            async def two(ask: Any = ask, leads: bool = leads) -> Any:
                primitive = cache(ask, backend_seconds)
                callers = [asyncio.ensure_future(primitive.execute("question")) for _ in range(2)]
                mine, others = callers if leads else reversed(callers)
                try:
                    return await mine
                finally:
                    assert "answer" == await others

            run(lambda _, two=two: two(), Work(), [turn], new_tracing(), Complaints())
            assert ["question"] == calls[:1]
            assert len(calls) <= 1
