"""What semantic lookup is made of: an embedder, an index, and what passes between them and the cache."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

Embedder = Callable[[str], Sequence[float] | Awaitable[Sequence[float]]]
"""Turns a text into a vector, always of the same length. A function of yours; none comes with the library."""


class Candidate(NamedTuple):
    """An entry near a vector.

    Attributes:
        name: the entry's name: the hex digest of its exact key.
        similarity: cosine of the two vectors, from -1 to 1.
        traces: what the gates kept of its prompt, gate by gate, as it was added.
    """

    name: str
    similarity: float
    traces: tuple[bytes, ...]


class Match(NamedTuple):
    """An entry whose answer may do for another prompt.

    Attributes:
        name: the entry's name.
        similarity: cosine of the vectors of the two prompts.
        serve: whether its answer may be returned. If not, the call is made, and the two answers are compared.
    """

    name: str
    similarity: float
    serve: bool


class SemanticIndex(Protocol):
    """Finds the nearest vector. Bounded: it forgets entries rather than grow for ever.

    It never sees a prompt: scopes and names are hashes, traces are keyed hashes. A vector, though, gives away much of
    the text it was made of, so an index is as confidential as the prompts are.

    What it raises is counted, and the call goes on.
    """

    async def nearest(self, scope: str, vector: Sequence[float]) -> Candidate | None:
        """The nearest entry of this scope and of no other."""
        ...

    async def add(self, scope: str, name: str, vector: Sequence[float], traces: tuple[bytes, ...]) -> None:
        """Keeps an entry, in place of one of the same name."""
        ...

    async def remove(self, name: str) -> None:
        """Forgets an entry, if it is there."""
        ...

    async def clear(self, scope: str | None = None) -> None:
        """Forgets the entries of a scope, or of all."""
        ...
