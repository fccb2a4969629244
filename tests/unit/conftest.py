"""What the unit tests share: the clock they run on, and caches that run on it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.primitives import CachePrimitive
from tests.cache_doubles import clocks_of_the_loop

_POLICY_KNOBS = {field.name for field in dataclasses.fields(CachePolicy)}


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A test module that names a `LOOP_FACTORY` runs on that loop."""
    module = getattr(item, "module", None)
    return {"loop": getattr(module, "LOOP_FACTORY", asyncio.new_event_loop)}


@pytest.fixture
def clocks() -> Iterator[None]:
    """All clocks are the loop's."""
    with clocks_of_the_loop():
        yield


@pytest.fixture
async def make(clocks: None) -> AsyncIterator[Callable[..., CachePrimitive[Any, Any]]]:
    """Makes caches of a call, with a TTL of 10 s and the knobs and policy given; they are closed at the end."""
    made: list[CachePrimitive[Any, Any]] = []

    def make(step: Any, backend: Any = None, **knobs: Any) -> CachePrimitive[Any, Any]:
        policy = {"ttl_jitter": 0.0, **{knob: knobs.pop(knob) for knob in _POLICY_KNOBS & knobs.keys()}}
        options = {"ttl_seconds": 10.0, "operation_name": "answers", **knobs}
        made.append(
            CachePrimitive(step, lambda question: question, backend=backend, policy=CachePolicy(**policy), **options)
        )
        return made[-1]

    yield make
    for cache in made:
        await cache.aclose()
