"""What came from another process and holds for the task that works on it, and the block that it holds for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import NamedTuple

from observability_integration.telemetry.remote_parent import RemoteParent

from .baggage import Member


class Ambient(NamedTuple):
    """What holds here.

    Attributes:
        parent: the span to go on from where OpenTelemetry has none.
        baggage: values that OpenTelemetry's own baggage does not hold.
        known: the members as they came.
    """

    parent: RemoteParent | None
    baggage: Mapping[str, str]
    known: Mapping[str, Member]


NOTHING = Ambient(None, {}, {})
ambient: ContextVar[Ambient] = ContextVar("observability_integration_ambient", default=NOTHING)
_block: ContextVar[object] = ContextVar("observability_integration_block", default=None)


class Block:
    """Knows whether a ``with`` block ends where it began.

    It does not where a generator that holds it is closed by another task, or by the garbage collector. There nothing
    that the block had put in force is in force, and to undo it would be an error.
    """

    __slots__ = ("_token",)

    def __init__(self) -> None:
        self._token = _block.set(self)

    def ends_here(self) -> bool:
        """Ends the block, and says whether this is the context in which it began."""
        try:
            _block.reset(self._token)
        except ValueError:
            return False
        return True


def opentelemetry_in_use() -> bool:
    """Whether anybody in this process uses OpenTelemetry's API; it is not imported only to find nothing in it."""
    return "opentelemetry.context" in sys.modules
