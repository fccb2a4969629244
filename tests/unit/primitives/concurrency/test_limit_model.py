"""Any order of asking, giving back, cancelling and changing the limit: no permit is lost, and none is doubled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from observability_integration.primitives.concurrency.limit import ConcurrencyLimit
from observability_integration.primitives.concurrency.permits import ConcurrencyPermit, Outcome, PermitRefused
from observability_integration.primitives.concurrency.queue import PRIORITIES, Priority
from observability_integration.resilience.aimd import Aimd
from observability_integration.testing.clock import FakeClockLoop

pytestmark = pytest.mark.once

T = TypeVar("T")
_MAX_QUEUED = 4
_numbers = st.integers(0, 20)


class _Users(RuleBasedStateMachine):
    """Callers in one loop, which turns in `turn` and `let_time_pass` only: all between two of these is one tick."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = FakeClockLoop()
        self.limiter = self.make()
        self.asking: list[asyncio.Task[ConcurrencyPermit]] = []
        self.held: list[ConcurrencyPermit] = []
        self.released: list[ConcurrencyPermit] = []
        self.refused = 0
        self.before = 0

    def make(self) -> ConcurrencyLimit:
        return ConcurrencyLimit(2, max_queued=_MAX_QUEUED)

    @rule(priority=st.sampled_from(PRIORITIES), max_wait_seconds=st.sampled_from([None, 0.0, 1.0, 2.0]))
    def ask(self, priority: Priority, max_wait_seconds: float | None) -> None:
        self.asking.append(self.loop.create_task(self.limiter.acquire(priority, max_wait_seconds)))

    def _now(self, step: Callable[..., T], *args: object) -> T:
        """Does it as code in the loop does, without a turn of the loop."""
        asyncio.events._set_running_loop(self.loop)
        try:
            return step(*args)
        finally:
            asyncio.events._set_running_loop(None)

    @rule()
    def ask_at_once(self) -> None:
        permit = self._now(self.limiter.try_acquire)
        if permit is not None:
            self.held.append(permit)

    @precondition(lambda self: self.asking)
    @rule(which=_numbers)
    def cancel(self, which: int) -> None:
        self.asking[which % len(self.asking)].cancel()

    @precondition(lambda self: self.held)
    @rule(which=_numbers, outcome=st.sampled_from(["success", "success", "overload", "neutral"]))
    def release(self, which: int, outcome: Outcome) -> None:
        permit = self.held.pop(which % len(self.held))
        self._now(permit.release, outcome)
        self.released.append(permit)

    @precondition(lambda self: self.released)
    @rule(which=_numbers)
    def release_again(self, which: int) -> None:
        self._now(self.released[which % len(self.released)].release, "success")

    @rule(limit=st.integers(1, 5))
    def change(self, limit: int) -> None:
        self._now(self.limiter.set_limit, limit)

    @rule(count=st.integers(1, 4))
    def turn(self, count: int) -> None:
        for _ in range(count):
            self.loop.run_until_complete(asyncio.sleep(0))
        self._collect()

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self._collect()
        # All has come to rest: what the limiter counts is what the callers have, and who waits.
        assert len(self.held) == self.limiter.in_flight
        assert len(self.asking) == sum(self.limiter.queued.values())

    def _collect(self) -> None:
        for task in [task for task in self.asking if task.done()]:
            self.asking.remove(task)
            if task.cancelled():
                continue
            error = task.exception()
            if error is None:
                self.held.append(task.result())
            else:
                assert isinstance(error, PermitRefused)
                self.refused += 1

    @invariant()
    def no_permit_is_doubled(self) -> None:
        in_flight, limit = self.limiter.in_flight, self.limiter.limit
        assert len(self.held) <= in_flight
        assert in_flight <= max(limit, self.before)
        self.before = in_flight

    @invariant()
    def nobody_waits_for_what_is_free(self) -> None:
        queued = sum(self.limiter.queued.values())
        assert queued <= _MAX_QUEUED
        assert queued == 0 or self.limiter.in_flight >= self.limiter.limit

    def teardown(self) -> None:
        for task in self.asking:
            task.cancel()
        for permit in self.held:
            self._now(permit.release)
        self.held = []
        self.turn(5)
        for permit in self.held:  # a permit that came in the tick before the cancellation
            permit.release()
        assert [] == self.asking
        assert 0 == self.limiter.in_flight
        assert 0 == sum(self.limiter.queued.values())
        self.loop.close()


class _AdaptiveUsers(_Users):
    """The same with a limit that moves by itself."""

    def make(self) -> ConcurrencyLimit:
        return ConcurrencyLimit(Aimd(2, max_limit=5, clock=self.loop.time), max_queued=_MAX_QUEUED)


@pytest.mark.parametrize("machine", [_Users, _AdaptiveUsers])
def test_no_permit_is_lost_or_doubled(machine: type[_Users]) -> None:
    """In all orders within a tick and between ticks."""
    run_state_machine_as_test(
        machine, settings=settings(max_examples=30, stateful_step_count=40, deadline=None, derandomize=True)
    )
