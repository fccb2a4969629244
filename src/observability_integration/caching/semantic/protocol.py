"""The interfaces of semantic lookup: embedder, index, and the types that they exchange with the cache."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

Embedder = Callable[[str], Sequence[float] | Awaitable[Sequence[float]]]
"""Turns a text into a vector, always of the same length. The library has no embedder of its own."""


class Candidate(NamedTuple):
    """An entry near a vector.

    Attributes:
        name: the entry's name: the hex digest of its exact key.
        similarity: cosine of the two vectors, from -1 to 1.
        traces: traces of its prompt, one for each gate, as passed to `SemanticIndex.add`.
    """

    name: str
    similarity: float
    traces: tuple[bytes, ...]


class Match(NamedTuple):
    """An entry whose answer may fit another prompt.

    Attributes:
        name: the entry's name.
        similarity: cosine of the vectors of the two prompts.
        serve: whether the answer may be served. If not, the call is made, and the two answers are compared.
    """

    name: str
    similarity: float
    serve: bool


class SemanticIndex(Protocol):
    """Finds the nearest vector. An index is bounded: it evicts entries.

    An index holds no prompts: scopes and names are hashes, traces are keyed hashes. A vector, however, reveals much of
    its text, so an index is as confidential as the prompts.

    Errors of an index are counted, and the call goes on.
    """

    async def nearest(self, scope: str, vector: Sequence[float]) -> Candidate | None:
        """Returns the nearest entry of this scope, or None."""
        ...

    async def add(self, scope: str, name: str, vector: Sequence[float], traces: tuple[bytes, ...]) -> None:
        """Adds an entry; replaces the one of the same name."""
        ...

    async def remove(self, name: str) -> None:
        """Removes an entry, if it exists."""
        ...

    async def clear(self, scope: str | None = None) -> None:
        """Removes the entries of a scope, or all entries."""
        ...
