"""One lookup: its input, its way of computing the value, and its result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from observability_integration.context import Deadline, remaining
from observability_integration.errors import PrimitiveTimeoutError
from observability_integration.telemetry.tracing.spans import OperationSpan

if TYPE_CHECKING:
    from .semantic import SemanticLookup


class Meaning(NamedTuple):
    """The semantic query of a lookup.

    Attributes:
        semantic: finds entries with the same meaning.
        scope: hash of everything that the answer depends on, apart from the text.
        text: the text of the prompt.
    """

    semantic: SemanticLookup
    scope: str
    text: str


class Lookup(msgspec.Struct, eq=False):
    """One lookup in progress.

    Attributes:
        digest: hash of the key.
        compute: makes the call. True as its argument means that no caller waits, so no caller's deadline applies.
        span: span of the caller.
        started: when the lookup began, by ``time.perf_counter``; later by the time spent waiting for a call.
        on_miss: counts a miss, given the reason, the seconds the lookup took and the span; None once the miss is
            counted.
        tags: tags of the new entry, apart from those that the call adds.
        assess: returns, for a value, the tokens that a hit saves and why the value must not be kept (None if it may).
        meaning: semantic query; None for exact matches only.
        stream_started: done when the first chunk of a stream has arrived: from then on neither the soft nor the hard
            timeout applies. None for a value in one piece.
        search_seconds: how long the search before the call took; None until it is over.
    """

    digest: bytes
    compute: Callable[[bool], Awaitable[Any]]
    span: OperationSpan
    started: float
    on_miss: Callable[[str, float, OperationSpan], None] | None
    tags: Sequence[str]
    assess: Callable[[Any], tuple[int, str | None]]
    meaning: Meaning | None = None
    stream_started: asyncio.Future[None] | None = None
    search_seconds: float | None = None

    @property
    def is_streaming(self) -> bool:
        """Whether the first chunk of the stream has arrived."""
        return self.stream_started is not None and self.stream_started.done()

    def end_search(self) -> None:
        """Ends the search: what follows is the call."""
        if self.search_seconds is None:
            self.search_seconds = time.perf_counter() - self.started

    def miss(self, reason: str) -> None:
        """Counts the lookup as a miss, once."""
        self.end_search()
        count, self.on_miss = self.on_miss, None
        if count is not None:
            count(reason, self.search_seconds or 0.0, self.span)


class LookupResult(msgspec.Struct, frozen=True):
    """The result of a lookup.

    Attributes:
        value: the value.
        tier: ``memory``, ``backend``, ``flight`` or ``semantic`` for a hit; ``call`` for the caller that made the call;
            ``uncopyable`` when an equal call returned a value that only one caller can have; ``reentrant`` when the
            caller is inside of the call that it asks for.
        freshness: ``fresh``, ``stale`` or ``coalesced``.
        age_seconds: time since the call that computed the value began.
        tokens: tokens saved.
    """

    value: Any
    tier: str
    freshness: str = "fresh"
    age_seconds: float = 0.0
    tokens: int = 0


class Signal(Enum):
    """What a step of a lookup may return in place of a result."""

    LOOK_AGAIN = auto()
    """The cache has changed since the caller looked: the caller has to look again."""


def deadline_error(operation: str, deadline: Deadline | None, elapsed: float) -> PrimitiveTimeoutError:
    """The error of a caller whose deadline passed while it waited for a flight, `elapsed` seconds after it came."""
    return PrimitiveTimeoutError(
        operation, elapsed, elapsed, kind="deadline",
        cleanup="clean" if elapsed else "refused", deadline_source="inherited", deadline=deadline,
    )  # fmt: skip


def only_leader_timed_out(error: Exception) -> bool:
    """Whether the leader's deadline has passed, and this caller still has time."""
    return isinstance(error, PrimitiveTimeoutError) and error.deadline_source == "inherited" and remaining() != 0.0
