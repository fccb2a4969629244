"""The embedder is the user's, slow and fallible: it must not hold up the loop, pile up, or be asked twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from observability_integration.caching.semantic.embedding import BoundedEmbedder, EmbedderBusy

pytestmark = pytest.mark.once

_SECRET = b"key of the hashes"


async def test_asked_once_for_a_text() -> None:
    """What was looked up is learned when the call is done: at 10 ms of CPU, once is enough."""
    asked: list[str] = []

    def embed(text: str) -> list[float]:
        asked.append(text)
        return [float(len(text))]

    embedding = BoundedEmbedder(embed, run_in_thread=False, secret=_SECRET)
    assert [[1.0], [1.0]] == [await embedding.vector("a"), await embedding.vector("a")]
    assert ["a"] == asked
    embedding.forget()
    await embedding.vector("a")
    assert ["a", "a"] == asked
    for number in range(256):
        await embedding.vector(str(number))
    await embedding.vector("a")
    assert 3 == asked.count("a")  # only so many are remembered


class _Asynchronous:
    async def __call__(self, text: str) -> Sequence[float]:
        await asyncio.sleep(0)
        return [threading.get_ident(), 1.0]


async def _asynchronous(text: str) -> Sequence[float]:
    return [threading.get_ident(), 1.0]


def _synchronous(text: str) -> Sequence[float]:
    return [threading.get_ident(), 1.0]


async def test_where_it_runs() -> None:
    """A synchronous embedder in a thread, unless told otherwise; an asynchronous one in the loop."""
    for embed in (_Asynchronous(), _asynchronous):
        vector = await BoundedEmbedder(embed, run_in_thread=True, secret=_SECRET).vector("a")
        assert threading.get_ident() == vector[0]
    assert (
        threading.get_ident()
        == (await BoundedEmbedder(_synchronous, run_in_thread=False, secret=_SECRET).vector("a"))[0]
    )
    assert (
        threading.get_ident()
        != (await BoundedEmbedder(_synchronous, run_in_thread=True, secret=_SECRET).vector("a"))[0]
    )
    # A plain function that returns an awaitable.
    lazily = BoundedEmbedder(lambda text: _asynchronous(text), run_in_thread=True, secret=_SECRET)
    assert threading.get_ident() == (await lazily.vector("a"))[0]


async def test_hung_embedders_do_not_pile_up() -> None:
    """Threads cannot be stopped; so a few hang, the others are refused at once, and it recovers when they return."""
    hang = threading.Event()
    started: list[str] = []

    def embed(text: str) -> list[float]:
        started.append(text)
        hang.wait(10.0)
        return [1.0]

    embedding = BoundedEmbedder(embed, run_in_thread=True, secret=_SECRET)
    waiting = [asyncio.ensure_future(embedding.vector(str(number))) for number in range(8)]
    while len(started) < 2:
        await asyncio.sleep(0.001)
    with pytest.raises(EmbedderBusy):
        await embedding.vector("one too many")
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    hang.set()
    for _ in range(1000):
        try:
            assert [1.0] == await embedding.vector("again")
            break
        except EmbedderBusy:
            await asyncio.sleep(0.001)
    assert ["again"] == started[2:]  # those that had not begun never do
