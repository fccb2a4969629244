"""A retry budget against an account that keeps every deposit and withdrawal, whatever the clock does."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from observability_integration.resilience.retry_budget import RetryBudget

pytestmark = pytest.mark.once

_BURST = 4.0
_PER_SECOND = 0.25
_EARNED = 0.5 - (_BURST + 60 * _PER_SECOND) / 64  # each number here is exact in binary


class _Account(RuleBasedStateMachine):
    """Operations begin, retries are asked for, and time passes or is set back."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.told = 0
        self.budget = RetryBudget(
            0.5, _PER_SECOND, _BURST, over_operations=64, on_exhausted=self.tell, clock=lambda: self.now
        )
        self.tokens = _BURST
        self.paid_until = self.now
        self.exhausted = False
        self.turns = 0

    def tell(self) -> None:
        self.told += 1

    def settle(self) -> None:
        self.tokens = min(_BURST, self.tokens + max(0.0, self.now - self.paid_until) * _PER_SECOND)
        self.paid_until = self.now

    @rule(seconds=st.sampled_from([0.25, 1.0, 2.0, 7.5, 1e6, -3.0, -1e6]))
    def passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(operations=st.integers(1, 40))
    def deposit(self, operations: int) -> None:
        for _ in range(operations):
            self.budget.deposit()
            self.tokens = min(_BURST, self.tokens + _EARNED)

    @rule(asked=st.integers(1, 6))
    def withdraw(self, asked: int) -> None:
        for _ in range(asked):
            self.settle()
            granted = self.tokens >= 1
            assert granted == self.budget.withdraw()
            if granted:
                self.exhausted = self.exhausted and self.tokens < _BURST / 2
                self.tokens -= 1
            else:
                self.turns += not self.exhausted
                self.exhausted = True

    @rule(retries=st.integers(0, 6))
    def charge(self, retries: int) -> None:
        """What was made without asking is taken as far as it goes; nothing is told of it."""
        self.settle()
        self.budget.charge(retries)
        self.tokens = max(0.0, self.tokens - retries)

    @rule()
    def look(self) -> None:
        """Looking settles what time has brought, and changes nothing else."""
        self.settle()
        assert self.tokens == self.budget.balance

    @invariant()
    def is_told_of_each_turn(self) -> None:
        assert self.turns == self.told


def test_it_agrees_with_the_account() -> None:
    """Of every grant and refusal, of what is left, and of how often it ran out."""
    assert _EARNED == RetryBudget(0.5, _PER_SECOND, _BURST, over_operations=64).earned
    run_state_machine_as_test(_Account, settings=settings(max_examples=40, stateful_step_count=30, deadline=None))
