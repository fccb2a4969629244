"""Evidence that semantic matches give right answers, gathered before the first is served."""

from __future__ import annotations

from math import lgamma, log

from observability_integration.checks import check_count, check_share
from observability_integration.errors import ConfigurationError

# The prior of the mixture: its mass is near 0, like the rates of interest. The bound holds for any prior; with
# this one, 1 % at 95 % confidence takes 409 matches without a false one, or 705 with one.
_PRIOR_FALSE = 0.5
_PRIOR_TRUE = 50.0
_BISECTIONS = 50  # precision of the rate: 1e-15


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


class Evidence:
    """Counts matches that were compared with a fresh answer, and the false ones among them.

    The upper bound of the false rate is a confidence sequence: it may be read after every observation, and still holds
    with the given probability at all of them, unlike an interval for a fixed number of observations (Wilson,
    Clopper-Pearson). It is the set of rates that a bet with a Beta mixture does not refute (Robbins, "Statistical
    methods related to the law of the iterated logarithm", 1970; Howard et al., "Time-uniform, nonparametric,
    nonasymptotic confidence sequences", 2021). It assumes that future prompts are like the observed ones.

    Args:
        observations: matches compared so far; pass the count of an earlier process to continue from it.
        false: number of false ones among them.
        confidence: probability with which the bound holds, between 0 and 1.

    Attributes:
        observations: matches compared.
        false: number of false ones among them.

    Raises:
        ConfigurationError: a number is out of range.
    """

    def __init__(self, observations: int = 0, false: int = 0, *, confidence: float = 0.95) -> None:
        check_count("observations", observations, 0)
        check_count("false", false, 0)
        if false > observations:
            raise ConfigurationError(f"false must be at most observations, got {false!r} of {observations!r}")
        check_share("confidence", confidence, above_zero=True, below_one=True)
        self.observations = observations
        self.false = false
        self._log_threshold = -log(1 - confidence)
        self._bound: float | None = None

    def add(self, *, false: bool) -> None:
        """Counts an observation."""
        self.observations += 1
        self.false += false
        self._bound = None

    def reset(self) -> None:
        """Discards all observations: after a change of the model, the embedder or the gates."""
        self.observations = self.false = 0
        self._bound = None

    @property
    def upper_bound(self) -> float:
        """The highest false rate that the observations leave possible, from 0 to 1; 1 without observations."""
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
            low, high = (low, rate) if won - likelihood > self._log_threshold else (rate, high)
        return high
