"""What came from another process and holds for the task that works on it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import NamedTuple

from observability_integration.telemetry.tracing.remote_parent import RemoteParent

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
current_ambient: ContextVar[Ambient] = ContextVar("observability_integration_ambient", default=NOTHING)


def opentelemetry_in_use() -> bool:
    """Whether anybody in this process uses OpenTelemetry's API; it is not imported only to find nothing in it."""
    return "opentelemetry.context" in sys.modules
