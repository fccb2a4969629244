"""Other libraries at the same task, each set up as its documentation has it, without what makes it slower.

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
    """What to call, and how to end it."""

    call: Call
    close: Callable[[], Awaitable[Any]]


def with_asyncio_timeout(work: Work) -> Call:
    """`asyncio.timeout`: nothing bounds work that ignores its cancellation, and nothing is counted."""

    async def bounded(request: Any) -> Any:
        async with asyncio.timeout(workload.TIMEOUT_SECONDS):
            return await work.answer(request)

    return bounded


def with_semaphore(work: Work) -> Call:
    """`asyncio.Semaphore`: one event loop, any number of calls may wait for any time, and nothing is counted."""
    semaphore = asyncio.Semaphore(workload.MOST_AT_ONCE)

    async def limited(request: Any) -> Any:
        async with semaphore:
            return await work.answer(request)

    return limited


def cashews(work: Work) -> Peer:
    """The decorator as it is by default: calls that overlap are made once."""
    return _cashews(work, protected=True)


def cashews_unprotected(work: Work) -> Peer:
    """The decorator at its fastest: every caller that misses makes the call."""
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
    """The decorator: bounded by age only, and every caller that misses makes the call."""
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
    """The loop of attempts that its documentation has for blocks of code."""
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
        raise AssertionError("it ends with an answer or an error")

    return ask


def stamina_decorated(work: Work) -> Call:
    """The decorator at its defaults but for the attempts: exponential waits with jitter, no budget, no Retry-After."""
    import stamina

    @stamina.retry(on=ConnectionError, attempts=workload.MAX_ATTEMPTS)
    async def ask(request: Any) -> Any:
        return await work.answer(request)

    return ask


def litellm_router() -> Call:
    """LiteLLM's Router with two deployments, a timeout and an answer of its own making, without its cache."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import asks the network for prices
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
    """Wait until what it logs in the background is through."""
    await asyncio.sleep(0.02)
