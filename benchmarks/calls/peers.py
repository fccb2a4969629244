"""Other libraries for the same tasks, set up as documented, without optional features that slow them down.

Each function imports its library when called and raises ImportError when that is not installed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from benchmarks import workload
from benchmarks.measure import Call
from benchmarks.workload import Work


class Peer(NamedTuple):
    """A call, and how to close its client."""

    call: Call
    close: Callable[[], Awaitable[Any]]


def with_asyncio_timeout(work: Work) -> Call:
    """`asyncio.timeout`: no bound on work that ignores its cancellation, no statistics."""

    async def bounded(request: Any) -> Any:
        async with asyncio.timeout(workload.TIMEOUT_SECONDS):
            return await work.answer(request)

    return bounded


def with_semaphore(work: Work) -> Call:
    """`asyncio.Semaphore`: one event loop, an unbounded queue, unbounded waits, no statistics."""
    semaphore = asyncio.Semaphore(workload.MAX_CONCURRENCY)

    async def limited(request: Any) -> Any:
        async with semaphore:
            return await work.answer(request)

    return limited


def cashews(work: Work) -> Peer:
    """The decorator at its defaults: overlapping calls are made once."""
    return _cashews(work, protected=True)


def cashews_unprotected(work: Work) -> Peer:
    """The decorator at its fastest: every miss makes the call."""
    return _cashews(work, protected=False)


def _cashews(work: Work, *, protected: bool) -> Peer:
    from cashews import Cache

    cache = Cache()
    cache.setup("mem://", size=workload.MAX_ENTRIES)

    @cache(ttl=workload.TTL_SECONDS, key="answers:{prompt}", protected=protected)
    async def ask(prompt: str) -> Any:
        return await work.answer(prompt)

    return Peer(ask, cache.close)


def aiocache(work: Work) -> Peer:
    """The decorator: bounded by age only; every miss makes the call."""
    from aiocache import cached

    @cached(ttl=int(workload.TTL_SECONDS), key_builder=lambda _, prompt: prompt)
    async def ask(prompt: str) -> Any:
        return await work.answer(prompt)

    return Peer(ask, ask.cache.close)


def tenacity_decorated(work: Work) -> Call:
    """The decorator: as many attempts, the same waits, no budget, no Retry-After."""
    import tenacity

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(ConnectionError),
        stop=tenacity.stop_after_attempt(workload.MAX_ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=8),
        reraise=True,
    )
    async def ask(request: Any) -> Any:
        return await work.answer(request)

    return ask


def tenacity_loop(work: Work) -> Call:
    """The documented loop of attempts for blocks of code."""
    import tenacity

    async def ask(request: Any) -> Any:
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(ConnectionError),
            stop=tenacity.stop_after_attempt(workload.MAX_ATTEMPTS),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=8),
            reraise=True,
        ):
            with attempt:
                return await work.answer(request)
        raise AssertionError("unreachable: the loop returns or raises")

    return ask


def stamina_decorated(work: Work) -> Call:
    """The decorator at its defaults but for the attempts: exponential waits with jitter, no budget, no Retry-After."""
    import stamina

    @stamina.retry(on=ConnectionError, attempts=workload.MAX_ATTEMPTS)
    async def ask(request: Any) -> Any:
        return await work.answer(request)

    return ask


def litellm_router() -> Call:
    """LiteLLM's Router with two deployments, a timeout and a mock response, without its cache."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import fetches prices from the network
    import litellm

    litellm.suppress_debug_info = True
    router = litellm.Router(
        model_list=[
            {
                "model_name": route,
                "litellm_params": {
                    "model": f"{workload.PROVIDER}/{workload.MODEL}",
                    "api_key": "none",
                    "mock_response": workload.TEXT,
                },
            }
            for route in workload.COST_PER_ROUTE_USD
        ],
        timeout=workload.TIMEOUT_SECONDS,
    )

    async def ask(request: dict[str, Any]) -> Any:
        answer = await router.acompletion(
            model=workload.choose(request),
            messages=request["messages"],
            temperature=request["temperature"],
            max_tokens=request["max_tokens"],
        )
        return answer.choices[0].message.content

    return ask


async def let_litellm_log() -> None:
    """Waits for LiteLLM's logging in the background."""
    await asyncio.sleep(0.02)
