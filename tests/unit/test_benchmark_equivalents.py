"""What stands in the benchmarks for our primitives gives their guarantees: a race against less would prove nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import workload
from benchmarks.calls.bare import engines
from benchmarks.calls.bare import resilience as bare
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop

pytestmark = pytest.mark.once

REQUEST = workload.new_requests(1)[0]
Make = Callable[..., Any]


class ProviderError(Exception):
    """As the clients of providers raise it."""

    def __init__(self, status_code: int) -> None:
        self.status_code = status_code
        super().__init__(status_code)


class Script:
    """Work that does at each call what comes next: raises, waits for (a number of seconds), or answers."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.calls: list[float] = []
        self.cancelled = 0

    async def answer(self, _: Any) -> Any:
        self.calls.append(now())
        item = self.script.pop(0) if self.script else workload.COMPLETION
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, float):
            try:
                await asyncio.sleep(item)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            return workload.COMPLETION
        return item


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines read the time of the loop."""
    monkeypatch.setattr(engines, "monotonic", now)


@pytest.fixture(params=["bare", pytest.param("by hand", marks=pytest.mark.needs_otel)])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes the equivalent of this name, in either style."""
    if request.param == "bare":
        return lambda name, *arguments: getattr(bare, name)(*arguments)
    from opentelemetry import metrics, trace

    from benchmarks.calls.by_hand import limits, resilience
    from benchmarks.calls.by_hand.instruments import Instruments

    tools = (trace.get_tracer("test"), Instruments(metrics.get_meter("test")))

    def make(name: str, *arguments: Any) -> Any:
        return getattr(limits, name, getattr(resilience, name, None))(*tools, *arguments)

    return make


async def test_retry_asks_again_only_what_may_pass(make: Make) -> None:
    """Two broken connections cost two waits; a wrong key is not asked again; after three attempts it is over."""
    script = Script(ConnectionError(), ProviderError(503))
    assert workload.COMPLETION == await make("Retry", script.answer).execute(REQUEST)
    assert 3 == len(set(script.calls))
    script = Script(ProviderError(401))
    with pytest.raises(ProviderError):
        await make("Retry", script.answer).execute(REQUEST)
    assert 1 == len(script.calls)
    script = Script(*[ConnectionError()] * 3)
    with pytest.raises(ConnectionError):
        await make("Retry", script.answer).execute(REQUEST)
    assert 3 == len(script.calls)


async def test_retry_keeps_to_its_budget(make: Make) -> None:
    """A target that is down sees each call once, but for what the budget allows."""
    script = Script(*[ConnectionError()] * 1000)
    retry = make("Retry", script.answer)
    for _ in range(200):
        with pytest.raises(ConnectionError):
            await retry.execute(REQUEST)
    assert 250 <= len(script.calls) < 400


async def test_fallback_asks_the_next_target_only_if_that_may_serve(make: Make) -> None:
    """A broken connection leads on, a wrong request does not, and when all have failed each failure is told."""
    first, second = Script(ConnectionError(), ProviderError(400), ConnectionError()), Script()
    fallback = make("Fallback", {"first": first.answer, "second": second.answer})
    assert workload.COMPLETION == await fallback.execute(REQUEST)
    with pytest.raises(ProviderError):
        await fallback.execute(REQUEST)
    assert 1 == len(second.calls)
    second.script = [ProviderError(503)]
    with pytest.raises(bare.AllFailedError) as caught:
        await fallback.execute(REQUEST)
    assert [ConnectionError, ProviderError] == [type(error) for error in caught.value.args[0]]


async def test_breaker_opens_probes_and_closes(make: Make) -> None:
    """Three failures in a row open it; after the pause one probe is let through, and its success closes it."""
    script = Script(*[ConnectionError()] * 3, 1.0)
    breaker = make("Breaker", script.answer)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await breaker.execute(REQUEST)
    with pytest.raises(engines.RefusedError):
        await breaker.execute(REQUEST)
    await asyncio.sleep(21.0)
    probe = asyncio.create_task(breaker.execute(REQUEST))
    await asyncio.sleep(0)
    with pytest.raises(engines.RefusedError):
        await breaker.execute(REQUEST)
    assert workload.COMPLETION == await probe
    assert workload.COMPLETION == await breaker.execute(REQUEST)


async def test_open_breaker_lets_the_last_target_be_asked(make: Make) -> None:
    """When the other target has failed, an open circuit is worth a try."""
    first, last = Script(*[ConnectionError()] * 4), Script(*[ConnectionError()] * 3)
    breaker = make("Breaker", last.answer)
    fallback = make("Fallback", {"first": first.answer, "last": breaker.execute})
    for _ in range(3):
        with pytest.raises(bare.AllFailedError):
            await fallback.execute(REQUEST)
    assert workload.COMPLETION == await fallback.execute(REQUEST)
    assert 4 == len(last.calls)


async def test_concurrency_limit_lets_wait_in_order_and_forgets_who_leaves(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at a time: the next waits for its turn, one that is cancelled loses no slot, one too many is refused."""
    monkeypatch.setattr(workload, "MAX_CONCURRENCY", 1)
    monkeypatch.setattr(engines, "_MAX_QUEUED", 2)
    script = Script(1.0, 1.0, 1.0)
    limit = make("Concurrency", script.answer)
    calls = [asyncio.create_task(limit.execute(REQUEST)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(engines.RefusedError):
        await limit.execute(REQUEST)
    calls[1].cancel()
    await asyncio.wait(calls)
    assert [0.0, 1.0] == script.calls
    assert workload.COMPLETION == await limit.execute(REQUEST)


async def test_rate_limit_waits_and_settles(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests a minute: the third waits for half a minute; what the answer did not use is put back."""
    monkeypatch.setattr(workload, "REQUESTS_PER_MINUTE", 2.0)
    monkeypatch.setattr(workload, "TOKENS_PER_MINUTE", 10_000.0)
    script = Script()
    limit = make("RateLimit", script.answer)
    for _ in range(3):
        await limit.execute(REQUEST)
    assert [0.0, 0.0, 30.0] == pytest.approx(script.calls)
    assert 10_000 - 195 == pytest.approx(limit._buckets.tokens)


async def test_rate_limit_obeys_the_provider(make: Make) -> None:
    """A 429 with a Retry-After keeps the next call waiting; what its headers say is left counts."""
    refusal = ProviderError(429)
    refusal.response = type("Response", (), {"headers": {"retry-after": "7"}})()  # type: ignore[attr-defined]
    told = {**workload.COMPLETION, "headers": {"x-ratelimit-remaining-requests": "3"}}
    script = Script(refusal, told)
    limit = make("RateLimit", script.answer)
    with pytest.raises(ProviderError):
        await limit.execute(REQUEST)
    await limit.execute(REQUEST)
    assert [0.0, 7.0] == pytest.approx(script.calls)
    assert 3 == limit._buckets.requests


async def test_hedge_asks_twice_when_the_first_is_slow(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the delay a second call is made; the one that is not first is cancelled."""
    monkeypatch.setattr(workload, "HEDGE_WARMUP_CALLS", 1)
    script = Script(0.5, 60.0, 0.5)
    hedge = make("Hedge", script.answer)
    await hedge.execute(REQUEST)
    assert workload.COMPLETION == await hedge.execute(REQUEST)
    assert [0.0, 0.5, 1.5] == pytest.approx(script.calls)
    await asyncio.sleep(0.1)
    assert 2.1 == pytest.approx(now())
    assert 1 == script.cancelled


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_saga_undoes_in_reverse(make: Make, cancelled: int) -> None:
    """Also for a caller that was cancelled, and one that was again while it waited for that."""
    undone: list[Any] = []

    async def undo(result: Any) -> None:
        await asyncio.sleep(1.0)
        undone.append(result)

    last = Script(60.0 if cancelled else ConnectionError())
    saga = make("Saga", [(Script("first").answer, undo), (Script("second").answer, undo), (last.answer, undo)])
    call = asyncio.create_task(saga.execute(REQUEST))
    for _ in range(cancelled):
        await asyncio.sleep(0.5)
        call.cancel()
    with pytest.raises(asyncio.CancelledError if cancelled else ConnectionError):
        await call
    await asyncio.sleep(2.0)
    assert ["second", "first"] == undone


async def test_bare_router_falls_back_like_ours() -> None:
    """The equivalent must give the guarantee: a rule that fails or names no route leads to the default."""
    from benchmarks.calls.bare.kit import Router

    async def fast(_: Any) -> str:
        return "fast"

    def broken(_: Any) -> str:
        raise LookupError

    for rule in (broken, lambda _: "nowhere"):
        assert "fast" == await Router({"fast": fast}, rule, "fast").execute("question")


async def test_bare_cache_makes_overlapping_calls_once_and_survives_a_cancelled_caller() -> None:
    """The equivalent must give the guarantee: one call for all who wait, and one who leaves takes nobody along."""
    from benchmarks.calls.bare.kit import Cache

    release = asyncio.Event()
    calls = 0

    async def work(_: Any) -> dict[str, int]:
        nonlocal calls
        calls += 1
        await release.wait()
        return {"answer": 42}

    cache = Cache(work, str)
    first, second = (asyncio.create_task(cache.execute("question")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    release.set()
    assert {"answer": 42} == await second
    with pytest.raises(asyncio.CancelledError):
        await first
    one, other = await cache.execute("question"), await cache.execute("question")
    assert one == other
    assert one is not other
    assert 1 == calls
    assert {"hits": 3, "misses": 1} == cache.get_stats()


async def test_bare_timeout_gives_control_back_from_work_that_ignores_its_cancellation() -> None:
    """The equivalent must give the guarantee: neither the limit nor the grace waits for the work's consent."""
    from benchmarks.calls.bare.kit import finished_within

    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(stubborn())
    assert not await finished_within(task, 0.01, 0.01)
    assert not task.done()
    release.set()
    await task
