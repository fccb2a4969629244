"""Ways to ask a provider that may fail, with another one to fall back on, each set up as its documentation has it.

All ask for a stream and gather it, with the tokens told at its end. Where there is a limit for the whole call it is 30
seconds, where there is one for the first token it is 10. Each function imports its library when called and raises
ImportError when that is not installed.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple

from .faults import FIRST_TOKEN_SECONDS, TIMEOUT_SECONDS

OURS, OPENAI, LITELLM, TENACITY, STAMINA = "ours", "openai SDK", "LiteLLM Router", "tenacity", "stamina"
_ATTEMPTS = 3
_MOST_WAIT_SECONDS = 60.0  # as in tenacity's own example of waiting with jitter
_STAMINA_TIMEOUT_SECONDS = 45.0  # its default, spelled out to be scaled
_STAMINA_WAITS = {"wait_initial": 0.1, "wait_max": 5.0, "wait_jitter": 1.0}  # the same
_TOO_MANY, _SERVER_ERROR = 429, 500


class Target(NamedTuple):
    """One model at one provider."""

    base_url: str
    model: str


class Answer(NamedTuple):
    """What the reader of a stream has at its end: the text, and what the chunks said of model and tokens."""

    text: str
    model: str | None
    usage: bool


class Options(NamedTuple):
    """What a contestant is set up with.

    Attributes:
        primary: whom to ask.
        fallback: whom to ask if that fails.
        scale: all limits and waits that can be set are multiplied by this.
    """

    primary: Target
    fallback: Target
    scale: float = 1.0


Ask = Callable[[str], Awaitable[Answer]]


async def gathered(chunks: AsyncIterator[Any]) -> Answer:
    """The answer that chunks of the OpenAI shape make."""
    texts: list[str] = []
    model, usage = None, False
    async for chunk in chunks:
        model = chunk.model or model
        usage = usage or getattr(chunk, "usage", None) is not None
        texts += [choice.delta.content for choice in chunk.choices if choice.delta.content]
    return Answer("".join(texts), model, usage)


def _request(model: str, question: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}


def ours(options: Options) -> Ask:
    """The assembled pipeline over one client a provider, asked for whole answers: both limits set, else as it is."""
    from openai import AsyncOpenAI

    from observability_integration.primitives import PipelineDefaults, pipeline
    from observability_integration.primitives.target import LLMTarget

    scale = options.scale
    usual = PipelineDefaults()
    targets = [
        LLMTarget.openai(AsyncOpenAI(base_url=target.base_url, api_key="none"), target.model)
        for target in (options.primary, options.fallback)
    ]
    chain = pipeline(
        targets,
        defaults=replace(
            _scaled(usual, scale), backoff=_scaled(usual.backoff, scale), breaker=_scaled(usual.breaker, scale)
        ),
        attempt_timeout_seconds=TIMEOUT_SECONDS * scale,
        first_chunk_seconds=FIRST_TOKEN_SECONDS * scale,
    )

    async def ask(question: str) -> Answer:
        answer = await chain.execute(question)
        return Answer(answer.text, answer.model, bool(answer.usage))

    return ask


def _scaled(settings: Any, scale: float) -> Any:
    seconds = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return replace(settings, **{name: value * scale for name, value in seconds.items() if _is_seconds(name, value)})


def _is_seconds(name: str, value: object) -> bool:
    return name.endswith("_seconds") and value is not None


def openai_sdk(options: Options) -> Ask:
    """The SDK as it comes, but for its timeout of ten minutes: two retries, and nobody to fall back on."""
    from openai import AsyncOpenAI

    target = options.primary
    client = AsyncOpenAI(base_url=target.base_url, api_key="none", timeout=TIMEOUT_SECONDS * options.scale)

    async def ask(question: str) -> Answer:
        return await gathered(await client.chat.completions.create(**_request(target.model, question)))

    return ask


def litellm_router(options: Options) -> Ask:
    """The Router with two groups of one deployment, the second for whatever befalls the first, else as it comes."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import asks the network for prices
    import litellm

    litellm.suppress_debug_info = True
    groups = {"primary": options.primary, "fallback": options.fallback}
    router = litellm.Router(
        model_list=[
            {
                "model_name": group,
                "litellm_params": {
                    "model": f"openai/{target.model}",
                    "api_base": target.base_url,
                    "api_key": "none",
                },
            }
            for group, target in groups.items()
        ],
        fallbacks=[{"primary": ["fallback"]}],
        context_window_fallbacks=[{"primary": ["fallback"]}],
        timeout=TIMEOUT_SECONDS * options.scale,
        stream_timeout=FIRST_TOKEN_SECONDS * options.scale,
    )

    async def ask(question: str) -> Answer:
        return await gathered(await router.acompletion(**_request("primary", question)))

    return ask


def tenacity(options: Options) -> Ask:
    """`retry` around the function that asks, on any exception, with exponential waits and jitter, then the fallback."""
    from tenacity import retry, stop_after_attempt, wait_exponential_jitter

    scale = options.scale
    retrying = retry(
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_exponential_jitter(multiplier=scale, max=_MOST_WAIT_SECONDS * scale, jitter=scale),
        reraise=True,
    )
    return _by_turns(options, retrying)


def stamina(options: Options) -> Ask:
    """`retry` around the function that asks, told which errors to retry and to wait as the server says.

    That hook is the one its documentation builds up: connection errors and statuses from 500 are retried, as is a 429,
    after the seconds of its Retry-After.
    """
    import httpx
    from openai import APIConnectionError, APIStatusError
    from stamina import retry

    def worth_another(error: Exception) -> bool | float:
        if isinstance(error, APIStatusError):
            if error.status_code == _TOO_MANY:
                seconds = error.response.headers.get("retry-after")
                return True if seconds is None else float(seconds)
            return error.status_code >= _SERVER_ERROR
        return isinstance(error, APIConnectionError | httpx.HTTPError)

    waits = {name: seconds * options.scale for name, seconds in _STAMINA_WAITS.items()}
    timeout = _STAMINA_TIMEOUT_SECONDS * options.scale
    return _by_turns(options, retry(on=worth_another, attempts=_ATTEMPTS, timeout=timeout, **waits))


def _by_turns(options: Options, retrying: Callable[[Any], Any]) -> Ask:
    # What is retried is the whole stream, so that one that breaks is begun anew. The SDK, which retries nothing then,
    # is given its nearest thing to a limit for the first token: the longest silence.
    from openai import AsyncOpenAI, Timeout

    timeout = Timeout(TIMEOUT_SECONDS * options.scale, read=FIRST_TOKEN_SECONDS * options.scale)

    def asking(target: Target) -> Ask:
        client = AsyncOpenAI(base_url=target.base_url, api_key="none", timeout=timeout, max_retries=0)

        async def ask(question: str) -> Answer:
            return await gathered(await client.chat.completions.create(**_request(target.model, question)))

        retried: Ask = retrying(ask)
        return retried

    primary, fallback = asking(options.primary), asking(options.fallback)

    async def ask(question: str) -> Answer:
        try:
            return await primary(question)
        except Exception:
            return await fallback(question)

    return ask


CONTESTANTS: dict[str, Callable[[Options], Ask]] = {
    OURS: ours,
    OPENAI: openai_sdk,
    LITELLM: litellm_router,
    TENACITY: tenacity,
    STAMINA: stamina,
}
