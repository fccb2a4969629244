"""Runs the user's embedder off the event loop, with bounded concurrency, and remembers its latest vectors."""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from hashlib import blake2b

from observability_integration.threads import DaemonThreads

from .protocol import Embedder

_MAX_THREADS = 2
_MAX_UNDER_WAY = 8  # embeddings running or waiting for a thread; further ones would be late anyhow
_MAX_REMEMBERED = 256  # vectors of prompts that were looked up, which the index may learn once the call is done


class EmbedderBusy(Exception):  # noqa: N818 - never leaves the lookup
    """The embedder was not called: too many texts already wait for it."""


class BoundedEmbedder:
    """Calls an embedder off the event loop and remembers its latest vectors.

    Args:
        embed: the embedder.
        run_in_thread: calls it in a thread, unless it is a coroutine function.
        secret: key of the hashes under which vectors are remembered; texts are not.
    """

    def __init__(self, embed: Embedder, *, run_in_thread: bool, secret: bytes) -> None:
        self._embed = embed
        self._secret = secret
        called = getattr(embed, "__call__", embed)  # noqa: B004 - an object may have an asynchronous __call__
        is_async = inspect.iscoroutinefunction(embed) or inspect.iscoroutinefunction(called)
        self._threads = DaemonThreads(_MAX_THREADS, "observability-embed") if run_in_thread and not is_async else None
        self._under_way = 0
        self._lock = threading.Lock()
        self._remembered: OrderedDict[bytes, Sequence[float]] = OrderedDict()

    async def vector(self, text: str) -> Sequence[float]:
        """Returns the vector of a text.

        Raises:
            EmbedderBusy: too many texts wait already.
        """
        name = blake2b(text.encode(errors="surrogatepass"), digest_size=16, key=self._secret).digest()
        vector = self._remembered.get(name)
        if vector is None:
            made = self._embed(text) if self._threads is None else await self._in_thread(self._threads, text)
            vector = await made if inspect.isawaitable(made) else made
            self._remembered[name] = vector
            if len(self._remembered) > _MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return vector

    async def _in_thread(self, threads: DaemonThreads, text: str) -> Sequence[float] | Awaitable[Sequence[float]]:
        with self._lock:
            if self._under_way >= _MAX_UNDER_WAY:
                raise EmbedderBusy
            self._under_way += 1
        abandoned = False

        def work() -> Sequence[float] | Awaitable[Sequence[float]]:
            try:
                return () if abandoned else self._embed(text)
            finally:
                with self._lock:
                    self._under_way -= 1

        try:
            return await threads.run(work)
        finally:
            abandoned = True  # if it still waits for a thread, it need not run

    def forget(self) -> None:
        """Forgets the remembered vectors."""
        self._remembered.clear()
