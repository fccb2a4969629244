"""A parent span in another process: reads and writes W3C trace context headers, without OpenTelemetry.

Grammar and limits: https://www.w3.org/TR/trace-context/, with the tracestate grammar of level 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

# version, trace id, span id, flags; further fields belong to future versions
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x20-\x7e]{0,457})?")
_MEMBER = re.compile(
    r"([a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])"
)
_MAX_MEMBERS = 32
_MAX_STATE_CHARACTERS = 8192  # the standard requires at least 512; OpenTelemetry's limit
_KNOWN_FLAGS = 0x03  # sampled, random trace id


class RemoteParent(NamedTuple):
    """A span of another process.

    Attributes:
        trace_id: id of the trace, not 0.
        span_id: id of the span, not 0.
        flags: 0 to 255; 0x01: sampled, 0x02: random trace id.
        state: the members of ``tracestate``, in order.
    """

    trace_id: int
    span_id: int
    flags: int
    state: tuple[tuple[str, str], ...] = ()

    @property
    def known_flags(self) -> int:
        """The flags that the standard defines; a new span must not copy others."""
        return self.flags & _KNOWN_FLAGS

    def headers(self) -> dict[str, str]:
        """The header ``traceparent``, and ``tracestate`` if there is a state."""
        written = {"traceparent": f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"}
        if self.state:
            written["tracestate"] = ",".join(f"{key}={value}" for key, value in self.state)
        return written


def read(traceparents: Sequence[str], tracestates: Sequence[str]) -> tuple[RemoteParent | None, bool]:
    """Parses the headers into a parent (None if there is no valid one) and whether all of them are valid.

    Args:
        traceparents: the values of all ``traceparent`` headers; more than one is invalid.
        tracestates: the values of all ``tracestate`` headers; an invalid one loses the state, not the parent.
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
    if len(text) > _MAX_STATE_CHARACTERS:
        return None
    members: dict[str, str] = {}
    for member in filter(None, (part.strip(" \t") for part in text.split(","))):
        match = _MEMBER.fullmatch(member)
        if match is None or match[1] in members or len(members) == _MAX_MEMBERS:
            return None
        members[match[1]] = match[2]
    return tuple(members.items())
