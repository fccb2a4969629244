"""The kinds of faults, and what each allows; the table in the package's docstring explains them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from observability_integration.checks import check_at_least, check_choice, check_count
from observability_integration.errors import ConfigurationError

FaultKind = Literal[
    "cancelled",
    "content_filter",
    "auth",
    "invalid_request",
    "caller",
    "context_length",
    "refused",
    "unknown",
    "malformed",
    "stream_cut",
    "timeout",
    "rate_limited",
    "overloaded",
    "connection",
    "transient",
]


class _Policy(NamedTuple):
    retry: bool
    next_target: bool
    larger_window: bool
    counts: bool


# The gravest first: kinds that allow nothing, then those that only another target can serve, then those worth a retry.
_POLICIES: dict[FaultKind, _Policy] = {
    # retry, next target, next target with a larger window, counts against the target
    "cancelled": _Policy(False, False, False, False),
    "content_filter": _Policy(False, False, False, False),
    "auth": _Policy(False, False, False, False),
    "invalid_request": _Policy(False, False, False, False),
    "caller": _Policy(False, False, False, False),
    "context_length": _Policy(False, False, True, False),
    "refused": _Policy(False, True, True, False),
    "unknown": _Policy(False, True, True, True),
    "malformed": _Policy(False, True, True, True),
    "stream_cut": _Policy(False, True, True, True),
    "timeout": _Policy(False, True, True, True),
    "rate_limited": _Policy(True, True, True, False),
    "overloaded": _Policy(True, True, True, True),
    "connection": _Policy(True, True, True, True),
    "transient": _Policy(True, True, True, True),
}
_GRAVITY = {kind: place for place, kind in enumerate(_POLICIES)}

#: All kinds, the gravest first.
FAULT_KINDS: tuple[FaultKind, ...] = tuple(_POLICIES)


@dataclass(frozen=True, slots=True)
class Fault:
    """The classification of an exception. It holds nothing of the exception's message.

    Attributes:
        kind: one of `FAULT_KINDS`.
        status: the HTTP status, 300 to 599; None if there was none.
        retry_after_seconds: how long the provider asks to wait, 0 or more; None if it did not say.
        should_retry: overrides whether the kind allows a retry: the provider's header ``x-should-retry``, or False for
            a used-up quota and for a certificate that does not verify. None leaves it to the kind.

    Raises:
        ConfigurationError: a value is not one of these.
    """

    kind: FaultKind
    status: int | None = None
    retry_after_seconds: float | None = None
    should_retry: bool | None = None

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, FAULT_KINDS)
        check_count("status", self.status, 300, maximum=599, optional=True)
        check_at_least("retry_after_seconds", self.retry_after_seconds, 0, optional=True)
        if self.should_retry not in (None, True, False):
            raise ConfigurationError(f"should_retry must be True, False or None, got {self.should_retry!r}")

    @property
    def retries_same_target(self) -> bool:
        """Whether the same target may be asked again."""
        policy = _POLICIES[self.kind]
        # No header lets the same words pass the same filter, or fit into the same window, or corrects a program.
        if self.should_retry is None or self.kind in ("cancelled", "content_filter", "caller", "context_length"):
            return policy.retry
        return self.should_retry

    @property
    def turns_to_next(self) -> bool:
        """Whether a fallback may ask any other target."""
        return _POLICIES[self.kind].next_target

    @property
    def turns_to_larger_window(self) -> bool:
        """Whether a fallback may ask another target whose context window is larger."""
        return _POLICIES[self.kind].larger_window

    @property
    def counts_against_target(self) -> bool:
        """Whether a circuit breaker counts it as a failure of the target."""
        exhausted = self.kind == "rate_limited" and self.should_retry is False
        return exhausted or _POLICIES[self.kind].counts


#: The fault of each kind of which no more is known than the kind.
PLAIN_FAULTS: dict[FaultKind, Fault] = {kind: Fault(kind) for kind in FAULT_KINDS}


def gravity(fault: Fault) -> tuple[int, bool, float]:
    """The sort key of faults, the gravest first: its kind, a forbidden retry, the longest wait."""
    return _GRAVITY[fault.kind], fault.should_retry is not False, -(fault.retry_after_seconds or 0.0)
