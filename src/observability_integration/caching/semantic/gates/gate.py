"""A gate: reads features from a prompt and compares those of two prompts."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from .english import Prompt

Trace = tuple[int, ...]
_HASH_BYTES = 8


def pack(trace: Trace) -> bytes:
    """Packs a trace for an index: a quarter of the size."""
    return struct.pack(f"<{len(trace)}Q", *trace)


def unpack(packed: bytes) -> Trace:
    """Unpacks a trace.

    Raises:
        struct.error: the bytes are not a packed trace.
    """
    return struct.unpack(f"<{len(packed) // _HASH_BYTES}Q", packed)


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition for two similar prompts to share an answer.

    Attributes:
        name: label of its refusals.
        read: returns the features of a prompt that the gate compares, in order; None if it cannot judge the prompt,
            which then matches no other. Must be deterministic and cheap: it runs in the thread of the event loop.
        agree: whether two prompts may share an answer, given their traces (the hashes of their features). Equality by
            default.
    """

    name: str
    read: Callable[[Prompt], Sequence[str] | None]
    agree: Callable[[Trace, Trace], bool] = operator.eq

    def trace(self, prompt: Prompt, secret: bytes) -> Trace | None:
        """Returns the trace of a prompt: keyed hashes of its features; None if the gate cannot judge it.

        Args:
            prompt: the prompt.
            secret: key of the hashes; at most 64 bytes (BLAKE2b).
        """
        features = self.read(prompt)
        if features is None:
            return None
        return tuple(
            int.from_bytes(
                blake2b(feature.encode(errors="surrogatepass"), digest_size=_HASH_BYTES, key=secret).digest()
            )
            for feature in features
        )
