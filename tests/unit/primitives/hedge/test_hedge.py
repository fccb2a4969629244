"""The semantics of a hedge, row by row, on a clock that jumps."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from observability_integration import WorkflowContext, events
from observability_integration.context import Deadline
from observability_integration.errors import ConfigurationError, PrimitiveTimeoutError
from observability_integration.primitives import HedgePrimitive, LLMCallPrimitive, TimeoutPrimitive
from observability_integration.resilience.retry_budget import RetryBudget, enter_scope, leave_scope
from observability_integration.testing import FakeClockLoop
from tests.scripted_work import QUESTION, Work, now
from tests.unit.primitives import test_cancel_every_tick as every_tick

LOOP_FACTORY = FakeClockLoop

pytestmark = [pytest.mark.once, pytest.mark.promise("H1", "H2")]


def hedge(primary: Any, second: Any = None, delay_seconds: float | None = 2.0, **options: Any) -> Any:
    return HedgePrimitive(primary, second, delay_seconds=delay_seconds, operation_name="ask", **options)


class Chunks:
    """A scripted stream: what it yields, raises or waits for (a number of seconds), and what became of it."""

    def __init__(self, *script: Any) -> None:
        self.script = script
        self.starts = 0
        self.cancelled_at = math.nan
        self.closed_at = math.nan

    async def stream(self, _: str) -> AsyncIterator[Any]:
        self.starts += 1
        try:
            for item in self.script:
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, float):
                    await asyncio.sleep(item)
                else:
                    yield item
        except asyncio.CancelledError:
            self.cancelled_at = now()
            raise
        finally:
            self.closed_at = now()


KEEP_ALIVE = {"type": "ping"}


async def read(primitive: Any, context: WorkflowContext | None = None) -> list[Any]:
    async with primitive.stream(QUESTION, context) as chunks:
        return [chunk async for chunk in chunks]


@pytest.fixture
def outcomes(metrics: Any) -> Callable[[], dict[str, float]]:
    """How many calls came to which end, without those that none came to."""
    kinds = ("unhedged", "primary_won", "hedge_won", "failed", "cancelled")

    def count() -> dict[str, float]:
        counts = {kind: metrics("hedge.operations", operation="ask", outcome=kind) for kind in kinds}
        return {kind: number for kind, number in counts.items() if number}

    return count


# ---- one call


async def test_fast_call_is_not_hedged(outcomes: Any, metrics: Any, tracing: Any) -> None:
    """Who answers in time is asked once: a hedge costs nothing where it is not needed."""
    first, second = Work(1.9, "first"), Work(0.0, "second")
    assert "first" == await hedge(first, second).execute(QUESTION)
    assert (1.9, 1, 0) == (now(), first.starts, second.starts)
    assert {"unhedged": 1} == outcomes()
    assert 0 == metrics("hedge.launched", operation="ask")
    assert {"outcome": "success"} == tracing.named("hedge ask").attributes
    assert [] == tracing.unended()


@pytest.mark.parametrize("error", [ValueError("own"), TimeoutError()])
async def test_failure_in_time_passes_unchanged(error: Exception, outcomes: Any, tracing: Any) -> None:
    """To ask again because of an error is for a retry, which knows how long to wait."""
    second = Work()
    with pytest.raises(type(error)) as caught:
        await hedge(Work(1.0, error), second).execute(QUESTION)
    assert error is caught.value
    assert 0 == second.starts
    assert {"failed": 1} == outcomes()
    span = tracing.named("hedge ask")
    assert ("error", error) == (span.attributes["outcome"], span.error)


async def test_call_that_cancels_itself(outcomes: Any) -> None:
    """A CancelledError of the work itself goes on, at once even where a second call is under way."""
    with pytest.raises(asyncio.CancelledError):
        await hedge(Work(1.0, asyncio.CancelledError())).execute(QUESTION)
    second = Work(100.0)
    with pytest.raises(asyncio.CancelledError):
        await hedge(Work(3.0, asyncio.CancelledError()), second).execute(QUESTION)
    assert (4.0, [4.0]) == (now(), second.cancelled_at)
    assert {"cancelled": 2} == outcomes()
    task = asyncio.current_task()
    assert task is not None
    assert 0 == task.cancelling()


# ---- two calls


async def test_hedge_wins(outcomes: Any, metrics: Any, tracing: Any) -> None:
    """A slow call gets a rival after the delay; the first answer is taken, and the loser is cancelled at once."""
    first, second = Work(60.0, "first"), Work(1.0, "second")
    chain = hedge(first, second, cost_per_call=0.25, hedge_cost_per_call=0.5)
    assert "second" == await chain.execute(QUESTION)
    assert 3.0 == now()
    await asyncio.sleep(0)
    assert ([3.0], []) == (first.cancelled_at, second.cancelled_at)
    assert {"hedge_won": 1} == outcomes()
    assert 1 == metrics("hedge.launched", operation="ask")
    assert 1 == metrics("hedge.delay", operation="ask")
    assert 0.5 == metrics("hedge.cost_usd", operation="ask", role="winner")
    assert 0.25 == metrics("hedge.cost_usd", operation="ask", role="loser")
    span = tracing.named("hedge ask")
    assert {"outcome": "success", "hedge.winner": "hedge"} == span.attributes
    assert ["hedge.launched"] == span.events


async def test_primary_wins(outcomes: Any, metrics: Any, tracing: Any) -> None:
    """A slow call may still be first."""
    first, second = Work(2.5, "first"), Work(60.0, "second")
    assert "first" == await hedge(first, second, cost_per_call=0.25, hedge_cost_per_call=0.5).execute(QUESTION)
    await asyncio.sleep(0)
    assert (2.5, [], [2.5]) == (now(), first.cancelled_at, second.cancelled_at)
    assert {"primary_won": 1} == outcomes()
    assert 0.25 == metrics("hedge.cost_usd", operation="ask", role="winner")
    assert 0.5 == metrics("hedge.cost_usd", operation="ask", role="loser")
    assert "primary" == tracing.named("hedge ask").attributes["hedge.winner"]


@pytest.mark.parametrize(("second", "paid"), [("second", 0.25), (ConnectionError(), 0.0)])
async def test_tie_goes_to_the_first_call(second: Any, paid: float, metrics: Any, caplog: Any) -> None:
    """Of two ends in one turn of the loop the first call's is taken; an error of the other is not asyncio's to log."""
    assert "first" == await hedge(Work(3.0, "first"), Work(1.0, second), cost_per_call=0.25).execute(QUESTION)
    assert 3.0 == now()
    gc.collect()
    assert [] == caplog.records
    assert paid == metrics("hedge.cost_usd", operation="ask", role="loser")


async def test_the_same_again() -> None:
    """Without another target the same one is asked again, with the same question."""
    asked: list[tuple[str, float]] = []

    async def ask(question: str) -> float:
        asked.append((question, now()))
        await asyncio.sleep(60.0 if len(asked) == 1 else 1.0)
        return asked[-1][1]

    assert 2.0 == await hedge(ask).execute(QUESTION)
    assert [(QUESTION, 0.0), (QUESTION, 2.0)] == asked


async def test_attempts_are_children_of_the_hedge(tracing: Any) -> None:
    """In a trace, both calls stand under the hedge, and the one that was cancelled says so."""
    slow, fast = (LLMCallPrimitive(Work(s), model=m, provider="p") for s, m in ((60.0, "slow"), (1.0, "fast")))
    await hedge(slow, fast).execute(QUESTION, WorkflowContext("w-1", "s-1"))
    await asyncio.sleep(0.1)
    assert ["hedge ask", "hedge ask > chat slow", "hedge ask > chat fast"] == tracing.tree()
    assert "w-1" == tracing.named("hedge ask").attributes["workflow.id"]
    assert "cancelled" == tracing.named("chat slow").attributes["error.type"]
    assert [] == tracing.unended()


async def test_each_call_has_context_variables_of_its_own() -> None:
    """What one of them sets is seen neither by the other nor by the caller, whoever wins."""
    seen: list[str] = []
    variable: ContextVar[str] = ContextVar("variable", default="caller's")

    async def ask(_: str) -> None:
        seen.append(variable.get())
        variable.set("attempt's")
        await asyncio.sleep(60.0 if len(seen) == 1 else 1.0)

    await hedge(ask).execute(QUESTION)
    assert ["caller's", "caller's"] == seen
    assert "caller's" == variable.get()


@pytest.mark.parametrize("first_fails", [True, False])
async def test_one_fails_and_the_other_decides(first_fails: bool, outcomes: Any, metrics: Any, tracing: Any) -> None:
    """An error is no answer, however early it comes, while another call may still bring one."""
    fails, works = Work(3.0, ConnectionError()), Work(10.0)
    chain = hedge(fails, works, cost_per_call=0.25) if first_fails else hedge(works, fails, cost_per_call=0.25)
    assert "answer" == await chain.execute(QUESTION)
    assert (12.0 if first_fails else 10.0) == now()
    assert {"hedge_won" if first_fails else "primary_won": 1} == outcomes()
    assert ["hedge.launched", "hedge.attempt_failed"] == tracing.named("hedge ask").events
    assert 0 == metrics("hedge.cost_usd", operation="ask", role="loser")


@pytest.mark.parametrize("seconds", [(3.0, 60.0), (60.0, 3.0)])
async def test_both_fail(seconds: tuple[float, float], outcomes: Any) -> None:
    """The error is that of the first call, as it would be without a hedge, whichever failed last."""
    mine, others = ConnectionError("first"), ConnectionError("second")
    with pytest.raises(ConnectionError) as caught:
        await hedge(Work(seconds[0], mine), Work(seconds[1], others)).execute(QUESTION)
    assert mine is caught.value
    assert {"failed": 1} == outcomes()


class Refused(Exception):
    """As an SDK raises it for a refused prompt."""

    status_code = 401


async def test_a_refusal_is_not_routed_around(outcomes: Any) -> None:
    """Who was told that the credentials or the content are not accepted must not get the answer from elsewhere."""
    second = Work(60.0)
    with pytest.raises(Refused):
        await hedge(Work(3.0, Refused()), second).execute(QUESTION)
    assert 3.0 == now()
    await asyncio.sleep(0)
    assert [3.0] == second.cancelled_at
    assert {"failed": 1} == outcomes()
    # That the second target refuses says nothing of the first one.
    assert "answer" == await hedge(Work(10.0), Work(1.0, Refused())).execute(QUESTION)
    # And the user knows best.
    chain = hedge(Work(3.0, Refused()), Work(10.0), classifier=lambda _: "transient")
    assert "answer" == await chain.execute(QUESTION)


# ---- how long to wait


async def test_nothing_is_hedged_before_it_is_known_what_slow_is(outcomes: Any, metrics: Any) -> None:
    """The delay is measured: it takes a number of answers, and is the quantile of their times from then on."""
    work = Work(1.0)
    chain = hedge(work, None, None, warmup_calls=20, quantile=0.9)
    for number in range(20):
        assert chain.current_delay_seconds() is None
        work.seconds = 1.0 + number
        await chain.execute(QUESTION)
    assert 20 == metrics("hedge.suppressed", operation="ask", reason="warmup")
    assert {"unhedged": 20} == outcomes()
    assert 18.0 == chain.current_delay_seconds()
    assert chain.current_delay_seconds(streaming=True) is None
    work.seconds = 60.0
    await chain.execute(QUESTION)
    assert 1 == metrics("hedge.launched", operation="ask")
    assert {"unhedged": 20, "primary_won": 1} == outcomes()


async def test_overtaken_calls_count_as_slow() -> None:
    """Calls that a hedge overtakes are the slow ones: without them the delay would sink with every hedge."""
    seconds = iter([1.0] * 90 + [100.0, 0.5] * 200)

    async def ask(_: str) -> None:
        await asyncio.sleep(next(seconds))

    chain = hedge(ask, None, None, warmup_calls=90, quantile=0.9, budget=None)
    for _ in range(90 + 20):
        await chain.execute(QUESTION)
    assert 1.5 == chain.current_delay_seconds()


async def test_error_in_time_says_nothing_of_answers() -> None:
    """An outage of errors that come at once must not make every answer look slow afterwards."""
    works, fails = Work(1.0), Work(0.001, ConnectionError())
    chain = hedge(lambda_of(works, fails), None, None, warmup_calls=2)
    for _ in range(2):
        await chain.execute(QUESTION)
    fails.starts = 0
    for _ in range(50):
        with pytest.raises(ConnectionError):
            await chain.execute("fail")
    assert 1.0 == chain.current_delay_seconds()


def lambda_of(works: Work, fails: Work) -> Any:
    async def ask(question: str) -> Any:
        return await (fails if question == "fail" else works)()

    return ask


async def test_delay_is_never_shorter_than_the_least() -> None:
    """Hits of a cache further in take microseconds; hedging what is slower than that would hedge every miss."""
    chain = hedge(Work(0.0001), None, None, warmup_calls=1)
    await chain.execute(QUESTION)
    assert 0.05 == chain.current_delay_seconds()


# ---- what keeps a second call from being made


async def test_budget(outcomes: Any, metrics: Any, tracing: Any) -> None:
    """When all calls are slow, a second one for each would double the load that made them slow."""
    budget = RetryBudget(0.5, 0, 1, over_operations=10, clock=lambda: 0.0)
    for _ in range(5):
        assert "answer" == await hedge(Work(10.0), budget=budget).execute(QUESTION)
    # There was one token, of which each call earns two fifths; more than one is not saved up.
    assert (2, 3) == (
        metrics("hedge.launched", operation="ask"),
        metrics("hedge.suppressed", operation="ask", reason="budget"),
    )
    assert {"primary_won": 2, "unhedged": 3} == outcomes()
    assert ["hedge.suppressed"] in [span.events for span in tracing.spans]


async def test_default_budget_tells_when_it_is_used_up(metrics: Any, caplog: Any) -> None:
    """An operator hears of it once, not with every call."""
    told: list[Any] = []
    chain = hedge(Work(10.0))
    unsubscribe = events.subscribe(lambda event: told.append(dict(event.attributes)), "hedge.budget_exhausted")
    with caplog.at_level(logging.WARNING):
        await asyncio.gather(*(chain.execute(QUESTION) for _ in range(200)))
    unsubscribe()
    assert [{"operation": "ask"}] == told
    assert 1 == len(caplog.records)
    assert 37 == metrics("hedge.launched", operation="ask")
    assert 163 == metrics("hedge.suppressed", operation="ask", reason="budget")


async def test_no_budget_is_no_bound(metrics: Any) -> None:
    """None means what it says."""
    chain = hedge(Work(10.0), budget=None)
    await asyncio.gather(*(chain.execute(QUESTION) for _ in range(200)))
    assert 200 == metrics("hedge.launched", operation="ask")


async def test_shared_budget_is_paid_into_once() -> None:
    """A fault makes the calls further in fail and be made again: if each deposited, faults would bring tokens in."""

    def chain(budget: RetryBudget) -> Any:
        return hedge(hedge(Chunks("a").stream, delay_seconds=0.5, budget=budget), budget=budget)

    budget = RetryBudget(burst=10, clock=lambda: 0.0)
    both = chain(budget)
    while budget.withdraw():
        pass
    await both.execute(QUESTION)
    assert pytest.approx(budget.earned) == budget.balance
    await read(both)
    assert pytest.approx(2 * budget.earned) == budget.balance
    alone = RetryBudget(burst=10, clock=lambda: 0.0)
    while alone.withdraw():
        pass
    outer = enter_scope(budget)
    assert outer is not None
    await hedge(Work(), budget=alone).execute(QUESTION)
    leave_scope(outer)
    assert pytest.approx(alone.earned) == alone.balance


async def test_what_goes_on_without_the_operation_pays_for_itself() -> None:
    """A worker that was started inside of a call, and serves later ones, would else use up what it never pays in."""
    budget = RetryBudget(burst=10, clock=lambda: 0.0)
    later: list[asyncio.Task[Any]] = []

    async def work() -> None:
        await asyncio.sleep(10.0)
        await hedge(Work(), budget=budget).execute(QUESTION)

    async def starts_a_worker(_: str) -> None:
        later.append(asyncio.ensure_future(work()))

    async def starts_and_streams(_: str) -> AsyncIterator[str]:
        later.append(asyncio.ensure_future(work()))
        yield "a"

    chains = hedge(starts_a_worker, budget=budget), hedge(starts_and_streams, budget=budget)
    while budget.withdraw():
        pass
    await chains[0].execute(QUESTION)
    await read(chains[1])
    await asyncio.gather(*later)
    assert pytest.approx(4 * budget.earned) == budget.balance


async def test_all_who_share_a_budget_hear_of_its_end(metrics: Any) -> None:
    """The one who made it may be any of them, or none."""
    told: list[Any] = []
    unsubscribe = events.subscribe(lambda event: told.append(event.attributes["operation"]), "hedge.budget_exhausted")
    first = HedgePrimitive(Work(10.0), delay_seconds=1.0, operation_name="first")
    second = HedgePrimitive(Work(10.0), delay_seconds=1.0, operation_name="second", budget=first.budget)
    await asyncio.gather(*(second.execute(QUESTION) for _ in range(200)))
    unsubscribe()
    assert ["first", "second"] == told


async def test_deadline_leaves_no_time(metrics: Any) -> None:
    """A second call that is likely to come too late is not made: of what is left, half of the calls take longer."""
    work = Work(1.0)
    chain = hedge(work, delay_seconds=2.0)
    for _ in range(3):
        await chain.execute(QUESTION)
    work.seconds = 60.0
    with pytest.raises(PrimitiveTimeoutError):
        await TimeoutPrimitive(chain, 2.9).execute(QUESTION)
    await chain.execute(QUESTION, WorkflowContext(deadline=Deadline.after(2.9)))
    assert 2 == metrics("hedge.suppressed", operation="ask", reason="deadline")
    assert 0 == metrics("hedge.launched", operation="ask")
    with pytest.raises(PrimitiveTimeoutError):
        await TimeoutPrimitive(chain, 3.1).execute(QUESTION)
    assert 1 == metrics("hedge.launched", operation="ask")


# ---- who does not end


async def test_winner_does_not_wait_for_the_loser(metrics: Any, caplog: Any) -> None:
    """A loser that ignores its cancellation is waited for in the background, up to the grace; then it is counted."""
    loser = Work(60.0, ignores=5)
    assert "answer" == await hedge(loser, Work(1.0)).execute(QUESTION)
    assert 3.0 == now()
    await asyncio.sleep(4.9)
    assert metrics("timeout.abandoned", operation="ask") is None
    await asyncio.sleep(0.2)
    assert 1 == metrics("timeout.abandoned", operation="ask")
    assert 1 == metrics("timeout.abandoned_active", operation="ask")
    assert 1 == len(caplog.records)
    await asyncio.sleep(60.0)
    assert 0 == metrics("timeout.abandoned_active", operation="ask")


@pytest.mark.parametrize("cleanup", [None, ConnectionError("in the clean-up"), "late"])
async def test_end_of_the_loser_is_nobodys_business(cleanup: Any, metrics: Any, caplog: Any) -> None:
    """Whatever a loser raises or returns as it is cancelled: the caller has an answer, and asyncio logs nothing."""
    assert "answer" == await hedge(Work(60.0, cleanup_seconds=1.0, cleanup_result=cleanup), Work(1.0)).execute(QUESTION)
    await asyncio.sleep(10.0)
    gc.collect()
    assert [] == caplog.records
    assert metrics("timeout.abandoned", operation="ask") is None


async def test_cancelled_caller_waits_for_both(outcomes: Any, metrics: Any, tracing: Any) -> None:
    """A cancelled caller leaves no work behind that could still end."""
    first, second = Work(60.0, cleanup_seconds=1.0), Work(60.0, cleanup_seconds=4.0)
    task = asyncio.ensure_future(hedge(first, second, cost_per_call=0.25).execute(QUESTION))
    await asyncio.sleep(3.0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert (7.0, [3.0], [3.0]) == (now(), first.cancelled_at, second.cancelled_at)
    assert {"cancelled": 1} == outcomes()
    assert 0.5 == metrics("hedge.cost_usd", operation="ask", role="loser")
    assert "cancelled" == tracing.named("hedge ask").attributes["outcome"]


async def test_cancelled_caller_waits_no_longer_than_the_grace(metrics: Any) -> None:
    """However many calls ignore their cancellation: one grace; cancelled a second time, no more of it."""
    works = Work(60.0, ignores=9), Work(60.0, ignores=9)
    task = asyncio.ensure_future(hedge(*works).execute(QUESTION))
    await asyncio.sleep(3.0)
    task.cancel()
    await asyncio.wait({task})
    assert 8.0 == now()
    assert 2 == metrics("timeout.abandoned", operation="ask")
    task = asyncio.ensure_future(hedge(Work(60.0, ignores=9)).execute(QUESTION))
    await asyncio.sleep(1.0)
    task.cancel()
    await asyncio.sleep(1.0)
    task.cancel()
    await asyncio.wait({task})
    assert 10.0 == now()
    await asyncio.sleep(100.0)


async def test_cancelled_call_teaches_only_what_it_saw() -> None:
    """The grace of a cancelled caller is not time in which an answer was waited for."""
    work = Work(1.0)
    chain = hedge(work, None, None, warmup_calls=1, quantile=0.99, budget=None)
    await chain.execute(QUESTION)
    work.seconds, work.cleanup_seconds = 60.0, 4.0
    for seconds, expected in ((0.5, 1.0), (1.5, 1.5)):
        task = asyncio.ensure_future(chain.execute(QUESTION))
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.wait({task})
        assert expected == chain.current_delay_seconds()


HEDGED: dict[str, Any] = {
    "hedge": lambda work: hedge(work.call, delay_seconds=0.5).execute(QUESTION),
    "hedge at once": lambda work: hedge(work.call, delay_seconds=0.0, grace_seconds=0).execute(QUESTION),
    "hedge that collects": lambda work: hedge(work.stream, delay_seconds=0.0).execute(QUESTION),
    "hedge that fails": lambda work: hedge(work.call, every_tick.Work(fails=True).call, 0.5).execute(QUESTION),
    "hedge that wins": lambda work: hedge(work.call, every_tick.slowly, 0.5).execute(QUESTION),
    "stream of a hedge": lambda work: read(hedge(work.stream, delay_seconds=0.0)),
    "stream of a hedge that wins": lambda work: read(hedge(work.call, every_tick.slowly, 0.5)),
}


@pytest.mark.parametrize("work", every_tick.WORKS.values(), ids=every_tick.WORKS)
@pytest.mark.parametrize("scenario", HEDGED.values(), ids=HEDGED)
def test_cancelled_at_every_turn(scenario: Any, work: Any, new_tracing: Any) -> None:
    """From before it began to after it ended: CancelledError, no task, no open span, no unretrieved error."""
    every_tick.test_cancelled_at_every_turn(scenario, work, new_tracing)


# ---- steps that stream, without a reader


async def test_first_content_decides(outcomes: Any) -> None:
    """Of a streamed answer the beginning is what takes long; whoever begins first may take longer to the end."""
    first, second = Chunks(KEEP_ALIVE, 60.0, "never"), Chunks(1.0, "a", 100.0, "b")
    chain = hedge(first.stream, second.stream)
    assert "ab" == await chain.execute(QUESTION)
    assert (103.0, 3.0) == (now(), first.cancelled_at)
    assert {"hedge_won": 1} == outcomes()


async def test_answer_that_has_begun_is_not_hedged() -> None:
    """A long answer is not a slow one."""
    first, second = Chunks(1.0, "a", 100.0, "b"), Chunks("c")
    chain = hedge(first.stream, second.stream)
    assert "ab" == await chain.execute(QUESTION)
    assert 0 == second.starts
    assert chain.execute_reads_stream
    assert "ab" == chain.join_chunks(["a", "b"])


async def test_cancelled_as_it_collects(metrics: Any, caplog: Any) -> None:
    """The winner was paid for once; and what a clean-up raises when nobody asks is not asyncio's to log."""
    chain = hedge(Chunks(60.0).stream, Chunks("a", 60.0).stream, cost_per_call=0.25)

    async def fails(_: str) -> AsyncIterator[str]:
        try:
            await asyncio.sleep(60.0)
            yield "a"
        finally:
            raise ConnectionError

    for streaming in (chain, hedge(fails)):
        task = asyncio.ensure_future(streaming.execute(QUESTION))
        await asyncio.sleep(3.0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
    del task  # whose traceback holds everything
    gc.collect()
    assert [] == caplog.records
    assert 0.25 == metrics("hedge.cost_usd", operation="ask", role="winner")
    assert 0.25 == metrics("hedge.cost_usd", operation="ask", role="loser")


async def test_empty_answer_of_a_lone_call_is_an_answer(outcomes: Any) -> None:
    """A stream that ends without content has been answered, and says nothing of how long a first content takes."""
    chain = hedge(Chunks(1.0).stream, delay_seconds=None, warmup_calls=1)
    assert "" == await chain.execute(QUESTION)
    assert [] == await read(chain)
    assert chain.current_delay_seconds() is None
    assert {"unhedged": 2} == outcomes()


@pytest.mark.parametrize("empty", [[3.0], [KEEP_ALIVE, 3.0, KEEP_ALIVE]], ids=["nothing", "keep-alives"])
@pytest.mark.parametrize("first_is_empty", [True, False])
async def test_empty_stream_does_not_win(empty: list[Any], first_is_empty: bool, outcomes: Any, tracing: Any) -> None:
    """Else a provider that hangs up would beat one that is about to answer."""
    both = Chunks(*empty).stream, Chunks(8.0, "a").stream
    chain = hedge(*both) if first_is_empty else hedge(*reversed(both))
    assert "a" == await chain.execute(QUESTION)
    assert ["a"] == await read(chain)
    assert {"hedge_won" if first_is_empty else "primary_won": 2} == outcomes()
    assert [["hedge.launched", "hedge.attempt_failed"]] * 2 == [span.events for span in tracing.spans]


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ([3.0], [2.0, ConnectionError()], "primary_won"),
        ([5.0], [1.0, ConnectionError()], "primary_won"),
        ([5.0], [1.0], "primary_won"),
        ([5.0, ConnectionError()], [1.0], "hedge_won"),
        ([2.5, ConnectionError()], [1.0], "hedge_won"),
    ],
)
async def test_empty_answer_is_better_than_none(first: Any, second: Any, outcome: str, outcomes: Any) -> None:
    """It came to an end as an answer does, whichever of the two it is, and whichever ends first."""
    chain = hedge(Chunks(*first).stream, Chunks(*second).stream)
    assert "" == await chain.execute(QUESTION)
    assert [] == await read(chain)
    assert {outcome: 2} == outcomes()


async def test_winner_that_is_cut(outcomes: Any) -> None:
    """The other one is gone when the winner fails later on, so its error passes: a fallback would begin anew."""
    cut = ConnectionError("cut")
    with pytest.raises(ConnectionError) as caught:
        await hedge(Chunks(60.0).stream, Chunks("a", cut).stream).execute(QUESTION)
    assert cut is caught.value
    assert {"failed": 1} == outcomes()


async def test_only_one_of_them_collects() -> None:
    """Whoever wins gives the result that its own `execute` gives."""
    for first, second, expected in (
        (Chunks(60.0).stream, Work(1.0, ["whole"]), ["whole"]),
        (Work(60.0), Chunks("a", "b").stream, "ab"),
    ):
        chain = hedge(first, second)
        assert not chain.execute_reads_stream
        assert expected == await chain.execute(QUESTION)


# ---- streams


async def test_stream_of_the_first_to_begin(outcomes: Any, tracing: Any) -> None:
    """The reader gets one answer from its first chunk to its last; what the loser sent before is never seen."""
    first, second = Chunks({"role": 1}, 60.0), Chunks(1.0, KEEP_ALIVE, "a", 100.0, "b")
    assert [KEEP_ALIVE, "a", "b"] == await read(hedge(Chunks(KEEP_ALIVE, 60.0).stream, second.stream))
    assert 103.0 == now()
    assert {"hedge_won": 1} == outcomes()
    span = tracing.named("hedge ask")
    assert {"outcome": "success", "hedge.winner": "hedge"} == span.attributes
    # A chunk of unknown shape is content.
    assert [{"role": 1}] == (await read(hedge(first.stream, second.stream)))[:1]


async def test_slow_reader_is_no_slow_call(metrics: Any) -> None:
    """Only the wait for the first content can make a second call, and the times of readers are not measured."""
    chain = hedge(Chunks(1.0, "a", 1.0, "b").stream, None, None, warmup_calls=1, min_delay_seconds=1.5)
    for _ in range(3):
        async with chain.stream(QUESTION) as chunks:
            await asyncio.sleep(50.0)
            async for _ in chunks:
                await asyncio.sleep(50.0)
    assert 1.5 == chain.current_delay_seconds(streaming=True)
    assert 0 == metrics("hedge.launched", operation="ask")


async def test_reader_leaves(outcomes: Any, tracing: Any) -> None:
    """Leaving the block closes the winner before the next line, and is no failure."""
    source = Chunks(1.0, "a", 60.0)
    async with hedge(source.stream).stream(QUESTION) as chunks:
        assert "a" == await anext(chunks)
    assert (1.0, 1.0) == (now(), source.closed_at)
    assert {"unhedged": 1} == outcomes()
    assert "closed" == tracing.named("hedge ask").attributes["outcome"]
    async with hedge(source.stream).stream(QUESTION):
        pass
    assert 1 == source.starts


async def test_cleanup_of_a_left_stream_fails() -> None:
    """What closing the producer raises is the reader's to see, as it is without a hedge."""

    async def stream(_: str) -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.sleep(60.0)
        finally:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        async with hedge(stream).stream(QUESTION) as chunks:
            await anext(chunks)


async def test_stream_fails(outcomes: Any, tracing: Any) -> None:
    """Its own error, unchanged, before content and after it; then the stream is over."""
    for script in ([ConnectionError()], ["a", ConnectionError()]):
        with pytest.raises(ConnectionError) as caught:
            await read(hedge(Chunks(*script).stream))
        assert script[-1] is caught.value
    assert {"failed": 2} == outcomes()
    assert [caught.value, "error"] == [tracing.spans[-1].error, tracing.spans[-1].attributes["outcome"]]


async def test_stream_that_cannot_be_opened() -> None:
    """A step that refuses to stream fails as any other, and the second one may serve."""

    class Refuses(TimeoutPrimitive[Any, Any]):
        def stream(self, input_data: Any, context: WorkflowContext | None = None) -> Any:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await read(hedge(Refuses(Work(), 1.0)))


async def test_cancelled_reader(outcomes: Any) -> None:
    """Before the first content both are cancelled, after it the winner."""
    first, second = Chunks(60.0), Chunks(60.0)
    task = asyncio.ensure_future(read(hedge(first.stream, second.stream)))
    await asyncio.sleep(3.0)
    task.cancel()
    await asyncio.wait({task})
    assert (3.0, 3.0, 3.0) == (now(), first.closed_at, second.closed_at)
    winner = Chunks("a", 60.0)
    task = asyncio.ensure_future(read(hedge(winner.stream)))
    await asyncio.sleep(1.0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert (4.0, 4.0) == (now(), winner.closed_at)
    assert {"cancelled": 2} == outcomes()


async def test_loser_that_overhears_its_cancellation() -> None:
    """A producer that goes on is asked for nothing more, so it is closed after its next chunk and not at the grace."""
    closed: list[float] = []

    async def overhears(_: str) -> AsyncIterator[str]:
        try:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60.0)
            await asyncio.sleep(1.0)
            yield "late"
        finally:
            closed.append(now())

    assert ["a"] == await read(hedge(overhears, Chunks("a").stream))
    await asyncio.sleep(20.0)
    assert [3.0] == closed


async def test_dropped_stream_is_closed(outcomes: Any, tracing: Any) -> None:
    """A stream that nobody reads on is closed when it is collected."""
    source = Chunks("a", 60.0)
    stream = hedge(source.stream).stream(QUESTION)
    assert "a" == await anext(await stream.__aenter__())
    del stream
    gc.collect()
    await asyncio.sleep(0.1)
    assert 0.0 == source.closed_at
    assert "abandoned" == tracing.named("hedge ask").attributes["outcome"]
    assert {"unhedged": 1} == outcomes()
    assert [] == tracing.unended()


# ---- thrown away: a coroutine that is closed, or dies with its loop, can wait for nothing


async def under_way(work: Any, *waits: float) -> None:
    """Takes a coroutine, without a task, from one of its waits to the next."""
    for seconds in waits:
        work.send(None)
        await asyncio.sleep(seconds)


@pytest.mark.parametrize("begun", [False, True], ids=["undecided", "decided"])
@pytest.mark.parametrize("streams", [False, True], ids=["executes", "streams"])
async def test_thrown_away(streams: bool, begun: bool, outcomes: Any, tracing: Any, caplog: Any) -> None:
    """Its calls are stopped all the same: they would go on for ever, and be paid for."""
    first, second = Chunks(60.0), Chunks(*(["a"] if begun else []), 60.0)
    chain = hedge(first.stream, second.stream, budget=RetryBudget(clock=lambda: 0.0))
    work = read(chain) if streams else chain.execute(QUESTION)
    await under_way(work, 2.0, *((0.5, 0.5) if begun else (1.0,)))
    work.close()
    await asyncio.sleep(0.1)
    assert (2.5 if begun else 3.0, 3.0) == (first.closed_at, second.closed_at)
    assert {"hedge_won" if begun and streams else "cancelled": 1} == outcomes()
    assert [] == tracing.unended()
    del work
    gc.collect()
    assert [] == caplog.records


async def test_thrown_away_where_the_delays_are_locked(outcomes: Any, tracing: Any) -> None:
    """A finaliser runs wherever a collection sets in, also while a call that ends has the lock of the delays."""

    class Taken:
        def __enter__(self) -> None:
            raise AssertionError

        def __exit__(self, *_: object) -> None: ...

    for chain, delays in ((hedge(Work(60.0)), "_result_delay"), (hedge(Chunks(60.0).stream), "_first_content_delay")):
        work = chain.execute(QUESTION)
        await under_way(work, 2.0)
        getattr(chain, delays)._lock = Taken()
        work.close()
        await asyncio.sleep(0.1)
    assert {"cancelled": 2} == outcomes()
    assert [] == tracing.unended()


@pytest.mark.parametrize("streams", [False, True], ids=["executes", "streams"])
def test_thrown_away_with_its_loop(streams: bool, outcomes: Any, tracing: Any) -> None:
    """Nothing can be stopped any more then; what is left is to end the span and to raise nothing."""

    async def hangs(_: str) -> None:
        await asyncio.sleep(60.0)

    async def hangs_in_a_stream(_: str) -> AsyncIterator[str]:
        await asyncio.sleep(60.0)
        yield "a"

    loop = FakeClockLoop()
    chain = hedge(hangs_in_a_stream if streams else hangs)
    work = read(chain) if streams else chain.execute(QUESTION)
    context = copy_context()
    loop.run_until_complete(loop.create_task(under_way(work, 2.0, 1.0), context=context))
    loop.close()
    context.run(work.close)
    assert {"cancelled": 1} == outcomes()
    assert [] == tracing.unended()


# ---- many at once, and how it is made


async def test_many_at_once(outcomes: Any) -> None:
    """A thousand concurrent calls share times and budget, and each gets an answer of its own."""

    async def ask(number: int) -> int:
        await asyncio.sleep(60.0 if number % 20 == 0 else 1.0)
        return number

    async def second(number: int) -> int:
        await asyncio.sleep(1.0)
        return number

    chain = HedgePrimitive(ask, second, delay_seconds=2.0, operation_name="ask", budget=None)
    assert list(range(1000)) == await asyncio.gather(*(chain.execute(number) for number in range(1000)))
    assert {"unhedged": 950, "hedge_won": 50} == outcomes()


def test_description() -> None:
    """What is called, what if that is slow, and when."""

    async def one(_: str) -> None: ...

    async def two(_: str) -> None: ...

    assert "hedge one (after p95)\n  one" == HedgePrimitive(one).describe()
    chain = HedgePrimitive(one, two, delay_seconds=0.8, operation_name="ask")
    assert "hedge ask (after 0.8 s)\n  primary: one\n  hedge: two" == chain.describe()


def test_a_synchronous_second_call_is_refused() -> None:
    """It would block the loop in which the first one is waited for."""
    with pytest.raises(ConfigurationError):
        HedgePrimitive(Work(), lambda x: x)
