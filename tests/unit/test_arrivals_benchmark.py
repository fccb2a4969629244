"""The replay of arrivals: the provider fails as it is told to, and nothing that goes wrong is overlooked."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import arrivals, load_tables
from benchmarks.arrivals import Scale, Seen
from benchmarks.arrivals_provider import FAULTS, PIECES, Provider, Question, answer_seconds, whole_answer
from benchmarks.arrivals_watch import Look, Watch, spread_ms
from benchmarks.data import VARIABLE
from benchmarks.targets import Verdict
from observability_integration.resilience.faults import classify
from observability_integration.testing import FakeClockLoop

pytestmark = [pytest.mark.once, pytest.mark.unmeasured]

LOOP_FACTORY = FakeClockLoop
QUESTION = Question(7, 100)
AS_IT_IS = Scale(0, 100, 1.0, 1.0)


async def _read(provider: Provider, question: Question = QUESTION) -> tuple[str, str | None]:
    texts: list[str] = []
    reason = None
    async for chunk in provider.ask(question):
        texts.append(chunk["choices"][0]["delta"].get("content", ""))
        reason = chunk["choices"][0]["finish_reason"]
    return "".join(texts), reason


async def test_an_answer_names_its_question_and_takes_as_long_as_its_tokens() -> None:
    """By its text alone it is told apart from the answer to another question, and from a part of itself."""
    finished = bytearray(8)
    provider, loop = Provider("primary", 2.0, finished), asyncio.get_running_loop()
    began = loop.time()
    assert (whole_answer(QUESTION), "stop") == await _read(provider)
    assert answer_seconds(QUESTION) / 2.0 == pytest.approx(loop.time() - began)
    assert whole_answer(QUESTION) != whole_answer(QUESTION._replace(number=8))
    assert (1, 0, 1) == (provider.attempts, provider.open, finished[QUESTION.number])


_KINDS = {"429": "rate_limited", "503": "overloaded", "reset": "connection", "malformed": "malformed"}


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_is_what_it_is_called(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals come before the first piece; the others after half of them, without a finish reason."""
    monkeypatch.setattr("benchmarks.arrivals_provider.FAULTS", (fault,))
    provider, loop = Provider("primary", 1.0, bytearray(8), failing=1.0), asyncio.get_running_loop()
    began = loop.time()
    pieces: list[Any] = []

    async def read() -> None:
        async for chunk in provider.ask(QUESTION):
            pieces.append(chunk["choices"][0]["finish_reason"])

    reading = asyncio.create_task(read())
    await asyncio.wait([reading], timeout=100.0)
    at_once = fault in ("429", "503", "reset")
    assert [None] * (0 if at_once else PIECES // 2) == pieces
    if fault == "stall":
        assert not reading.done()
        reading.cancel()
        await asyncio.wait([reading])
    elif fault == "cut":
        await reading
    else:
        error = reading.exception()
        assert error is not None
        assert _KINDS[fault] == classify(error).kind
        assert (1.0 if fault == "429" else None) == classify(error).retry_after_seconds
        assert at_once == (loop.time() - began < 0.31)
    assert ({fault: 1}, 0) == (dict(provider.faults), provider.open)


def test_as_many_attempts_fail_as_are_to() -> None:
    """One in twenty, of every kind."""

    async def ask() -> Provider:
        provider = Provider("primary", 1.0, bytearray(1), failing=0.05)
        asking = [asyncio.create_task(_read(provider, Question(0, 0))) for _ in range(1000)]
        await asyncio.wait(asking, timeout=1.0)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        return provider

    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        provider = runner.run(ask())
    assert set(FAULTS) == set(provider.faults)
    assert 30 <= sum(provider.faults.values()) <= 70


def test_the_trace_is_read_as_it_is(tmp_path: Path) -> None:
    """Its times have seven decimals, and begin with the first call."""
    file = tmp_path / arrivals.TRACE
    with gzip.open(file, "wt") as lines:
        lines.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        lines.write("2023-11-16 18:59:59.6805900,374,44\n2023-11-16 19:00:01.1805901,396,109\n")
    assert [(0.0, Question(0, 44)), (1.5, Question(1, 109))] == list(arrivals.read(file))


async def test_a_replay_accounts_for_every_call() -> None:
    """With half of the attempts failing, all are answered in full or told that their time was over, on the minute."""
    calls = [(number * 0.5, Question(number, 20 + number * 5)) for number in range(80)]
    seen = await arrivals.replay(calls, AS_IT_IS, failing=0.5)
    assert (80, 80) == (seen.calls, seen.whole + seen.late)
    assert (0, 0, 0, 0, {}) == (seen.lost, seen.wrong, seen.doubled, seen.left_open, seen.failed)
    assert seen.late >= 2  # a hurried caller waits for 3 s; from the 24th on every answer takes longer
    assert seen.failovers > 0
    assert seen.restarted > 0
    assert sum(seen.faults.values()) > 20
    assert 1.0 > seen.overrun_ms[2] >= seen.beyond_lag_ms[2]


class _Chain:
    """Stands for a pipeline that does one thing wrong."""

    def __init__(self, text: str | Exception | None) -> None:
        self._text = text

    async def execute(self, question: Question, context: object = None) -> Any:
        if self._text is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(self._text, Exception):
            raise self._text
        from observability_integration.primitives import Completion

        return Completion(f"{self._text}", "primary", "stop")

    @asynccontextmanager
    async def stream(self, question: Question, context: object = None) -> AsyncIterator[AsyncIterator[Any]]:
        async def chunks() -> AsyncIterator[Any]:
            answer = await self.execute(question, context)
            for reason, text in ((None, answer.text), ("stop", "")):
                yield {"model": "primary", "choices": [{"delta": {"content": text}, "finish_reason": reason}]}

        yield chunks()


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        (whole_answer(QUESTION), {"whole": 2}),
        (whole_answer(QUESTION._replace(number=8)), {"wrong": 2}),
        (whole_answer(QUESTION)[:-3], {"wrong": 2}),
        (whole_answer(QUESTION) * 2, {"wrong": 2}),
        ("", {"wrong": 2}),
        (None, {"lost": 2}),
        (ValueError(), {"failed": {"ValueError": 2}}),
    ],
)
async def test_what_goes_wrong_is_seen(text: Any, counted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's answer, a part of it, twice of it, none, an error, silence: whether gathered or streamed."""
    monkeypatch.setattr(arrivals, "chain_of", lambda *_: _Chain(text))
    monkeypatch.setattr(arrivals, "STREAMED_EVERY", 1)
    seen = await arrivals.replay([(0.0, QUESTION)], AS_IT_IS)
    monkeypatch.setattr(arrivals, "STREAMED_EVERY", 2)
    also = await arrivals.replay([(0.0, QUESTION)], AS_IT_IS)
    got: dict[str, Any] = {
        "whole": seen.whole + also.whole,
        "wrong": seen.wrong + also.wrong,
        "lost": seen.lost + also.lost,
    }
    got["failed"] = {kind: number + also.failed.get(kind, 0) for kind, number in seen.failed.items()}
    assert {"whole": 0, "wrong": 0, "lost": 0, "failed": {}} | counted == got


async def test_an_answer_after_the_deadline_is_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that answers late is as bad as one that says so late."""

    class Late(_Chain):
        async def execute(self, question: Question, context: object = None) -> Any:
            await asyncio.sleep(arrivals.DEADLINE_SECONDS + 0.5)
            return await super().execute(question, context)

    monkeypatch.setattr(arrivals, "chain_of", lambda *_: Late(whole_answer(QUESTION)))
    seen = await arrivals.replay([(0.0, QUESTION)], AS_IT_IS)
    assert (1, 0) == (seen.whole, seen.lost)
    assert 500.0 == pytest.approx(seen.overrun_ms[2]) == pytest.approx(seen.beyond_lag_ms[2], rel=0.01)


async def test_the_lag_of_the_loop_is_seen() -> None:
    """What the loop was late by is told apart from what a call was late by; a wait for a processor from being busy."""
    watch, loop = Watch(), asyncio.get_running_loop()
    assert isinstance(loop, FakeClockLoop)
    began = loop.time()
    await asyncio.sleep(0.05)
    loop.advance(0.5)
    await asyncio.sleep(0.05)
    await watch.end()
    assert 0.49 <= watch.late_within(began, loop.time()) <= 0.5
    assert 0.0 == watch.late_within(began, began + 0.03) == pytest.approx(0.0, abs=1e-6)
    assert max(look.busy for look in watch.looks) < 0.4  # the clock was moved, and nothing done
    looks = len(watch.looks)
    await asyncio.sleep(1.0)
    assert looks == len(watch.looks)


async def test_a_busy_process_is_seen_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own clock, which stands still while it waits for a processor."""
    busy = iter((1.0, 1.25, 1.25, 1.25))
    monkeypatch.setattr(time, "process_time", lambda: next(busy))
    watch = Watch()
    await asyncio.sleep(0.015)
    await watch.end()
    assert [0.25] == [look.busy for look in watch.looks]


async def test_memory_is_held_against_the_second_quarter() -> None:
    """In the first one everything is still filling up."""
    watch = Watch()
    await watch.end()
    watch.memory[:] = [(float(at), size) for at, size in enumerate((1, 1, 5, 7, 6, 9, 9, 9, 8, 8, 2, 8))]
    assert (7, 8) == watch.quarters(0.0, 12.0)
    assert watch.quarters(100.0, 112.0) is None
    watch.looks[:] = [Look(1.0, 0.1, 0.0)]
    assert (0.1, 0.0) == (watch.late_within(0.0, 0.5), watch.late_within(1.5, 2.0))


def test_a_spread_of_nothing_is_nothing() -> None:
    """Where no call was late there is no figure to fail at."""
    assert (0.0, 0.0, 0.0) == spread_ms([])
    assert (51.0, 100.0, 100.0) == spread_ms([number / 1e3 for number in range(100, 0, -1)])


GOOD = Seen(
    100, 60.0, 3.2, 50, 98, 2, 0, {}, 0, 0, 0, 1, (104, 3), {"cut": 4}, 3,
    (1.0, 70.0, 80.0), (1.0, 50.0, 60.0), (0.5, 30.0, 90.0), (0.5, 20.0, 90.0), (100e6, 105e6),
)  # fmt: skip


def _rows(seen: Seen) -> dict[str, Any]:
    storms: dict[str, Any] = {"storm": {}, "brown_out": {}}
    found = {"lacking": None, "scale": AS_IT_IS._asdict(), "seen": json.loads(json.dumps(seen._asdict()))}
    *_, grid = load_tables.tables({"storms": storms, "arrivals": found})
    return {row.what: row for row in grid.rows}


@pytest.mark.parametrize(
    "changes",
    [
        {"lost": 1},
        {"wrong": 1},
        {"doubled": 1},
        {"left_open": 1},
        {"failed": {"ValueError": 1}},
        {"beyond_lag_ms": (1.0, 50.1, 50.1)},
        {"busy_lag_ms": (1.0, 20.1, 20.1)},
        {"memory_bytes": (100e6, 105.1e6)},
    ],
)
def test_what_is_promised_can_be_missed(changes: dict[str, Any]) -> None:
    """Each bound by itself; kept to the brink it holds."""
    targets = [row for row in _rows(GOOD).values() if row.target]
    assert {Verdict.MET} == {row.verdict for row in targets}
    assert 8 == len(targets)
    assert [Verdict.MISSED] == [
        row.verdict for row in _rows(GOOD._replace(**changes)).values() if row.target and row.verdict is not Verdict.MET
    ]


def test_memory_is_not_judged_before_it_has_settled() -> None:
    """In a short replay more and more calls are in flight until its end."""
    rows = _rows(GOOD._replace(seconds=8.0, memory_bytes=(100e6, 200e6)))
    assert [Verdict.NOT_MEASURED] == [row.verdict for what, row in rows.items() if "memory" in what]


def test_a_trace_that_is_not_there_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty table must not be taken for a replay without faults."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    found = arrivals.measure(AS_IT_IS, lambda _: None)
    *_, grid = load_tables.tables({"storms": {"storm": {}, "brown_out": {}}, "arrivals": found})
    assert ([], f"Not measured: {arrivals.TRACE} was not found (set {VARIABLE}).") == (grid.rows, grid.note)
    no_memory = _rows(GOOD._replace(memory_bytes=None))
    assert not any("memory" in what for what in no_memory)
