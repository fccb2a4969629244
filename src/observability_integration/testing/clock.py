"""An event loop whose clock jumps, so that no test waits for a timeout, a sleep or a deadline."""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Callable, Mapping
from typing import Any

_RESOLUTION_SECONDS = time.get_clock_info("monotonic").resolution  # as asyncio's event loops have it


class FakeClockLoop(asyncio.SelectorEventLoop):
    """An event loop on which waiting takes no time.

    Whenever every task waits, the clock jumps to the next timer. Timers fire in the right order and at exactly the
    right time of this clock, so a test may say what happens at 29.9 s and at 30 s, and runs in microseconds::

        def test_gives_up_after_30_seconds() -> None:
            async def scenario() -> None:
                with pytest.raises(TimeoutError):
                    await TimeoutPrimitive(hang, 30.0).execute("question")
                assert asyncio.get_running_loop().time() == 30.0

            with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
                runner.run(scenario())

    Only `time` of this loop is faked. What does not wait for the loop's clock, such as a socket or a thread, takes real
    time, and a timer that is pending meanwhile fires first; use an ordinary loop for a test that has both.

    Args:
        start_seconds: what the clock shows at first, in seconds.
    """

    def __init__(self, start_seconds: float = 0.0) -> None:
        self._now_seconds = start_seconds
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        """Seconds on the fake clock."""
        return self._now_seconds

    def advance(self, seconds: float) -> None:
        """Moves the clock while nothing else runs, as code does that blocks the loop.

        Args:
            seconds: by how much, 0 or more.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock does not run backwards: {seconds}")
        self._now_seconds += seconds

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Waits for the threads of the default executor, in real time: a timeout on this clock would give them none."""
        await super().shutdown_default_executor()

    def _jump(self, seconds: float) -> None:
        now = self._now_seconds + seconds
        # A loop fires what is due before `now` + its resolution, which after some months is lost in rounding.
        self._now_seconds = now if now + _RESOLUTION_SECONDS > now else math.nextafter(now, math.inf)


class _JumpingSelector(selectors.BaseSelector):
    """Instead of waiting for a timer, moves the clock to it."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        self._jump = jump
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # Without a timer, only a socket or another thread can have something to do for the loop: wait for that.
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
