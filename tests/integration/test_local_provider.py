from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from observability_integration.demo.corpus import load_corpus
from observability_integration.demo.model_profiles import DEFAULT_PROFILES, Failure, ModelProfile
from observability_integration.demo.provider import LocalProvider
from observability_integration.errors import ConfigurationError

pytestmark = pytest.mark.once

ANSWERS = {entry.id: entry for entry in load_corpus()}
FRUIT = ANSWERS["science-008"]
KEY = "sk-never-shown-0123456789"

DRIP = ModelProfile(
    name="drip",
    first_token_seconds=0.0,
    seconds_per_token=3_600.0,
    simulated_input_usd_per_million=Decimal(0),
    simulated_output_usd_per_million=Decimal(0),
)


@pytest.fixture
async def provider() -> AsyncIterator[LocalProvider]:
    async with LocalProvider(time_scale=0.0, seed=7) as provider:
        yield provider


@pytest.fixture
async def client(provider: LocalProvider) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(provider) as client:
        yield client


@contextlib.asynccontextmanager
async def client_of(provider: LocalProvider, timeout_seconds: float = 30.0) -> AsyncIterator[AsyncOpenAI]:
    try:
        async with AsyncOpenAI(
            base_url=provider.base_url, api_key=KEY, max_retries=0, timeout=timeout_seconds
        ) as client:
            yield client
    finally:
        # The client looks up its platform in a thread of the loop's executor, which would outlive the test.
        await asyncio.get_running_loop().shutdown_default_executor()


async def ask(client: AsyncOpenAI, model: str, question: str = FRUIT.prompt, **more: Any) -> Any:
    return await client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], **more)


async def read_into(chunks: list[Any], stream: Any) -> None:
    async for chunk in stream:
        chunks.append(chunk)


async def test_a_question_of_the_corpus_is_answered_with_its_usage(client: AsyncOpenAI) -> None:
    """The plain case, with token counts that add up and follow the stated rule."""
    completion = await ask(client, "local-small")

    assert FRUIT.answer == completion.choices[0].message.content
    assert "stop" == completion.choices[0].finish_reason
    assert "local-small" == completion.model
    assert -(-len(FRUIT.prompt) // 4) + 4 == completion.usage.prompt_tokens
    assert -(-len(FRUIT.answer) // 4) == completion.usage.completion_tokens
    assert completion.usage.prompt_tokens + completion.usage.completion_tokens == completion.usage.total_tokens
    assert 0 == completion.usage.prompt_tokens_details.cached_tokens
    assert 0 == completion.usage.completion_tokens_details.reasoning_tokens


async def test_an_unknown_question_has_an_answer_of_its_own(client: AsyncOpenAI) -> None:
    """Traffic outside the corpus must work too, the same way every time."""
    answers = [(await ask(client, "local-small", text)).choices[0].message.content for text in ("a b", "a  b", "c")]

    assert answers[0] == answers[1] != answers[2]


async def test_a_stream_is_the_same_answer_in_pieces(client: AsyncOpenAI) -> None:
    """Role first, then one piece a token, then how it ended, then the counts that were asked for."""
    stream = await ask(client, "local-small", stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    first, *contents, last, usage = chunks

    assert ("assistant", "") == (first.choices[0].delta.role, first.choices[0].delta.content)
    assert FRUIT.answer == "".join(chunk.choices[0].delta.content for chunk in contents)
    assert len(contents) == usage.usage.completion_tokens > 10
    assert "stop" == last.choices[0].finish_reason
    assert [] == usage.choices
    assert {None} == {chunk.usage for chunk in chunks[:-1]}
    assert 1 == len({chunk.id for chunk in chunks})


async def test_a_stream_has_no_usage_unless_asked(client: AsyncOpenAI) -> None:
    """The API sends the counts on demand only, and clients that do not ask cannot handle a chunk without choices."""
    chunks = [chunk async for chunk in await ask(client, "local-small", stream=True)]

    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("entry_id", ["languages-018", "languages-022", "languages-016", "short-010", "long-008"])
async def test_other_scripts_and_long_texts_come_through_whole(client: AsyncOpenAI, entry_id: str) -> None:
    """Lengths in the protocol are bytes, not characters, and a chunk may end inside a word of any script."""
    entry = ANSWERS[entry_id]
    whole = await ask(client, "local-small", entry.prompt)
    pieces = [chunk async for chunk in await ask(client, "local-small", entry.prompt, stream=True)]

    assert entry.answer == whole.choices[0].message.content
    assert entry.answer == "".join(piece.choices[0].delta.content or "" for piece in pieces)


async def test_the_token_limit_of_a_request_is_kept(client: AsyncOpenAI) -> None:
    """A caller that allows ten tokens is given ten, and told that there was more."""
    completion = await ask(client, "local-small", max_completion_tokens=10)

    assert FRUIT.answer[:40] == completion.choices[0].message.content
    assert 10 == completion.usage.completion_tokens
    assert "length" == completion.choices[0].finish_reason


async def test_reasoning_is_part_of_the_completion(client: AsyncOpenAI) -> None:
    """Reasoning tokens are billed as output, are not seen, and count against the limit."""
    plain = await ask(client, "local-small")
    free = await ask(client, "local-reasoning")
    tight = await ask(client, "local-reasoning", max_completion_tokens=10)

    assert 64 == free.usage.completion_tokens_details.reasoning_tokens
    assert plain.usage.completion_tokens + 64 == free.usage.completion_tokens
    assert FRUIT.answer == free.choices[0].message.content
    assert (10, 10) == (tight.usage.completion_tokens, tight.usage.completion_tokens_details.reasoning_tokens)
    assert ("", "length") == (tight.choices[0].message.content, tight.choices[0].finish_reason)


async def test_a_long_prompt_seen_before_is_partly_cached(client: AsyncOpenAI) -> None:
    """Cached input is priced differently, so a client's accounting has to see some."""
    question = "word " * 1_100
    first = await ask(client, "local-small", question)
    second = await ask(client, "local-small", question)

    assert 0 == first.usage.prompt_tokens_details.cached_tokens
    assert 1_280 == second.usage.prompt_tokens_details.cached_tokens
    assert second.usage.prompt_tokens > 1_280


async def test_the_error_model_fails_as_a_server(client: AsyncOpenAI, provider: LocalProvider) -> None:
    """A 500 in the shape of the API, for whole answers and streams alike."""
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(client, "local-error", stream=stream)
        assert "server_error" == caught.value.type

    assert Counter({("local-error", 500): 2}) == provider.requests


async def test_the_rate_limited_model_says_when_to_come_back() -> None:
    """Retry-After in whole seconds for everybody, and the finer header for clients that know it, scaled like time."""
    async with LocalProvider(time_scale=0.02) as provider, client_of(provider) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(client, "local-ratelimited")

    assert "rate_limit_exceeded" == caught.value.code
    assert "1" == caught.value.response.headers["retry-after"]
    assert "400" == caught.value.response.headers["retry-after-ms"]


async def test_the_flaky_model_fails_every_third_time(client: AsyncOpenAI, provider: LocalProvider) -> None:
    """Deterministic, so that a test of retries knows how many calls it takes; other models do not advance it."""
    outcomes: list[int] = []
    for _ in range(6):
        await ask(client, "local-small")
        try:
            await ask(client, "local-flaky")
            outcomes.append(200)
        except openai.InternalServerError:
            outcomes.append(500)

    assert [200, 200, 500, 200, 200, 500] == outcomes
    assert 4 == provider.requests["local-flaky", 200]


async def test_the_cut_model_breaks_the_connection_half_way(client: AsyncOpenAI) -> None:
    """A reader has had some content and no finish reason when the transport fails; a whole answer fails too."""
    chunks: list[Any] = []
    with pytest.raises((httpx.RemoteProtocolError, openai.APIConnectionError)):
        await read_into(chunks, await ask(client, "local-cut", stream=True))
    with pytest.raises(openai.APIConnectionError):
        await ask(client, "local-cut")

    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert 0 < len(text) < len(FRUIT.answer)
    assert FRUIT.answer.startswith(text)
    assert {None} == {chunk.choices[0].finish_reason for chunk in chunks}


async def test_the_silently_cut_model_ends_in_good_order_without_a_finish_reason(client: AsyncOpenAI) -> None:
    """What a proxy that gives up makes of a stream: no error at all, and only the missing reason tells."""
    chunks = [chunk async for chunk in await ask(client, "local-silent-cut", stream=True)]
    whole = await ask(client, "local-silent-cut")

    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert 0 < len(text) < len(FRUIT.answer)
    assert {None} == {chunk.choices[0].finish_reason for chunk in chunks}
    assert (text, None) == (whole.choices[0].message.content, whole.choices[0].finish_reason)


async def test_the_truncated_model_says_that_its_answer_is_cut(client: AsyncOpenAI) -> None:
    """An answer cut by length is complete on the wire, and must not be taken for the whole answer."""
    whole = await ask(client, "local-truncated")
    chunks = [chunk async for chunk in await ask(client, "local-truncated", stream=True)]

    assert FRUIT.answer.startswith(whole.choices[0].message.content)
    assert len(whole.choices[0].message.content) < len(FRUIT.answer)
    assert "length" == whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason


async def test_the_stalling_model_falls_silent_after_some_content(provider: LocalProvider) -> None:
    """Only a clock between chunks notices this one: the answer began in time and the connection stays open."""
    chunks: list[Any] = []
    async with client_of(provider, timeout_seconds=0.3) as client:
        with pytest.raises((httpx.ReadTimeout, openai.APITimeoutError)):
            await read_into(chunks, await ask(client, "local-stall", stream=True))
        with pytest.raises(openai.APITimeoutError):
            await ask(client, "local-stall")
    await provider.wait_for_in_flight(0)

    assert len(chunks) > 2


@pytest.mark.parametrize("model", ["local-hang", "local-slow"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_does_not_answer_in_time_is_left_and_stops_working(model: str, stream: bool) -> None:
    """A client's time-out closes the connection, and the work behind it ends with it."""
    async with LocalProvider(time_scale=1.0) as provider, client_of(provider, timeout_seconds=0.2) as client:
        with pytest.raises(openai.APITimeoutError):
            await ask(client, model, stream=stream)
        await provider.wait_for_in_flight(0)

        assert Counter({(model, 499): 1}) == provider.requests


async def test_a_slow_model_answers_when_time_runs_fast(client: AsyncOpenAI) -> None:
    """It is slow and not broken: with time scaled to nothing it answers like any other."""
    assert FRUIT.answer == (await ask(client, "local-slow")).choices[0].message.content


async def test_an_unknown_model_is_not_found(client: AsyncOpenAI, provider: LocalProvider) -> None:
    """As the API does it; counted under one name, since callers choose the names."""
    with pytest.raises(openai.NotFoundError) as caught:
        await ask(client, "gpt-imaginary")

    assert ("model_not_found", "model") == (caught.value.code, caught.value.param)
    assert Counter({("unknown", 404): 1}) == provider.requests


async def test_a_request_without_a_key_is_refused(client: AsyncOpenAI, provider: LocalProvider) -> None:
    """Code that forgets its key should fail here as it would in earnest."""
    with pytest.raises(openai.AuthenticationError):
        await ask(client, "local-small", extra_headers={"Authorization": openai.Omit()})
    with pytest.raises(openai.AuthenticationError):
        await ask(client, "local-small", extra_headers={"Authorization": "Basic abc"})

    assert Counter({("none", 401): 2}) == provider.requests


async def test_a_body_beyond_the_limit_is_refused_and_the_next_request_works(
    client: AsyncOpenAI, provider: LocalProvider
) -> None:
    """The client sends all of it before it reads, and must still see the refusal rather than a reset connection."""
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(client, "local-small", "x" * 3_000_000)

    assert 413 == caught.value.status_code
    assert FRUIT.answer == (await ask(client, "local-small")).choices[0].message.content
    assert Counter({("none", 413): 1, ("local-small", 200): 1}) == provider.requests


async def test_the_models_are_listed(client: AsyncOpenAI) -> None:
    """Tools look here for what they may ask for."""
    models = await client.models.list()

    assert [profile.name for profile in DEFAULT_PROFILES] == [model.id for model in models.data]
    assert set(Failure) == {profile.failure for profile in DEFAULT_PROFILES}


async def test_leaving_in_mid_stream_ends_the_work() -> None:
    """An answer that nobody reads must not be produced to its end."""
    async with LocalProvider(profiles=[DRIP]) as provider, client_of(provider) as client:
        stream = await ask(client, "drip", stream=True)
        await anext(aiter(stream))
        assert 1 == provider.in_flight
        await stream.close()
        await provider.wait_for_in_flight(0)

        assert Counter({("drip", 200): 1}) == provider.requests


async def test_a_client_is_not_held_up_by_another_that_hangs(provider: LocalProvider) -> None:
    """Two clients, two connections: one waits for ever, the other is answered meanwhile."""
    async with client_of(provider) as stuck, client_of(provider) as lively:
        waiting = asyncio.create_task(ask(stuck, "local-hang"))
        await provider.wait_for_in_flight(1)

        assert FRUIT.answer == (await ask(lively, "local-small")).choices[0].message.content
        assert not waiting.done()
        await provider.wait_for_in_flight(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await provider.wait_for_in_flight(0)


async def test_closing_drops_clients_that_hang_and_leaves_no_task() -> None:
    """A demonstration must end when it ends, whatever its clients are waiting for."""
    before = asyncio.all_tasks()
    provider = LocalProvider(profiles=[*DEFAULT_PROFILES, DRIP])
    await provider.open()
    async with client_of(provider) as client:
        waiting = [asyncio.create_task(ask(client, model)) for model in ("local-hang", "local-slow", "drip")]
        await provider.wait_for_in_flight(3)
        async with asyncio.timeout(2):
            await provider.close()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)

    assert [openai.APIConnectionError] * 3 == [type(outcome) for outcome in outcomes]
    assert 0 == provider.in_flight
    assert before == asyncio.all_tasks()


async def test_a_provider_is_open_once_and_only_between_open_and_close() -> None:
    """Misuse is told at once instead of ending in a second server or a strange address."""
    provider = LocalProvider()
    with pytest.raises(RuntimeError, match="not open"):
        _ = provider.base_url
    async with provider:
        assert provider.base_url.startswith("http://127.0.0.1:")
        with pytest.raises(RuntimeError, match="open already"):
            await provider.open()
    await provider.close()


@pytest.mark.parametrize("time_scale", [-1.0, float("nan"), float("inf")])
def test_an_impossible_time_scale_is_refused(time_scale: float) -> None:
    """A server that answers before it was asked, or never, is a mistake of the caller."""
    with pytest.raises(ConfigurationError, match="time_scale"):
        LocalProvider(time_scale=time_scale)


def test_a_model_named_twice_is_refused() -> None:
    """One of the two would never be used, and nobody could say which."""
    with pytest.raises(ConfigurationError, match="profiles"):
        LocalProvider(profiles=[DRIP, DRIP])


async def test_the_counters_handed_out_are_a_copy(client: AsyncOpenAI, provider: LocalProvider) -> None:
    """A figure taken before a step is compared with one taken after it."""
    before = provider.requests
    await ask(client, "local-small")

    assert 0 == before["local-small", 200]
    assert 1 == provider.requests["local-small", 200]
