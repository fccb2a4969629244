"""An event loop whose clock jumps to the next timer, so that a test does not wait for timeouts, sleeps or deadlines."""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Callable, Mapping
from typing import Any

_RESOLUTION_SECONDS = time.get_clock_info("monotonic").resolution  # the `_clock_resolution` of asyncio's loops


class FakeClockLoop(asyncio.SelectorEventLoop):
    """An event loop on which waiting takes no time.

    When all tasks wait, the clock jumps to the next timer. Timers fire in order and exactly on time, so a test may
    state what happens at 29.9 s and at 30 s, and runs in microseconds::

        def test_gives_up_after_30_seconds() -> None:
            async def scenario() -> None:
                with pytest.raises(TimeoutError):
                    await TimeoutPrimitive(hang, 30.0).execute("question")
                assert asyncio.get_running_loop().time() == 30.0

            with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
                runner.run(scenario())

    Only `time` of this loop is fake. A socket or a thread takes real time, and a timer that is pending meanwhile fires
    first: use an ordinary loop for a test that has both.

    Args:
        start_seconds: time of the clock at the start, in seconds.
    """

    def __init__(self, start_seconds: float = 0.0) -> None:
        self._now_seconds = start_seconds
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        """The time of the fake clock, in seconds."""
        return self._now_seconds

    def advance(self, seconds: float) -> None:
        """Moves the clock while no other task runs, as code that blocks the loop does.

        Args:
            seconds: time to add, in seconds, >= 0.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock does not run backwards: {seconds}")
        self._now_seconds += seconds

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Waits for the threads of the default executor in real time; a timeout on this clock would expire at once."""
        await super().shutdown_default_executor()

    def _jump(self, seconds: float) -> None:
        now = self._now_seconds + seconds
        # A loop fires timers before `now` + its resolution, a sum that after some months rounds to `now`.
        self._now_seconds = now if now + _RESOLUTION_SECONDS > now else math.nextafter(now, math.inf)


class _JumpingSelector(selectors.BaseSelector):
    """Moves the clock to the next timer instead of waiting for it."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        self._jump = jump
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # Without a timer, only a socket or another thread can wake the loop.
        ready = self._real.select(0 if timeout is not None else None)
        if not ready and timeout is not None and timeout > 0:
            self._jump(timeout)
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()
