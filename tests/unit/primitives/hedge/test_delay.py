"""When a call is slow: the quantile is that of a plain sort, and what is cut short does not make it drift."""

from __future__ import annotations

import math
import sys
import threading
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability_integration.primitives.hedge.delay import WINDOW_CALLS, HedgeDelay

pytestmark = pytest.mark.once

_times = st.floats(0, 1e6, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    times=st.lists(_times, min_size=1, max_size=40),
    repeats=st.integers(1, 30),
    quantile=st.floats(0.01, 0.99),
)
def test_quantile_of_the_last_calls(times: list[float], repeats: int, quantile: float) -> None:
    """The nearest rank among the last 512, whatever came before them and however often a time occurs."""
    delay = HedgeDelay(quantile, warmup_calls=1)
    for time in times * repeats:
        delay.answered(time)
    kept = sorted((times * repeats)[-WINDOW_CALLS:])
    assert kept[math.ceil(quantile * len(kept)) - 1] == delay.seconds()
    assert kept[(len(kept) - 1) // 2] == delay.median_seconds()
    assert len(kept) == delay.calls


def test_old_calls_are_forgotten() -> None:
    """A provider that has become faster is hedged sooner, and one that has become slower later."""
    delay = HedgeDelay(warmup_calls=1)
    for seconds in (9.0, 1.0, 5.0):
        for _ in range(WINDOW_CALLS):
            delay.answered(seconds)
        assert seconds == delay.seconds()


def test_warm_up() -> None:
    """Of too few answers the slowest would be the quantile."""
    delay = HedgeDelay(warmup_calls=3)
    for seconds in (1.0, 2.0):
        delay.answered(seconds)
        assert delay.seconds() is None
    delay.answered(3.0)
    assert 3.0 == delay.seconds()


def test_fixed_and_least() -> None:
    """A fixed delay is there from the start and is not touched by the least; what is typical is known all the same."""
    delay = HedgeDelay(fixed_seconds=0.2, min_seconds=0.5)
    assert (0.2, 0.0) == (delay.seconds(), delay.median_seconds())
    delay.answered(7.0)
    assert (0.2, 7.0) == (delay.seconds(), delay.median_seconds())
    least = HedgeDelay(min_seconds=0.5, warmup_calls=1)
    least.answered(0.1)
    assert 0.5 == least.seconds()


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -0.001])
def test_times_that_are_none(seconds: float) -> None:
    """A clock that was set back, or is none, must not spoil the order that the search relies on."""
    delay = HedgeDelay(warmup_calls=1)
    delay.answered(1.0)
    delay.answered(seconds)
    delay.unanswered(seconds, 0.0)
    assert (1, 1.0) == (delay.calls, delay.seconds())


def test_unanswered_calls() -> None:
    """Sooner than the delay they say nothing; later than that they were slow."""
    delay = HedgeDelay(warmup_calls=1)
    delay.answered(1.0)
    delay.unanswered(0.9, 1.0)
    delay.unanswered(5.0, None)
    assert 1 == delay.calls
    delay.unanswered(1.0, 1.0)
    delay.unanswered(5.0, 1.0)
    assert (3, 5.0) == (delay.calls, delay.seconds())


def _simulated(quantile: float, *, noted: bool) -> float:
    """The share of calls that are hedged in the long run, where both calls take times of the same kind."""
    random = Random(1)
    delay = HedgeDelay(quantile)
    hedged = 0
    for number in range(6000):
        seconds, limit = random.lognormvariate(0, 0.6), delay.seconds()
        if limit is None or seconds <= limit:
            delay.answered(seconds)
            continue
        hedged += number >= 3000
        rival = limit + random.lognormvariate(0, 0.6)
        if seconds <= rival:
            delay.answered(seconds)
        elif noted:
            delay.unanswered(rival, limit)
    return hedged / 3000


def test_overtaken_calls_do_not_make_it_drift() -> None:
    """As many calls are hedged as the quantile says; without those that were cut short, half as many again."""
    assert 0.045 < _simulated(0.95, noted=True) < 0.055
    assert 0.09 < _simulated(0.9, noted=True) < 0.11
    assert _simulated(0.95, noted=False) > 0.065


def test_threads() -> None:
    """Loops in several threads may share one; a list that has lost its order would give any number."""
    delay = HedgeDelay(warmup_calls=1)

    def work(seed: int) -> None:
        random = Random(seed)
        for _ in range(2000):
            delay.answered(random.random())
            assert delay.seconds() is not None

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert WINDOW_CALLS == delay.calls
    assert WINDOW_CALLS == len(delay._sorted)
    assert sorted(delay._recent) == delay._sorted
