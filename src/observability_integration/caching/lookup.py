"""One lookup: what is asked for, and what is served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from observability_integration.telemetry.tracing.spans import OperationSpan

if TYPE_CHECKING:
    from .semantic import SemanticLookup


class Meaning(NamedTuple):
    """What is asked for, by its meaning.

    Attributes:
        lookup: finds what means the same.
        scope: the hash of all that the answer depends on, apart from the text.
        text: the text.
    """

    lookup: SemanticLookup
    scope: str
    text: str


class Asked(msgspec.Struct, eq=False):
    """One lookup on its way.

    Attributes:
        digest: the key.
        compute: makes the call; told whether nobody waits for it, so that nobody's deadline applies.
        span: the caller's span.
        started: when the lookup began, less any waiting for a call since, by ``time.perf_counter``.
        on_miss: counts a miss, given the reason, the seconds the lookup took and the span; None once it has.
        tags: tags of the entry that is made, apart from those the call adds.
        judge: given the value, the tokens that a hit on it saves, and why it must not be kept, or None.
        meaning: by which an entry may be found that was asked for in other words; None for exact matches only.
        begun: done when what is asked for has begun to come by other means, as the chunks of a stream do: from then on
            no limit applies to the whole. None if it comes in one piece.
        looked_seconds: how long the looking took; None until it is over.
    """

    digest: bytes
    compute: Callable[[bool], Awaitable[Any]]
    span: OperationSpan
    started: float
    on_miss: Callable[[str, float, OperationSpan], None] | None
    tags: Sequence[str]
    judge: Callable[[Any], tuple[int, str | None]]
    meaning: Meaning | None = None
    begun: asyncio.Future[None] | None = None
    looked_seconds: float | None = None

    def looked(self) -> None:
        """The looking is over: what follows is the call."""
        if self.looked_seconds is None:
            self.looked_seconds = time.perf_counter() - self.started

    def miss(self, reason: str) -> None:
        """Counts the lookup as a miss, once."""
        self.looked()
        count, self.on_miss = self.on_miss, None
        if count is not None:
            count(reason, self.looked_seconds or 0.0, self.span)


class Served(msgspec.Struct, frozen=True):
    """What a lookup brings.

    Attributes:
        value: the value.
        tier: ``memory``, ``backend``, ``flight`` or ``semantic`` for a hit; ``call`` for the caller who made the call;
            ``uncopyable`` when an equal call brought what only one can have.
        freshness: ``fresh``, ``stale`` or ``coalesced``.
        age_seconds: since the beginning of the call that made it.
        tokens: tokens saved.
    """

    value: Any
    tier: str
    freshness: str = "fresh"
    age_seconds: float = 0.0
    tokens: int = 0
