"""A TCP proxy for tests, between a client and a server, that spoils what passes in the ways that networks do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any, Self

from tests.processes import free_port

_CHUNK_BYTES = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # linger for no time at all: what is under way is dropped, and RST is sent


class TcpProxy:
    """Passes everything on to a port of 127.0.0.1, until told otherwise, on connections that are open as well.

    An async context manager: it listens in the running event loop, from entry to exit.

    Args:
        target_port: the server's.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.port = free_port()
        self._listening: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self.delay_seconds = 0.0
        self.reply_limit_bytes: int | None = None
        self.swallows = False

    @property
    def url(self) -> str:
        """Where clients of a Redis connect to."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.refuse()
        await asyncio.gather(*(link.task for link in self._links), return_exceptions=True)

    async def pass_on(self) -> None:
        """Mend every fault. A connection that has lost bytes is reset: what follows would make no sense to it."""
        self.delay_seconds, self.reply_limit_bytes, self.swallows = 0.0, None, False
        for link in self._links:
            if link.has_lost_bytes:
                link.reset()
        await self._listen()

    def delay(self, seconds: float) -> None:
        """Let everything arrive later by so much, in each direction."""
        self.delay_seconds = seconds

    def cut_after(self, reply_bytes: int) -> None:
        """Let so many bytes of replies pass on each connection, then reset it; 0 resets it instead of any reply."""
        self.reply_limit_bytes = reply_bytes
        for link in self._links:
            link.reply_bytes = 0

    def swallow(self) -> None:
        """Accept connections and whatever is sent, and pass nothing on, nor any reply."""
        self.swallows = True

    async def refuse(self) -> None:
        """Accept no connection any more, and reset those that are open."""
        if self._listening is not None:
            self._listening.close()
            for link in self._links:
                link.reset()
            self._listening = None

    async def _listen(self) -> None:
        if self._listening is None:
            self._listening = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await link.run(self._target_port)
        finally:
            self._links.discard(link)


class _Link:
    """One client's connection, and the one to the server that belongs to it."""

    def __init__(self, proxy: TcpProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._pumps: list[asyncio.Task[None]] = []
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.has_lost_bytes = False
        self.reply_bytes = 0

    def reset(self) -> None:
        """Ends the connection the hard way."""
        with contextlib.suppress(OSError):  # it may have ended by itself
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._writer.transport.abort()
        for pump in self._pumps:
            pump.cancel()

    async def run(self, target_port: int) -> None:
        """Passes on until either side ends."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", target_port)
        except OSError:
            self.reset()
            return
        self._pumps = [
            asyncio.create_task(self._requests(writer), name="proxy requests"),
            asyncio.create_task(self._replies(reader), name="proxy replies"),
        ]
        await asyncio.wait(self._pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in self._pumps:
            pump.cancel()
        await asyncio.wait(self._pumps)
        for end in (self._writer, writer):
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()

    async def _requests(self, server: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await self._reader.read(_CHUNK_BYTES):
                if await self._passes():
                    server.write(data)
                    await server.drain()

    async def _replies(self, server: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await server.read(_CHUNK_BYTES):
                if not await self._passes():
                    continue
                limit = self._proxy.reply_limit_bytes
                if limit is not None and self.reply_bytes + len(data) > limit:
                    self._writer.write(data[: limit - self.reply_bytes])
                    self.reset()
                    return
                self.reply_bytes += len(data)
                self._writer.write(data)
                await self._writer.drain()

    async def _passes(self) -> bool:
        # A chunk that comes while another is waiting waits for that one, too: nothing is overtaken.
        if self._proxy.delay_seconds:
            await asyncio.sleep(self._proxy.delay_seconds)
        if self._proxy.swallows:
            self.has_lost_bytes = True
        return not self._proxy.swallows
