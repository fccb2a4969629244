"""Runs the producer of a stream in a task of its own, which advances only when the reader asks for a chunk.

So the producer's context variables and cancel scopes stay in one task from its opening to its closing, and the reader
can abandon it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from .base import ChunkStream, as_error

END = object()
"""Delivered after the last chunk."""


class Rendezvous:
    """Passes one chunk at a time from pump to reader; refers to neither, so that a dropped stream can be collected."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._wanted: asyncio.Future[None] = loop.create_future()
        self._delivered: asyncio.Future[Any] = loop.create_future()
        self._delivered.cancel()
        self._error: BaseException | None = None
        self._left = False

    def ask(self) -> asyncio.Future[Any]:
        """Reader: asks for the next chunk."""
        self._delivered = self.loop.create_future()
        if self._error is not None:
            self.fail(self._error)
        elif not self._wanted.done():  # else the pump was cancelled as it waited, and is about to report it
            self._wanted.set_result(None)
        return self._delivered

    def leave(self) -> None:
        """Reader: will ask for no more chunks."""
        self._left = True

    async def asked(self) -> bool:
        """Pump: waits until the reader asks for a chunk; False when the reader has left."""
        if self._left:
            return False
        await self._wanted
        self._wanted = self.loop.create_future()
        return True

    def deliver(self, chunk: Any) -> None:
        """Pump: delivers a chunk."""
        if not self._delivered.done():
            self._delivered.set_result(chunk)

    def fail(self, error: BaseException) -> None:
        """Pump: delivers an error, now or when the reader next asks."""
        self._error = error
        if self._delivered.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self._delivered.cancel()
        else:
            self._delivered.set_exception(error)
            self._delivered.exception()  # marks it as retrieved: the reader may have left


async def run_pump(source: ChunkStream, rendezvous: Rendezvous) -> None:
    """Opens `source`, delivers a chunk whenever the reader asks, and closes it; to be run in a task of its own."""
    try:
        async with source as chunks:
            iterator = aiter(chunks)
            while await rendezvous.asked():
                try:
                    chunk = await anext(iterator)
                except StopAsyncIteration:
                    break
                rendezvous.deliver(chunk)
        rendezvous.deliver(END)
    except StopAsyncIteration as stop:  # of the opening or the closing: the end of the chunks is handled above
        rendezvous.fail(as_error(stop))
    except BaseException as error:
        rendezvous.fail(error)
        raise
