"""The provider that misbehaves on demand: over real sockets, each fault is what its name says."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from observability_integration.testing import FaultyProvider
from observability_integration.testing.faulty_provider import ANSWER
from observability_integration.testing.request_log import ReceivedRequest, RequestLog

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")

pytestmark = pytest.mark.once

KEY = "sk-never-shown-0123456789"
BEGINNING = ANSWER[:20]  # five tokens


@dataclass
class Seen:
    """What a client has to show for a request."""

    text: str = ""
    finish_reason: str | None = None
    usage: Any = None
    model: str | None = None
    error: Exception | None = None

    @property
    def whole(self) -> bool:
        return (ANSWER, "stop", None) == (self.text, self.finish_reason, self.error) and self.usage is not None


@pytest.fixture
async def provider() -> AsyncIterator[FaultyProvider]:
    async with FaultyProvider(time_scale=0.01) as provider:
        yield provider


@pytest.fixture
async def client(provider: FaultyProvider) -> AsyncIterator[Any]:
    async with client_of(provider) as client:
        yield client


@contextlib.asynccontextmanager
async def client_of(provider: FaultyProvider, max_retries: int = 0, timeout: float = 10.0) -> AsyncIterator[Any]:
    # Without certificates, which would take most of the time of these tests to load.
    http = openai.DefaultAsyncHttpxClient(verify=False, timeout=timeout)
    try:
        async with openai.AsyncOpenAI(
            base_url=provider.base_url, api_key=KEY, max_retries=max_retries, timeout=timeout, http_client=http
        ) as client:
            yield client
    finally:
        # The client looks up its platform in a thread of the loop's executor, which would outlive the test.
        await asyncio.get_running_loop().shutdown_default_executor()


def messages(last_role: str = "user") -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "What?"},
        *([{"role": last_role, "content": "So"}] if last_role != "user" else []),
    ]


async def ask(client: Any, model: str, *, stream: bool, last_role: str = "user") -> Seen:
    """One request with the SDK; whatever comes before an error is kept."""
    seen = Seen()
    try:
        if not stream:
            take(seen, await client.chat.completions.create(model=model, messages=messages(last_role)))
            return seen
        chunks = await client.chat.completions.create(
            model=model, messages=messages(last_role), stream=True, stream_options={"include_usage": True}
        )
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                take(seen, chunk)
    except Exception as error:
        seen.error = error
    return seen


def take(seen: Seen, answer: Any) -> None:
    seen.model, seen.usage = answer.model, answer.usage or seen.usage
    for choice in answer.choices:
        part = choice.delta if hasattr(choice, "delta") else choice.message
        seen.text += part.content or ""
        seen.finish_reason = choice.finish_reason or seen.finish_reason


both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@both
async def test_any_other_model_answers(client: Any, provider: FaultyProvider, stream: bool) -> None:
    """The good case, which every fault departs from: content, reason, usage and the name that was asked for."""
    seen = await ask(client, "gpt-any", stream=stream)

    assert seen.whole
    assert "gpt-any" == seen.model
    assert 24 == seen.usage.completion_tokens
    assert seen.usage.prompt_tokens + 24 == seen.usage.total_tokens
    (received,) = provider.requests
    assert ("gpt-any", stream, 200, "complete") == (received.model, received.stream, received.status, received.outcome)
    assert received.disconnected_seconds is None


REFUSALS = {
    "faulty-429": (429, "rate_limit_exceeded"),
    "faulty-429-first-2": (429, "rate_limit_exceeded"),
    "faulty-429-retry-after-2": (429, "rate_limit_exceeded"),
    "faulty-500": (500, None),
    "faulty-500-once": (500, None),
    "faulty-503": (503, None),
    "faulty-503-for-60": (503, None),
    "faulty-content-filter": (400, "content_filter"),
    "faulty-context-length": (400, "context_length_exceeded"),
    "faulty-401": (401, "invalid_api_key"),
    "faulty-flapping-every-1": (500, None),
    "faulty-flapping-good-0-bad-60": (503, None),
    "faulty-502-html": (502, None),
    "faulty-cut-at-many": (404, "model_not_found"),
}


@both
@pytest.mark.parametrize("model", REFUSALS)
async def test_refusals(client: Any, provider: FaultyProvider, model: str, stream: bool) -> None:
    """An error status with the code that clients go by, whichever kind of answer was wanted."""
    seen = await ask(client, model, stream=stream)

    assert isinstance(seen.error, openai.APIStatusError)
    assert REFUSALS[model] == (seen.error.status_code, seen.error.code)
    (received,) = provider.requests
    assert (REFUSALS[model][0], "refused") == (received.status, received.outcome)


@pytest.mark.parametrize(
    ("model", "failures"),
    [
        ("faulty-429", 4),
        ("faulty-429-first-2", 2),
        ("faulty-429-retry-after-0.01", 1),
        ("faulty-429-retry-after-0-first-3", 3),
        ("faulty-500", 4),
        ("faulty-500-once", 1),
        ("faulty-503-for-0", 0),
    ],
)
async def test_how_often_a_refusal_comes(client: Any, model: str, failures: int) -> None:
    """Faults that pass are over after exactly as many requests as their names say."""
    seen = [await ask(client, model, stream=False) for _ in range(4)]

    assert [False] * failures + [True] * (4 - failures) == [each.whole for each in seen]


@pytest.mark.parametrize(
    ("model", "seconds", "milliseconds"),
    [
        ("faulty-429", None, None),
        ("faulty-429-retry-after-2", "2", "2000"),
        ("faulty-429-retry-after-0.25", "1", "250"),
    ],
)
async def test_retry_after(client: Any, model: str, seconds: str | None, milliseconds: str | None) -> None:
    """The wait that is asked for is the name's, in whole seconds and exactly; it is the client's, so not scaled."""
    seen = await ask(client, model, stream=False)

    assert isinstance(seen.error, openai.RateLimitError)
    headers = seen.error.response.headers
    assert (seconds, milliseconds) == (headers.get("retry-after"), headers.get("retry-after-ms"))


async def test_a_client_that_heeds_retry_after(provider: FaultyProvider) -> None:
    """The SDK's own retry waits as long as it is told, and the gap shows it."""
    model = "faulty-429-retry-after-0.05-first-2"
    async with client_of(provider, max_retries=2) as client:
        assert (await ask(client, model, stream=False)).whole

    assert 3 == provider.attempts(model)
    assert 2 == len(provider.gaps(model))
    assert min(provider.gaps(model)) >= 0.05
    assert ["refused", "refused", "complete"] == [received.outcome for received in provider.requests]


async def test_unavailable_for_a_while(client: Any, provider: FaultyProvider) -> None:
    """The time begins with the first request and is scaled; healing ends it at once, for one model or for all."""
    assert not (await ask(client, "faulty-503-for-5", stream=False)).whole
    await asyncio.sleep(0.06)
    assert (await ask(client, "faulty-503-for-5", stream=False)).whole

    for model, healed in (("faulty-503:a", "faulty-503:a"), ("faulty-503:b", None)):
        assert not (await ask(client, model, stream=False)).whole
        provider.heal(healed)
        assert (await ask(client, model, stream=False)).whole
    provider.reset()
    assert not (await ask(client, "faulty-503:a", stream=False)).whole


async def test_simultaneous_requests(provider: FaultyProvider) -> None:
    """Each has a number of its own, also where all arrive in one turn of the loop."""
    port = httpx.URL(provider.base_url).port
    for model, failures in (("faulty-500-once", 1), ("faulty-429-first-3", 3), ("faulty-flapping-every-2", 4)):
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
        for _, writer in connections:
            writer.write(request_for(model))
        statuses = [int((await reader.readline()).split()[1]) for reader, _ in connections]
        for _, writer in connections:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        assert failures == sum(status != 200 for status in statuses)


async def test_a_reset_while_a_request_arrives(provider: FaultyProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the first one when it came, and is answered as that."""
    log = provider._log

    def add(received: ReceivedRequest) -> Any:
        asyncio.get_running_loop().call_soon(provider.reset)
        return RequestLog.add(log, received)

    monkeypatch.setattr(log, "add", add)
    reply = await raw(provider, "faulty-429-first-1", stream=False)
    assert isinstance(reply, bytes)
    assert reply.startswith(b"HTTP/1.1 429 ")
    assert 0 == provider.attempts("faulty-429-first-1")


async def test_flapping(client: Any) -> None:
    """Every n-th request fails; or the time decides, good first."""
    every_third = [(await ask(client, "faulty-flapping-every-3", stream=False)).whole for _ in range(6)]
    assert [True, True, False, True, True, False] == every_third

    model = "faulty-flapping-good-10-bad-1000"
    assert (await ask(client, model, stream=False)).whole
    await asyncio.sleep(0.11)
    assert 503 == (await ask(client, model, stream=False)).error.status_code
    assert (await ask(client, "faulty-flapping-good-0-bad-0", stream=False)).whole


@both
async def test_reset_before_headers(provider: FaultyProvider, stream: bool) -> None:
    """A real RST: the client's kernel says so."""
    assert isinstance(await raw(provider, "faulty-reset", stream=stream), ConnectionResetError)
    async with client_of(provider) as client:
        seen = await ask(client, "faulty-reset", stream=stream)

    assert isinstance(seen.error, openai.APIConnectionError)
    assert [(None, "broken")] * 2 == [(received.status, received.outcome) for received in provider.requests]


@both
async def test_silence(provider: FaultyProvider, stream: bool) -> None:
    """Not a byte, until the client has had enough; when that was is on record."""
    async with client_of(provider, timeout=0.1) as client:
        seen = await ask(client, "faulty-silent", stream=stream)
    await provider.wait_for_in_flight(0)

    assert isinstance(seen.error, openai.APITimeoutError)
    (received,) = provider.requests
    assert (None, "left") == (received.status, received.outcome)
    assert received.disconnected_seconds is not None
    # Not all of the client's patience: on a busy machine the request may be a while on its way.
    assert received.disconnected_seconds - received.time_seconds >= 0.02


async def test_silence_ends() -> None:
    """A test that forgot its timeout does not hang: the provider's own limit resets the connection."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with FaultyProvider(max_request_seconds=0.05) as provider, client_of(provider) as client:
        seen = await ask(client, "faulty-silent", stream=False)

    assert loop.time() - began < 5.0
    assert isinstance(seen.error, openai.APIConnectionError)
    assert not isinstance(seen.error, openai.APITimeoutError)
    assert "broken" == provider.requests[0].outcome


@both
async def test_slow_first_token(client: Any, provider: FaultyProvider, stream: bool) -> None:
    """The whole answer comes, not before its time, which is scaled."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    assert (await ask(client, "faulty-slow-first-token-10", stream=stream)).whole
    assert 0.1 <= loop.time() - began < 5.0


@both
async def test_drip(client: Any, stream: bool) -> None:
    """The whole answer comes, in no less than the time of its 24 tokens."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    assert (await ask(client, "faulty-drip-0.5", stream=stream)).whole
    assert 24 * 0.005 <= loop.time() - began < 5.0


@pytest.mark.parametrize(("token", "text"), [(0, ""), (5, BEGINNING), (1000, ANSWER)])
@pytest.mark.parametrize("how", ["cut", "reset"])
async def test_broken_streams(client: Any, provider: FaultyProvider, how: str, token: int, text: str) -> None:
    """Exactly so many tokens, then an error; even after the last one, there is no end to be had."""
    seen = await ask(client, f"faulty-{how}-at-{token}", stream=True)

    # After a reset, what had not been read yet may be lost.
    assert text == seen.text if how == "cut" else text.startswith(seen.text)
    assert seen.error is not None
    assert seen.finish_reason is None
    assert (200, "broken") == (provider.requests[0].status, provider.requests[0].outcome)


@pytest.mark.parametrize("model", ["faulty-cut-at-5", "faulty-reset-at-5"])
async def test_broken_documents(client: Any, model: str) -> None:
    """A client that wants the answer in one piece gets half of it."""
    assert isinstance((await ask(client, model, stream=False)).error, openai.APIConnectionError)


async def test_a_cut_is_an_end_and_a_reset_is_none(provider: FaultyProvider) -> None:
    """The two are told apart on the wire: the end of the connection, or an RST."""
    cut = await raw(provider, "faulty-cut-at-5", stream=True)
    reset = await raw(provider, "faulty-reset-at-5", stream=True)

    assert isinstance(cut, bytes)
    assert 5 == cut.count(b'"content":') - 1  # the first comes with the role and is empty
    assert not cut.endswith(b"0\r\n\r\n")
    assert isinstance(reset, ConnectionResetError)


@both
async def test_stall(provider: FaultyProvider, stream: bool) -> None:
    """So many tokens, then nothing until the client gives up."""
    async with client_of(provider, timeout=0.1) as client:
        seen = await ask(client, "faulty-stall-at-5", stream=stream)
    await provider.wait_for_in_flight(0)

    assert (BEGINNING if stream else "") == seen.text
    assert seen.error is not None
    assert (200, "left") == (provider.requests[0].status, provider.requests[0].outcome)


@pytest.mark.parametrize("token", [0, 5, 1000])
async def test_malformed_chunk(provider: FaultyProvider, token: int) -> None:
    """One event is broken, between two others; without it the answer is whole and ends as it should."""
    events = await stream_events(provider, f"faulty-malformed-at-{token}")

    broken = [index for index, event in enumerate(events[:-1]) if not is_json(event)]
    assert [1 + min(token, 24)] == broken  # after the role
    assert ANSWER == text_of(event for index, event in enumerate(events[:-1]) if index not in broken)
    assert "[DONE]" == events[-1]


@both
async def test_malformed_json_for_the_sdk(client: Any, stream: bool) -> None:
    """The SDK fails on what it cannot parse, after what came before."""
    seen = await ask(client, "faulty-malformed-at-5", stream=stream)

    assert seen.error is not None
    assert (BEGINNING if stream else "") == seen.text


@both
async def test_malformed_then_cut(client: Any, provider: FaultyProvider, stream: bool) -> None:
    """A broken event, and then no end of the connection's framing either."""
    model = "faulty-malformed-then-cut-at-5"
    assert (await ask(client, model, stream=stream)).error is not None
    wire = await raw(provider, model, stream=True)

    assert isinstance(wire, bytes)
    last = wire.split(b"data: ")[-1].strip()
    assert last.startswith(b"{")
    assert not is_json(last.decode())
    assert {"broken"} == {received.outcome for received in provider.requests}


@both
async def test_no_end_marker(client: Any, provider: FaultyProvider, stream: bool) -> None:
    """Nothing is missing but the marker, so that a client has a whole answer."""
    assert (await ask(client, "faulty-no-end-marker", stream=stream)).whole

    events = await stream_events(provider, "faulty-no-end-marker")
    assert "[DONE]" not in events
    assert ANSWER == text_of(events)


@both
async def test_no_end(client: Any, provider: FaultyProvider, stream: bool) -> None:
    """The SDK sees no error at all: only the missing finish reason tells."""
    seen = await ask(client, "faulty-no-end", stream=stream)

    assert (ANSWER, None, None) == (seen.text, seen.finish_reason, seen.error)
    assert stream == (seen.usage is None)
    assert "[DONE]" not in await stream_events(provider, "faulty-no-end")


@both
async def test_finish_content_filter(client: Any, stream: bool) -> None:
    """An answer that a filter has ended says so."""
    assert "content_filter" == (await ask(client, "faulty-finish-content-filter", stream=stream)).finish_reason


@both
async def test_prefill_rejected(client: Any, stream: bool) -> None:
    """It depends on who speaks last."""
    refused = await ask(client, "faulty-prefill-rejected", stream=stream, last_role="assistant")

    assert isinstance(refused.error, openai.BadRequestError)
    assert "prefill" in str(refused.error)
    assert (await ask(client, "faulty-prefill-rejected", stream=stream)).whole


@pytest.mark.parametrize(
    ("model", "status", "content_type", "beginning"),
    [
        ("faulty-not-json", 200, "application/json", "upstream"),
        ("faulty-empty", 200, "application/json", ""),
        ("faulty-wrong-content-type", 200, "text/plain", "{"),
        ("faulty-502-html", 502, "text/html", "<html>"),
    ],
)
@both
async def test_odd_bodies(
    client: Any, provider: FaultyProvider, model: str, status: int, content_type: str, beginning: str, stream: bool
) -> None:
    """What proxies answer with; the SDK makes an answer of none, but for a document that is only mislabelled."""
    response = await post(provider, {"model": model, "messages": messages(), "stream": stream})

    assert (status, content_type) == (response.status_code, response.headers["content-type"])
    assert response.text.startswith(beginning)
    assert bool(beginning) == bool(response.text)
    tolerated = model == "faulty-wrong-content-type" and not stream  # the SDK reads JSON whatever it is called
    assert tolerated == (await ask(client, model, stream=stream)).whole


async def test_huge_headers(client: Any) -> None:
    """More headers than the client reads."""
    assert isinstance((await ask(client, "faulty-huge-headers", stream=False)).error, openai.APIConnectionError)


@pytest.mark.parametrize("model", [None, "gpt-a"])
async def test_an_outage(client: Any, provider: FaultyProvider, model: str | None) -> None:
    """Switched on and off, for all models or for one; requests meanwhile are on record."""
    provider.down(model)
    assert isinstance((await ask(client, "gpt-a", stream=False)).error, openai.APIConnectionError)
    provider.down(model, how="503")
    assert 503 == (await ask(client, "gpt-a", stream=True)).error.status_code
    assert (model is not None) == (await ask(client, "gpt-b", stream=False)).whole
    provider.up(model)
    assert (await ask(client, "gpt-a", stream=False)).whole

    assert 3 == provider.attempts("gpt-a")
    assert ["broken", "refused", "complete"] == [r.outcome for r in provider.requests if r.model == "gpt-a"]


async def test_the_record(client: Any, provider: FaultyProvider) -> None:
    """No secret and no word of a prompt is kept; a label makes two models of one fault; a reset forgets."""
    for model in ("faulty-500-once:first", "faulty-500-once:second"):
        assert not (await ask(client, model, stream=False)).whole
        assert (await ask(client, model, stream=False)).whole

    first = provider.requests[0]
    assert "[redacted]" == first.headers["authorization"]
    assert "application/json" == first.headers["content-type"]
    assert KEY not in repr(provider.requests)
    assert "What?" not in repr(provider.requests)
    assert 0 <= provider.gaps("faulty-500-once:first")[0] < 5.0
    provider.reset()
    assert ((), 0, []) == (provider.requests, provider.attempts("faulty-500-once:first"), provider.gaps("gpt"))
    assert not (await ask(client, "faulty-500-once:first", stream=False)).whole


async def test_a_header_sent_twice(provider: FaultyProvider) -> None:
    """Both values are on record, as a proxy may put its own baggage beside the client's."""
    await exchange_raw(provider, request_for("gpt-any").replace(b"\r\n", b"\r\nBaggage: a=1\r\nBaggage: b=2\r\n", 1))

    assert "a=1, b=2" == provider.requests[0].headers["baggage"]


async def test_a_client_that_leaves_mid_answer(provider: FaultyProvider) -> None:
    """The work ends with the client, and when that was is on record."""
    async with client_of(provider) as client:
        chunks = await client.chat.completions.create(model="faulty-drip-100", messages=messages(), stream=True)
        await anext(chunks)
        await chunks.close()
        await provider.wait_for_in_flight(0)

    (received,) = provider.requests
    assert (200, "left") == (received.status, received.outcome)
    assert received.disconnected_seconds is not None


async def test_a_hundred_connections(provider: FaultyProvider) -> None:
    """All at once, good and bad mixed: each gets what it asked for."""
    models = ["gpt-any", "faulty-500", "faulty-cut-at-5", "faulty-reset"]
    results = await asyncio.gather(*(raw(provider, models[number % 4], stream=True) for number in range(100)))

    assert 25 == sum(isinstance(wire, bytes) and b"[DONE]" in wire for wire in results)
    assert 25 == sum(isinstance(wire, bytes) and b" 500 " in wire for wire in results)
    assert 25 == sum(isinstance(wire, ConnectionResetError) for wire in results)
    assert {25} == {provider.attempts(model) for model in models}


async def test_connections_are_bounded() -> None:
    """What is beyond the limit is dropped, what is within is served."""
    async with FaultyProvider(max_connections=1) as provider:
        waiting = asyncio.create_task(raw(provider, "faulty-silent", stream=False))
        await provider.wait_for_in_flight(1)
        dropped = await raw(provider, "gpt-any", stream=False)
        waiting.cancel()
        await asyncio.wait([waiting])
        await provider.wait_for_in_flight(0)

    assert isinstance(dropped, ConnectionError) or dropped == b""
    assert ["faulty-silent"] == [received.model for received in provider.requests]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\nnothing", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"GET /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n", b"405"),
        (b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}", b"404"),
    ],
    ids=["not HTTP", "not JSON", "too large", "no POST", "no such path"],
)
async def test_garbage(provider: FaultyProvider, sent: bytes, status: bytes) -> None:
    """Answered with an error in the API's shape, and the next request is served."""
    reply = await exchange_raw(provider, sent)

    assert isinstance(reply, bytes)
    assert status == reply.split(b" ", 2)[1]
    assert b'"error"' in reply
    assert {"refused"} >= {received.outcome for received in provider.requests}
    assert 200 == (await post(provider, {"model": "gpt-any", "messages": messages()})).status_code


async def test_a_large_request(provider: FaultyProvider) -> None:
    """Ten megabytes of prompt are counted, not kept."""
    large = [{"role": "user", "content": "x" * 10_000_000}]
    response = await post(provider, {"model": "gpt-any", "messages": large})

    assert 2_500_004 == response.json()["usage"]["prompt_tokens"]
    assert "xxx" not in repr(provider.requests)


async def test_closing_while_requests_hang() -> None:
    """Leaving ends everything by itself: clients are told, no task, socket or warning is left."""
    async with FaultyProvider() as provider:
        models = ["faulty-silent", "faulty-stall-at-3", "faulty-drip-100", "faulty-slow-first-token-100"] * 3
        clients = [asyncio.create_task(raw(provider, model, stream=True)) for model in models]
        await provider.wait_for_in_flight(len(models))
        url = provider.base_url
    replies = await asyncio.gather(*clients)

    assert all(isinstance(reply, ConnectionError) or b"[DONE]" not in reply for reply in replies)
    assert {"closed"} == {received.outcome for received in provider.requests}
    assert 0 == provider.in_flight
    with pytest.raises(RuntimeError, match="not open"):
        _ = provider.base_url
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
    await provider.close()
    gc.collect()  # what was not closed would warn here


async def test_opened_again() -> None:
    """A provider may serve, stop and serve again; its record goes on."""
    provider = FaultyProvider()
    for _ in range(2):
        async with provider:
            assert 200 == (await post(provider, {"model": "gpt-any", "messages": messages()})).status_code
            with pytest.raises(RuntimeError, match="open already"):
                await provider.open()
    assert 2 == provider.attempts("gpt-any")


async def post(provider: FaultyProvider, body: dict[str, Any]) -> Any:
    async with httpx.AsyncClient(verify=False) as client:
        return await client.post(f"{provider.base_url}/chat/completions", json=body, timeout=10.0)


async def stream_events(provider: FaultyProvider, model: str) -> list[str]:
    response = await post(provider, {"model": model, "messages": messages(), "stream": True})
    return [event.removeprefix("data: ") for event in response.text.split("\n\n") if event]


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def text_of(events: Any) -> str:
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)


async def raw(provider: FaultyProvider, model: str, *, stream: bool) -> bytes | ConnectionError:
    return await exchange_raw(provider, request_for(model, stream=stream))


def request_for(model: str, *, stream: bool = False) -> bytes:
    body = json.dumps({"model": model, "messages": messages(), "stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


async def exchange_raw(provider: FaultyProvider, sent: bytes) -> bytes | ConnectionError:
    """What the socket has to say until its end, or how it broke."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(provider.base_url).port)
    try:
        writer.write(sent)
        if b"Connection: close" not in sent:
            return await reader.readuntil(b"}")
        return await reader.read()
    except ConnectionError as error:
        return error
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
