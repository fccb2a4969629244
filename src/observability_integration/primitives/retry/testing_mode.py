"""Whether a test is running that does not want to wait for retries."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar

from observability_integration.checks import check_count


@dataclass(frozen=True, slots=True, kw_only=True)
class TestingMode:
    """How retries go while a test says so.

    Attributes:
        attempts: how many attempts a call gets, the first included, >= 1; None is as many as are configured.
        cap: `attempts` bounds what is configured instead of replacing it.
        wait: whether the pauses between attempts are waited for.

    Raises:
        ConfigurationError: a value out of range.
    """

    # Its name begins as that of a test case does, and pytest collects whatever a test module imports.
    __test__: ClassVar[bool] = False

    attempts: int | None = 1
    cap: bool = False
    wait: bool = False

    def __post_init__(self) -> None:
        check_count("attempts", self.attempts, optional=True)

    def attempts_of(self, configured: int) -> int:
        """How many attempts a call gets that is configured to get `configured`."""
        if self.attempts is None:
            return configured
        return min(self.attempts, configured) if self.cap else self.attempts


_mode: ContextVar[TestingMode | None] = ContextVar("observability_integration_testing_mode", default=None)


def active() -> TestingMode | None:
    """The mode in force; None where retries go as they are configured."""
    return _mode.get()


def install(mode: TestingMode | None) -> None:
    """Puts a mode in force, or none: in this context, and in the tasks that are begun from it later."""
    _mode.set(mode)
