"""What the tests of the primitives share: telemetry that records instead of exporting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from observability_integration import events
from observability_integration.telemetry.tracing import spans


class RecordedSpan:
    """A span that can be looked at."""

    def __init__(self, name: str, attributes: dict[str, Any], parent: RecordedSpan | None) -> None:
        self.name = name
        self.attributes = attributes
        self.parent = parent
        self.events: list[str] = []
        self.error: BaseException | None = None
        self.ends = 0

    def set_attribute(self, key: str, value: Any) -> None:
        assert self.ends == 0, f"{key} set on '{self.name}' after its end"
        self.attributes[key] = value

    def add_event(self, name: str, attributes: Any = None) -> None:
        assert self.ends == 0, f"{name} added to '{self.name}' after its end"
        self.events.append(name)

    def end(self) -> None:
        self.ends += 1


class RecordingTracing(spans.Tracing):
    """Tracing whose spans are kept in a list, and which is as strict about contexts as OpenTelemetry is."""

    enabled = True

    def __init__(self) -> None:
        self.spans: list[RecordedSpan] = []
        self._current: ContextVar[RecordedSpan | None] = ContextVar("current span", default=None)

    def begin(self, name: str, attributes: dict[str, Any], *, client: bool = False, links: Any = ()) -> RecordedSpan:
        span = RecordedSpan(name, attributes, self.current)
        self.spans.append(span)
        return span

    def activate(self, span: Any) -> Any:
        return self._current.set(span)

    def deactivate(self, token: Any) -> None:
        self._current.reset(token)  # raises in another task than `activate` was called in

    def mark_failed(self, span: Any, error: BaseException) -> None:
        span.error = error

    @property
    def current(self) -> RecordedSpan | None:
        """The span under which the next one begins."""
        return self._current.get()

    def named(self, name: str) -> RecordedSpan:
        """The one span of this name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def tree(self) -> list[str]:
        """Names, each after those of its ancestors."""

        def path(span: RecordedSpan) -> str:
            return span.name if span.parent is None else f"{path(span.parent)} > {span.name}"

        return [path(span) for span in self.spans]

    def unended(self) -> list[str]:
        """Names of the spans that were not ended exactly once."""
        return [f"{span.name}: {span.ends} ends" for span in self.spans if span.ends != 1]


@pytest.fixture
def new_tracing() -> Iterator[Callable[[], RecordingTracing]]:
    """Makes a tracing that records, and puts it in force."""

    made: list[RecordingTracing] = []

    def make() -> RecordingTracing:
        made.append(RecordingTracing())
        spans.install(made[-1])
        return made[-1]

    yield make
    spans.install(None)
    for tracing in made:  # the last one is kept, and must not keep what its spans' errors have seen
        tracing.spans.clear()


@pytest.fixture
def tracing(new_tracing: Callable[[], RecordingTracing]) -> RecordingTracing:
    """Tracing that records."""
    return new_tracing()


@pytest.fixture
def heard() -> Iterator[list[events.Event]]:
    """The events that are emitted meanwhile."""
    listened: list[events.Event] = []
    stop = events.subscribe(listened.append)
    yield listened
    stop()
