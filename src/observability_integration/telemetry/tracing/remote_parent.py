"""The span in another process under which this one goes on, as W3C trace context writes it; without OpenTelemetry.

Grammar and limits: https://www.w3.org/TR/trace-context/, the tracestate grammar as level 1 has it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

# version, trace id, span id, flags; what follows is for versions that are still to come
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x20-\x7e]{0,457})?")
_MEMBER = re.compile(
    r"([a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])"
)
_MOST_MEMBERS = 32
_MOST_STATE_CHARACTERS = 8192  # the standard asks for 512 or more; this is what OpenTelemetry takes
_KNOWN_FLAGS = 0x03  # sampled, random trace id


class RemoteParent(NamedTuple):
    """A span of another process.

    Attributes:
        trace_id: id of the trace, not 0.
        span_id: id of the span, not 0.
        flags: 0 to 255; 1 is sampled, 2 says that the trace id is random.
        state: what tracing systems keep with the trace, in order.
    """

    trace_id: int
    span_id: int
    flags: int
    state: tuple[tuple[str, str], ...] = ()

    @property
    def known_flags(self) -> int:
        """The flags without those that have no meaning yet, which a new span must not take over."""
        return self.flags & _KNOWN_FLAGS

    def headers(self) -> dict[str, str]:
        """``traceparent``, and ``tracestate`` where there is any."""
        written = {"traceparent": f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"}
        if self.state:
            written["tracestate"] = ",".join(f"{key}={value}" for key, value in self.state)
        return written


def read(traceparents: Sequence[str], tracestates: Sequence[str]) -> tuple[RemoteParent | None, bool]:
    """The parent that the headers name, and whether all of what they say was sound.

    Args:
        traceparents: the values of all ``traceparent`` headers; sound is only one.
        tracestates: the values of all ``tracestate`` headers; what is not sound loses the state, not the parent.
    """
    if not traceparents:
        return None, True
    match = _TRACEPARENT.fullmatch(traceparents[0].strip(" \t")) if len(traceparents) == 1 else None
    if match is None:
        return None, False
    version, trace_id, span_id, flags = match[1], int(match[2], 16), int(match[3], 16), int(match[4], 16)
    if version == "ff" or not trace_id or not span_id or (version == "00" and match[5] is not None):
        return None, False
    state = _state(",".join(tracestates))
    parent = RemoteParent(trace_id, span_id, flags if version == "00" else flags & _KNOWN_FLAGS, state or ())
    return parent, state is not None


def _state(text: str) -> tuple[tuple[str, str], ...] | None:
    if len(text) > _MOST_STATE_CHARACTERS:
        return None
    members: dict[str, str] = {}
    for member in filter(None, (part.strip(" \t") for part in text.split(","))):
        match = _MEMBER.fullmatch(member)
        if match is None or match[1] in members or len(members) == _MOST_MEMBERS:
            return None
        members[match[1]] = match[2]
    return tuple(members.items())
