"""Replays real chat traffic, sped up, through a pipeline of two targets; the first fails sometimes.

Times of questions and lengths of answers come from the conversation trace of Azure's LLM inference service, published
with Splitwise (ISCA 2024; see `data`). Only the providers and their speed are simulated; event loop and clock are real.
Arrivals and answers are sped up by different factors, so that up to a thousand calls are in flight at once.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import data
from observability_integration.context import Deadline, WorkflowContext
from observability_integration.primitives import (
    LLMTarget,
    PipelineDefaults,
    PrimitiveTimeoutError,
    StreamRestart,
    WorkflowPrimitive,
    pipeline,
)
from observability_integration.resilience.backoff import Backoff

from .process_monitor import ProcessMonitor, spread_ms
from .traffic_replay_provider import Provider, Question, whole_answer

TRACE = "azure2023_conv.csv.gz"
FAILING = 0.05  # of the attempts at the first target
DEADLINE_SECONDS, SHORT_DEADLINE_SECONDS = 30.0, 3.0  # before the speed-up
SHORT_DEADLINE_EVERY, STREAMED_EVERY = 20, 3  # callers
_ROUNDING_SECONDS = 1e-6  # of timers
_LOST_AFTER_SECONDS = 5.0  # after the last deadline

Report = Callable[[str], None]


class Scale(NamedTuple):
    """The part of the trace to replay, and its speed.

    Attributes:
        first: number of the first call.
        calls: maximum number of calls.
        arrivals: speed-up of the arrivals.
        answers: speed-up of the answers and of all limits.
    """

    first: int
    calls: int
    arrivals: float
    answers: float


FULL = Scale(6_000, 10_000, 40.0, 1.1)  # the busiest half of the trace
QUICK = Scale(0, 900, 65.0, 8.0)


class ReplayResult(NamedTuple):
    """The result of a replay; milliseconds are real time, triples are median, 99th percentile and maximum.

    Attributes:
        calls: number of calls.
        seconds: from the first arrival to the last end of a call.
        processor_seconds: of this process, the providers included.
        most_in_flight: maximum of concurrent calls.
        whole: calls that got the whole answer to their question.
        late: calls that ended with a timeout at their deadline.
        wrong: calls that got another text as the answer.
        failed: calls that ended with another error, by type.
        lost: calls that had not ended long after their deadline.
        doubled: questions that the providers answered in full more than once.
        left_open: attempts still running when all calls had ended.
        restarted: streams that restarted after their reader had content.
        attempts: at the first and at the second target.
        faults: of the first target, by kind.
        failovers: whole answers by the second target.
        overrun_ms: time past the deadline, of the calls that ended after it.
        beyond_lag_ms: the overruns, less the lag of the event loop in that time.
        lag_ms: lag of the event loop.
        busy_lag_ms: the lag, capped at the processor time of the interval, so without waits for a processor.
        memory_bytes: median resident memory in the second and in the last quarter of the arrivals.
    """

    calls: int
    seconds: float
    processor_seconds: float
    most_in_flight: int
    whole: int
    late: int
    wrong: int
    failed: dict[str, int]
    lost: int
    doubled: int
    left_open: int
    restarted: int
    attempts: tuple[int, int]
    faults: dict[str, int]
    failovers: int
    overrun_ms: tuple[float, float, float]
    beyond_lag_ms: tuple[float, float, float]
    lag_ms: tuple[float, float, float]
    busy_lag_ms: tuple[float, float, float]
    memory_bytes: tuple[float, float] | None


def measure(scale: Scale, report: Report) -> dict[str, Any]:
    """Replays the trace.

    Returns:
        Under ``lacking`` the missing data, or None; under ``scale`` the scale; under ``seen`` a `ReplayResult` as a
        dict, or None.
    """
    trace = data.find(TRACE)
    if trace is None:
        lacking = f"{TRACE} was not found (set {data.VARIABLE})"
        report(f"traffic replay: skipped, {lacking}")
        return {"lacking": lacking, "scale": scale._asdict(), "seen": None}
    report("traffic replay")
    calls = list(islice(read(trace), scale.first, scale.first + scale.calls))
    seen = asyncio.run(replay(calls, scale))
    return {"lacking": None, "scale": scale._asdict(), "seen": seen._asdict()}


def read(file: Path) -> Iterator[tuple[float, Question]]:
    """Yields the questions of the trace, each with its seconds after the first one."""
    with gzip.open(file, "rt", newline="") as lines:
        first: datetime | None = None
        for number, row in enumerate(csv.DictReader(lines)):
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])  # fromisoformat accepts six decimals
            first = first or at
            yield (at - first).total_seconds(), Question(number, int(row["GeneratedTokens"]))


async def replay(calls: Iterable[tuple[float, Question]], scale: Scale, failing: float = FAILING) -> ReplayResult:
    """Asks the questions at their times, independent of earlier outcomes.

    Args:
        calls: seconds and questions, in order.
        scale: of the times.
        failing: share of attempts at the first target that fail.
    """
    return await _Replay(list(calls), scale, failing).run()


def chain_of(primary: Provider, fallback: Provider, speed: float) -> WorkflowPrimitive[Any, Any]:
    """Returns a pipeline at its defaults except for the deadline, with all limits divided by `speed`."""
    usual = PipelineDefaults()
    backoff = Backoff(
        base_seconds=usual.backoff.base_seconds / speed,
        max_seconds=usual.backoff.max_seconds / speed,
        max_retry_after_seconds=usual.backoff.max_retry_after_seconds / speed,
    )
    return pipeline(
        [LLMTarget(call=provider.ask, name=provider.name) for provider in (primary, fallback)],
        timeout_seconds=DEADLINE_SECONDS / speed,
        first_chunk_seconds=usual.first_chunk_seconds / speed,
        idle_seconds=usual.idle_seconds / speed,
        grace_period_seconds=usual.grace_period_seconds / speed,
        backoff=backoff,
        restart_streams=True,
    )


class _Replay:
    def __init__(self, calls: list[tuple[float, Question]], scale: Scale, failing: float) -> None:
        self._calls = calls
        self._scale = scale
        self._finished = bytearray(1 + max((question.number for _, question in calls), default=0))
        self._primary = Provider("primary", scale.answers, self._finished, failing)
        self._fallback = Provider("fallback", scale.answers, self._finished)
        self._chain = chain_of(self._primary, self._fallback, scale.answers)
        self._in_flight: set[asyncio.Task[None]] = set()
        self._most_in_flight = 0
        self._ended: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._failovers = self._restarted = 0
        self._overruns: list[tuple[float, float]] = []

    async def run(self) -> ReplayResult:
        calls, loop = self._calls, asyncio.get_running_loop()
        began, busy_before = loop.time(), time.process_time()
        monitor = ProcessMonitor()
        for at, question in calls:
            wait_seconds = began + (at - calls[0][0]) / self._scale.arrivals - loop.time()
            if wait_seconds > 0:
                await asyncio.sleep(wait_seconds)
            task = loop.create_task(self._ask(question))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)
            self._most_in_flight = max(self._most_in_flight, len(self._in_flight))
        arrived = loop.time()
        lost = await self._wait_for_all()
        seconds, busy_seconds = loop.time() - began, time.process_time() - busy_before
        await monitor.end()
        return ReplayResult(
            len(calls),
            seconds,
            busy_seconds,
            self._most_in_flight,
            self._ended["whole"],
            self._ended["late"],
            self._ended["wrong"],
            dict(self._failed),
            lost,
            sum(times > 1 for times in self._finished),
            self._primary.open + self._fallback.open,
            self._restarted,
            (self._primary.attempts, self._fallback.attempts),
            dict(self._primary.faults),
            self._failovers,
            spread_ms([ended - due for due, ended in self._overruns]),
            spread_ms([max(0.0, ended - due - monitor.lag_within(due, ended)) for due, ended in self._overruns]),
            spread_ms([sample.late for sample in monitor.lag_samples]),
            spread_ms([min(sample.late, sample.busy) for sample in monitor.lag_samples]),
            monitor.memory_by_quarter(began, arrived),
        )

    async def _wait_for_all(self) -> int:
        longest = DEADLINE_SECONDS + PipelineDefaults().grace_period_seconds
        if not self._in_flight:
            return 0
        _, lost = await asyncio.wait(self._in_flight, timeout=longest / self._scale.answers + _LOST_AFTER_SECONDS)
        for task in lost:
            task.cancel()
        if lost:
            await asyncio.wait(lost, timeout=_LOST_AFTER_SECONDS)
        return len(lost)

    async def _ask(self, question: Question) -> None:
        loop = asyncio.get_running_loop()
        short_deadline = question.number % SHORT_DEADLINE_EVERY == 0
        limit_seconds = (SHORT_DEADLINE_SECONDS if short_deadline else DEADLINE_SECONDS) / self._scale.answers
        due = loop.time() + limit_seconds
        context = WorkflowContext(deadline=Deadline(due)) if short_deadline else None
        ask = self._streamed if question.number % STREAMED_EVERY == 0 else self._joined
        try:
            text, model, reason = await ask(question, context)
        except Exception as error:
            if isinstance(error, PrimitiveTimeoutError) and loop.time() > due - _ROUNDING_SECONDS:
                self._ended["late"] += 1
                self._overruns.append((due, max(due, loop.time())))
            else:
                self._failed[type(error).__name__] += 1
            return
        whole = text == whole_answer(question) and reason == "stop"
        self._ended["whole" if whole else "wrong"] += 1
        self._failovers += model == self._fallback.name
        if loop.time() > due:
            self._overruns.append((due, loop.time()))

    async def _joined(self, question: Question, context: WorkflowContext | None) -> tuple[str, Any, Any]:
        answer = await self._chain.execute(question, context)
        return answer.text, answer.model, answer.finish_reason

    async def _streamed(self, question: Question, context: WorkflowContext | None) -> tuple[str, Any, Any]:
        texts: list[str] = []
        model = reason = None
        async with self._chain.stream(question, context) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, StreamRestart):
                    self._restarted += 1
                    texts.clear()
                    model = reason = None
                    continue
                choice = chunk["choices"][0]
                texts.append(choice["delta"].get("content", ""))
                model, reason = chunk["model"], choice["finish_reason"] or reason
        return "".join(texts), model, reason
