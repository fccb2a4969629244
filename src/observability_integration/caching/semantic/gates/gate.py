"""What a gate is: it reads what matters out of a prompt, and compares what was read out of two."""

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
    """The trace as an index keeps it: a quarter of the size."""
    return struct.pack(f"<{len(trace)}Q", *trace)


def unpack(packed: bytes) -> Trace:
    """The trace that was packed.

    Raises:
        struct.error: this is none.
    """
    return struct.unpack(f"<{len(packed) // _HASH_BYTES}Q", packed)


@dataclass(frozen=True, slots=True)
class Gate:
    """One reason for which two prompts that look alike must not share an answer.

    Attributes:
        name: what the refusals are counted under.
        read: what the gate goes by in a prompt, in order; None when it cannot judge it, and then nothing passes.
            Deterministic and cheap: it runs in the event loop's thread.
        agree: whether two prompts may share an answer, by the hashes of what `read` returned; equality by default.
    """

    name: str
    read: Callable[[Prompt], Sequence[str] | None]
    agree: Callable[[Trace, Trace], bool] = operator.eq

    def trace(self, prompt: Prompt, secret: bytes) -> Trace | None:
        """What the gate keeps of a prompt: keyed hashes, from which it cannot be read without the key.

        Args:
            prompt: the prompt.
            secret: key of the hash; at most 64 bytes, as BLAKE2b takes.
        """
        seen = self.read(prompt)
        if seen is None:
            return None
        return tuple(
            int.from_bytes(blake2b(token.encode(errors="surrogatepass"), digest_size=_HASH_BYTES, key=secret).digest())
            for token in seen
        )
