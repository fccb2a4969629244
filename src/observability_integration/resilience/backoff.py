"""The wait before a retry: exponential, random, and never shorter than the provider's Retry-After."""

from __future__ import annotations

import random as _random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from observability_integration.checks import check_at_least, check_choice, check_order, check_positive

Jitter = Literal["full", "equal", "none"]

# The largest random addition to a Retry-After, as a fraction: all callers that were refused got the same time.
_RETRY_AFTER_JITTER = 0.1
_MAX_STEPS = 2**62  # fits a float, and is more than any factor above 1 can grow by


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """The waits between attempts.

    Before retry n (1 is the first) the wait is up to ``ceiling = min(max_seconds, base_seconds * factor ** (n - 1))``.

    Attributes:
        base_seconds: the ceiling of the first wait, > 0. 0.5 and 8 are what the SDKs of OpenAI and Anthropic use.
        factor: growth of the ceiling from one retry to the next, >= 1.
        max_seconds: the highest ceiling, >= `base_seconds`.
        jitter: ``full`` waits between 0 and the ceiling: of the kinds compared in "Exponential Backoff And Jitter" (AWS
            Architecture Blog, 2015) it causes the least work when many callers retry. ``equal`` waits between half of
            the ceiling and all of it; ``none`` exactly the ceiling, which is for a lone caller only.
        max_retry_after_seconds: the longest Retry-After that is waited for, >= 0. The SDK of OpenAI accepts up to
            120 s, that of Anthropic any time; no caller waits that long for an answer.

    Raises:
        ConfigurationError: a value out of range.
    """

    base_seconds: float = 0.5
    factor: float = 2.0
    max_seconds: float = 8.0
    jitter: Jitter = "full"
    max_retry_after_seconds: float = 60.0

    def __post_init__(self) -> None:
        check_positive("base_seconds", self.base_seconds)
        check_at_least("factor", self.factor, 1)
        check_positive("max_seconds", self.max_seconds)
        check_order("base_seconds", self.base_seconds, "max_seconds", self.max_seconds)
        check_choice("jitter", self.jitter, get_args(Jitter))
        check_at_least("max_retry_after_seconds", self.max_retry_after_seconds, 0)

    def delay(self, retry_number: int, random: Callable[[], float] = _random.random) -> float:
        """Returns the wait before a retry, in seconds.

        Args:
            retry_number: 1 for the first retry; any size.
            random: numbers from 0 to below 1.
        """
        ceiling = self._ceiling(retry_number)
        if self.jitter == "none":
            return ceiling
        if self.jitter == "equal":
            return ceiling / 2 * (1 + random())
        return ceiling * random()

    def wait_for(
        self,
        retry_number: int,
        retry_after_seconds: float | None = None,
        remaining_seconds: float | None = None,
        random: Callable[[], float] = _random.random,
    ) -> float | None:
        """Returns the wait before the next attempt, in seconds; None when there is no time for another attempt.

        The wait is at least the provider's Retry-After, plus up to a tenth of it, so that callers that were refused in
        one instant do not come back in one instant.

        Args:
            retry_number: 1 for the first retry; any size.
            retry_after_seconds: the provider's Retry-After; ignored unless > 0.
            remaining_seconds: time left until the deadline; None without a deadline.
            random: numbers from 0 to below 1.
        """
        wait = self.delay(retry_number, random)
        if retry_after_seconds is not None and retry_after_seconds > 0:
            if retry_after_seconds > self.max_retry_after_seconds:
                return None
            wait = max(wait, retry_after_seconds * (1 + _RETRY_AFTER_JITTER * random()))
        # An attempt that would begin at the deadline has no time.
        return wait if remaining_seconds is None or wait < remaining_seconds else None

    def _ceiling(self, retry_number: int) -> float:
        steps = min(max(retry_number, 1) - 1, _MAX_STEPS)
        try:
            return min(self.max_seconds, self.base_seconds * float(self.factor) ** steps)
        except OverflowError:
            return self.max_seconds
