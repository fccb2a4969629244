"""When a circuit breaker opens, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from observability_integration.checks import check_at_least, check_count, check_order, check_positive, check_share

_BUSY_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a breaker opens, and for how long.

    The defaults are chosen together. A target with another one beside it (`FallbackPrimitive`) that fails at once for
    60 s, called every 4 s with up to three attempts, gets at most five attempts: three that open the breaker, then two
    probes, because the shortest pauses (18.9 s, then 21.15 s twice) add up to more than 60 s. If it is down for longer,
    it gets one more every 21.15 s. It is used again at most 23.5 + 4 s after its recovery. With pauses shorter than six
    times those 4 s, the third probe, which finds the recovery, is never later than the nineteenth call. A target that
    hangs also gets the calls that were under way when the breaker opened.

    For a lone target the attempts of one caller at one question (of a `RetryPrimitive`, and of a `HedgePrimitive` that
    repeats its call) are one failure, because a circuit that opens has no other target to lead to. So the breaker opens
    at the first attempt of the third question that fails: in the same 60 s a lone target gets at most nine attempts,
    seven that open the breaker and two probes. The further attempts count as ``ignored``, unless they succeed or probe.

    Attributes:
        failure_ratio: share of failures in the window at which the breaker opens, above 0, at most 1. A half, as in
            resilience4j and Hystrix: a provider with fewer faults is still worth its retries.
        minimum_calls: calls in the window from which on the ratio counts, >= 1. With ten calls, a target that fails a
            tenth of its calls shows half of them failing once in 600 windows.
        window_seconds: length of the window, which moves in tenths, > 0. 30 as in Polly and Finagle.
        consecutive_failures: consecutive failures at which the breaker opens while the window holds fewer than
            `minimum_calls` other calls, so that it also opens with little traffic; as many as one call with two retries
            makes, or as three calls of a lone target. At least 1. With more traffic, `minimum_calls` consecutive
            failures open it: three would occur by chance, with a twentieth of faults once in 8,000 calls.
        open_seconds: the first pause, > 0.
        busy_open_seconds: the first pause of a busy target, which would be called `minimum_calls` times or more during
            that pause, > 0; None for a quarter of `open_seconds`. Among so many calls one more probe is negligible, and
            the end of an overload must be noticed soon. It grows as `open_seconds` does.
        growth: factor of the pause each time a probe fails, >= 1.
        max_open_seconds: the longest pause, >= `open_seconds`. A longer one spares a target that is down for long, and
            delays its use after the recovery.
        jitter: the largest fraction by which a pause is shortened at random, 0 to below 1, so that replicas do not
            probe together.
        probe_seconds: the time after which a probe without an outcome counts as lost, and another one is admitted, > 0.
            Longer than a call should take: twice the 30 s that are usual for a whole call.
        successes_to_close: consecutive probes that must succeed, >= 1.

    Raises:
        ConfigurationError: a value out of range.
    """

    failure_ratio: float = 0.5
    minimum_calls: int = 10
    window_seconds: float = 30.0
    consecutive_failures: int = 3
    open_seconds: float = 21.0
    busy_open_seconds: float | None = None
    growth: float = 1.5
    max_open_seconds: float = 23.5
    jitter: float = 0.1
    probe_seconds: float = 60.0
    successes_to_close: int = 1

    def __post_init__(self) -> None:
        check_share("failure_ratio", self.failure_ratio, above_zero=True)
        for knob in ("minimum_calls", "consecutive_failures", "successes_to_close"):
            check_count(knob, getattr(self, knob))
        for knob in ("window_seconds", "open_seconds", "max_open_seconds", "probe_seconds"):
            check_positive(knob, getattr(self, knob))
        check_positive("busy_open_seconds", self.busy_open_seconds, optional=True)
        for knob in ("open_seconds", "busy_open_seconds"):
            check_order(knob, getattr(self, knob), "max_open_seconds", self.max_open_seconds)
        check_at_least("growth", self.growth, 1)
        check_share("jitter", self.jitter, below_one=True)

    @property
    def least_open_seconds(self) -> float:
        """The shorter of the two first pauses, in seconds, before jitter."""
        return min(self.open_seconds, self._busy_seconds)

    @property
    def _busy_seconds(self) -> float:
        return _BUSY_SHARE * self.open_seconds if self.busy_open_seconds is None else self.busy_open_seconds

    def first_open_seconds(self, calls: int) -> float:
        """Returns the first pause, in seconds, before jitter.

        Args:
            calls: calls in the window.
        """
        missed = calls / self.window_seconds * self._busy_seconds
        return self._busy_seconds if missed >= self.minimum_calls else self.open_seconds
