"""Removes the pauses between retries, for tests."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from observability_integration.primitives.retry import testing_mode
from observability_integration.primitives.retry.testing_mode import TestingMode


def set_testing(
    *, attempts: int | None = 1, cap: bool = False, wait: bool = False
) -> AbstractContextManager[TestingMode]:
    """In the block, retries wait for no backoff, and a call gets the given number of attempts.

    Usage::

        with set_testing(attempts=3):
            with pytest.raises(ConnectionError):
                await RetryPrimitive(ask).execute("question")

    Applies to the code in the block and to the tasks that it starts, so tests that run at the same time do not affect
    each other. Applies to a thread that runs in the context of the block, as with `asyncio.to_thread`. In nested blocks
    only the innermost applies.

    The choice of faults to retry, the deadline and the retry budget stay unchanged.

    Args:
        attempts: number of attempts of a call, including the first, >= 1; None is the configured number.
        cap: `attempts` caps the configured number instead of replacing it.
        wait: retries wait for their backoff, for a test with a fake clock that checks the pauses.

    Returns:
        A context manager for one ``with`` statement, not ``async with`` and not a decorator.

    Raises:
        ConfigurationError: `attempts` is not an integer >= 1.
        RuntimeError: entered a second time.
    """
    return _Switch(TestingMode(attempts=attempts, cap=cap, wait=wait))


class _Switch(AbstractContextManager[TestingMode]):
    # Not a generator-based manager: that could decorate an async function, and would end before the function starts.

    def __init__(self, mode: TestingMode) -> None:
        self._mode = mode
        self._before: TestingMode | None = None
        self._entered = False

    def __enter__(self) -> TestingMode:
        if self._entered:
            raise RuntimeError("set_testing() makes a context manager for one 'with': call it again")
        self._entered = True
        self._before = testing_mode.active()
        testing_mode.install(self._mode)
        return self._mode

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Without a token, because a fixture may end in another context than it began in.
        testing_mode.install(self._before)
