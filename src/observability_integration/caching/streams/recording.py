"""Streams as a cache keeps them: the chunks, and the pauses between them.

A chunk is kept by itself, so that it can be handed out again without touching the others: as it is if it cannot change,
else encoded, or as a copy. A recording is written only if each of its chunks would come back equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from observability_integration.caching.codec import Codec, Kept, Uncopyable, Unreadable

# The byte that msgpack never uses, and with which no JSON begins: what starts with it is a recording, and no value.
_MARK = b"\xc1"
_PLAIN = ""
_CHUNK_BYTES = 32  # counted for every chunk besides what is in it, or a million empty ones would cost nothing
_LONGEST_PAUSE_MS = 10_000  # a replay is for a reader, who gains nothing by waiting longer than this

_Written = tuple[list[int], list[str], list[bytes]]  # pauses, kinds, chunks


class KeptChunk(NamedTuple):
    """One chunk as it is kept.

    Attributes:
        kind: name of its type, if it is one of those the cache was told of; else empty.
        kept: the chunk.
        encoded: what is written of it, or None when it would not come back equal.
    """

    kind: str
    kept: Kept
    encoded: bytes | None

    @property
    def size(self) -> int:
        """Bytes that it costs to keep; an estimate."""
        return _CHUNK_BYTES + (self.kept.size if self.encoded is None else len(self.encoded))


class Chunks:
    """Keeps chunks, and hands them out.

    Args:
        types: the types of the chunks, such as the pydantic models of an SDK, when msgpack alone cannot rebuild them.
        limit_bytes: a chunk that is larger need not be measured to its end.

    Raises:
        ConfigurationError: a type cannot be rebuilt from what is written.
    """

    def __init__(self, types: Sequence[type[Any]], limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kinds = {kind: f"{kind.__module__}.{kind.__qualname__}" for kind in types}
        self._codecs = {_PLAIN: Codec(), **{name: Codec(kind) for kind, name in self._kinds.items()}}

    def keep(self, chunk: Any) -> KeptChunk:
        """The chunk, safe from whoever is given it.

        Raises:
            Uncopyable: it can be neither encoded nor copied.
        """
        kind = self._kinds.get(chunk.__class__, _PLAIN)
        codec = self._codecs[kind]
        encoded = codec.encode(chunk)
        return KeptChunk(kind, codec.keep(chunk, encoded, self._limit_bytes), encoded)

    def restore(self, chunk: KeptChunk) -> Any:
        """The chunk, for one reader to have.

        Raises:
            Unreadable: it is no chunk of this cache.
        """
        codec = self._codecs.get(chunk.kind)
        if codec is None:
            raise Unreadable("value")
        return codec.restore(chunk.kept)


class Recording:
    """A stream that ended whole. Never changes, so it can be shared; its chunks are restored for each reader.

    Attributes:
        chunks: as they are kept, in order.
        pauses_ms: before each chunk, since the one before it; 0 before the first.
        tokens: tokens that a replay saves. Known to the one who recorded it only.
        refusal: why it must not be kept, or None. Known to the one who recorded it only.
    """

    __slots__ = ("chunks", "pauses_ms", "refusal", "tokens")

    def __init__(
        self, chunks: Sequence[KeptChunk], pauses_ms: Sequence[int], tokens: int = 0, refusal: str | None = None
    ) -> None:
        self.chunks = chunks
        self.pauses_ms = pauses_ms
        self.tokens = tokens
        self.refusal = refusal

    def __deepcopy__(self, memo: Any) -> Recording:
        return self


class RecordingCodec(Codec):
    """Encodes and decodes the values of one cache, and recordings of streams besides.

    Args:
        value_type: see `Codec`.
        chunks: keeps the chunks of its recordings.

    Raises:
        ConfigurationError: see `Codec`.
    """

    def __init__(self, value_type: type[Any] | None, chunks: Chunks) -> None:
        super().__init__(value_type)
        self._chunks = chunks
        self._write_recording = msgspec.msgpack.Encoder().encode
        self._read_recording = msgspec.msgpack.Decoder(_Written).decode

    def encode(self, value: Any) -> bytes | None:
        """See `Codec.encode`; of a recording, None if one of its chunks would not come back equal."""
        if value.__class__ is not Recording:
            return super().encode(value)
        encoded = [chunk.encoded for chunk in value.chunks]
        if None in encoded:
            return None
        return _MARK + self._write_recording((value.pauses_ms, [chunk.kind for chunk in value.chunks], encoded))

    def decode(self, data: bytes) -> Any:
        """See `Codec.decode`; each chunk of a recording is found to be readable, so that no replay breaks off."""
        if data[:1] != _MARK:
            return super().decode(data)
        recording = self._opened(data)
        for chunk in recording.chunks:
            self._chunks.restore(chunk)
        return recording

    def restore(self, kept: Kept) -> Any:
        """See `Codec.restore`; what this cache has written itself is not examined again."""
        if kept.form == "encoded" and kept.payload[:1] == _MARK:
            return self._opened(kept.payload)
        return super().restore(kept)

    def _opened(self, data: bytes) -> Recording:
        try:
            pauses_ms, kinds, encoded = self._read_recording(memoryview(data)[len(_MARK) :])
            chunks = [_as_written(kind, chunk) for kind, chunk in zip(kinds, encoded, strict=True)]
        except Exception as error:
            raise Unreadable("value") from error
        if len(pauses_ms) != len(chunks) or any(not 0 <= pause <= _LONGEST_PAUSE_MS for pause in pauses_ms):
            raise Unreadable("value")
        return Recording(chunks, pauses_ms)


def _as_written(kind: str, encoded: bytes) -> KeptChunk:
    return KeptChunk(kind, Kept(encoded, "encoded", len(encoded)), encoded)


class Recorder:
    """Records one stream, as long as it fits.

    Args:
        chunks: keeps its chunks.
        max_bytes: a stream that is larger is not recorded.

    Attributes:
        lost: why the stream cannot be recorded (``too_large``, ``uncopyable``), or None.
    """

    def __init__(self, chunks: Chunks, max_bytes: int) -> None:
        self._keeper = chunks
        self._chunks: list[KeptChunk] = []
        self._pauses_ms: list[int] = []
        self._left_bytes = max_bytes
        self._last = 0.0
        self.lost: str | None = None

    def record(self, chunk: Any, now: float) -> KeptChunk | None:
        """Records a chunk that came `now` (seconds, of any clock); None from the one on that cannot be recorded."""
        if self.lost is not None:
            return None
        try:
            kept = self._keeper.keep(chunk)
        except Uncopyable:
            self._lose("uncopyable")
            return None
        self._left_bytes -= kept.size
        if self._left_bytes < 0:
            self._lose("too_large")
            return None
        pause_ms = round((now - self._last) * 1000) if self._chunks else 0
        self._last = now
        self._chunks.append(kept)
        self._pauses_ms.append(min(max(pause_ms, 0), _LONGEST_PAUSE_MS))
        return kept

    def _lose(self, reason: str) -> None:
        self.lost = reason
        self._chunks, self._pauses_ms = [], []

    def __iter__(self) -> Iterator[Any]:
        """The chunks so far, as a reader would have them."""
        return map(self._keeper.restore, self._chunks)

    def recording(self, tokens: int, refusal: str | None) -> Recording:
        """What was recorded, now that the stream has ended."""
        return Recording(self._chunks, self._pauses_ms, tokens, refusal)
