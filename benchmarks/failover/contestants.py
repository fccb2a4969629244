"""The contestants of failover, each set up as documented, with a primary and a fallback provider.

All request a stream with usage and join its chunks. The limit of the whole call is 30 seconds and that of the first
token 10, where a library has such limits. Each function imports its library when called and raises ImportError when
that is not installed.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple

from .faults import FIRST_TOKEN_SECONDS, TIMEOUT_SECONDS

OURS, OPENAI, LITELLM, TENACITY, STAMINA = "ours", "openai SDK", "LiteLLM Router", "tenacity", "stamina"
_ATTEMPTS = 3
_MOST_WAIT_SECONDS = 60.0  # as in tenacity's example of jitter
_STAMINA_TIMEOUT_SECONDS = 45.0  # the default, set explicitly so that it can be scaled
_STAMINA_WAITS = {"wait_initial": 0.1, "wait_max": 5.0, "wait_jitter": 1.0}  # the defaults, too
_TOO_MANY, _SERVER_ERROR = 429, 500


class Target(NamedTuple):
    """A model at a provider."""

    base_url: str
    model: str


class Answer(NamedTuple):
    """The joined stream: its text, the model it names, and whether it has usage."""

    text: str
    model: str | None
    usage: bool


class Options(NamedTuple):
    """The options of a contestant.

    Attributes:
        primary: asked first.
        fallback: asked if the primary fails.
        scale: multiplies all configurable limits and waits.
    """

    primary: Target
    fallback: Target
    scale: float = 1.0


Ask = Callable[[str], Awaitable[Answer]]


async def gathered(chunks: AsyncIterator[Any]) -> Answer:
    """Joins chunks in OpenAI's format."""
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
    """`pipeline` over one client per provider, with both limits set, else at its defaults."""
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
    """The SDK at its defaults, except for the timeout of ten minutes: two retries, no fallback."""
    from openai import AsyncOpenAI

    target = options.primary
    client = AsyncOpenAI(base_url=target.base_url, api_key="none", timeout=TIMEOUT_SECONDS * options.scale)

    async def ask(question: str) -> Answer:
        return await gathered(await client.chat.completions.create(**_request(target.model, question)))

    return ask


def litellm_router(options: Options) -> Ask:
    """The Router with two groups of one deployment; the second is the fallback for any error; else its defaults."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import fetches prices from the network
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
    """`retry` around the request, on any exception, with exponential backoff and jitter, then the fallback."""
    from tenacity import retry, stop_after_attempt, wait_exponential_jitter

    scale = options.scale
    retrying = retry(
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_exponential_jitter(multiplier=scale, max=_MOST_WAIT_SECONDS * scale, jitter=scale),
        reraise=True,
    )
    return _with_fallback(options, retrying)


def stamina(options: Options) -> Ask:
    """`retry` around the request, with a hook for the errors to retry, then the fallback.

    The hook is the documented one: it retries connection errors and statuses from 500, and a 429 after the seconds of
    its Retry-After.
    """
    import httpx
    from openai import APIConnectionError, APIStatusError
    from stamina import retry

    def is_retryable(error: Exception) -> bool | float:
        if isinstance(error, APIStatusError):
            if error.status_code == _TOO_MANY:
                seconds = error.response.headers.get("retry-after")
                return True if seconds is None else float(seconds)
            return error.status_code >= _SERVER_ERROR
        return isinstance(error, APIConnectionError | httpx.HTTPError)

    waits = {name: seconds * options.scale for name, seconds in _STAMINA_WAITS.items()}
    timeout = _STAMINA_TIMEOUT_SECONDS * options.scale
    return _with_fallback(options, retry(on=is_retryable, attempts=_ATTEMPTS, timeout=timeout, **waits))


def _with_fallback(options: Options, retrying: Callable[[Any], Any]) -> Ask:
    # The whole stream is retried, so a broken stream starts again. The SDK, whose retries are off, has no limit for the
    # first token; the closest is the limit on silence.
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
