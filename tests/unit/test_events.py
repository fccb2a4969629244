"""Rare, important turns, told to whoever subscribed."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from observability_integration import events


@pytest.fixture
def heard() -> Any:
    """Subscribes, and ends the subscription after the test."""
    ends: list[Callable[[], None]] = []

    def hear(prefix: str = "") -> list[events.Event]:
        got: list[events.Event] = []
        ends.append(events.subscribe(got.append, prefix))
        return got

    yield hear
    for end in ends:
        end()


def test_events_reach_their_subscribers(heard: Any) -> None:
    """Each subscriber hears what begins with its prefix, with the facts and the time."""
    everything, caches, budgets = heard(), heard("cache."), heard("budget.")
    events.emit("cache.backend.degraded", operation="ask", attempts=3)
    (event,) = everything
    assert ("cache.backend.degraded", {"operation": "ask", "attempts": 3}) == (event.name, dict(event.attributes))
    assert abs(time.time() - event.time_seconds) < 60
    assert (everything, []) == (caches, budgets)
    with pytest.raises(TypeError):
        event.attributes["operation"] = "another"


def test_unsubscribing() -> None:
    """The function that `subscribe` returns ends that subscription, and no other of the same function."""
    got: list[events.Event] = []
    first, second = events.subscribe(got.append), events.subscribe(got.append)
    events.emit("a")
    first()
    first()
    events.emit("b")
    second()
    events.emit("c")
    assert ["a", "a", "b"] == [event.name for event in got]


@pytest.mark.promise("S9")
def test_subscriber_that_raises(heard: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A subscriber's fault is logged without its message, and keeps nobody else from hearing."""

    def fails(_: events.Event) -> None:
        raise ValueError("secret")

    end = events.subscribe(fails)
    after = heard()
    events.emit("a")
    end()
    assert 1 == len(after)
    assert ["A subscriber to event a raised ValueError"] == caplog.messages


def _emitted() -> set[str]:
    """Every name that the library emits, read from its code: literals, also of a choice, a table or a notice."""
    names: set[str] = set()
    for path in (Path(events.__file__).parent).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tables = {
            ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target): node.value
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Notice":
                (prefix,) = [ast.literal_eval(each.value) for each in node.keywords if each.arg == "event"]
                names |= {f"{prefix}.degraded", f"{prefix}.recovered"}
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "events.emit":
                name: ast.AST = node.args[0]
                if isinstance(name, ast.JoinedStr):  # of a `Notice`, see above
                    continue
                if isinstance(name, ast.Subscript):
                    name = ast.List([*tables[ast.unparse(name.value)].values])  # type: ignore[union-attr]
                found = {leaf.value for leaf in ast.walk(name) if isinstance(leaf, ast.Constant)}
                assert found, f"{path.name}: the name of an event is a literal"
                names |= {str(each) for each in found}
    return names


@pytest.mark.once
def test_every_event_is_documented() -> None:
    """Whoever subscribes must know what there is; and nobody waits for an event that never comes."""
    page = Path(__file__).parents[2] / "docs" / "events.md"
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert documented == _emitted()
