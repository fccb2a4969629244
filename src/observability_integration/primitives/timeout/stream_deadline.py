"""The deadline of what is inside a bounded stream: its limit counts only the time in which a chunk is waited for."""

from __future__ import annotations

import asyncio

from observability_integration.context import Deadline


class StreamDeadline(Deadline):
    """A moment that is put off while a slow reader thinks, but never beyond an inherited one.

    It knows nothing of the stream itself: whatever runs inside may keep it, and the stream can still be collected.

    Args:
        operation: name of what set it.
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
    def when(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride] - frozen: nobody sets it
        """When it would come if the chunk that is wanted, now or next, did not."""
        since = self._loop.time() if self._since is None else self._since
        own = since + self._total - self.waited
        return own if self.inherited is None else min(own, self.inherited.when)

    # The fields of a frozen dataclass, and of what derives from it, are set past its own setter.

    def begin_wait(self, now: float) -> None:
        """A chunk is wanted."""
        object.__setattr__(self, "_since", now)

    def end_wait(self, now: float) -> None:
        """It has come, or nobody wants it any more."""
        since = now if self._since is None else self._since
        object.__setattr__(self, "waited", self.waited + now - since)
        object.__setattr__(self, "_since", None)
