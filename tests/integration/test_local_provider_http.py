from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from observability_integration.demo.provider import LocalProvider
from observability_integration.testing.http import http1

pytestmark = pytest.mark.once

CHAT = json.dumps({"model": "local-small", "messages": [{"role": "user", "content": "2+2?"}]}).encode()
CHAT_PATH = "/v1/chat/completions"
Reply = tuple[int, dict[str, str], bytes]


@pytest.fixture
async def provider() -> AsyncIterator[LocalProvider]:
    async with LocalProvider(time_scale=0.0) as provider:
        yield provider


class Raw:
    """A client that sends exactly the bytes it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines)

    async def reply(self) -> Reply:
        status, headers = await self.head()
        return status, headers, await self._reader.readexactly(int(headers["content-length"]))

    async def rest(self) -> bytes:
        return await self._reader.read()

    def end(self) -> None:
        self._writer.write_eof()


def port_of(provider: LocalProvider) -> int:
    return int(provider.base_url.rsplit(":", 1)[1].removesuffix("/v1"))


@contextlib.asynccontextmanager
async def connect(provider: LocalProvider) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(provider))
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def request(
    *headers: str, method: str = "POST", path: str = CHAT_PATH, body: bytes = CHAT, version: str = "1.1"
) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: local", "Authorization: Bearer k", *headers]
    return ("\r\n".join([*lines, f"Content-Length: {len(body)}"]) + "\r\n\r\n").encode("latin-1") + body


async def exchange(provider: LocalProvider, data: bytes) -> tuple[Reply, bytes]:
    """Sends, and returns the reply and whatever comes after it until the provider closes."""
    async with connect(provider) as raw:
        await raw.send(data)
        return await raw.reply(), await raw.rest()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: local\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: local\r\nX: " + b"a" * 40_000, 431),
        (b"POST / HTTP/1.1\r\nHost: local\r\nContent-Length: 1048577\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: local\r\nTransfer-Encoding: chunked\r\n\r\n100001\r\n" + b"x" * 1_048_577, 413),
    ],
    ids=["not HTTP", "no target", "large head", "large body", "large body in chunks"],
)
async def test_what_cannot_be_served_is_refused_and_the_connection_closed(
    provider: LocalProvider, data: bytes, status: int
) -> None:
    """The client is told in the API's shape, and counted; what follows on the connection could not be trusted."""
    (replied, headers, body), rest = await exchange(provider, data)

    assert status == replied
    assert "close" == headers["connection"]
    assert "invalid_request_error" == json.loads(body)["error"]["type"]
    assert b"" == rest
    assert Counter({("none", status): 1}) == provider.requests


async def test_an_unknown_path_and_a_wrong_method_keep_the_connection(provider: LocalProvider) -> None:
    """These are well-formed requests: told apart, answered, and the next one works."""
    async with connect(provider) as raw:
        await raw.send(request(path="/v1/nothing"))
        status, _, body = await raw.reply()
        assert 404 == status
        assert "only at /v1/models and /v1/chat/completions" in json.loads(body)["error"]["message"]
        await raw.send(request(method="GET"))
        status, headers, _ = await raw.reply()
        assert (405, "post") == (status, headers["allow"])
        await raw.send(request())
        assert 200 == (await raw.reply())[0]


async def test_a_head_request_has_no_body_in_its_reply(provider: LocalProvider) -> None:
    """A body after HEAD would be taken for the next reply."""
    async with connect(provider) as raw:
        await raw.send(request(method="HEAD", path="/v1/models") + request())
        assert 405 == (await raw.head())[0]
        assert 200 == (await raw.reply())[0]


async def test_requests_sent_ahead_are_answered_in_order(provider: LocalProvider) -> None:
    """What arrives while a request is being answered belongs to the next one and must not be lost."""
    async with connect(provider) as raw:
        await raw.send(request() + request(path="/v1/nothing") + request("Connection: close"))
        assert [200, 404, 200] == [(await raw.reply())[0] for _ in range(3)]
        assert b"" == await raw.rest()


async def test_a_request_that_arrives_while_another_is_answered_waits_its_turn() -> None:
    """While it works the provider reads on, to notice a client that leaves; what it reads then is the next request."""
    async with LocalProvider(time_scale=0.1) as provider, connect(provider) as raw:
        await raw.send(request(body=CHAT.replace(b"local-small", b"local-large")))
        await provider.wait_for_in_flight(1)
        await raw.send(request())
        replies = [json.loads((await raw.reply())[2])["model"] for _ in range(2)]

    assert ["local-large", "local-small"] == replies


async def test_a_body_may_come_in_chunks_and_pieces(provider: LocalProvider) -> None:
    """A client that streams its request announces no length, and TCP keeps no boundaries."""
    head = request("Connection: close", "Transfer-Encoding: chunked", body=b"").replace(b"Content-Length: 0\r\n", b"")
    async with connect(provider) as raw:
        for piece in (head[:40], head[40:], b"%x\r\n" % len(CHAT), CHAT[:9], CHAT[9:], b"\r\n0\r", b"\n\r\n"):
            await raw.send(piece)
            await asyncio.sleep(0)
        assert b'"content":"4"' in (await raw.reply())[2]


async def test_the_target_may_carry_a_host_and_a_query(provider: LocalProvider) -> None:
    """Proxies send the absolute form, and a query does not change what is asked for."""
    (status, _, _), _ = await exchange(provider, request("Connection: close", path=f"http://local{CHAT_PATH}?x=1"))

    assert 200 == status


async def test_a_client_that_asks_before_it_sends_is_told_to_go_on(provider: LocalProvider) -> None:
    """Some clients wait for this before a large body; one that is too large is refused without it."""
    data = request("Expect: 100-continue")
    async with connect(provider) as raw:
        await raw.send(data[: -len(CHAT)])
        assert 100 == (await raw.head())[0]
        await raw.send(CHAT)
        assert 200 == (await raw.reply())[0]
        await raw.send(b"POST / HTTP/1.1\r\nHost: local\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n")
        assert 413 == (await raw.reply())[0]


async def test_an_old_client_gets_a_stream_that_ends_with_the_connection(provider: LocalProvider) -> None:
    """HTTP/1.0 knows no chunks: the bytes are the events, and the end of the connection is their end."""
    body = CHAT.replace(b"{", b'{"stream":true,', 1)
    async with connect(provider) as raw:
        await raw.send(request(body=body, version="1.0"))
        status, headers = await raw.head()
        events = await raw.rest()

    assert (200, "close") == (status, headers["connection"])
    assert "transfer-encoding" not in headers
    assert events.startswith(b"data: {")
    assert events.endswith(b"data: [DONE]\n\n")


async def test_a_stream_is_chunked_ends_and_keeps_the_connection(provider: LocalProvider) -> None:
    """The end of a stream is marked within the connection, so that the next request can use it."""
    body = CHAT.replace(b"{", b'{"stream":true,', 1)
    async with connect(provider) as raw:
        await raw.send(request(body=body) + request("Connection: close"))
        _, headers = await raw.head()
        rest = await raw.rest()

    assert ("chunked", "text/event-stream; charset=utf-8") == (headers["transfer-encoding"], headers["content-type"])
    stream, end, second = rest.partition(b"\r\n0\r\n\r\n")
    assert stream.endswith(b"\r\ndata: [DONE]\n\n")
    assert end
    assert second.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("data", [request()[:40], request()[:-3]])
async def test_a_request_that_stops_in_the_middle_is_refused(provider: LocalProvider, data: bytes) -> None:
    """Half a request is never served, even if its headers are complete."""
    async with connect(provider) as raw:
        await raw.send(data)
        raw.end()
        assert 400 == (await raw.reply())[0]

    assert Counter({("none", 400): 1}) == provider.requests


async def test_a_wrong_chat_request_names_its_field(provider: LocalProvider) -> None:
    """The error has the API's shape, and the connection is still good."""
    async with connect(provider) as raw:
        await raw.send(request(body=b'{"model":"local-small"}'))
        status, headers, body = await raw.reply()

    assert (400, "keep-alive") == (status, headers["connection"])
    assert "messages" == json.loads(body)["error"]["param"]


async def test_text_that_utf8_cannot_say_is_answered(provider: LocalProvider) -> None:
    """JSON can carry half a surrogate pair, in the model's name as in the question."""
    async with connect(provider) as raw:
        await raw.send(request(body=CHAT.replace(b"2+2?", b"\\ud800")))
        assert 200 == (await raw.reply())[0]
        await raw.send(request(body=CHAT.replace(b"local-small", b"\\ud800")))
        assert 404 == (await raw.reply())[0]


async def test_keys_and_prompts_appear_in_no_log(provider: LocalProvider, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a good request nor a malformed one may leave its secrets behind, in the log or in the reply."""
    caplog.set_level(logging.DEBUG)
    secret = "sk-0123456789-secret"
    ask = request("Connection: close", body=CHAT.replace(b"2+2?", b"my prompt is secret too")).replace(
        b"Bearer k", f"Bearer {secret}".encode()
    )
    replies = [await exchange(provider, ask), await exchange(provider, ask.replace(b"Host:", b"Host :"))]

    assert [200, 400] == [reply[0] for reply, _ in replies]
    assert "secret" not in caplog.text
    assert all(b"secret" not in body for (_, _, body), _ in replies)


async def test_closing_is_quick_with_clients_that_neither_send_nor_leave() -> None:
    """Idle connections, half requests and unread replies are dropped, and no task is left."""
    before = asyncio.all_tasks()
    async with contextlib.AsyncExitStack() as stack:
        provider = LocalProvider(time_scale=0.0)
        await provider.open()
        idle, half, pending = [await stack.enter_async_context(connect(provider)) for _ in range(3)]
        await half.send(request()[:50])
        await pending.send(request(body=CHAT.replace(b"local-small", b"local-hang")))
        await provider.wait_for_in_flight(1)
        async with asyncio.timeout(2):
            await provider.close()

        assert before == asyncio.all_tasks()
        assert b"" == await idle.rest()


@pytest.mark.parametrize("turns", range(6))
async def test_a_client_that_arrives_while_the_provider_closes_is_dropped(turns: int) -> None:
    """The event loop takes a few turns to hand over a connection; closing at any of them must leave nothing open."""
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    provider = LocalProvider()
    await provider.open()
    with socket.create_connection(("127.0.0.1", port_of(provider))) as client:
        client.setblocking(False)
        for _ in range(turns):
            await asyncio.sleep(0)
        await provider.close()

        with contextlib.suppress(ConnectionError):
            assert b"" == await loop.sock_recv(client, 1)
    assert before == asyncio.all_tasks()


async def test_a_refused_body_still_on_its_way_is_taken_and_dropped(provider: LocalProvider) -> None:
    """Closing while the client sends would reset the connection, and the client would never see why."""
    async with connect(provider) as raw:
        await raw.send(b"POST / HTTP/1.1\r\nHost: local\r\nContent-Length: 2000000\r\n\r\n")
        assert 413 == (await raw.reply())[0]
        await raw.send(b"x" * 2_000_000)
        assert b"" == await raw.rest()


async def test_a_client_that_does_not_leave_is_left(provider: LocalProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last reply the client has a moment to close; one that never does must not keep its connection."""
    monkeypatch.setattr(http1, "_LINGER_SECONDS", 0.01)
    before = asyncio.all_tasks()
    async with connect(provider) as raw:
        await raw.send(request("Connection: close"))
        assert 200 == (await raw.reply())[0]
        assert b"" == await raw.rest()
        serving = asyncio.all_tasks() - before
        _, pending = await asyncio.wait(serving, timeout=10.0) if serving else (set(), set())
        assert not pending
