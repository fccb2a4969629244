"""Other libraries at the same task, each set up as its documentation has it, without what makes it slower.

Each function imports its library when called and raises ImportError when that is not installed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from . import workload
from .measure import Call
from .workload import Work


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
