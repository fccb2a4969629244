"""Work for the tests of timeouts: it does what it is told, and notes what is done to it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from typing import Any

import pytest

from observability_integration.errors import PrimitiveTimeoutError
from observability_integration.testing import FakeClockLoop

QUESTION = "what is the secret ingredient?"


def now() -> float:
    return asyncio.get_running_loop().time()


def advance(seconds: float) -> None:
    """What a call that blocks the loop does to its clock."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeClockLoop)
    loop.advance(seconds)


class Work:
    """Scripted work, which notes what is done to it.

    Args:
        seconds: how long it takes if it is left alone.
        result: what it returns, or raises, then.
        cleanup_seconds: how long it takes to clean up after a cancel.
        cleanup_result: what it returns, or raises, then; None lets the cancel go on.
        ignores: how many cancels it ignores before that.
    """

    def __init__(
        self,
        seconds: float = 1.0,
        result: Any = "answer",
        *,
        cleanup_seconds: float = 0.0,
        cleanup_result: Any = None,
        ignores: int = 0,
    ) -> None:
        self.seconds = seconds
        self.result = result
        self.cleanup_seconds = cleanup_seconds
        self.cleanup_result = cleanup_result
        self.ignores = ignores
        self.starts = 0
        self.cancelled_at: list[float] = []
        self.ended_at = math.nan

    async def __call__(self, question: str = QUESTION) -> Any:
        self.starts += 1
        try:
            return self._give(await self._sleep(self.seconds, self.result))
        except asyncio.CancelledError:
            result = await self._sleep(self.cleanup_seconds, self.cleanup_result)
            if result is None:
                raise
            return self._give(result)
        finally:
            self.ended_at = now()

    async def _sleep(self, seconds: float, result: Any) -> Any:
        until = now() + seconds
        while now() < until:
            try:
                await asyncio.sleep(until - now())
            except asyncio.CancelledError:
                self.cancelled_at.append(now())
                if len(self.cancelled_at) > self.ignores:
                    raise
        return result

    @staticmethod
    def _give(result: Any) -> Any:
        if isinstance(result, BaseException):
            raise result
        return result


async def timed_out(call: Awaitable[Any]) -> PrimitiveTimeoutError:
    """The error that `call` is expected to end in."""
    with pytest.raises(PrimitiveTimeoutError) as caught:
        await call
    return caught.value
