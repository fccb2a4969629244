"""The arithmetic of the buckets: what may be taken in any minute, who is first, and what a clock can do to it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability_integration.primitives.rate_limit.buckets import CLAIM_SECONDS, Ledger

pytestmark = pytest.mark.once

STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 1.0, 7.0, 59.9, 60.0, 61.0]),  # seconds that pass
        st.integers(0, 700),  # tokens that are reserved
        st.sampled_from([0.0, 0.3, 1.0]),  # part of them that is used
        st.sampled_from(["one", "a", "b"]),  # how it is asked for
    ),
    max_size=60,
)


@pytest.mark.parametrize("burst_seconds", [0.0, 6.0, 60.0])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(steps=STEPS, requests=st.sampled_from([1, 30, 600]), tokens=st.sampled_from([100, 3000]))
def test_no_minute_exceeds_the_limit_and_one_burst(
    burst_seconds: float, steps: list[Any], requests: int, tokens: int
) -> None:
    """Whatever is asked for and given back, and whenever: this is the promise that all others serve."""
    ledger = Ledger(requests, tokens, burst_seconds)
    requests_fit, tokens_fit = ledger.requests, ledger.tokens
    assert requests_fit is not None
    assert tokens_fit is not None
    now, taken = 0.0, []
    for passed, amount, used, how in steps:
        now += passed
        if how == "one":
            went = ledger.take_one(amount, now) is not None
        else:
            went = ledger.take(how, [(amount, now)], now).granted == 1
        if went:
            taken.append((now, used * amount))
            ledger.give_back(0, (1 - used) * amount)
    largest = max((amount for _, amount in taken), default=0)
    for began, _ in taken:
        minute = [amount for when, amount in taken if began <= when <= began + 60.0]
        assert len(minute) <= requests + requests_fit.capacity + 1e-3
        assert sum(minute) <= tokens + max(tokens_fit.capacity, largest) + 1e-3


@settings(max_examples=40, deadline=None, derandomize=True)
@given(amounts=st.lists(st.integers(1, 900), min_size=1, max_size=30))
def test_who_waits_as_long_as_told_gets_it(amounts: list[int]) -> None:
    """Else a wait would have to be guessed, and a caller would come too early or too late."""
    ledger, now = Ledger(60, 600, 10.0), 0.0
    for amount in amounts:
        told = ledger.estimate(0, 0.0, amount, now)
        verdict = ledger.take("a", [(amount, now)], now)
        assert told.wait_seconds == verdict.wait_seconds or verdict.granted
        if not verdict.granted:
            assert 0 == ledger.take("a", [(amount, now)], now + 0.9 * verdict.wait_seconds).granted
            now += verdict.wait_seconds
            assert 1 == ledger.take("a", [(amount, now)], now).granted


def test_both_or_nothing() -> None:
    """A call that has its request and not its tokens must not take the request."""
    ledger = Ledger(60, 600, 60.0)
    assert ledger.take_one(600, 0.0)
    assert ledger.take_one(1, 0.0) is None
    assert (0, 0.1, "tokens") == pytest.approx(ledger.take("a", [(1, 0.0)], 0.0))
    assert (59, 0) == ledger.left(0.0)


def test_a_call_larger_than_the_bucket_leaves_a_debt() -> None:
    """It is within a minute's limit, so it must be able to go, and those after it wait for what it took."""
    ledger = Ledger(None, 600, 6.0)
    assert ledger.take_one(300, 0.0)
    assert (0, 24 + 0.1) == pytest.approx(ledger.take("a", [(1, 0.0)], 0.0)[:2])
    assert 0 == ledger.take("a", [(300, 0.0)], 29.9).granted
    assert 1 == ledger.take("a", [(300, 0.0)], 30.0).granted


def test_who_came_later_takes_nothing_from_who_waits() -> None:
    """Many small calls in one line must not starve a large one in another."""
    ledger = Ledger(None, 600, 60.0)
    assert ledger.take_one(600, 0.0)
    assert 0 == ledger.take("a", [(500, 0.0)], 0.0).granted
    for second in range(1, 50):
        now = float(second)
        assert ledger.take_one(1, now) is None
        assert (0, "tokens") == ledger.take("b", [(1, now)], now)[::2]
        assert 0 == ledger.take("a", [(500, 0.0)], now).granted
    assert 1 == ledger.take("a", [(500, 0.0)], 50.0).granted
    assert 1 == ledger.take("b", [(1, 2.0)], 50.1).granted


def test_a_claim_that_nobody_renews_is_void() -> None:
    """Whoever made it may be gone with its event loop."""
    ledger = Ledger(None, 600, 60.0)
    ledger.take_one(600, 0.0)
    ledger.take("a", [(500, 0.0)], 0.0)
    assert ledger.take_one(1, CLAIM_SECONDS - 0.1) is None
    assert 0 == ledger.take("b", [(1, 1.0)], CLAIM_SECONDS - 0.1).granted
    ledger.take("b", (), CLAIM_SECONDS - 0.1)  # withdrawn
    assert 1 == ledger.take("c", [(1, 1.0)], CLAIM_SECONDS + 0.1).granted
    assert ledger.take_one(1, CLAIM_SECONDS + 0.1)


def test_what_is_given_back_never_exceeds_the_bucket_and_a_debt_counts() -> None:
    """A burst of refunds is no burst of calls; and what was used above the estimate has to be waited for."""
    ledger = Ledger(60, 600, 60.0)
    ledger.give_back(10, 10_000)
    assert (60, 600) == ledger.left(0.0)
    ledger.give_back(0, -900)
    assert (60, 0) == ledger.left(0.0)
    assert 30.1 == pytest.approx(ledger.take("a", [(1, 0.0)], 0.0).wait_seconds)


def test_the_gate() -> None:
    """While it is closed nobody goes, however much is left; an earlier opening does not shorten it."""
    ledger = Ledger(60, None, 60.0)
    ledger.close_until(5.0)
    ledger.close_until(3.0)
    assert ledger.take_one(0, 4.9) is None
    assert (0, "provider") == ledger.take("a", [(0, 4.0)], 4.0)[::2]
    assert 1 == ledger.take("a", [(0, 4.0)], 5.0).granted


def test_limits_may_change_while_in_use() -> None:
    """A learned limit keeps what was saved up as far as it fits, and a limit may go."""
    ledger = Ledger(None, 600, 60.0)
    assert ledger.take_one(400, 0.0)
    ledger.set_tokens(1200)
    ledger.set_requests(2)
    assert (2, 200) == ledger.left(0.0)
    ledger.set_tokens(60)
    assert (2, 60) == ledger.left(0.0)
    ledger.set_tokens(None)
    assert (2, None) == ledger.left(0.0)
    assert (0.0, 0.0) == ledger.taken
    assert (1.0, 0.0) == ledger.take_one(5, 0.0)


def test_a_clock_that_lags_brings_nothing_twice() -> None:
    """Two loops may read their clocks a little apart; one that starts anew must not stop the limit for good."""
    ledger = Ledger(60, None, 0.0)
    assert ledger.take_one(0, 1000.0)
    for _ in range(5):
        assert ledger.take_one(0, 999.5) is None
        assert ledger.take_one(0, 1000.4) is None
    assert ledger.take_one(0, 1001.0)
    assert ledger.take_one(0, 5.0) is None
    assert ledger.take_one(0, 6.0)


def test_threads_take_no_more_than_there_is() -> None:
    """The sum over all threads is what the bucket held."""
    ledger = Ledger(1000, None, 60.0)
    went: list[int] = []

    def ask() -> None:
        went.append(sum(ledger.take_one(0, 0.0) is not None for _ in range(600)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1000 == sum(went)
