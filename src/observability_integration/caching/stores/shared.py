"""What the cache needs of a store that processes share."""

from __future__ import annotations

from typing import Protocol


class StoreBusy(Exception):  # noqa: N818 - never leaves the cache
    """The store was not asked, because every connection to it was in use; that says nothing about the store."""


class SharedStore(Protocol):
    """A store that processes share. What it raises, and how long it takes, is the guard's business."""

    async def get(self, key: str) -> bytes | str | None:
        """The entry, or None."""
        ...

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        """Keeps an entry for so long."""
        ...

    async def delete(self, *keys: str) -> None:
        """Forgets entries."""
        ...

    async def clear(self, prefix: str) -> None:
        """Forgets every entry whose key starts with `prefix`."""
        ...

    async def aclose(self) -> None:
        """Lets go of connections that the store opened itself."""
        ...
