"""The deadline inside a stream with a timeout: its limit counts only the time in which a chunk is waited for."""

from __future__ import annotations

import asyncio

from observability_integration.context import Deadline


class StreamDeadline(Deadline):
    """A deadline that moves while no chunk is waited for, never beyond an inherited one.

    Holds no reference to the stream: work inside may keep the deadline, and the stream can still be collected.

    Args:
        operation: name of the operation that set it.
        total_seconds: how long chunks may be waited for altogether.
        inherited: the deadline from further out, if any.

    Attributes:
        waited: seconds that chunks were waited for so far, without the wait under way.
    """

    __slots__ = ("_loop", "_since", "_total", "inherited", "waited")
    _loop: asyncio.AbstractEventLoop
    _since: float | None
    _total: float
    inherited: Deadline | None
    waited: float

    def __init__(self, operation: str, total_seconds: float, inherited: Deadline | None) -> None:
        for name, value in (
            ("operation", operation),
            ("inherited", inherited),
            ("waited", 0.0),
            ("_loop", asyncio.get_running_loop()),
            ("_since", None),
            ("_total", total_seconds),
        ):
            object.__setattr__(self, name, value)

    @property
    def when(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride] - frozen: never set
        """The moment at which the wait for the current or next chunk times out."""
        since = self._loop.time() if self._since is None else self._since
        own = since + self._total - self.waited
        return own if self.inherited is None else min(own, self.inherited.when)

    # The fields of a class derived from a frozen dataclass can be set only past its setter.

    def begin_wait(self, now: float) -> None:
        """The reader asks for a chunk."""
        object.__setattr__(self, "_since", now)

    def end_wait(self, now: float) -> None:
        """The chunk has come, or the reader has given up."""
        since = now if self._since is None else self._since
        object.__setattr__(self, "waited", self.waited + now - since)
        object.__setattr__(self, "_since", None)
