"""A concurrency limit around a call: who runs, who waits, who is refused, and that no permit is ever lost."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from observability_integration import WorkflowContext
from observability_integration.context import Deadline, reset_deadline, set_deadline
from observability_integration.errors import (
    ConcurrencyLimitError,
    ConfigurationError,
    PrimitiveTimeoutError,
    RateLimitExceededError,
)
from observability_integration.primitives import TimeoutPrimitive
from observability_integration.primitives.concurrency import ConcurrencyLimitPrimitive
from observability_integration.primitives.concurrency.limit import ConcurrencyLimit
from observability_integration.resilience.aimd import Aimd
from observability_integration.testing import FakeClockLoop
from tests.unit.primitives.test_cancel_every_tick import WORKS, Complaints, Work, read, run

LOOP_FACTORY = FakeClockLoop
pytestmark = [pytest.mark.once, pytest.mark.promise("N1", "N2")]


def now() -> float:
    return asyncio.get_running_loop().time()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class ProviderError(Exception):
    """As an SDK raises it."""

    def __init__(self, status: int, code: str = "none") -> None:
        super().__init__(status)
        self.status_code = status
        self.body = {"error": {"code": code}}


class Calls:
    """Work that takes a second, and notes who runs and in which order.

    Args:
        result: what it returns, or raises.
    """

    def __init__(self, result: Any = "answer") -> None:
        self.result = result
        self.started: list[Any] = []
        self.running = 0
        self.most = 0

    async def __call__(self, question: Any) -> Any:
        self.started.append(question)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(1.0)
        finally:
            self.running -= 1
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def limited(work: Any, limit: Any = 1, **options: Any) -> ConcurrencyLimitPrimitive[Any, Any]:
    return ConcurrencyLimitPrimitive(work, limit, operation_name="ask", **options)


def all_free(primitive: ConcurrencyLimitPrimitive[Any, Any]) -> bool:
    """Whether no permit was lost and none doubled."""
    limiter = primitive.limiter
    permits = [limiter.try_acquire() for _ in range(limiter.limit + 1)]
    for permit in permits:
        if permit is not None:
            permit.release()
    return [permit is not None for permit in permits] == [True] * limiter.limit + [False]


async def started(call: Awaitable[Any]) -> asyncio.Future[Any]:
    """A call that runs, or waits, by now."""
    task = asyncio.ensure_future(call)
    await turns()
    return task


async def refusal(call: Awaitable[Any]) -> ConcurrencyLimitError:
    with pytest.raises(ConcurrencyLimitError) as caught:
        await call
    return caught.value


async def test_no_more_than_the_limit_and_in_order(metrics: Any, tracing: Any) -> None:
    """What it is for, with levels that are true at every moment and waits that are those of who had to wait."""
    work = Calls()
    primitive = limited(work, 2)
    levels = {"limit": 2.0, "in_flight": 0.0}
    assert levels == {name: metrics(f"concurrency.{name}", operation="ask") for name in levels}
    assert 0 == metrics("concurrency.queued", operation="ask", priority="high")
    asking = [asyncio.ensure_future(primitive.execute(number)) for number in range(5)]
    await turns()
    assert 2 == metrics("concurrency.in_flight", operation="ask")
    assert 3 == metrics("concurrency.queued", operation="ask", priority="high")
    assert ["answer"] * 5 == await asyncio.gather(*asking)
    assert ([0, 1, 2, 3, 4], 2, 3.0) == (work.started, work.most, now())
    assert 0 == metrics("concurrency.in_flight", operation="ask")
    assert 0 == metrics("concurrency.queued", operation="ask", priority="high")
    assert 3 == metrics("concurrency.queue.wait", operation="ask", priority="high")
    assert {"outcome": "success"} == tracing.spans[0].attributes
    waited = {"concurrency.priority": "high", "concurrency.waited_seconds": 2.0, "outcome": "success"}
    assert waited == tracing.spans[4].attributes
    assert ([], ["concurrency ask"] * 5) == (tracing.unended(), tracing.tree())


async def test_what_is_inside_is_under_its_span_and_the_context_is_told(tracing: Any) -> None:
    """A trace shows the wait around the call, and whose call it was."""
    inner = TimeoutPrimitive(Calls(), 10.0, operation_name="call")
    assert "answer" == await limited(inner).execute("question", WorkflowContext("w-1"))
    assert ["concurrency ask", "concurrency ask > timeout call"] == tracing.tree()
    assert "w-1" == tracing.named("concurrency ask").attributes["workflow.id"]


# ---- refusals


async def test_refused_because_the_queue_is_full(metrics: Any, tracing: Any) -> None:
    """Who cannot even wait hears so at once, and the call is never made."""
    work = Calls()
    primitive = limited(work, max_queued=1)
    for reason in ("queue_full", "queue_timeout", "deadline", "shed"):
        assert 0 == metrics("concurrency.refusals", operation="ask", priority="high", reason=reason)
    asking = [await started(primitive.execute(number)) for number in range(2)]
    error = await refusal(primitive.execute("one too many"))
    assert ("ask", "queue_full", 0.0, 1) == (error.operation, error.reason, error.waited_seconds, error.limit)
    assert "max_queued" in str(error)
    assert error.__context__ is None
    assert 1 == metrics("concurrency.refusals", operation="ask", priority="high", reason="queue_full")
    assert 1 == metrics("concurrency.queued", operation="ask", priority="high")
    span = tracing.spans[-1]
    assert ("error", "queue_full", error) == (
        span.attributes["outcome"], span.attributes["concurrency.reason"], span.error,
    )  # fmt: skip
    await asyncio.gather(*asking)
    assert [0, 1] == work.started
    assert 1 == metrics("concurrency.queue.wait", operation="ask", priority="high")


async def test_refused_after_the_longest_wait(metrics: Any) -> None:
    """A wait is bounded, and what came in vain is no wait for a turn."""
    primitive = limited(Calls(), max_wait_seconds=0.25)
    first = await started(primitive.execute("first"))
    error = await refusal(primitive.execute("second"))
    assert ("queue_timeout", 0.25, 0.25) == (error.reason, error.waited_seconds, now())
    assert 0 == metrics("concurrency.queue.wait", operation="ask", priority="high")
    assert 0 == metrics("concurrency.queued", operation="ask", priority="high")
    await first
    assert all_free(primitive)


@pytest.mark.parametrize("whose", ["in force", "of the context", "of both"])
async def test_a_deadline_bounds_the_wait(whose: str) -> None:
    """Nobody waits for a turn after the moment from which on nobody wants the answer, whoever set that moment."""
    primitive = limited(Calls(), max_wait_seconds=0.75)
    first = await started(primitive.execute("first"))
    context = WorkflowContext(deadline=None if whose == "in force" else Deadline(now() + 0.5))
    seconds = {"in force": 0.5, "of the context": 100.0, "of both": 0.6}[whose]
    token = set_deadline(Deadline(now() + seconds))
    error = await refusal(primitive.execute("second", context))
    reset_deadline(token)
    assert ("deadline", 0.5) == (error.reason, now())
    await first


async def test_a_shed_call_makes_room_for_a_higher_priority(metrics: Any) -> None:
    """With a full queue, the lowest gives way; each is counted by its own priority."""
    primitive = limited(Calls(), max_queued=1, priority=lambda question: question)
    first = await started(primitive.execute("high"))
    low = await started(primitive.execute("low"))
    critical = await started(primitive.execute("critical"))
    assert "shed" == (await refusal(low)).reason
    assert 1 == metrics("concurrency.refusals", operation="ask", priority="low", reason="shed")
    await asyncio.gather(first, critical)
    assert 1 == metrics("concurrency.queue.wait", operation="ask", priority="critical")
    assert 0 == metrics("concurrency.queue.wait", operation="ask", priority="low")


# ---- the permit comes back


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError(), asyncio.CancelledError(), Stop()])
async def test_a_failed_call_gives_its_permit_back(error: BaseException, metrics: Any, tracing: Any) -> None:
    """However a call ends, there is room for the next one; its error passes unchanged."""
    primitive = limited(Calls(error))
    with pytest.raises(type(error)) as caught:
        await primitive.execute("question")
    assert error is caught.value
    assert all_free(primitive)
    assert 0 == metrics("concurrency.in_flight", operation="ask")
    span = tracing.named("concurrency ask")
    expected = ("error", error) if isinstance(error, Exception) else ("cancelled", None)
    assert expected == (span.attributes["outcome"], span.error)


async def test_cancelled_while_waiting(metrics: Any, tracing: Any) -> None:
    """Who gives up waiting is neither refused nor counted, and leaves the queue as it was."""
    primitive = limited(Calls())
    first = await started(primitive.execute("first"))
    second = await started(primitive.execute("second"))
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert 0 == metrics("concurrency.queued", operation="ask", priority="high")
    assert 0 == metrics("concurrency.queue.wait", operation="ask", priority="high")
    assert "cancelled" == tracing.spans[1].attributes["outcome"]
    await first
    assert all_free(primitive)


async def test_a_call_that_is_thrown_away(metrics: Any) -> None:
    """A coroutine that nobody drives any more, as after its loop was stopped, keeps no permit and no level."""
    primitive = limited(Calls())
    running: Any = primitive.execute("running").__await__()
    running.send(None)
    waiting: Any = primitive.execute("waiting").__await__()
    waiting.send(None)
    assert 1 == metrics("concurrency.queued", operation="ask", priority="high")
    waiting.close()
    running.close()
    assert 0 == metrics("concurrency.queued", operation="ask", priority="high")
    assert 0 == metrics("concurrency.in_flight", operation="ask")
    assert all_free(primitive)


# ---- an adaptive limit


def timed_out(source: Any) -> PrimitiveTimeoutError:
    return PrimitiveTimeoutError("inner", 1.0, 1.0, deadline_source=source)


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (ProviderError(429), 9),
        (ProviderError(503), 9),
        (ProviderError(529), 9),
        (TimeoutError(), 9),
        (timed_out("own"), 9),
        (timed_out("inherited"), 10),
        (ProviderError(429, "insufficient_quota"), 10),
        (ProviderError(401), 10),
        (ProviderError(500), 10),
        (ValueError(), 10),
        (RateLimitExceededError("inner", "tokens", 1.0), 10),
        (asyncio.CancelledError(), 10),
    ],
    ids=repr,
)
async def test_what_an_adaptive_limit_learns_from_a_failure(error: BaseException, limit: int, metrics: Any) -> None:
    """Only what says that there is too much to do lowers it: not what we cut short, nor what money or a key repairs."""
    primitive = limited(Calls(error), Aimd(10, clock=now))
    with pytest.raises(type(error)):
        await primitive.execute("question")
    assert limit == primitive.limiter.limit
    assert limit == metrics("concurrency.limit", operation="ask")


async def test_an_adaptive_limit_learns_from_success(metrics: Any) -> None:
    """One round of calls or streams that use what is allowed raises it by one, and the gauge shows it."""
    primitive = limited(Calls(), Aimd(2, clock=now))
    await asyncio.gather(*(primitive.execute(number) for number in range(2)))
    assert 3 == metrics("concurrency.limit", operation="ask")
    await asyncio.gather(*(read(primitive) for _ in range(4)))
    assert 4 == metrics("concurrency.limit", operation="ask")
    assert "concurrency ask (adaptive, now 4 at once)\n  Calls" == primitive.describe()


async def test_waiting_for_a_turn_does_not_lower_the_limit() -> None:
    """A wait that used up a caller's deadline is no overload elsewhere: a lower limit would only lengthen the wait."""
    inner = TimeoutPrimitive(Calls(), 10.0, operation_name="call")
    primitive = limited(inner, Aimd(2, max_limit=2, clock=now))
    busy = [await started(primitive.execute(number)) for number in range(2)]
    with pytest.raises(PrimitiveTimeoutError):
        await primitive.execute("question", WorkflowContext(deadline=Deadline(1.5)))
    assert (2, 1.5) == (primitive.limiter.limit, now())
    await asyncio.gather(*busy)


async def test_a_classifier_is_asked_first_where_the_limit_adapts() -> None:
    """Whoever knows a provider's errors better says what they are; a fixed limit does not ask what it cannot use."""
    asked: list[BaseException] = []

    def busy(error: BaseException) -> Any:
        asked.append(error)
        return "overloaded"

    error = ValueError()
    adaptive = limited(Calls(error), Aimd(10, clock=now), classifier=busy)
    with pytest.raises(ValueError):
        await adaptive.execute("question")
    assert (9, [error]) == (adaptive.limiter.limit, asked)
    with pytest.raises(ValueError):
        await limited(Calls(error), 10, classifier=busy).execute("question")
    assert [error] == asked


# ---- one limit for several


async def test_one_limit_for_several_primitives(metrics: Any) -> None:
    """Two operations on one provider share what it bears; each shows its own calls, both the limit that holds."""
    limiter = ConcurrencyLimit(Aimd(2, clock=now))
    work = Calls()
    one = ConcurrencyLimitPrimitive(work, limiter=limiter, operation_name="one", max_wait_seconds=0.5)
    two = ConcurrencyLimitPrimitive(work, limiter=limiter, operation_name="two")
    asking = [await started(primitive.execute("question")) for primitive in (one, two)]
    assert "queue_timeout" == (await refusal(one.execute("question"))).reason
    assert [1, 1] == [metrics("concurrency.in_flight", operation=name) for name in ("one", "two")]
    await asyncio.gather(*asking)
    assert [3, 3] == [metrics("concurrency.limit", operation=name) for name in ("one", "two")]
    limiter.set_limit(7)
    assert [7, 7] == [metrics("concurrency.limit", operation=name) for name in ("one", "two")]


def test_one_limit_for_several_threads(metrics: Any) -> None:
    """The limit is the process's: calls of several event loops wait for each other, and are counted right."""
    running: list[int] = []
    most: list[int] = []

    async def call(_: Any) -> None:
        running.append(1)
        most.append(len(running))
        await asyncio.sleep(0)
        running.pop()

    primitive = limited(call, 3)

    async def ask() -> None:
        await asyncio.gather(*(primitive.execute("question") for _ in range(50)))

    threads = [threading.Thread(target=asyncio.run, args=(ask(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (150, True) == (len(most), max(most) <= 3)
    assert 0 == metrics("concurrency.in_flight", operation="ask")
    assert 0 == metrics("concurrency.queued", operation="ask", priority="high")


def test_a_shared_limit_keeps_no_primitive_alive() -> None:
    """A primitive made for one request must not stay for as long as the limit does."""
    limiter = ConcurrencyLimit(2)
    before = len(gc.get_objects())
    for _ in range(200):
        ConcurrencyLimitPrimitive(Calls(), limiter=limiter, operation_name="ask")
    gc.collect()
    limiter.set_limit(3)
    assert len(gc.get_objects()) - before < 100


# ---- priorities


def function_of_both(question: Any, context: WorkflowContext) -> Any:
    return context.state["urgency"]


async def async_priority(question: Any) -> Any:
    return "low"


@pytest.mark.parametrize(
    ("knob", "tag", "expected", "fault"),
    [
        ("low", None, "low", None),
        ("low", "critical", "critical", None),
        (lambda question: "best_effort", None, "best_effort", None),
        (lambda question: "best_effort", "critical", "critical", None),
        (function_of_both, None, "low", None),
        ("low", "urgent", "low", "concurrency.priority_tag"),
        ("low", ["critical"], "low", "concurrency.priority_tag"),
        (lambda question: "urgent", None, "high", "concurrency.priority"),
        (lambda question: 1 / 0, None, "high", "concurrency.priority"),
        (lambda question: async_priority(question), None, "high", "concurrency.priority"),
    ],
)
async def test_which_priority_a_call_has(knob: Any, tag: Any, expected: str, fault: str | None, metrics: Any) -> None:
    """The request's own, else the knob; what is no priority is counted, and fails nobody's call."""
    primitive = limited(Calls(), priority=knob)
    context = WorkflowContext(state={"urgency": "low"}, tags={} if tag is None else {"priority": tag})
    first = await started(primitive.execute("first"))
    second = await started(primitive.execute("second", context))
    assert 1 == metrics("concurrency.queued", operation="ask", priority=expected)
    assert ["answer"] * 2 == await asyncio.gather(first, second)
    if fault is not None:
        assert 1 == metrics("telemetry.faults", site=fault)


async def test_higher_priorities_go_first_and_nobody_is_asked_without_need() -> None:
    """A priority is for those who wait; finding it out costs nothing when there is room."""
    asked: list[Any] = []

    def priority(question: Any, context: WorkflowContext) -> Any:
        asked.append(question)
        return question

    work = Calls()
    primitive = limited(work, priority=priority)
    asking = [await started(primitive.execute(each)) for each in ("critical", "best_effort", "low", "high", "critical")]
    await asyncio.gather(*asking)
    assert ["best_effort", "low", "high", "critical"] == asked
    assert ["critical", "critical", "high", "low", "best_effort"] == work.started


# ---- streams


class Producer:
    """Chunks, a second apart, and when it was closed.

    Args:
        chunks: what comes; an exception is raised.
    """

    def __init__(self, *chunks: Any) -> None:
        self.chunks = chunks
        self.closed_at: list[float] = []

    async def __call__(self, question: Any) -> AsyncIterator[Any]:
        try:
            for chunk in self.chunks:
                await asyncio.sleep(1.0)
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk
        finally:
            await asyncio.sleep(1.0)
            self.closed_at.append(now())


async def test_a_stream_holds_its_permit_to_the_end(metrics: Any, tracing: Any) -> None:
    """The other side works for as long as the answer comes, so nobody else is let in before that."""
    primitive = limited(Producer("a", "b"))
    assert primitive.execute_reads_stream
    async with primitive.stream("question", WorkflowContext("w-1")) as chunks:
        waiting = await started(primitive.execute("next"))
        queued = []
        async for chunk in chunks:
            queued.append((chunk, metrics("concurrency.queued", operation="ask", priority="high")))
        assert ([("a", 1), ("b", 1)], 3.0) == (queued, now())
        assert 0 == metrics("concurrency.in_flight", operation="ask")
        await turns()
        assert 1 == metrics("concurrency.in_flight", operation="ask")
    assert "ab" == await waiting
    assert 6.0 == now()
    assert 0 == metrics("concurrency.in_flight", operation="ask")
    assert ["success", "success"] == [span.attributes["outcome"] for span in tracing.spans]
    assert all_free(primitive)


async def test_a_stream_that_is_left_early(tracing: Any) -> None:
    """What still comes from the other side is over when the producer is closed, so the permit is given back then."""
    producer = Producer("a", "b")
    primitive = limited(producer)
    async with primitive.stream("question") as chunks:
        assert "a" == await anext(chunks)
        waiting = await started(primitive.limiter.acquire())
        held = [waiting.done()]
        asyncio.get_running_loop().call_at(1.5, lambda: held.append(waiting.done()))
    assert ([2.0], [False, False]) == (producer.closed_at, held)
    (await waiting).release()
    assert "closed" == tracing.named("concurrency ask").attributes["outcome"]
    assert all_free(primitive)


async def test_a_stream_that_breaks_off(metrics: Any, tracing: Any) -> None:
    """Its error passes, teaches the limit, and leaves nothing behind."""
    error = ProviderError(529)
    primitive = limited(Producer("a", error), Aimd(10, clock=now))
    with pytest.raises(ProviderError) as caught:
        await read(primitive)
    assert error is caught.value
    assert (9, 0) == (primitive.limiter.limit, primitive.limiter.in_flight)
    assert 0 == metrics("concurrency.in_flight", operation="ask")
    assert ("error", error) == (tracing.spans[0].attributes["outcome"], tracing.spans[0].error)


async def test_a_stream_that_is_refused(metrics: Any, tracing: Any) -> None:
    """It is refused when it is opened, before anything of it was begun."""
    producer = Producer("a")
    primitive = limited(producer, max_queued=0)
    async with primitive.stream("question"):
        error = await refusal(read(primitive))
    assert ("queue_full", []) == (error.reason, producer.closed_at)
    assert 1 == metrics("concurrency.refusals", operation="ask", priority="high", reason="queue_full")
    assert error is tracing.spans[1].error
    assert all_free(primitive)


async def test_a_stream_whose_step_cannot_be_opened(metrics: Any) -> None:
    """The permit is not lost between its being given and the first chunk."""

    class Broken(TimeoutPrimitive[Any, Any]):
        def stream(self, input_data: Any, context: WorkflowContext | None = None) -> Any:
            raise LookupError

    primitive = limited(Broken(Calls(), 1.0))
    with pytest.raises(LookupError):
        await read(primitive)
    assert all_free(primitive)
    assert 0 == metrics("concurrency.in_flight", operation="ask")


async def test_a_stream_that_nobody_closes(metrics: Any, tracing: Any) -> None:
    """Collected, it gives its permit back: a reader that forgets must not take the limit with it."""
    primitive = limited(Producer("a", "b"))
    stream = primitive.stream("question")
    chunks = await stream.__aenter__()
    assert "a" == await anext(chunks)
    del stream, chunks
    gc.collect()
    assert all_free(primitive)
    assert 0 == metrics("concurrency.in_flight", operation="ask")
    assert "abandoned" == tracing.named("concurrency ask").attributes["outcome"]
    await asyncio.sleep(2.0)


async def test_execute_of_a_streaming_step_may_be_read_through() -> None:
    """A primitive further out that watches chunks as they come sees them through this one."""
    primitive = limited(Producer("a", "b"))
    assert "ab" == await primitive.execute("question")
    assert "ab" == primitive.join_chunks(["a", "b"])
    assert not limited(Calls()).execute_reads_stream


# ---- whatever the moment


async def three_at_one(work: Work) -> Any:
    """Three calls for one permit: one runs, two wait; whatever becomes of them, it is free in the end."""
    primitive = limited(work.call, max_wait_seconds=50.0)
    others = [asyncio.ensure_future(primitive.execute("question")) for _ in range(2)]
    try:
        return await primitive.execute("question")
    finally:
        for other in others:
            other.cancel()
        await asyncio.wait(others)
        for other in others:
            _ = other.cancelled() or other.exception()
        assert all_free(primitive)


async def read_one_of_two(work: Work) -> Any:
    """The same of streams."""
    primitive = limited(work.stream)
    other = asyncio.ensure_future(read(primitive))
    try:
        return await read(primitive)
    finally:
        other.cancel()
        await asyncio.wait([other])
        _ = other.cancelled() or other.exception()
        assert all_free(primitive)


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("scenario", [three_at_one, read_one_of_two])
def test_cancelled_at_every_turn(scenario: Any, work: Work, new_tracing: Any, metrics: Any) -> None:
    """From before it began to after it ended: CancelledError, every permit free, every level at 0."""
    complaints = Complaints()
    for turn in range(run(scenario, work, [], new_tracing(), complaints) + 2):
        run(scenario, work, [turn], new_tracing(), complaints)
        assert 0 == metrics("concurrency.in_flight", operation="ask")
        assert 0 == metrics("concurrency.queued", operation="ask", priority="high")
    gc.collect()
    assert [] == complaints


# ---- knobs


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "limit"),
        ({"limit": 1, "priority": "urgent"}, "priority"),
        ({"limit": 1, "priority": lambda: "low"}, "argument"),
        ({"limit": 1, "limiter": ConcurrencyLimit(1)}, "limiter"),
        ({"max_queued": 1, "limiter": ConcurrencyLimit(1)}, "limiter"),
    ],
)
def test_wrong_knobs(options: dict[str, Any], named: str) -> None:
    """What cannot work is said when it is built, by name."""
    with pytest.raises(ConfigurationError, match=named):
        ConcurrencyLimitPrimitive(Calls(), **options)


def test_names() -> None:
    """It goes by the name of what it limits, unless it is given one, and says what it allows."""

    async def ask(question: str) -> str:
        return question

    primitive = ConcurrencyLimitPrimitive[str, str](ask, 20)
    assert "ask" == primitive.name
    assert "concurrency ask (20 at once)\n  ask" == primitive.describe()


async def test_a_classifier_that_is_interrupted_keeps_no_permit() -> None:
    """A signal handler may raise in that very moment, and the permit would be lost to all later calls."""

    def interrupted(_: Exception) -> None:
        raise Stop

    async def fails(_: Any) -> None:
        raise ProviderError(429)

    primitive = ConcurrencyLimitPrimitive(fails, Aimd(1, min_limit=1, max_limit=2), classifier=interrupted)
    with pytest.raises(Stop):
        await primitive.execute("question")
    assert all_free(primitive)
