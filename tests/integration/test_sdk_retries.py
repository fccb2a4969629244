"""The real clients of openai and anthropic, left to retry by themselves: how many requests a provider gets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from observability_integration.primitives import Backoff, LLMTarget, pipeline
from observability_integration.testing import FaultyProvider

anthropic = pytest.importorskip("anthropic")
openai = pytest.importorskip("openai")

pytestmark = [pytest.mark.once, pytest.mark.promise("Y1", "P1")]


@pytest.fixture
async def provider() -> AsyncIterator[FaultyProvider]:
    """A provider on a real socket."""
    async with FaultyProvider() as running:
        yield running


class ProviderFailed(ConnectionError):
    """What an application raises for all that its provider may do."""


def openai_call(provider: FaultyProvider, retries: int, wraps: bool, streams: bool) -> tuple[Any, Any]:
    """A call through openai's client, and the client."""
    client = openai.AsyncOpenAI(base_url=provider.base_url, api_key="any", max_retries=retries)

    async def call(model: str) -> Any:
        try:
            return await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "hi"}], stream=streams
            )
        except openai.APIError as error:
            if wraps:
                raise ProviderFailed from error
            raise

    return call, client


def anthropic_call(provider: FaultyProvider, retries: int, wraps: bool, streams: bool) -> tuple[Any, Any]:
    """A call through anthropic's client, and the client. The provider knows no such path, so it is openai's."""
    base_url = provider.base_url.removesuffix("/v1")
    client = anthropic.AsyncAnthropic(base_url=base_url, api_key="any", max_retries=retries)

    async def call(model: str) -> Any:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": streams}
        try:
            return await client.post("/v1/chat/completions", cast_to=object, body=body)
        except anthropic.APIError as error:
            if wraps:
                raise ProviderFailed from error
            raise

    return call, client


@pytest.mark.parametrize("make", [openai_call, anthropic_call])
@pytest.mark.parametrize("wraps", [False, True], ids=["its error", "wrapped"])
@pytest.mark.parametrize("streams", [False, True], ids=["execute", "stream"])
@pytest.mark.parametrize(("retries", "requests"), [(0, 3), (1, 4), (2, 3)])
async def test_requests_of_one_question(
    make: Callable[..., tuple[Any, Any]],
    retries: int,
    requests: int,
    wraps: bool,
    streams: bool,
    provider: FaultyProvider,
) -> None:
    """Three are allowed; a client that makes two at a time cannot be stopped at three, and makes four. Never nine."""
    call, client = make(provider, retries, wraps, streams)

    async def second(_: Any) -> str:
        return "served"

    soon = Backoff(base_seconds=0.01, max_seconds=0.01)
    model = "faulty-429-retry-after-0.01-first-99"
    target = LLMTarget(call=call, name="first", backoff=soon)
    ask = pipeline([target, LLMTarget(call=second, name="second")], timeout_seconds=20)
    if streams:
        async with ask.stream(model) as chunks:
            assert ["served"] == [chunk async for chunk in chunks]
    else:
        assert "served" == await ask.execute(model)
    assert requests == provider.attempts(model)
    await client.close()
