"""The server that the providers share, with a handler of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from observability_integration.testing.http.exchange import Exchange, wait_for_ever
from observability_integration.testing.http.http1 import Limits, Request
from observability_integration.testing.http.loopback import LoopbackProvider

pytestmark = pytest.mark.once

ECHO = {"/echo": "POST", "/other": "GET"}


async def echo(exchange: Exchange, request: Request) -> None:
    exchange.model = "parrot"
    await exchange.reply(200, request.body, content_type="text/plain")


async def never(exchange: Exchange, request: Request) -> None:
    await wait_for_ever()


@contextlib.asynccontextmanager
async def connected(provider: LoopbackProvider) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    port = int(provider.base_url.removesuffix("/v1").rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def sent(provider: LoopbackProvider, line: str, body: bytes = b"") -> tuple[bytes, bytes]:
    """The head and the body of the reply."""
    async with connected(provider) as (reader, writer):
        head = f"{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        reply_head, _, reply = (await reader.read()).partition(b"\r\n\r\n")
    return reply_head, reply


async def test_the_handler_gets_what_is_served_and_nothing_else() -> None:
    """A wrong path or method never reaches a handler; the client is told what there is, and each reply is counted."""
    counted: list[tuple[str, int]] = []
    async with LoopbackProvider(echo, ECHO, count=lambda *reply: counted.append(reply)) as provider:
        head, body = await sent(provider, "POST /echo", b"hello")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"\r\nContent-Type: text/plain" in head
        assert b"hello" == body

        head, body = await sent(provider, "GET /nothing")
        assert head.startswith(b"HTTP/1.1 404 ")
        assert "only at /echo and /other" in json.loads(body)["error"]["message"]

        head, body = await sent(provider, "GET /echo")
        assert head.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nAllow: POST" in head

    assert [("parrot", 200), ("none", 404), ("none", 405)] == counted


async def test_a_client_that_leaves_ends_the_handler() -> None:
    """Work that nobody waits for is cancelled and counted as such, without anybody having to count."""
    async with LoopbackProvider(never, ECHO) as provider:
        async with connected(provider) as (_, writer):
            writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\n\r\n")
            await provider.wait_for_in_flight(1)
        await provider.wait_for_in_flight(0)


async def test_a_client_that_does_not_leave_is_left() -> None:
    """After the last reply the client has a moment to close; one that never does must not keep its connection."""
    before = asyncio.all_tasks()
    limits = Limits(linger_seconds=0.01)
    async with LoopbackProvider(echo, ECHO, limits=limits) as provider, connected(provider) as (reader, writer):
        writer.write(b"nonsense\r\n\r\n")
        assert b"" != await reader.read()
        serving = asyncio.all_tasks() - before
        _, pending = await asyncio.wait(serving, timeout=10.0) if serving else (set(), set())
        assert not pending


async def test_open_and_closed() -> None:
    """A handler can tell a client that left from a provider that is closing."""
    told: list[bool] = []

    async def tells(exchange: Exchange, request: Request) -> None:
        try:
            await wait_for_ever()
        finally:
            told.append(provider.is_open)

    provider = LoopbackProvider(tells, ECHO)
    assert not provider.is_open
    async with provider:
        assert provider.is_open
        async with connected(provider) as (_, writer):
            writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\n\r\n")
            await provider.wait_for_in_flight(1)
            await provider.close()

    assert [False] == told
