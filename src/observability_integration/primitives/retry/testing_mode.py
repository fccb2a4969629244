"""The testing mode of retries: fewer attempts, and no waits."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar

from observability_integration.checks import check_count


@dataclass(frozen=True, slots=True, kw_only=True)
class TestingMode:
    """Overrides the configuration of retries in a test.

    Attributes:
        attempts: attempts of a call, the first included, >= 1; None for the configured number.
        cap: whether `attempts` bounds the configured number instead of replacing it.
        wait: whether a retry waits for its backoff.

    Raises:
        ConfigurationError: a value out of range.
    """

    # pytest collects classes with this prefix from the imports of a test module.
    __test__: ClassVar[bool] = False

    attempts: int | None = 1
    cap: bool = False
    wait: bool = False

    def __post_init__(self) -> None:
        check_count("attempts", self.attempts, optional=True)

    def attempts_of(self, configured: int) -> int:
        """Returns the number of attempts of a call that is configured to make `configured`."""
        if self.attempts is None:
            return configured
        return min(self.attempts, configured) if self.cap else self.attempts


_mode: ContextVar[TestingMode | None] = ContextVar("observability_integration_testing_mode", default=None)


def active() -> TestingMode | None:
    """Returns the current mode; None outside of a test that sets one."""
    return _mode.get()


def install(mode: TestingMode | None) -> None:
    """Sets the mode, or none, in this context and in the tasks that start from it later."""
    _mode.set(mode)
