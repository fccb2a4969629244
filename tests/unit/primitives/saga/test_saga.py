"""A saga: what is undone, in which order, when, and what the caller hears."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import pickle
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from observability_integration import WorkflowContext
from observability_integration.context import Deadline, current_deadline, reset_deadline, set_deadline
from observability_integration.errors import CompensationError, ConfigurationError, PrimitiveTimeoutError
from observability_integration.primitives import LambdaPrimitive, TimeoutPrimitive
from observability_integration.primitives.saga import SagaPrimitive, SagaStep
from observability_integration.testing import FakeClockLoop
from tests.unit.primitives.test_cancel_every_tick import WORKS, Complaints, Work, run

LOOP_FACTORY = FakeClockLoop
pytestmark = [pytest.mark.once, pytest.mark.promise("G1")]


def now() -> float:
    return asyncio.get_running_loop().time()


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Log(list[str]):
    """What was done and undone, in order."""

    def doing(self, name: str, outcome: Any = None, seconds: float = 1.0) -> Any:
        """An action that takes its time, adds its letter to its input, or raises `outcome`."""

        async def act(value: str) -> Any:
            await asyncio.sleep(seconds)
            self.append(name)
            if isinstance(outcome, BaseException):
                raise outcome
            return value + name

        return act

    def undoing(self, name: str, outcome: Any = None, seconds: float = 1.0, *, deaf: bool = False) -> Any:
        """A compensation that notes what it was given; a deaf one goes on when it is cancelled."""

        async def undo(result: str) -> None:
            ends = now() + seconds
            while now() < ends:
                try:
                    await asyncio.sleep(ends - now())
                except asyncio.CancelledError:
                    if not deaf:
                        self.append(f"cancelled {name}")
                        raise
            self.append(f"undo {name} of {result}")
            if isinstance(outcome, BaseException):
                raise outcome

        return undo

    def step(self, name: str, outcome: Any = None, undone: Any = None, **options: Any) -> SagaStep:
        return SagaStep(self.doing(name, outcome), self.undoing(name, undone, **options), name)


@pytest.fixture
def log() -> Log:
    return Log()


def saga(*steps: Any, **options: Any) -> SagaPrimitive[Any, Any]:
    return SagaPrimitive(steps, operation_name="order", **options)


def counts(metrics: Any) -> dict[str, float]:
    outcomes = ("completed", "compensated", "compensation_failed")
    found = {outcome: metrics("saga.operations", operation="order", outcome=outcome) for outcome in outcomes}
    return {outcome: count for outcome, count in found.items() if count}


def undone(metrics: Any, step: str) -> dict[str, float]:
    found = {
        outcome: metrics("saga.compensations", operation="order", step=step, outcome=outcome)
        for outcome in ("success", "error", "timeout")
    }
    return {outcome: count for outcome, count in found.items() if count}


async def started(call: Awaitable[Any], seconds: float) -> asyncio.Future[Any]:
    """A call that is under way for so long by now."""
    task = asyncio.ensure_future(call)
    await asyncio.sleep(seconds)
    return task


# ---- forward, and back


async def test_steps_in_sequence(log: Log, metrics: Any, tracing: Any) -> None:
    """When all goes well a saga is a sequence: each step gets what the one before returned, and nothing is undone."""
    primitive = saga(log.step("a"), log.doing("b"), log.step("c"))
    for step in ("a", "c"):
        for outcome in ("success", "error", "timeout"):
            assert 0 == metrics("saga.compensations", operation="order", step=step, outcome=outcome)
    assert 0 == metrics("saga.operations", operation="order", outcome="compensated")
    assert ">abc" == await primitive.execute(">", WorkflowContext("w-1"))
    assert (["a", "b", "c"], {"completed": 1}) == (log, counts(metrics))
    attributes = tracing.named("saga order").attributes
    assert ("w-1", 3, "success", "completed") == (
        attributes["workflow.id"], attributes["saga.steps"], attributes["outcome"], attributes["saga.outcome"],
    )  # fmt: skip


async def test_a_failure_undoes_what_was_done(log: Log, metrics: Any, tracing: Any) -> None:
    """The last step first, each with its own step's result; the step that failed has none; its error is unchanged."""
    error = LookupError()
    primitive = saga(log.step("a"), log.doing("b"), log.step("c"), log.step("d", error), log.step("e"))
    with pytest.raises(LookupError) as caught:
        await primitive.execute(">")
    assert error is caught.value
    assert (None, None) == (error.__cause__, error.__context__)
    assert ["a", "b", "c", "d", "undo c of >abc", "undo a of >a"] == log
    assert {"compensated": 1} == counts(metrics)
    assert [{"success": 1}, {"success": 1}, {}] == [undone(metrics, step) for step in "acd"]
    span = tracing.named("saga order")
    assert ("error", "compensated", "d", error) == (
        span.attributes["outcome"], span.attributes["saga.outcome"], span.attributes["saga.failed_step"], span.error,
    )  # fmt: skip
    assert ["saga order", "saga order > compensate c", "saga order > compensate a"] == tracing.tree()
    assert [] == tracing.unended()


async def test_a_failure_with_nothing_to_undo(log: Log, metrics: Any) -> None:
    """The first step's failure costs no task and no time."""
    with pytest.raises(LookupError):
        await saga(log.step("a", LookupError())).execute(">")
    assert (["a"], 1.0, {"compensated": 1}) == (log, now(), counts(metrics))


async def test_all_compensations_are_tried(log: Log, metrics: Any, tracing: Any, caplog: Any) -> None:
    """One that fails does not keep the others from running, and the caller hears of all that are not undone."""
    wrong, own = LookupError("secret"), [ValueError("secret"), asyncio.CancelledError()]
    primitive = saga(log.step("a", undone=own[0]), log.step("b"), log.step("c", undone=own[1]), log.step("d", wrong))
    with caplog.at_level(logging.WARNING), pytest.raises(CompensationError) as caught:
        await primitive.execute(">")
    error = caught.value
    assert ["undo c of >abc", "undo b of >ab", "undo a of >a"] == log[4:]
    assert ("order", "d", ["c", "a"]) == (error.operation, error.failed_step, [step for step, _ in error.failures])
    assert error.failures[1][1] is own[0]
    assert isinstance(error.failures[0][1], asyncio.CancelledError)
    assert error.__cause__ is wrong
    assert {"compensation_failed": 1} == counts(metrics)
    assert [{"error": 1}, {"success": 1}, {"error": 1}] == [undone(metrics, step) for step in "abc"]
    assert own[0] is tracing.named("compensate a").error
    assert error is tracing.named("saga order").error
    assert "could not undo 'a': error (ValueError)" in caplog.text
    assert "secret" not in caplog.text + str(error)
    assert "d" == pickle.loads(pickle.dumps(error)).failed_step


async def test_a_compensation_is_bounded_in_time(log: Log, metrics: Any) -> None:
    """One that hangs is cancelled and the next one begins; one that ignores that is left behind."""
    primitive = saga(
        log.step("a"),
        log.step("b", seconds=100.0),
        log.step("c", seconds=100.0, deaf=True),
        log.step("d", LookupError()),
        compensation_timeout_seconds=5.0,
    )
    with pytest.raises(CompensationError) as caught:
        await primitive.execute(">")
    # Four steps, the limit and the second to clean up, the limit, and a second.
    assert (4.0 + 6.0 + 5.0 + 1.0, ["cancelled b", "undo a of >a"]) == (now(), log[4:])
    assert [{"success": 1}, {"timeout": 1}, {"timeout": 1}] == [undone(metrics, step) for step in "abc"]
    late: Any = dict(caught.value.failures)
    assert ("abandoned", "clean") == (late["c"].cleanup, late["b"].cleanup)
    assert (5.0, 5.0) == (late["b"].timeout_seconds, late["b"].elapsed_seconds)
    assert str(late["b"]).endswith("cleanup: clean); raise compensation_timeout_seconds to allow more")
    await asyncio.sleep(100.0)
    assert "undo c of >abc" == log[-1]


async def test_a_passed_deadline_stops_no_compensation(log: Log, metrics: Any) -> None:
    """Running out of time is a common reason to undo, whoever set the deadline; inside, their own one is in force."""
    seen: list[Any] = []

    async def undo(result: str, context: WorkflowContext) -> None:
        seen.append(context.remaining())
        deadline, context.deadline = context.deadline, None
        seen.extend([context.remaining(), deadline is current_deadline()])
        context.state["undone"] = result

    async def undo_first(_: str) -> None:
        deadline = current_deadline()
        seen.append(None if deadline is None else deadline.remaining())

    context = WorkflowContext(state={"id": 7}, tags={"tier": "gold"}, deadline=Deadline(1.5))
    primitive = saga(
        SagaStep(log.doing("a", seconds=0.5), undo_first, "first"),
        SagaStep(log.doing("a", seconds=0.5), TimeoutPrimitive(undo, 60.0), "a"),
        TimeoutPrimitive(log.doing("b", seconds=3.0), 10.0),
    )
    token = set_deadline(Deadline(1.5))
    with pytest.raises(PrimitiveTimeoutError) as caught:
        await primitive.execute(">", context)
    reset_deadline(token)
    assert ("inherited", 1.5) == (caught.value.deadline_source, now())
    assert ([30.0, 30.0, True, 30.0], {"success": 1}) == (seen, undone(metrics, "a"))
    # It found what the steps had left for it, and left word; who called is told no new deadline.
    assert {"id": 7, "undone": ">aa"} == context.state
    assert context.deadline is not None
    assert 1.5 == context.deadline.when


async def test_a_compensation_that_hears_of_its_deadline_first(log: Log, metrics: Any) -> None:
    """A loop that was blocked is late to fire our limit; a timeout further in that tells of it is no other error."""
    inner = TimeoutPrimitive(log.undoing("a"), 60.0)

    async def undo(result: str) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, FakeClockLoop)
        loop.advance(6.0)
        await inner.execute(result)

    primitive = saga(
        SagaStep(log.doing("a"), undo, "a"), log.step("b", LookupError()), compensation_timeout_seconds=5.0
    )
    with pytest.raises(CompensationError):
        await primitive.execute(">")
    assert (["a", "b"], {"timeout": 1}) == (log, undone(metrics, "a"))


class Stop(BaseException):
    pass


async def test_what_is_no_exception_passes_whatever_is_left(log: Log, metrics: Any) -> None:
    """An order to stop is never turned into an error that somebody may catch."""
    primitive = saga(log.step("a", undone=ValueError()), log.step("b", Stop()))
    with pytest.raises(Stop):
        await primitive.execute(">")
    assert (["a", "b", "undo a of >a"], {"compensation_failed": 1}) == (log, counts(metrics))


# ---- cancelled


async def test_cancelled_in_a_step(log: Log, metrics: Any, tracing: Any) -> None:
    """The caller is held until all is undone, then gets its cancellation, even where something could not be undone."""
    primitive = saga(log.step("a", undone=ValueError()), log.step("b"), log.step("c"))
    call = await started(primitive.execute(">"), 2.5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (4.5, ["a", "b", "undo b of >ab", "undo a of >a"]) == (now(), log)
    assert {"compensation_failed": 1} == counts(metrics)
    span = tracing.named("saga order")
    assert ("cancelled", "compensation_failed", "c", None) == (
        span.attributes["outcome"], span.attributes["saga.outcome"], span.attributes["saga.failed_step"], span.error,
    )  # fmt: skip


async def test_cancelled_again_leaves_at_once(log: Log, metrics: Any, tracing: Any, caplog: Any) -> None:
    """A caller in a hurry is free; what is under way is neither broken off nor forgotten, and is counted at its end."""
    primitive = saga(log.step("a"), log.step("b"), log.step("c"))
    call = await started(primitive.execute(">"), 2.5)
    call.cancel()
    await asyncio.sleep(0.5)
    call.cancel()
    with caplog.at_level(logging.WARNING), pytest.raises(asyncio.CancelledError):
        await call
    assert (3.0, {}, ["a", "b"]) == (now(), counts(metrics), log)
    assert "still being undone" in caplog.text
    await asyncio.sleep(2.0)
    assert ["undo b of >ab", "undo a of >a"] == log[2:]
    assert {"compensated": 1} == counts(metrics)
    assert [] == tracing.unended()


async def test_cancelled_while_it_is_undone(log: Log, metrics: Any) -> None:
    """The first cancellation waits for the end and wins over the step's error; the second one leaves."""
    primitive = saga(log.step("a"), log.step("b"), log.step("c", LookupError()))
    call = await started(primitive.execute(">"), 3.5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (5.0, {"compensated": 1}) == (now(), counts(metrics))
    call = await started(primitive.execute(">"), 3.5)
    call.cancel()
    await asyncio.sleep(0.25)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert 8.75 == now()
    await asyncio.sleep(2.0)
    assert {"compensated": 2} == counts(metrics)


async def test_under_a_timeout(log: Log) -> None:
    """A limit around a saga undoes it, within the grace; beyond it the caller goes, and it is undone all the same."""
    primitive = saga(log.step("a"), log.step("b"), log.step("c"))
    with pytest.raises(PrimitiveTimeoutError):
        await TimeoutPrimitive(primitive, 2.5, 5.0).execute(">")
    assert (4.5, "undo a of >a") == (now(), log[-1])
    log.clear()
    with pytest.raises(PrimitiveTimeoutError):
        await TimeoutPrimitive(primitive, 2.5, 0.5).execute(">")
    assert (7.5, ["a", "b"]) == (now(), log)
    await asyncio.sleep(2.0)
    assert "undo a of >a" == log[-1]


@pytest.mark.parametrize("seconds", [0.0, 0.5])
async def test_undoing_that_is_itself_ended(seconds: float, log: Log, metrics: Any, caplog: Any) -> None:
    """A loop that shuts down cancels all tasks: that what was done stays is then logged, counted and raised."""

    def end() -> None:
        (undoing,) = [task for task in asyncio.all_tasks() if task.get_name() == "undo order"]
        undoing.cancel()

    async def fail(_: str) -> None:
        loop = asyncio.get_running_loop()
        # At once is before the task that undoes has begun.
        loop.call_later(seconds, end) if seconds else loop.call_soon(end)
        raise LookupError

    with caplog.at_level(logging.ERROR), pytest.raises(CompensationError) as caught:
        await saga(log.step("a"), log.step("b"), fail).execute(">")
    assert ["b", "a"] == [step for step, _ in caught.value.failures]
    assert ([] if seconds == 0 else ["cancelled b"], {"compensation_failed": 1}) == (log[2:], counts(metrics))
    assert "left as they are: b, a" in caplog.text


async def test_a_call_that_is_thrown_away(log: Log, metrics: Any) -> None:
    """A coroutine that nobody drives any more can wait for nothing; its loop undoes what it did."""
    primitive = saga(log.step("a"), SagaStep(log.doing("b")))
    call: Any = primitive.execute(">").__await__()
    waiting: Any = call.send(None)
    await waiting_for(waiting)
    call.send(None)
    call.close()
    await asyncio.sleep(1.5)
    assert (["a", "undo a of >a"], {"compensated": 1}) == (log, counts(metrics))


async def waiting_for(future: asyncio.Future[Any]) -> None:
    """Until what a coroutine that is driven by hand waits for is done."""
    future._asyncio_future_blocking = False  # as a task does
    while not future.done():
        await asyncio.sleep(0.25)


def test_a_call_that_its_loop_did_not_outlive(log: Log, metrics: Any, caplog: Any) -> None:
    """Nobody is left to undo it: that is logged and counted."""
    primitive = saga(log.step("a"), log.step("b"))
    loop = FakeClockLoop()
    task = loop.create_task(primitive.execute(">"))
    with contextlib.suppress(TimeoutError):
        loop.run_until_complete(asyncio.wait({task}, timeout=1.5))
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine: Any = task.get_coro()
    with caplog.at_level(logging.ERROR):
        coroutine.close()
    assert (["a"], {"compensation_failed": 1}) == (log, counts(metrics))
    assert "left as they are: a" in caplog.text


def test_a_loop_that_ends(log: Log, metrics: Any) -> None:
    """What `asyncio.run` cancels as it ends, as after Ctrl-C, is undone before the loop is closed."""

    async def main() -> None:
        saga_under_way.append(await started(primitive.execute(">"), 1.5))

    primitive = saga(log.step("a"), log.step("b"))
    saga_under_way: list[Any] = []
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        runner.run(main())
    assert (["a", "undo a of >a"], {"compensated": 1}) == (log, counts(metrics))
    assert saga_under_way[0].cancelled()


# ---- streams


def letters(log: Log, *chunks: Any, closing_seconds: float = 0.0) -> Any:
    """An action that streams, and notes when it is closed; an exception among the chunks is raised."""

    async def act(value: str) -> AsyncIterator[str]:
        try:
            for chunk in chunks:
                await asyncio.sleep(1.0)
                if isinstance(chunk, BaseException):
                    raise chunk
                yield value + chunk
        finally:
            await asyncio.sleep(closing_seconds)
            log.append("closed")

    return act


async def read(primitive: Any) -> list[Any]:
    async with primitive.stream(">", WorkflowContext("w-1")) as chunks:
        return [chunk async for chunk in chunks]


async def test_a_stream_that_is_read_to_its_end(log: Log, metrics: Any, tracing: Any) -> None:
    """The last step streams what the others led to, and the end of the stream is the end of the saga."""
    primitive = saga(log.step("a"), SagaStep(letters(log, "x", "y"), log.undoing("b"), "b"))
    async with primitive.stream(">") as chunks:
        assert ">ax" == await anext(chunks)
        assert {} == counts(metrics)
        assert [">ay"] == [chunk async for chunk in chunks]
        assert {"completed": 1} == counts(metrics)
    assert (["a", "closed"], {"completed": 1}) == (log, counts(metrics))
    span = tracing.named("saga order")
    assert ("success", "completed") == (span.attributes["outcome"], span.attributes["saga.outcome"])
    assert ([], [">"]) == (tracing.unended(), await read(saga(lambda_of_input())))


def lambda_of_input() -> Any:
    async def same(value: Any) -> Any:
        return value

    return LambdaPrimitive(same)


@pytest.mark.parametrize("where", ["before the last step", "in the stream"])
async def test_a_stream_that_fails(where: str, log: Log, metrics: Any, tracing: Any) -> None:
    """The error comes when all is undone, unchanged."""
    error = LookupError()
    last = letters(log, "x", error) if where == "in the stream" else letters(log)
    middle = log.step("b", None if where == "in the stream" else error)
    with pytest.raises(LookupError) as caught:
        await read(saga(log.step("a"), middle, SagaStep(last, name="c")))
    assert error is caught.value
    assert "undo a of >a" == log[-1]
    assert {"compensated": 1} == counts(metrics)
    span = tracing.named("saga order")
    assert ("error", "compensated", "c" if where == "in the stream" else "b") == (
        span.attributes["outcome"], span.attributes["saga.outcome"], span.attributes["saga.failed_step"],
    )  # fmt: skip


async def test_a_stream_that_fails_and_cannot_be_undone(log: Log, metrics: Any) -> None:
    """As with `execute`."""
    with pytest.raises(CompensationError) as caught:
        await read(saga(log.step("a", undone=ValueError()), SagaStep(letters(log, LookupError()), name="b")))
    assert ("b", LookupError) == (caught.value.failed_step, type(caught.value.__cause__))
    assert {"compensation_failed": 1} == counts(metrics)


@pytest.mark.parametrize("undone", [None, ValueError()])
async def test_a_stream_that_is_left_early(undone: Any, log: Log, metrics: Any, tracing: Any) -> None:
    """What was not read to its end is not complete: its producer is closed, all is undone, leaving raises nothing."""
    primitive = saga(log.step("a", undone=undone), letters(log, "x", "y", closing_seconds=1.0))
    async with primitive.stream(">") as chunks:
        assert ">ax" == await anext(chunks)
    assert (["a", "closed", "undo a of >a"], 4.0) == (log, now())
    assert {"compensated" if undone is None else "compensation_failed": 1} == counts(metrics)
    assert "closed" == tracing.named("saga order").attributes["outcome"]


async def test_a_stream_whose_reader_fails(log: Log) -> None:
    """The reader's own error passes, and the saga did not complete."""
    with pytest.raises(KeyError):
        async with saga(log.step("a"), letters(log, "x", "y")).stream(">") as chunks:
            raise KeyError(await anext(chunks))
    assert "undo a of >a" == log[-1]


async def test_a_stream_whose_producer_does_not_close(log: Log) -> None:
    """An error in closing passes, and keeps nothing from being undone."""

    async def act(value: str) -> AsyncIterator[str]:
        try:
            yield value
        finally:
            raise LookupError

    with pytest.raises(LookupError):
        async with saga(log.step("a"), act).stream(">") as chunks:
            await anext(chunks)
    assert ["a", "undo a of >a"] == log


async def test_a_reader_that_is_cancelled(log: Log, metrics: Any) -> None:
    """Wherever it is: over a chunk, or waiting for one. It leaves when all is undone; cancelled again, at once."""

    async def think() -> None:
        async with saga(log.step("a"), letters(log, "x", "y")).stream(">") as chunks:
            await anext(chunks)
            await asyncio.sleep(100.0)

    for reading in (think, lambda: read(saga(log.step("a"), letters(log, "x", "y")))):
        began = now()
        call = await started(reading(), 2.5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert 3.5 == now() - began
        call = await started(reading(), 2.5)
        call.cancel()
        await asyncio.sleep(0.25)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert 3.5 + 2.75 == now() - began
        await asyncio.sleep(1.0)
    assert {"compensated": 4} == counts(metrics)


async def test_a_stream_that_nobody_closes(log: Log, metrics: Any, tracing: Any) -> None:
    """Collected, it is undone by its loop: a reader that forgets must not leave half an order behind."""
    stream = saga(log.step("a"), letters(log, "x", "y")).stream(">")
    chunks = await stream.__aenter__()
    assert ">ax" == await anext(chunks)
    del stream, chunks
    gc.collect()
    assert "abandoned" == tracing.named("saga order").attributes["outcome"]
    await asyncio.sleep(2.0)
    assert "undo a of >a" in log
    assert ({"compensated": 1}, []) == (counts(metrics), tracing.unended())
    assert "saga order > compensate a" in tracing.tree()


@pytest.mark.parametrize("moment", ["in the first step", "in the next", "over a chunk", "leaving"])
async def test_a_reader_that_is_thrown_away(moment: str, log: Log, metrics: Any, tracing: Any) -> None:
    """The same where it is inside the stream as nobody drives it any more, and so can wait for nothing."""
    first = SagaStep(log.doing("a", seconds=0.0), log.undoing("a"), "a")
    stream = saga(first, log.doing("b"), letters(log, "x", "y", closing_seconds=1.0)).stream(">")
    pending: Any = stream.__aenter__()
    if moment in ("over a chunk", "leaving"):
        chunks = await pending
        await anext(chunks)
        pending = chunks.__anext__() if moment == "over a chunk" else stream.__aexit__(None, None, None)
    pending.send(None)
    if moment == "in the next":
        pending.send(None)
    pending.close()
    await asyncio.sleep(2.0)
    assert {"compensated": 1} == counts(metrics)
    assert (moment != "in the first step") == any(entry.startswith("undo a") for entry in log)
    assert [] == tracing.unended()


# ---- whatever the moment


async def three_steps(work: Work) -> Any:
    """Undone as often as it was done, whatever the moment."""
    done, undone = [], []

    async def note(value: Any) -> Any:
        await asyncio.sleep(0)
        done.append(value)
        return value

    async def undo(value: Any) -> None:
        await asyncio.sleep(0)
        undone.append(value)

    primitive = saga(SagaStep(note, undo, "a"), SagaStep(note, undo, "b"), SagaStep(work.call, name="c"))
    try:
        return await primitive.execute(">")
    except BaseException:
        await turns()
        assert done == undone
        raise


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize(
    "scenario",
    [
        three_steps,
        lambda work: read(saga(SagaStep(Work().call, Work().call, "a"), SagaStep(work.stream, name="b"))),
    ],
    ids=["execute", "stream"],
)
def test_cancelled_at_every_turn(scenario: Any, work: Work, new_tracing: Any, metrics: Any) -> None:
    """From before it began to after it ended: CancelledError, every span ended, every call counted once."""
    complaints = Complaints()
    length = run(scenario, work, [], new_tracing(), complaints) + 2
    for turn in range(length):
        run(scenario, work, [turn], new_tracing(), complaints)
        run(scenario, work, [turn, turn + 2], new_tracing(), complaints)
    gc.collect()
    assert [] == complaints
    assert "compensation_failed" not in counts(metrics)
    # All but those that were cancelled before they began.
    assert 1 + 2 * length - 4 <= sum(counts(metrics).values()) <= 1 + 2 * length


# ---- knobs


def test_wrong_steps() -> None:
    """No steps, and what is no step."""
    with pytest.raises(ConfigurationError, match="at least one step"):
        SagaPrimitive([])
    for wrong in (len, SagaStep(print), SagaStep(Work().call, len)):
        with pytest.raises(ConfigurationError):
            saga(wrong)


async def test_names(log: Log) -> None:
    """Steps go by the names of their actions, told apart where they are the same; the tree shows what undoes them."""

    async def book(_: Any) -> str:
        return "booked"

    async def cancel(_: Any) -> None:
        log.append("cancelled")

    given = [SagaStep(book, cancel), SagaStep(book, name="book 3"), book, SagaStep(book, name="book 3")]
    names = [name for name, _ in SagaPrimitive[str, str](given).steps() if name != "undo book"]
    assert ["book", "book 3", "book 4", "book 3 4"] == names  # a series of each: no two may share one
    primitive = SagaPrimitive[str, str]([SagaStep(book, cancel), book, SagaStep(book, name="pay")])
    assert "saga" == primitive.name
    expected = ["saga saga (3 steps)", "book: book", "undo book: cancel", "book 2: book", "pay: book"]
    assert expected == [line.strip() for line in primitive.describe().splitlines()]
    assert "booked" == await primitive.execute("question")
