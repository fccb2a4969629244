"""A stale answer beats none, and beats waiting; but never longer than was agreed, and never in place of a fresh one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from observability_integration.caching.entry_options import NOTHING, entry_options
from observability_integration.context import Deadline, WorkflowContext, current_deadline, remaining
from observability_integration.errors import PrimitiveTimeoutError
from observability_integration.primitives import CachePrimitive, TimeoutPrimitive
from observability_integration.testing.clock import FakeClockLoop
from tests.cache_doubles import Scripted, Server, at, turns

pytestmark = pytest.mark.usefixtures("clocks")

LOOP_FACTORY = FakeClockLoop

_TTL = 10.0

Make = Callable[..., CachePrimitive[Any, Any]]


def _now() -> float:
    return asyncio.get_running_loop().time()


def _counts(cache: CachePrimitive[Any, Any]) -> tuple[int, int]:
    stats = cache.get_stats()
    return stats["hits"], stats["misses"]


async def _hang() -> None:
    await asyncio.sleep(1e6)


# Stale if the call fails


async def _time_out() -> Any:
    await TimeoutPrimitive(lambda _: _hang(), 1.0).execute("q")


@pytest.mark.promise("C10")
@pytest.mark.parametrize("failure", [ValueError("broken"), TimeoutError(), lambda: _time_out()], ids=str)
async def test_an_expired_answer_stands_in_for_a_call_that_fails(make: Make, metrics: Any, failure: Any) -> None:
    """The provider is down; yesterday's answer is better than an error. It is a hit, and counted as a stale one."""
    work = Scripted("old", failure, "new")
    cache = make(work, stale_if_error_seconds=100.0)
    assert "old" == await cache.execute("q")
    await at(_TTL)
    assert "old" == await cache.execute("q")
    assert 2 == work.made
    assert (1, 1) == _counts(cache)
    assert 1 == metrics("cache.stale.served", operation="answers", reason="error")
    assert 1 == metrics("cache.served", operation="answers", tier="memory", freshness="stale")
    assert 1 == metrics("cache.compute", operation="answers", outcome="error")


@pytest.mark.promise("C10")
async def test_a_failing_call_is_not_tried_by_everybody(make: Make, metrics: Any) -> None:
    """A provider that is down is not brought back by a call for each request; after the throttle one tries again."""
    work = Scripted("old", ValueError("broken"))
    cache = make(work, stale_if_error_seconds=100.0, stale_if_error_throttle_seconds=20.0)
    await cache.execute("q")
    await at(_TTL)
    for _ in range(5):
        assert "old" == await cache.execute("q")
    assert 2 == work.made
    await at(_TTL + 19.9)
    assert "old" == await cache.execute("q")
    assert 2 == work.made
    await at(_TTL + 20.0)
    assert "old" == await cache.execute("q")
    assert 3 == work.made
    assert 5 == metrics("cache.stale.served", operation="answers", reason="throttled")
    assert 2 == metrics("cache.stale.served", operation="answers", reason="error")
    assert (7, 1) == _counts(cache)


async def test_without_a_throttle_every_lookup_tries(make: Make) -> None:
    """Zero is what it says."""
    work = Scripted("old", ValueError("broken"))
    cache = make(work, stale_if_error_seconds=100.0, stale_if_error_throttle_seconds=0.0)
    await cache.execute("q")
    await at(_TTL)
    for _ in range(3):
        assert "old" == await cache.execute("q")
    assert 4 == work.made


@pytest.mark.promise("C10")
async def test_nothing_is_served_beyond_the_window(make: Make, metrics: Any) -> None:
    """Also not by a throttle that began within it: the agreed age is the limit."""
    work = Scripted("old", ValueError("broken"))
    cache = make(work, stale_if_error_seconds=15.0, stale_if_error_throttle_seconds=30.0)
    await cache.execute("q")
    await at(_TTL + 14.0)
    assert "old" == await cache.execute("q")
    await at(_TTL + 14.9)
    assert "old" == await cache.execute("q")
    await at(_TTL + 15.0)
    with pytest.raises(ValueError, match="broken"):
        await cache.execute("q")
    assert 3 == work.made
    assert (2, 2) == _counts(cache)


async def test_a_call_that_fails_after_the_window_fails(make: Make) -> None:
    """What counts is when the stale answer would be served, not when the call began."""
    work = Scripted("old", ValueError("broken"), seconds=5.0)
    cache = make(work, stale_if_error_seconds=10.0)
    await cache.execute("q")  # fresh from 5 to 15
    await at(24.0)
    with pytest.raises(ValueError, match="broken"):
        await cache.execute("q")
    assert (0, 2) == _counts(cache)


async def test_without_a_window_an_error_is_an_error(make: Make) -> None:
    """Off by default: whoever has not agreed to old answers gets none."""
    cache = make(Scripted("old", ValueError("broken")))
    await cache.execute("q")
    await at(_TTL)
    with pytest.raises(ValueError, match="broken"):
        await cache.execute("q")


async def test_a_success_ends_it(make: Make) -> None:
    """The new answer takes the old one's place, for a TTL of its own."""
    work = Scripted("old", ValueError("broken"), "new")
    cache = make(work, stale_if_error_seconds=100.0, stale_if_error_throttle_seconds=1.0)
    await cache.execute("q")
    await at(_TTL)
    assert "old" == await cache.execute("q")
    await at(_TTL + 1.0)
    assert "new" == await cache.execute("q")
    await at(2 * _TTL + 0.9)
    assert "new" == await cache.execute("q")
    assert 3 == work.made


async def test_a_cancellation_is_never_answered_from_the_cache(make: Make) -> None:
    """The caller who is cancelled is cancelled, and a call that cancels itself has not failed."""
    work = Scripted("old", lambda: _hang(), asyncio.CancelledError())
    cache = make(work, stale_if_error_seconds=100.0)
    await cache.execute("q")
    await at(_TTL)
    caller = asyncio.create_task(cache.execute("q"))
    await turns()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await cache.aclose()
    await turns()
    with pytest.raises(asyncio.CancelledError):
        await cache.execute("q")
    assert 3 == work.made


async def test_all_who_wait_for_a_failing_call_get_the_old_answer(make: Make) -> None:
    """One call, one failure, and nobody sees it; each has a value of their own."""
    work = Scripted({"answer": "old"}, ValueError("broken"), seconds=1.0)
    cache = make(work, stale_if_error_seconds=100.0)
    await cache.execute("q")
    await at(_TTL + 1.0)
    answers = await asyncio.gather(*(cache.execute("q") for _ in range(5)))
    assert [{"answer": "old"}] * 5 == answers
    assert 5 == len({id(answer) for answer in answers})
    assert 2 == work.made
    assert (5, 1) == _counts(cache)


# Stale while it is revalidated


@pytest.mark.promise("C10")
async def test_an_expired_answer_is_served_at_once_while_it_is_replaced(make: Make, metrics: Any) -> None:
    """Nobody waits: one call in the background, and its answer for those who come after it."""
    work = Scripted("old", "new", seconds=2.0)
    cache = make(work, stale_while_revalidate_seconds=100.0)
    await cache.execute("q")
    await at(2.0 + _TTL)
    assert ["old"] * 10 == await asyncio.gather(*(cache.execute("q") for _ in range(10)))
    assert 2.0 + _TTL == _now()
    await asyncio.sleep(1.9)
    assert "old" == await cache.execute("q")
    await asyncio.sleep(0.2)
    assert "new" == await cache.execute("q")
    assert 2 == work.made
    assert (12, 1) == _counts(cache)
    assert 11 == metrics("cache.stale.served", operation="answers", reason="revalidating")
    assert 1 == metrics("cache.refreshes", operation="answers", outcome="success")
    assert 1 == metrics("cache.served", operation="answers", tier="memory", freshness="fresh")
    assert 11 == metrics("cache.served", operation="answers", tier="memory", freshness="stale")


async def test_a_refresh_that_fails_is_not_tried_again_at_once(make: Make, metrics: Any) -> None:
    """The old answer goes on being served, and the provider is left alone for a while."""
    work = Scripted("old", ValueError("broken"), "new")
    cache = make(work, stale_while_revalidate_seconds=100.0, stale_if_error_throttle_seconds=20.0)
    await cache.execute("q")
    await at(_TTL)
    for _ in range(3):
        assert "old" == await cache.execute("q")
        await turns()
    assert 2 == work.made
    assert 1 == metrics("cache.refreshes", operation="answers", outcome="error")
    await at(_TTL + 20.0)
    assert "old" == await cache.execute("q")
    await turns()
    assert "new" == await cache.execute("q")
    assert 3 == work.made


async def test_after_the_window_callers_wait_again(make: Make) -> None:
    """An answer that nobody asked for in a long time is not served at any age."""
    work = Scripted("old", "new")
    cache = make(work, stale_while_revalidate_seconds=5.0)
    await cache.execute("q")
    await at(_TTL + 5.0)
    assert "new" == await cache.execute("q")


async def test_the_longer_of_two_windows_does_not_lengthen_the_shorter(make: Make) -> None:
    """An entry kept for failures alone is not served while all is well."""
    work = Scripted("old", "new")
    cache = make(work, stale_while_revalidate_seconds=5.0, stale_if_error_seconds=100.0)
    await cache.execute("q")
    await at(_TTL + 5.0)
    assert "new" == await cache.execute("q")


async def test_a_caller_who_needs_a_refresh_to_end_waits_for_it(make: Make) -> None:
    """It is the same call: a second one beside it would be paid twice."""
    work = Scripted("old", "new", seconds=4.0)
    cache = make(work, stale_while_revalidate_seconds=2.0)
    await cache.execute("q")
    await at(4.0 + _TTL + 1.0)
    assert "old" == await cache.execute("q")
    await asyncio.sleep(2.0)
    assert "new" == await cache.execute("q")
    assert 2 == work.made


async def test_a_caller_who_waited_for_a_refresh_that_fails_makes_the_call(make: Make) -> None:
    """The failure was nobody's; this caller has not been tried for yet."""
    work = Scripted("old", ValueError("broken"), "new", seconds=4.0)
    cache = make(work, stale_while_revalidate_seconds=2.0, stale_if_error_throttle_seconds=0.0)
    await cache.execute("q")
    await at(4.0 + _TTL + 1.0)
    assert "old" == await cache.execute("q")
    await asyncio.sleep(2.0)
    assert "new" == await cache.execute("q")
    assert 3 == work.made


async def test_refreshes_are_bounded_in_number(make: Make, metrics: Any) -> None:
    """A thousand keys that expire together must not become a thousand calls that nobody waits for."""
    work = Scripted(*(["old"] * 5), "new", seconds=1.0)
    cache = make(work, stale_while_revalidate_seconds=100.0, max_refreshes=2)
    await asyncio.gather(*(cache.execute(str(number)) for number in range(5)))
    await at(1.0 + _TTL)
    assert ["old"] * 5 == await asyncio.gather(*(cache.execute(str(number)) for number in range(5)))
    await turns()
    assert 5 + 2 == work.made
    assert 3 == metrics("cache.refreshes", operation="answers", outcome="skipped")
    await asyncio.sleep(1.1)
    answers = [await cache.execute(str(number)) for number in range(5)]
    assert 2 == answers.count("new")
    await turns()
    assert 5 + 4 == work.made


async def test_closing_ends_what_goes_on_in_the_background(make: Make) -> None:
    """A refresh, and a call whose caller left: neither outlives the cache."""
    work = Scripted("old", "old", lambda: _hang())
    cache = make(work, stale_while_revalidate_seconds=5.0, stale_if_error_seconds=100.0, soft_timeout_seconds=1.0)
    await asyncio.gather(cache.execute("a"), cache.execute("b"))
    await at(_TTL)
    assert "old" == await cache.execute("a")
    await turns()
    await at(_TTL + 5.0)
    assert "old" == await cache.execute("b")
    assert 2 == work.inside
    await cache.aclose()
    await turns()
    assert 0 == work.inside


async def test_a_refresh_is_nobodys_deadline(make: Make) -> None:
    """It is begun by a caller in a hurry, and made for those who come later; the context keeps all else it carries."""
    seen: list[tuple[Any, Any, Any]] = []

    async def work(question: str, context: WorkflowContext) -> str:
        seen.append((remaining(), context.deadline, context.correlation_id))
        await asyncio.sleep(1.0)
        return f"answer {len(seen)}"

    cache = make(work, stale_while_revalidate_seconds=100.0)
    await cache.execute("q", WorkflowContext())
    await at(1.0 + _TTL)
    context = WorkflowContext(deadline=Deadline.after(0.5))
    assert "answer 1" == await cache.execute("q", context)
    await asyncio.sleep(2.0)
    assert "answer 2" == await cache.execute("q")
    assert (None, None, context.correlation_id) == seen[1]
    assert current_deadline() is None


# Soft and hard timeouts


@pytest.mark.promise("C10")
async def test_a_call_that_is_late_is_answered_by_the_old_entry(make: Make, metrics: Any) -> None:
    """The caller has the old answer in time, and the next one the new: the call was paid for and goes on."""
    work = Scripted("old", "new", seconds=3.0)
    cache = make(work, stale_if_error_seconds=100.0, soft_timeout_seconds=0.5)
    await cache.execute("q")
    await at(3.0 + _TTL)
    assert "old" == await cache.execute("q")
    assert 3.0 + _TTL + 0.5 == _now()
    await asyncio.sleep(2.6)
    assert "new" == await cache.execute("q")
    assert 2 == work.made
    assert (2, 1) == _counts(cache)
    assert 1 == metrics("cache.stale.served", operation="answers", reason="timeout")


async def test_the_soft_limit_holds_only_where_there_is_something_to_serve(make: Make) -> None:
    """A cold call is waited for: there is nothing better."""
    work = Scripted("new", seconds=3.0)
    cache = make(work, stale_if_error_seconds=100.0, soft_timeout_seconds=0.5)
    assert "new" == await cache.execute("q")
    assert 3.0 == _now()


@pytest.mark.promise("C10")
async def test_the_hard_limit_always_holds(make: Make, metrics: Any) -> None:
    """Without an entry it is an error that names the knob; what the call brings is kept for the next one."""
    work = Scripted("new", seconds=3.0)
    cache = make(work, hard_timeout_seconds=2.0)
    with pytest.raises(PrimitiveTimeoutError, match="hard_timeout_seconds") as caught:
        await cache.execute("q")
    assert ("hard", "own", 2.0, 2.0) == (
        caught.value.kind,
        caught.value.deadline_source,
        caught.value.timeout_seconds,
        caught.value.elapsed_seconds,
    )
    assert 2.0 == _now()
    await asyncio.sleep(1.1)
    assert "new" == await cache.execute("q")
    assert 1 == work.made
    assert (1, 1) == _counts(cache)


async def test_the_hard_limit_serves_the_old_entry_too(make: Make) -> None:
    """A soft limit is not needed for it."""
    work = Scripted("old", lambda: _hang())
    cache = make(work, stale_if_error_seconds=100.0, hard_timeout_seconds=2.0)
    await cache.execute("q")
    await at(_TTL)
    assert "old" == await cache.execute("q")
    assert _TTL + 2.0 == _now()


async def test_a_call_that_nobody_waits_for_ends_in_time(make: Make) -> None:
    """It is given so long and no longer, whether its callers ran out of time or were cancelled."""
    work = Scripted(lambda: _hang(), lambda: _hang(), "new")
    cache = make(work, hard_timeout_seconds=2.0, background_seconds=5.0)
    with pytest.raises(PrimitiveTimeoutError):
        await cache.execute("q")
    await at(6.9)
    assert 1 == work.inside
    await at(7.1)
    assert 0 == work.inside
    caller = asyncio.create_task(cache.execute("q"))
    await asyncio.sleep(1.0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert 1 == work.inside
    await at(13.2)
    assert 0 == work.inside
    assert "new" == await cache.execute("q")


async def test_a_cancelled_caller_limits_the_call_of_no_other(make: Make) -> None:
    """The time in the background begins when the last one leaves."""
    work = Scripted("new", seconds=20.0)
    cache = make(work, background_seconds=5.0)
    callers = [asyncio.create_task(cache.execute("q")) for _ in range(3)]
    await asyncio.sleep(1.0)
    callers[0].cancel()
    assert ["new", "new"] == await asyncio.gather(*callers[1:])
    assert 20.0 == _now()
    assert 1 == work.made


async def test_whoever_joined_a_call_that_was_given_up_is_not_cancelled(make: Make) -> None:
    """Nobody cancelled him; he makes the call himself, and his own limit still counts from when he came."""
    work = Scripted(lambda: _hang(), lambda: _hang())
    cache = make(work, hard_timeout_seconds=2.0, background_seconds=5.0)
    with pytest.raises(PrimitiveTimeoutError):
        await cache.execute("q")
    await at(6.0)
    with pytest.raises(PrimitiveTimeoutError) as caught:
        await cache.execute("q")
    assert "hard" == caught.value.kind
    assert 8.0 == _now()
    assert (2, 1) == (work.made, work.most_inside)


# Refreshing ahead


async def test_the_first_hit_past_the_fraction_refreshes(make: Make, metrics: Any) -> None:
    """Popular answers never expire: one of those who ask starts the call, and all are served the old one meanwhile."""
    work = Scripted("old", "new", seconds=1.0)
    cache = make(work, eager_refresh=0.8)
    await cache.execute("q")
    await at(1.0 + 7.9)
    assert "old" == await cache.execute("q")
    await turns()
    assert 1 == work.made
    await at(1.0 + 8.0)
    assert ["old"] * 20 == await asyncio.gather(*(cache.execute("q") for _ in range(20)))
    assert 9.0 == _now()
    await asyncio.sleep(1.1)
    assert "new" == await cache.execute("q")
    assert 2 == work.made
    assert (22, 1) == _counts(cache)
    assert 22 == metrics("cache.served", operation="answers", tier="memory", freshness="fresh")
    assert 1 == metrics("cache.refreshes", operation="answers", outcome="success")


async def test_an_early_refresh_that_fails_harms_nobody(make: Make, metrics: Any) -> None:
    """The old answer is good to the end of its life, and then the call is made for those who wait."""
    work = Scripted("old", ValueError("broken"), "new")
    cache = make(work, eager_refresh=0.5)
    await cache.execute("q")
    await at(5.0)
    for _ in range(5):
        assert "old" == await cache.execute("q")
        await turns()
    await at(9.9)
    assert "old" == await cache.execute("q")
    assert 2 == work.made
    assert 1 == metrics("cache.refreshes", operation="answers", outcome="error")
    await at(_TTL)
    assert "new" == await cache.execute("q")


async def test_nothing_is_refreshed_that_nobody_asks_for(make: Make) -> None:
    """It would be paid for in vain."""
    work = Scripted("old")
    cache = make(work, eager_refresh=0.5, stale_while_revalidate_seconds=100.0)
    await cache.execute("q")
    await at(_TTL + 50.0)
    assert 1 == work.made


async def test_an_early_refresh_gets_likelier_towards_the_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Now - delta * beta * ln(random) >= expiry: with a call of 1 s and e^-2 drawn, from 2 s before expiry on."""
    drawn = 1 - 2.718281828459045**-2
    monkeypatch.setattr(random, "random", lambda: drawn)
    work = Scripted("old", "new", seconds=1.0)
    cache = make(work, early_refresh_beta=1.0)
    await cache.execute("q")  # fresh from 1 to 11
    await at(8.9)
    await cache.execute("q")
    await turns()
    assert 1 == work.made
    await at(9.1)
    assert "old" == await cache.execute("q")
    await turns()
    assert 2 == work.made


async def test_early_refreshes_by_chance_spread(make: Make) -> None:
    """Seeded: of 400 keys hit 2 s before their expiry, about e^-2 are refreshed for a beta of 1, e^-1 for one of 2."""
    random.seed(11)
    for beta, expected in ((1.0, 0.135), (2.0, 0.368)):
        work = Scripted("old", seconds=1.0)
        cache = make(work, early_refresh_beta=beta, max_refreshes=400)
        began = _now()
        await asyncio.gather(*(cache.execute(str(number)) for number in range(400)))
        await at(began + 1.0 + _TTL - 2.0)
        await asyncio.gather(*(cache.execute(str(number)) for number in range(400)))
        await turns()
        assert pytest.approx(expected, abs=0.05) == (work.made - 400) / 400
        await asyncio.sleep(1.1)


async def test_a_failed_early_refresh_by_chance_is_not_tried_again_at_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The throttle holds whatever it was that made the refresh due."""
    monkeypatch.setattr(random, "random", lambda: 0.999999)
    work = Scripted("old", ValueError("broken"), seconds=1.0)
    cache = make(work, early_refresh_beta=1.0, stale_if_error_throttle_seconds=5.0)
    await cache.execute("q")
    await at(2.0)
    await cache.execute("q")
    await asyncio.sleep(1.1)
    for _ in range(5):
        assert "old" == await cache.execute("q")
        await turns()
    assert 2 == work.made
    await at(8.1)
    assert "old" == await cache.execute("q")
    await turns()
    assert 3 == work.made


# TTLs


async def test_jitter_shortens_and_spreads(make: Make) -> None:
    """What was stored together must not expire together, and nothing is served for longer than was said."""
    random.seed(5)
    work = Scripted("old")
    cache = make(work, ttl_jitter=0.5)
    keys = [str(number) for number in range(200)]
    for key in keys:
        await cache.execute(key)
    alive = 200
    seen = []
    for moment in (4.9, 5.0, 6.0, 7.0, 8.0, 9.0, 9.9, 10.0):
        await at(moment)
        cache_size = sum(cache._engine._memory.get(cache._keys.digest(key)) is not None for key in keys)
        seen.append(cache_size)
        assert cache_size <= alive
        alive = cache_size
    assert 200 == seen[0]
    assert 0 == seen[-1]
    assert pytest.approx([200, 160, 120, 80, 40, 4], abs=25) == seen[1:-1]


async def test_an_adaptive_ttl_follows_how_entries_are_hit(make: Make) -> None:
    """What is hit young and often need not live for an hour; why that was done stands in the stats."""
    from observability_integration.caching.policy import AdaptiveTtl

    work = Scripted("answer")
    cache = make(
        work, ttl_seconds=3600.0, adaptive_ttl=AdaptiveTtl(min_seconds=60.0, max_seconds=7200.0, min_lookups=20)
    )
    stats = cache.get_stats()
    assert (3600.0, "configured") == (stats["ttl_seconds"], stats["ttl_reason"])
    for _ in range(20):
        await cache.execute("q")
        await asyncio.sleep(10.0)
    stats = cache.get_stats()
    assert pytest.approx(3 * 100.0) == stats["ttl_seconds"]
    assert stats["ttl_seconds"] == cache.ttl_seconds
    assert stats["ttl_reason"].startswith("hit young and often: hit rate 0.95, mean age at hit 100.0s of 3600s")


async def test_without_an_adaptive_ttl_the_stats_say_nothing_of_it(make: Make) -> None:
    """Off by default."""
    assert "ttl_reason" not in make(Scripted("answer")).get_stats()


# What the call decides


async def test_a_call_may_choose_the_ttl_of_its_answer(make: Make) -> None:
    """It knows best how long its answer holds: 2 s for the weather, here."""

    def brief() -> str:
        entry_options().set_ttl(2.0)
        return "brief"

    work = Scripted(brief, "ordinary")
    cache = make(work)
    assert "brief" == await cache.execute("q")
    await at(1.9)
    assert "brief" == await cache.execute("q")
    await at(2.0)
    assert "ordinary" == await cache.execute("q")
    await at(2.0 + 9.9)
    assert "ordinary" == await cache.execute("q")
    assert 2 == work.made


async def test_a_call_may_keep_its_answer_out(make: Make, metrics: Any) -> None:
    """An answer with a disclaimer, say, goes to those who wait for it, and to nobody else."""

    def refuse() -> str:
        entry_options().do_not_store()
        return "sorry"

    work = Scripted(refuse, "answer", seconds=1.0)
    cache = make(work)
    assert ["sorry"] * 3 == await asyncio.gather(*(cache.execute("q") for _ in range(3)))
    assert "answer" == await cache.execute("q")
    assert 1 == metrics("cache.refusals", operation="answers", reason="not_stored")


async def test_a_call_may_tag_its_answer(make: Make) -> None:
    """Which documents an answer was made of is known only when it is made."""

    def tagged() -> str:
        entry_options().add_tags("document 5", "document 7")
        return "tagged"

    work = Scripted(tagged)
    cache = make(work)
    await cache.execute("q")
    await cache.invalidate(tag="document 6")
    await cache.execute("q")
    assert 1 == work.made
    await cache.invalidate(tag="document 7")
    await cache.execute("q")
    assert 2 == work.made


async def test_a_conditional_call_uses_the_old_answer_again(make: Make) -> None:
    """Not modified: the old value lives for another TTL; where there is none, there is nothing to use again."""
    seen: list[Any] = []

    def conditional() -> Any:
        options = entry_options()
        seen.append(options.stale)
        return options.not_modified()

    work = Scripted({"answer": 1}, conditional)
    cache = make(work, stale_if_error_seconds=100.0)
    await cache.execute("q")
    await at(_TTL)
    assert {"answer": 1} == await cache.execute("q")
    assert [{"answer": 1}] == seen
    await at(2 * _TTL - 0.1)
    assert {"answer": 1} == await cache.execute("q")
    assert 2 == work.made
    with pytest.raises(LookupError):
        await cache.execute("another")
    assert NOTHING is seen[1]


async def test_a_refresh_sees_the_value_it_replaces(make: Make) -> None:
    """In the background as well, and while the old one is still fresh."""
    seen: list[Any] = []

    def note() -> str:
        seen.append(entry_options().stale)
        return "new"

    cache = make(Scripted("old", note), eager_refresh=0.5)
    await cache.execute("q")
    await at(5.0)
    await cache.execute("q")
    await turns()
    assert ["old"] == seen


# With a store that others share


async def test_a_stale_entry_of_the_store_is_served_and_replaced_in_the_background(make: Make, metrics: Any) -> None:
    """A process that has just started finds what another has kept, and does not wait for the call either."""
    server = Server()
    policy: dict[str, Any] = {"stale_while_revalidate_seconds": 100.0}
    await make(Scripted("old"), backend=server.store(), **policy).execute("q")
    await at(_TTL + 1.0)
    work = Scripted("new", seconds=1.0)
    cache = make(work, backend=server.store(), **policy)
    assert "old" == await cache.execute("q")
    assert _TTL + 1.0 == _now()
    assert "old" == await cache.execute("q")
    await asyncio.sleep(1.1)
    assert "new" == await cache.execute("q")
    assert 1 == work.made
    assert (3, 0) == _counts(cache)


async def test_a_stale_entry_of_the_store_stands_in_for_a_call_that_fails(make: Make) -> None:
    """The other process is gone, and the provider is down: what Redis has is all there is."""
    server = Server()
    policy: dict[str, Any] = {"stale_if_error_seconds": 100.0, "stale_if_error_throttle_seconds": 20.0}
    await make(Scripted("old"), backend=server.store(), **policy).execute("q")
    await at(_TTL + 1.0)
    work = Scripted(ValueError("broken"))
    cache = make(work, backend=server.store(), **policy)
    for _ in range(3):
        assert "old" == await cache.execute("q")
    assert 1 == work.made
    assert (3, 0) == _counts(cache)


async def test_one_process_refreshes_for_all(make: Make, metrics: Any) -> None:
    """Eager refresh is for the first caller of all processes; the others go on with what they have."""
    server = Server()
    policy: dict[str, Any] = {"eager_refresh": 0.5, "lease_seconds": 0.5}
    work = Scripted("old", "new", seconds=1.0)
    caches = [make(work, backend=server.store(), **policy) for _ in range(3)]
    assert ["old"] * 3 == [await cache.execute("q") for cache in caches]
    await at(1.0 + 5.1)
    assert ["old"] * 3 == await asyncio.gather(*(cache.execute("q") for cache in caches))
    await asyncio.sleep(1.5)
    assert ["new"] * 3 == [await cache.execute("q") for cache in caches]
    assert 2 == work.made
    assert 2 == metrics("cache.refreshes", operation="answers", outcome="left")
    assert 1 == metrics("cache.refreshes", operation="answers", outcome="success")
