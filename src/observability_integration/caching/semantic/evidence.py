"""Evidence that answers served on a semantic match would be right, gathered before the first is served."""

from __future__ import annotations

from math import lgamma, log

from observability_integration.checks import check_count, check_share
from observability_integration.errors import ConfigurationError

# The prior of the mixture: mass near 0, where the rates of interest are. The bound holds whatever it is; with this one,
# the evidence for 1 % at 95 % confidence is 409 matches without a false one, or 705 with one.
_PRIOR_FALSE = 0.5
_PRIOR_TRUE = 50.0
_BISECTIONS = 50  # to 1e-15 of the rate


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


class Evidence:
    """How many matches were checked against a fresh answer, and how many of them were false.

    The upper bound of the false rate is a confidence sequence: it may be looked at after every observation, and still
    holds with the given probability at all of them, which an interval for a fixed number of observations (Wilson,
    Clopper-Pearson) does not. It is the set of rates that a bet with a Beta mixture does not refute (Robbins,
    "Statistical methods related to the law of the iterated logarithm", 1970; Howard et al., "Time-uniform,
    nonparametric, nonasymptotic confidence sequences", 2021). It supposes that what was observed is like what will be
    asked.

    Args:
        observations: matches checked so far; give what an earlier process had gathered, to go on from there.
        false: how many of them were false.
        confidence: probability with which the bound holds, between 0 and 1.

    Raises:
        ConfigurationError: a number out of range.
    """

    def __init__(self, observations: int = 0, false: int = 0, *, confidence: float = 0.95) -> None:
        check_count("observations", observations, 0)
        check_count("false", false, 0)
        if false > observations:
            raise ConfigurationError(f"false must be at most observations, got {false!r} of {observations!r}")
        check_share("confidence", confidence, above_zero=True, below_one=True)
        self.observations = observations
        self.false = false
        self._odds = -log(1 - confidence)
        self._bound: float | None = None

    def add(self, *, false: bool) -> None:
        """Counts an observation."""
        self.observations += 1
        self.false += false
        self._bound = None

    def reset(self) -> None:
        """Starts again, as after a change of the model, the embedder or the gates."""
        self.observations = self.false = 0
        self._bound = None

    @property
    def upper_bound(self) -> float:
        """The highest rate of false matches that the observations leave possible; 1 without any."""
        if self._bound is None:
            self._bound = self._compute()
        return self._bound

    def _compute(self) -> float:
        true = self.observations - self.false
        if not true:
            return 1.0
        won = _log_beta(self.false + _PRIOR_FALSE, true + _PRIOR_TRUE) - _log_beta(_PRIOR_FALSE, _PRIOR_TRUE)
        low, high = self.false / self.observations, 1.0
        for _ in range(_BISECTIONS):
            rate = (low + high) / 2
            if rate >= 1.0:
                break
            likelihood = (self.false * log(rate) if self.false else 0.0) + true * log(1 - rate)
            low, high = (low, rate) if won - likelihood > self._odds else (rate, high)
        return high
