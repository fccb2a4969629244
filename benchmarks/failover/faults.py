"""The sixteen faults of the primary provider, and the target of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

COMPLETE, WRONG, ERROR, OWN_ERROR = "complete", "wrong", "error", "own error"

TIMEOUT_SECONDS, FIRST_TOKEN_SECONDS = 30.0, 10.0
CAP_SECONDS = 120.0  # after which a question ends
RETRY_AFTER_SECONDS = 2.0
OUTAGE_SECONDS, RECOVERY_SECONDS = 60.0, 30.0
SILENT_SECONDS, SLOW_SECONDS, WHOLE_SECONDS = 12.0, 15.0, 45.0
GAP_SECONDS = 1.8
BURST, BURST_SECONDS = 4, 3.0
MOST_IN_OUTAGE = 5
_EVERY_SECONDS, _FIRST_AT_SECONDS = 4.0, 2.0  # so that no request coincides with the end of the outage


class Reply(NamedTuple):
    """The outcome of one question.

    Attributes:
        outcome: `COMPLETE`, the whole answer; `WRONG`, another text returned as the answer; `OWN_ERROR`, an error
            with the status of a provider's reply; `ERROR`, any other error, or no outcome before the cap.
        seconds: until the outcome.
        error: the type of the error.
        model: named by the answer; None if it names neither provider's model.
        usage: whether the answer has usage.
    """

    outcome: str
    seconds: float
    error: str | None = None
    model: str | None = None
    usage: bool = False


class FaultResult(NamedTuple):
    """The result of a contestant under a fault; times are unscaled seconds.

    Attributes:
        replies: to the questions, in order.
        primary: arrivals of requests at the primary, since the start of the fault.
        fallback: arrivals at the fallback.
    """

    replies: list[Reply]
    primary: list[float]
    fallback: list[float]

    @classmethod
    def of(cls, said: dict[str, list[list[object]]]) -> FaultResult:
        """Restores a result from JSON of `_asdict`."""
        return cls(**{**said, "replies": [Reply(*reply) for reply in said["replies"]]})  # type: ignore[arg-type]

    @property
    def seconds(self) -> float:
        """The seconds of the slowest question."""
        return max(reply.seconds for reply in self.replies)

    def all(self, outcome: str) -> bool:
        """Whether every question had this outcome."""
        return all(reply.outcome == outcome for reply in self.replies)


class Fault(NamedTuple):
    """One fault.

    Attributes:
        code: of the fault.
        what: happens at the primary.
        primary: the model at the primary that produces the fault; ``{retry_after}`` is replaced by scaled seconds.
        target: in words.
        passes: whether a result meets the target.
        fallback: the model at the fallback.
        asked_at: seconds at which questions are asked, independent of earlier outcomes.
        outage: whether the primary resets every connection in the first `OUTAGE_SECONDS`.
    """

    code: str
    what: str
    primary: str
    target: str
    passes: Callable[[FaultResult], bool]
    fallback: str = "steady"
    asked_at: tuple[float, ...] = (0.0,)
    outage: bool = False


def _complete(seen: FaultResult) -> bool:
    return seen.all(COMPLETE)


def _within(seconds: float) -> Callable[[FaultResult], bool]:
    return lambda seen: seen.all(COMPLETE) and seen.seconds <= seconds


def _obeys_retry_after(seen: FaultResult) -> bool:
    return seen.all(COMPLETE) and all(at - seen.primary[0] >= GAP_SECONDS for at in seen.primary[1:])


def _limits_attempts(seen: FaultResult) -> bool:
    bursts = zip(seen.primary, seen.primary[BURST:], strict=False)
    return seen.all(COMPLETE) and all(last - first > BURST_SECONDS for first, last in bursts)


def _fails_over_on_silence(seen: FaultResult) -> bool:
    return seen.all(COMPLETE) and len(seen.primary) == 1 and seen.seconds <= SILENT_SECONDS


def _tries_once(seen: FaultResult) -> bool:
    return seen.all(COMPLETE) and len(seen.primary) == 1


def _returns_own_error(seen: FaultResult) -> bool:
    return seen.all(OWN_ERROR) and (len(seen.primary), len(seen.fallback)) == (1, 0)


def _survives_outage(seen: FaultResult) -> bool:
    during = sum(at < OUTAGE_SECONDS for at in seen.primary)
    back = any(OUTAGE_SECONDS <= at <= OUTAGE_SECONDS + RECOVERY_SECONDS for at in seen.primary)
    return seen.all(COMPLETE) and during <= MOST_IN_OUTAGE and back


def _whole(seconds: float) -> str:
    return f"complete, ≤ {seconds:g} s"


def _times(first: float, every: float, end: float) -> tuple[float, ...]:
    return tuple(first + every * number for number in range(int((end - first) / every) + 1))


_ONE_ATTEMPT = "1 attempt at the primary"
_OUTAGE_TIMES = _times(_FIRST_AT_SECONDS, _EVERY_SECONDS, OUTAGE_SECONDS + RECOVERY_SECONDS)

FAULTS = (
    Fault(
        "S01",
        f"429 with Retry-After {RETRY_AFTER_SECONDS:g}, once",
        "faulty-429-retry-after-{retry_after}",
        f"complete, no further request for {GAP_SECONDS:g} s",
        _obeys_retry_after,
    ),
    Fault(
        "S02",
        "429 every time",
        "faulty-429",
        f"complete, ≤ {BURST} attempts at the primary in {BURST_SECONDS:g} s",
        _limits_attempts,
    ),
    Fault("S03", "500 once", "faulty-500-once", "complete", _complete),
    Fault("S04", "503 for 5 s", "faulty-503-for-5", "complete", _complete),
    Fault("S05", "reset before a byte of the reply", "faulty-reset", "complete", _complete),
    Fault("S06", "silence", "faulty-silent", f"{_whole(SILENT_SECONDS)}, {_ONE_ATTEMPT}", _fails_over_on_silence),
    Fault("S07", "first token after 20 s", "faulty-slow-first-token-20", _whole(SLOW_SECONDS), _within(SLOW_SECONDS)),
    Fault("S08", "cut after 12 of 24 tokens", "faulty-cut-at-12", _whole(WHOLE_SECONDS), _within(WHOLE_SECONDS)),
    Fault("S09", "stalls after 12 of 24 tokens", "faulty-stall-at-12", _whole(WHOLE_SECONDS), _within(WHOLE_SECONDS)),
    Fault("S10", "a malformed chunk", "faulty-malformed-at-12", "complete", _complete),
    Fault("S11", "a finish reason, but no end marker", "faulty-no-end-marker", "complete", _complete),
    Fault("S12", "context_length_exceeded", "faulty-context-length", f"complete, {_ONE_ATTEMPT}", _tries_once),
    Fault(
        "S13", "content_filter", "faulty-content-filter", "the provider's own error after 1 attempt", _returns_own_error
    ),
    Fault(
        "S14",
        "cut after 12 tokens; the fallback rejects prefill",
        "faulty-cut-at-12",
        _whole(WHOLE_SECONDS),
        _within(WHOLE_SECONDS),
        fallback="faulty-prefill-rejected",
    ),
    Fault(
        "S15",
        f"{OUTAGE_SECONDS:g} s of resets, a question every {_EVERY_SECONDS:g} s",
        "primary",
        f"all complete, ≤ {MOST_IN_OUTAGE} attempts during it, primary asked again ≤ {RECOVERY_SECONDS:g} s after it",
        _survives_outage,
        asked_at=_OUTAGE_TIMES,
        outage=True,
    ),
    Fault(
        "S16",
        "3 s good, 3 s of 503, and so on; a question every second",
        "faulty-flapping-good-3-bad-3",
        "all complete",
        _complete,
        asked_at=_times(0.0, 1.0, 12.0),
    ),
)
