"""A provider's stream by script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

VARIABLE: ContextVar[str] = ContextVar("of the source")


class Source:
    """A number is a wait in seconds, an exception is raised, anything else is a chunk."""

    def __init__(self, *script: Any, on_close: BaseException | None = None) -> None:
        self.script = script
        self.on_close = on_close
        self.ended: list[str] = []

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._play()

    async def _play(self) -> AsyncIterator[Any]:
        token = VARIABLE.set("held")
        try:
            for item in self.script:
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, float):
                    await asyncio.sleep(item)
                else:
                    yield item
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        finally:
            VARIABLE.reset(token)  # raises in another context than that of the first step

    async def close(self) -> None:
        self.ended.append("closed")
        if self.on_close is not None:
            raise self.on_close


class GoingOn:
    """Raises in the place of what it cannot read, and goes on: an iterator with a parser of its own."""

    def __init__(self, *script: Any) -> None:
        self._script = iter(script)

    def __aiter__(self) -> GoingOn:
        return self

    async def __anext__(self) -> Any:
        for item in self._script:
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, float):
                await asyncio.sleep(item)
            else:
                return item
        raise StopAsyncIteration
