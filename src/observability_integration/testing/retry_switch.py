"""A switch for tests in which calls are tried again, so that none of them waits for it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from observability_integration.primitives.retry import testing_mode
from observability_integration.primitives.retry.testing_mode import TestingMode


def set_testing(
    *, attempts: int | None = 1, cap: bool = False, wait: bool = False
) -> AbstractContextManager[TestingMode]:
    """Within the block, calls are tried again without a pause, and as often as the test wants.

    Usage::

        with set_testing(attempts=3):
            with pytest.raises(ConnectionError):
                await RetryPrimitive(ask).execute("question")

    It holds for the code in the block and for the tasks that this code begins, and for nobody else in the process: two
    tests that run at the same time do not see each other's. A thread has it where it was given the context, as
    `asyncio.to_thread` does. Blocks may be nested; the inner one decides alone.

    Which faults are worth another attempt stays as it is, and so do the deadline and the budget of retries.

    Args:
        attempts: how many attempts a call gets, the first included, >= 1; None is as many as are configured.
        cap: `attempts` bounds what is configured instead of replacing it.
        wait: wait between attempts all the same, for a test with a fake clock that looks at the pauses.

    Returns:
        A context manager for one ``with`` statement, not ``async with`` and not a decorator.

    Raises:
        ConfigurationError: `attempts` is not an integer >= 1.
        RuntimeError: entered a second time.
    """
    return _Switch(TestingMode(attempts=attempts, cap=cap, wait=wait))


class _Switch(AbstractContextManager[TestingMode]):
    # No generator, which could decorate an async function, and would be over before that has begun.

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
        # Not by a token, which a fixture that ends in another context than it began in could not give back.
        testing_mode.install(self._before)
