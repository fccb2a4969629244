"""Whatever comes in whatever order, callers get what they may get: generated runs of lookups, cancellations, failures,
invalidations and leaps of the clock, and what must hold of each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability_integration.caching.entry_options import entry_options
from observability_integration.caching.policy import CachePolicy
from observability_integration.errors import PrimitiveTimeoutError, SharedCallError
from observability_integration.primitives import CachePrimitive
from observability_integration.testing.clock import FakeClockLoop
from tests.cache_doubles import Server, clocks_of_the_loop, turns

pytestmark = [pytest.mark.once, pytest.mark.unmeasured]

_TTL = 5.0
_KEYS = ("a", "b")
_NEVER = 1 << 60

_POLICIES: list[dict[str, Any]] = [
    {},
    {"stale_if_error_seconds": 4.0, "stale_if_error_throttle_seconds": 1.0},
    {"stale_while_revalidate_seconds": 4.0, "stale_if_error_throttle_seconds": 0.5, "background_seconds": 2.5},
    {"eager_refresh": 0.5, "max_refreshes": 1},
    {"early_refresh_beta": 2.0, "stale_while_revalidate_seconds": 2.0, "stale_if_error_seconds": 4.0},
    {"hard_timeout_seconds": 2.0, "background_seconds": 1.5},
    {
        "soft_timeout_seconds": 0.5,
        "hard_timeout_seconds": 2.0,
        "stale_if_error_seconds": 6.0,
        "background_seconds": 1.0,
    },
    {"soft_timeout_seconds": 0.5, "stale_if_error_seconds": 3.0, "background_seconds": 1.0},
]


@dataclass(eq=False)
class _Call:
    """One call that was made, and when, in the order of events."""

    key: str
    process: int
    began: int
    at: float
    ended: int = _NEVER
    ended_at: float = 0.0
    error: Exception | None = None


@dataclass(eq=False)
class _Caller:
    """One lookup."""

    key: str
    process: int
    came: int
    task: asyncio.Task[Any] | None = None
    at: float = 0.0
    left: int = _NEVER
    waited_seconds: float = 0.0
    cancelled: bool = False
    got: _Call | None = None
    error: Exception | None = None


class _Voided(NamedTuple):
    # An invalidation, between two events.
    began: int
    ended: int
    at: float
    key: str
    process: int


@dataclass
class _Run:
    """Caches that a generated list of steps is done to, and all that happens to them."""

    policy: dict[str, Any]
    script: Sequence[tuple[float, str]]
    shared: bool
    events: int = 0
    calls: list[_Call] = field(default_factory=list)
    callers: list[_Caller] = field(default_factory=list)
    voided: list[_Voided] = field(default_factory=list)
    leaps: list[tuple[int, float]] = field(default_factory=list)

    def tick(self) -> int:
        """The number of the next event."""
        self.events += 1
        return self.events

    def caches(self) -> list[CachePrimitive[Any, Any]]:
        """One for each process."""
        server = Server()
        return [
            CachePrimitive(
                operation_name="answers",
                ttl_seconds=_TTL,
                policy=CachePolicy(**{"ttl_jitter": 0.0, "lease_seconds": 0.3, **self.policy}),
                backend=server.store() if self.shared else None,  # type: ignore[arg-type]
            )
            for _ in range(2 if self.shared else 1)
        ]

    async def compute(self, key: str, process: int) -> int:
        """The call; its value is its number."""
        seconds, outcome = self.script[len(self.calls) % len(self.script)]
        number = len(self.calls)
        call = _Call(key, process, self.tick(), asyncio.get_running_loop().time())
        self.calls.append(call)
        entry_options().add_tags("late tag " + key)
        try:
            await asyncio.sleep(seconds)
            if outcome == "fails":
                call.error = ValueError(str(number))
                raise call.error
            return number
        finally:
            call.ended, call.ended_at = self.tick(), asyncio.get_running_loop().time()

    async def look_up(self, cache: CachePrimitive[Any, Any], caller: _Caller) -> None:
        """One lookup, from beginning to end."""
        loop = asyncio.get_running_loop()
        caller.at, caller.came = loop.time(), self.tick()
        try:
            compute = lambda: self.compute(caller.key, caller.process)  # noqa: E731
            caller.got = self.calls[await cache.get_or_compute(caller.key, compute, tags=["tag " + caller.key])]
        except Exception as error:
            caller.error = error
        finally:
            caller.left = self.tick()
            caller.waited_seconds = loop.time() - caller.at

    async def do(self, steps: Sequence[tuple[Any, ...]]) -> list[CachePrimitive[Any, Any]]:
        """Does all steps, and waits for what they began."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, FakeClockLoop)
        caches = self.caches()
        for kind, key, number, seconds in steps:
            process = number % len(caches)
            if kind == "look up":
                caller = _Caller(key, process, self.tick())
                caller.task = asyncio.create_task(self.look_up(caches[process], caller))
                self.callers.append(caller)
            elif kind == "cancel" and self.callers:
                caller = self.callers[number % len(self.callers)]
                if caller.task is not None and not caller.task.done() and caller.at:
                    caller.cancelled = caller.task.cancel()
            elif kind in ("invalidate", "tag", "late tag", "clear"):
                keys, began = _KEYS if kind == "clear" else (key,), self.tick()
                if kind == "invalidate":
                    await caches[process].invalidate(key)
                elif kind == "clear":
                    await caches[process].clear()
                else:
                    await caches[process].invalidate(tag=f"{kind} {key}")
                self.voided += [_Voided(began, self.tick(), loop.time(), voided, process) for voided in keys]
            elif kind == "leap":
                loop.advance(seconds)
                self.leaps.append((self.tick(), seconds))
            elif kind == "wait":
                await asyncio.sleep(seconds)
            if number % 2:
                await turns(4)
        await asyncio.gather(*(caller.task for caller in self.callers if caller.task), return_exceptions=True)
        for cache in caches:
            await cache.aclose()
        await turns(100)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return caches

    def check(self, caches: Sequence[CachePrimitive[Any, Any]]) -> None:
        """What must hold, whatever happened."""
        for caller in self.callers:
            if caller.got is not None:
                self._check_value(caller, caller.got)
            elif caller.error is not None:
                self._check_error(caller, caller.error)
            else:
                assert caller.cancelled, "only who was cancelled gets nothing"
        self._check_overlap()
        self._check_counts(caches)

    def _check_value(self, caller: _Caller, call: _Call) -> None:
        assert call.key == caller.key
        assert call.error is None
        assert call.ended < caller.left
        stale = max(self.policy.get(f"stale_{knob}_seconds", 0.0) for knob in ("if_error", "while_revalidate"))
        if call.ended < caller.came:  # else it was running, or began while the caller waited
            # With a shared store it takes a moment to write the value, in which the clock may leap.
            leapt = sum(seconds for when, seconds in self.leaps if when > call.ended) if self.shared else 0.0
            assert caller.at + caller.waited_seconds <= call.ended_at + _TTL + stale + leapt + 1e-6, "it was too old"
        for voided in self.voided:
            if (voided.key, voided.process) == (caller.key, caller.process) and voided.ended < caller.came:
                assert voided.began < call.began, "what is void was served to one who came later"

    def _check_error(self, caller: _Caller, error: Exception) -> None:
        if isinstance(error, PrimitiveTimeoutError):
            assert "hard" == error.kind
            assert caller.waited_seconds >= self.policy["hard_timeout_seconds"] - 1e-6
        elif isinstance(error, SharedCallError):
            failed = [call for call in self.calls if call.error is not None and call.key == caller.key]
            assert any(call.ended < caller.left for call in failed)
        else:
            (call,) = [call for call in self.calls if call.error is error]
            assert call.key == caller.key
            assert call.process == caller.process
            assert call.ended < caller.left
            # With a shared store it takes a moment to make the failure known; whoever comes meanwhile hears of it too.
            assert self.shared or caller.came < call.ended, "it failed before anybody asked"

    def _check_overlap(self) -> None:
        for first in self.calls:
            for second in self.calls:
                same = (first.key, first.process) == (second.key, second.process)
                if same and first.began < second.began < first.ended:
                    assert any(self._may_part(voided, first, second) for voided in self.voided), "two calls at once"

    def _may_part(self, voided: _Voided, first: _Call, second: _Call) -> bool:
        # What it parted may have waited for a call of the other process, both before and after, until that ended.
        longest = max(seconds for seconds, _ in self.script) + sum(seconds for _, seconds in self.leaps)
        before = self.shared and first.at - voided.at < longest + 1.0
        return voided.key == first.key and voided.began < second.began and (before or first.began < voided.ended)

    def _check_counts(self, caches: Sequence[CachePrimitive[Any, Any]]) -> None:
        stats = [cache.get_stats() for cache in caches]
        completed = [caller for caller in self.callers if not (caller.cancelled and caller.got is None)]
        total, cancelled = sum(stat["total"] for stat in stats), len(self.callers) - len(completed)
        assert len(completed) <= total <= len(completed) + cancelled
        assert sum(stat["hits"] for stat in stats) <= sum(caller.got is not None for caller in self.callers)


_kinds = st.sampled_from(
    ["look up"] * 8 + ["wait"] * 5 + ["cancel"] * 2 + ["invalidate", "tag", "late tag", "clear", "leap"]
)
_steps = st.lists(
    st.tuples(
        _kinds,
        st.sampled_from(_KEYS),
        st.integers(0, 5),
        st.sampled_from([0.01, 0.2, 0.5, 1.0, 2.6, 4.0, 5.0, 6.5]),
    ),
    min_size=1,
    max_size=40,
)
_scripts = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.7, 1.6, 3.0]), st.sampled_from(["answers", "answers", "fails"])),
    min_size=1,
    max_size=6,
)


def _play(policy: dict[str, Any], script: Any, steps: Any, shared: bool) -> None:
    run = _Run(policy, script, shared)

    async def scenario() -> None:
        run.check(await run.do(steps))

    with clocks_of_the_loop(), asyncio.Runner(loop_factory=lambda: FakeClockLoop(100.0)) as runner:
        runner.run(scenario())


@pytest.mark.promise("C2")
@settings(max_examples=400, deadline=None, derandomize=True)
@given(policy=st.sampled_from(_POLICIES), script=_scripts, steps=_steps)
def test_callers_of_one_process_get_what_they_may_get(policy: dict[str, Any], script: Any, steps: Any) -> None:
    """One call at a time for a key; its value or its error for all who waited; nothing void; true counts."""
    _play(policy, script, steps, shared=False)


@pytest.mark.promise("C2")
@settings(max_examples=250, deadline=None, derandomize=True)
@given(policy=st.sampled_from(_POLICIES), script=_scripts, steps=_steps)
def test_callers_of_two_processes_get_what_they_may_get(policy: dict[str, Any], script: Any, steps: Any) -> None:
    """The same with a shared store between them."""
    _play(policy, script, steps, shared=True)
