"""The trace parent and the baggage of the current task, received from another process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import NamedTuple

from observability_integration.telemetry.tracing.remote_parent import RemoteParent

from .baggage import Member


class Ambient(NamedTuple):
    """The received values that apply to the current task.

    Attributes:
        parent: the remote parent of new spans, used where OpenTelemetry has no current span.
        baggage: values by key that OpenTelemetry's own baggage does not hold.
        members: the members by key as received, with their properties.
    """

    parent: RemoteParent | None
    baggage: Mapping[str, str]
    members: Mapping[str, Member]


_EMPTY = Ambient(None, {}, {})
current_ambient: ContextVar[Ambient] = ContextVar("observability_integration_ambient", default=_EMPTY)


def opentelemetry_in_use() -> bool:
    """Whether any code in this process has imported OpenTelemetry's API. This function does not import it."""
    return "opentelemetry.context" in sys.modules
