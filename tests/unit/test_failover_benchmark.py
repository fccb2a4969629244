"""The wall of faults: what it sees is what happened, and each of its rules can be broken.

No peer is looked at here, and nothing is said of how fast anything is.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks import failover, failover_contestants, failover_faults, failover_tables, failover_worker
from benchmarks.checks import NotDoneError
from benchmarks.failover_contestants import OURS, Answer, Ask, Options, Target
from benchmarks.failover_faults import COMPLETE, ERROR, FAULTS, OWN_ERROR, WRONG, Reply, Seen
from benchmarks.failover_worker import Wall
from benchmarks.targets import Verdict
from observability_integration.testing import fault_of

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
SCALE = 0.002
BY_CODE = {fault.code: fault for fault in FAULTS}


class _StatusError(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__(status_code)
        self.status_code = status_code


async def _post(target: Target, question: str) -> Answer:
    host, _, port = target.base_url.removeprefix("http://").removesuffix("/v1").partition(":")
    body = json.dumps({"model": target.model, "messages": [{"role": "user", "content": question}]}).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json"
        )
        writer.write(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        reply = await reader.read()
    finally:
        writer.close()
    head_line, _, rest = reply.partition(b"\r\n")
    status = int(head_line.split()[1])
    if status != 200:
        raise _StatusError(status)
    document = json.loads(rest.partition(b"\r\n\r\n")[2])
    return Answer(document["choices"][0]["message"]["content"], document["model"], "usage" in document)


def _then(change: Callable[[Answer], Answer]) -> Callable[[Options], Ask]:
    """A contestant that asks the primary, then the fallback, and hands out what `change` makes of the answer."""

    def build(options: Options) -> Ask:
        async def ask(question: str) -> Answer:
            try:
                return change(await _post(options.primary, question))
            except (OSError, IndexError):  # reset, or nothing read
                return change(await _post(options.fallback, question))

        return ask

    return build


_PLAIN = _then(lambda answer: answer)


async def _seen(monkeypatch: pytest.MonkeyPatch, code: str, build: Callable[[Options], Ask] = _PLAIN) -> Seen:
    monkeypatch.setitem(failover_contestants.CONTESTANTS, "plain", build)
    async with Wall("plain", SCALE) as wall:
        return await wall.see(BY_CODE[code], wall.asks(BY_CODE[code]))


async def test_the_whole_answer_is_seen_with_who_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contestant that is right must be seen to be."""
    seen = await _seen(monkeypatch, "S11")
    assert (COMPLETE, "faulty-no-end-marker:S11", True) == (
        seen.replies[0].outcome,
        seen.replies[0].model,
        seen.replies[0].usage,
    )
    assert (1, 0) == (len(seen.primary), len(seen.fallback))
    assert BY_CODE["S11"].passes(seen)


@pytest.mark.parametrize("text", ["This is the whole", "This is This is the whole answer", ""])
async def test_text_that_is_not_the_answer_is_wrong(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Cut short, spliced or empty: that it came without an error makes it worse."""
    seen = await _seen(monkeypatch, "S11", _then(lambda answer: answer._replace(text=text)))
    assert [WRONG] == [reply.outcome for reply in seen.replies]
    assert not BY_CODE["S11"].passes(seen)


async def test_an_error_is_the_providers_own_only_if_it_sent_that_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries put statuses of their own making on their errors too."""

    def blaming(options: Options) -> Ask:
        async def ask(question: str) -> Answer:
            try:
                return await _post(options.primary, question)
            except _StatusError:
                raise _StatusError(503) from None

        return ask

    own, made_up = await _seen(monkeypatch, "S13"), await _seen(monkeypatch, "S13", blaming)
    assert [(OWN_ERROR, "_StatusError"), (ERROR, "_StatusError")] == [
        (seen.replies[0].outcome, seen.replies[0].error) for seen in (own, made_up)
    ]
    assert [True, False] == [BY_CODE["S13"].passes(seen) for seen in (own, made_up)]


@pytest.mark.parametrize("error", [None, asyncio.CancelledError()])
async def test_who_never_answers_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    """Or one contestant that hangs, or is cancelled from within, would keep all others out of the table."""

    def build(_: Options) -> Ask:
        async def ask(_: str) -> Answer:
            if error is not None:
                raise error
            return await asyncio.get_running_loop().create_future()

        return ask

    monkeypatch.setattr(failover_worker, "CAP_SECONDS", 5.0)
    reply = (await _seen(monkeypatch, "S06", build)).replies[0]
    assert (ERROR, type(error or TimeoutError()).__name__) == (reply.outcome, reply.error)
    assert (error is None) == (reply.seconds >= 5.0)


async def test_an_outage_ends_in_the_middle_of_the_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts are told apart by when they came, so the outage must keep to its times."""
    seen = await _seen(monkeypatch, "S15")
    asked = BY_CODE["S15"].asked_at
    during = sum(at < failover_faults.OUTAGE_SECONDS for at in asked)
    assert (len(asked), len(asked)) == (len(seen.replies), len(seen.primary))
    assert during == len(seen.fallback) == 15
    assert ["steady:S15", "primary:S15"] == [seen.replies[at].model for at in (0, -1)]
    assert all(asked_at - 0.1 < at for asked_at, at in zip(asked, seen.primary, strict=True))
    assert seen.all(COMPLETE)
    assert not BY_CODE["S15"].passes(seen)  # it asked the primary every time


async def test_a_contestant_must_answer_where_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is set up wrongly would else seem to fail at every fault."""
    monkeypatch.setitem(failover_contestants.CONTESTANTS, "plain", _then(lambda answer: answer._replace(text="no")))
    async with Wall("plain", SCALE) as wall:
        with pytest.raises(NotDoneError, match="without any fault"):
            await wall.warm_up()


@pytest.mark.parametrize("scale", [failover.FULL_SCALE, failover.QUICK_SCALE])
def test_each_fault_is_one_that_the_provider_knows(scale: float) -> None:
    """A name that it does not know is answered with 404, which no rule is about."""
    seconds = f"{failover_faults.RETRY_AFTER_SECONDS * scale:g}"
    models = {fault.code: fault.primary.format(retry_after=seconds) for fault in FAULTS}
    assert [f"S{number:02}" for number in range(1, 17)] == list(models)
    assert [fault.code for fault in FAULTS if fault.outage] == [
        code for code, model in models.items() if fault_of(f"{model}:{code}") is None
    ]


def _of(outcome: str = COMPLETE, seconds: float = 1.0, primary: tuple[float, ...] = (0.0,), fallback: int = 0) -> Seen:
    return Seen([Reply(outcome, seconds, None, "model", usage=True)], list(primary), [seconds] * fallback)


@pytest.mark.parametrize(
    ("code", "good", "bad"),
    [
        ("S01", _of(primary=(0.0, 1.8)), _of(primary=(0.0, 1.79))),
        ("S01", _of(primary=(0.0,), fallback=1), _of(primary=(0.0, 0.5, 2.5))),
        ("S02", _of(primary=(0.0, 0.5, 1.0, 1.5, 3.1)), _of(primary=(0.0, 0.5, 1.0, 1.5, 3.0))),
        ("S03", _of(), _of(WRONG)),
        ("S04", _of(), _of(ERROR)),
        ("S05", _of(), _of(OWN_ERROR)),
        ("S06", _of(seconds=12.0), _of(seconds=12.1)),
        ("S06", _of(), _of(primary=(0.0, 10.0))),
        ("S07", _of(seconds=15.0), _of(seconds=20.0)),
        ("S08", _of(seconds=45.0), _of(seconds=46.0)),
        ("S09", _of(), _of(ERROR)),
        ("S12", _of(fallback=1), _of(primary=(0.0, 1.0))),
        ("S13", _of(OWN_ERROR), _of(fallback=1)),
        ("S13", _of(OWN_ERROR), _of(OWN_ERROR, fallback=1)),
        ("S13", _of(OWN_ERROR), _of(OWN_ERROR, primary=(0.0, 1.0))),
        ("S13", _of(OWN_ERROR), _of(ERROR)),
        ("S14", _of(), _of(WRONG)),
        ("S15", _of(primary=(2.0, 6.0, 10.0, 20.0, 40.0, 90.0)), _of(primary=(2.0, 6.0, 10.0, 20.0, 40.0))),
        ("S15", _of(primary=(2.0, 60.0)), _of(primary=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 61.0))),
        ("S15", _of(primary=(60.0,)), _of(primary=(2.0, 90.1))),
        ("S15", _of(primary=(60.0,)), _of(ERROR, primary=(60.0,))),
    ],
)
def test_each_rule_can_be_kept_and_broken(code: str, good: Seen, bad: Seen) -> None:
    """A wall that everybody gets over tells nothing, as does one that nobody does."""
    assert (True, False) == (BY_CODE[code].passes(good), BY_CODE[code].passes(bad))


def test_one_question_that_fails_is_one_too_many() -> None:
    """Where there are several, the answer to the first says nothing of the others."""
    seen = _of()._replace(replies=[Reply(COMPLETE, 1.0), Reply(ERROR, 1.0)])
    assert not any(fault.passes(seen._replace(primary=[60.0])) for fault in FAULTS)


def _rows(found: dict[str, Any]) -> dict[str, Any]:
    (grid,) = failover_tables.tables(found, 1.0)
    return {row.what.partition(" ")[0]: row for row in grid.rows}


def _as_told(seen: Seen) -> Any:
    return json.loads(json.dumps(seen._asdict()))


def test_what_was_seen_is_shown() -> None:
    """Outcome, attempts and seconds of each, and a verdict on ours."""
    silent = _of(ERROR, 90.0, (0.0, 30.0, 60.0))
    found = {
        OURS: {fault.code: _as_told(_of(seconds=10.1, fallback=1)) for fault in FAULTS},
        "openai SDK": {fault.code: _as_told(silent) for fault in FAULTS},
        "tenacity": None,
    }
    rows = _rows(found)
    expected = ("✓ complete, 1 + 1, 10.1 s", "✗ error, 3 + 0, 90.0 s", "–", "not installed", "–")
    assert expected == rows["S06"].figures
    assert (Verdict.MET, Verdict.MISSED) == (rows["S06"].verdict, rows["S13"].verdict)
    assert ("14 of 16", "0 of 16", "–", "–", "–") == rows["passed"].figures
    assert Verdict.INFORMATION is rows["passed"].verdict


def test_an_answer_that_does_not_tell_its_tokens_is_marked() -> None:
    """Cost and quota are counted by what the answer tells."""
    seen = _of()._replace(replies=[Reply(COMPLETE, 1.0, None, "model"), Reply(ERROR, 2.0)])
    rows = _rows({OURS: {fault.code: _as_told(seen) for fault in FAULTS}})
    assert "✗ 1 of 2, 1 + 0, 2.0 s, model or tokens untold" == rows["S16"].figures[0]


def test_nothing_is_claimed_of_who_did_not_run() -> None:
    """An empty column is no verdict."""
    rows = _rows({})
    assert {Verdict.NOT_MEASURED, Verdict.INFORMATION} == {row.verdict for row in rows.values()}
    assert {("–",) * len(failover.CONTESTANTS)} == {row.figures for row in rows.values()}


async def _measured(monkeypatch: pytest.MonkeyPatch, *contestants: str) -> dict[str, Any]:
    # Whoever imports the package by a path of its own must let the processes do so too.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), *sys.path])))
    return await failover.measure(SCALE, contestants, lambda _: None)


async def test_a_library_that_is_not_installed_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The others are looked at all the same."""
    (tmp_path / "tenacity.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert {"tenacity": None} == await _measured(monkeypatch, "tenacity")


@pytest.mark.parametrize(("lacking", "is_ours"), [("openai", False), ("observability_integration.primitives", True)])
async def test_a_library_of_ours_that_cannot_be_imported_is_not_missing(
    monkeypatch: pytest.MonkeyPatch, lacking: str, is_ours: bool
) -> None:
    """What is broken is not to be taken for what nobody has installed."""

    def build(_: Options) -> Ask:
        raise ImportError(name=lacking)

    monkeypatch.setitem(failover_contestants.CONTESTANTS, OURS, build)
    said = io.StringIO()
    with pytest.raises(ImportError) if is_ours else nullcontext():
        await failover_worker._work(OURS, SCALE, said)
    assert ("" if is_ours else '{"missing": true}\n') == said.getvalue()


async def test_a_contestant_that_breaks_off_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table without it would look as if it had not been asked for."""
    with pytest.raises(NotDoneError, match="nobody broke off"):
        await _measured(monkeypatch, "nobody")


async def test_a_process_that_hangs_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody watches a benchmark."""
    monkeypatch.setattr(failover, "_READY_SECONDS", 0.0)
    with pytest.raises(NotDoneError, match="longer"):
        await _measured(monkeypatch, "nobody")


async def test_chunks_are_gathered() -> None:
    """The usage comes in a chunk without choices, the role in one without content, and what comes last is not all."""
    chunks = [
        _Chunk("model", None, None),
        _Chunk("model", "whole ", None),
        _Chunk("model", "answer", None),
        _Chunk("model", None, {"total_tokens": 3}),
        _Chunk(None, "", None),
    ]
    assert Answer("whole answer", "model", usage=True) == await failover_contestants.gathered(_each(chunks))
    assert Answer("", None, usage=False) == await failover_contestants.gathered(_each([]))


async def _each(chunks: list[_Chunk]) -> Any:
    for chunk in chunks:
        yield chunk


class _Chunk:
    def __init__(self, model: str | None, content: str | None, usage: dict[str, int] | None) -> None:
        self.model = model
        self.usage = usage
        delta = type("Delta", (), {"content": content})()
        self.choices = [] if usage else [type("Choice", (), {"delta": delta})()]
