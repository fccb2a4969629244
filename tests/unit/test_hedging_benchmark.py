"""The comparison of hedges: what it counts is what happened, and each of its targets can be missed.

Nothing is said here of how fast anything is.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from benchmarks import hedging
from benchmarks.checks import NotDoneError
from benchmarks.hedging import HEDGED, SPENT, WAYS, WITHOUT, Provider, Scale, Seen
from benchmarks.targets import Verdict

pytestmark = pytest.mark.once


def seen(slow_seconds: float, requests: int = 1000) -> dict[str, Any]:
    return Seen([0.02] * 950 + [slow_seconds] * 50, requests, 7)._asdict()


async def test_provider(monkeypatch: Any) -> None:
    """It answers what it was asked, and notices when nobody waits for the answer any more."""
    async with Provider(1, 100.0).running() as provider:
        assert [1, 2] == await asyncio.gather(provider.ask(1), provider.ask(2))
        monkeypatch.setattr(hedging, "SLOW_SHARE", 1.0)
        monkeypatch.setattr(hedging, "SLOW_SECONDS", (6000.0, 6000.0))
        asking = asyncio.ensure_future(provider.ask(3))
        while provider.requests < 3:
            await asyncio.sleep(0.001)
        assert 0 == provider.cut_off
        asking.cancel()
        while not provider.cut_off:
            await asyncio.sleep(0.001)
        assert (3, 1) == (provider.requests, provider.cut_off)


async def test_every_way_is_measured() -> None:
    """All calls of all ways are made and counted, those of the hedges too, and shown in one table."""
    scale = Scale(40, 0, 20, 50.0)
    told: list[str] = []
    found = await hedging.measure(scale, told.append)
    assert [*WAYS] == [*found]
    assert len(WAYS) == len(told)
    for figures in found.values():
        assert 40 == len(figures["seconds"])
        assert figures["requests"] >= 40
    assert (40, 0) == (found[WITHOUT]["requests"], found[WITHOUT]["cut_off"])
    (grid,) = hedging.tables(found, scale)
    assert [*WAYS] == [row.what for row in grid.rows]
    assert all(len(row.figures) == len(grid.columns) - 1 for row in grid.rows)


async def test_wrong_answer_ends_it(monkeypatch: Any) -> None:
    """A figure of calls that were answered wrongly is worth nothing."""

    async def wrong(number: int) -> int:
        return number + 1

    monkeypatch.setattr(hedging, "WAYS", {WITHOUT: lambda first, second: wrong})
    with pytest.raises(NotDoneError):
        await hedging.measure(Scale(1, 0, 1), str)


@pytest.mark.parametrize(
    ("hedged", "spent", "expected"),
    [
        (seen(0.1, 1070), seen(0.4, 1010), (Verdict.MET, Verdict.MET)),
        (seen(0.2, 1070), seen(0.4, 1010), (Verdict.MISSED, Verdict.MET)),
        (seen(0.1, 1071), seen(0.4, 1011), (Verdict.MISSED, Verdict.MISSED)),
    ],
)
def test_targets(hedged: Any, spent: Any, expected: tuple[Verdict, Verdict]) -> None:
    """Three times lower, for seven percent more calls; and a budget of one percent is one percent."""
    (grid,) = hedging.tables({WITHOUT: seen(0.4), HEDGED: hedged, SPENT: spent}, Scale(1000, 0, 1))
    assert (Verdict.INFORMATION, *expected) == tuple(row.verdict for row in grid.rows)


def test_exit_code(monkeypatch: Any, capsys: Any, tmp_path: Any) -> None:
    """Who runs it hears in the code whether the targets are met, and finds every call in the file."""

    async def measured(slow_seconds: float) -> dict[str, Any]:
        return {WITHOUT: seen(0.4), HEDGED: seen(slow_seconds), SPENT: seen(0.4)}

    file = tmp_path / "found.json"
    for slow_seconds, code in ((0.1, 0), (0.4, 1)):
        monkeypatch.setattr(hedging, "measure", lambda *_, s=slow_seconds: measured(s))
        assert code == hedging.main(["--quick", "--json", str(file)])
    assert HEDGED in capsys.readouterr().out
    assert HEDGED in file.read_text()
