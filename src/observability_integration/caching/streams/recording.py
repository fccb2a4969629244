"""Recordings of streams: the chunks, and the pauses between them.

Each chunk is stored by itself, so that it can be restored without the others: as it is if it is immutable, else
encoded, or as a copy. A recording is encoded only if each of its chunks decodes to an equal one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from observability_integration.caching.codec import Codec, StoredValue, Uncopyable, Unreadable

# A byte that msgpack never uses and with which no JSON begins: it tells a recording from a value.
_RECORDING_MARK = b"\xc1"
_UNTYPED = ""
_CHUNK_BYTES = 32  # overhead counted for every chunk, or a million empty ones would cost nothing
_MAX_PAUSE_MS = 10_000  # a reader gains nothing by a longer pause

_Encoded = tuple[list[int], list[str], list[bytes]]  # pauses, kinds, chunks


class StoredChunk(NamedTuple):
    """One chunk in the form in which memory keeps it.

    Attributes:
        kind: name of its type, if that is one of the `types` of `ChunkCodec`; else empty.
        kept: the chunk.
        encoded: the encoded chunk; None if it would not decode to an equal one.
    """

    kind: str
    kept: StoredValue
    encoded: bytes | None

    @property
    def size(self) -> int:
        """Bytes that the chunk takes; an estimate."""
        return _CHUNK_BYTES + (self.kept.size if self.encoded is None else len(self.encoded))


class ChunkCodec:
    """Stores and restores the chunks of streams.

    Args:
        types: types of the chunks that msgpack alone cannot rebuild, such as the pydantic models of an SDK.
        limit_bytes: measuring the size of a chunk may stop here.

    Raises:
        ConfigurationError: msgspec cannot decode one of the types.
    """

    def __init__(self, types: Sequence[type[Any]], limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kinds = {kind: f"{kind.__module__}.{kind.__qualname__}" for kind in types}
        self._codecs = {_UNTYPED: Codec(), **{name: Codec(kind) for kind, name in self._kinds.items()}}

    def keep(self, chunk: Any) -> StoredChunk:
        """Returns the form in which memory keeps a chunk; changes to the chunk do not reach it.

        Raises:
            Uncopyable: the chunk can be neither encoded nor copied.
        """
        kind = self._kinds.get(chunk.__class__, _UNTYPED)
        codec = self._codecs[kind]
        encoded = codec.encode(chunk)
        return StoredChunk(kind, codec.keep(chunk, encoded, self._limit_bytes), encoded)

    def restore(self, chunk: StoredChunk) -> Any:
        """Restores a chunk, as a copy for one reader.

        Raises:
            Unreadable: the chunk is not of a type of this cache.
        """
        codec = self._codecs.get(chunk.kind)
        if codec is None:
            raise Unreadable("value")
        return codec.restore(chunk.kept)


class Recording:
    """A whole stream. Immutable, so it can be shared; its chunks are restored for each reader.

    Attributes:
        chunks: the chunks, in order.
        pauses_ms: pause before each chunk, in milliseconds; 0 before the first.
        tokens: tokens that a replay saves. Not encoded: 0 in a decoded recording.
        refusal: why the recording must not be kept, or None. Not encoded either.
    """

    __slots__ = ("chunks", "pauses_ms", "refusal", "tokens")

    def __init__(
        self, chunks: Sequence[StoredChunk], pauses_ms: Sequence[int], tokens: int = 0, refusal: str | None = None
    ) -> None:
        self.chunks = chunks
        self.pauses_ms = pauses_ms
        self.tokens = tokens
        self.refusal = refusal

    def __deepcopy__(self, memo: Any) -> Recording:
        return self


class RecordingCodec(Codec):
    """Encodes and decodes the values of one cache, and recordings of streams.

    Args:
        value_type: see `Codec`.
        chunks: stores and restores the chunks of recordings.

    Raises:
        ConfigurationError: see `Codec`.
    """

    def __init__(self, value_type: type[Any] | None, chunks: ChunkCodec) -> None:
        super().__init__(value_type)
        self._chunks = chunks
        self._write_recording = msgspec.msgpack.Encoder().encode
        self._read_recording = msgspec.msgpack.Decoder(_Encoded).decode

    def encode(self, value: Any) -> bytes | None:
        """See `Codec.encode`; None for a recording with a chunk that would not decode to an equal one."""
        if value.__class__ is not Recording:
            return super().encode(value)
        encoded = [chunk.encoded for chunk in value.chunks]
        if None in encoded:
            return None
        return _RECORDING_MARK + self._write_recording(
            (value.pauses_ms, [chunk.kind for chunk in value.chunks], encoded)
        )

    def decode(self, data: bytes) -> Any:
        """See `Codec.decode`; checks each chunk of a recording, so that no replay breaks off."""
        if data[:1] != _RECORDING_MARK:
            return super().decode(data)
        recording = self._parse(data)
        for chunk in recording.chunks:
            self._chunks.restore(chunk)
        return recording

    def restore(self, kept: StoredValue) -> Any:
        """See `Codec.restore`; the chunks of a recording are not checked again."""
        if kept.form == "encoded" and kept.payload[:1] == _RECORDING_MARK:
            return self._parse(kept.payload)
        return super().restore(kept)

    def _parse(self, data: bytes) -> Recording:
        try:
            pauses_ms, kinds, encoded = self._read_recording(memoryview(data)[len(_RECORDING_MARK) :])
            chunks = [_stored_chunk(kind, chunk) for kind, chunk in zip(kinds, encoded, strict=True)]
        except Exception as error:
            raise Unreadable("value") from error
        if len(pauses_ms) != len(chunks) or any(not 0 <= pause <= _MAX_PAUSE_MS for pause in pauses_ms):
            raise Unreadable("value")
        return Recording(chunks, pauses_ms)


def _stored_chunk(kind: str, encoded: bytes) -> StoredChunk:
    return StoredChunk(kind, StoredValue(encoded, "encoded", len(encoded)), encoded)


class Recorder:
    """Records one stream, up to a size.

    Args:
        chunks: stores and restores the chunks.
        max_bytes: a larger stream is not recorded.

    Attributes:
        unrecorded_reason: why the stream cannot be recorded (``too_large``, ``uncopyable``), or None.
    """

    def __init__(self, chunks: ChunkCodec, max_bytes: int) -> None:
        self._codec = chunks
        self._chunks: list[StoredChunk] = []
        self._pauses_ms: list[int] = []
        self._left_bytes = max_bytes
        self._last = 0.0
        self.unrecorded_reason: str | None = None

    def record(self, chunk: Any, now: float) -> StoredChunk | None:
        """Records a chunk that arrived at `now` (seconds, of any clock); None once the stream cannot be recorded."""
        if self.unrecorded_reason is not None:
            return None
        try:
            kept = self._codec.keep(chunk)
        except Uncopyable:
            self._give_up("uncopyable")
            return None
        self._left_bytes -= kept.size
        if self._left_bytes < 0:
            self._give_up("too_large")
            return None
        pause_ms = round((now - self._last) * 1000) if self._chunks else 0
        self._last = now
        self._chunks.append(kept)
        self._pauses_ms.append(min(max(pause_ms, 0), _MAX_PAUSE_MS))
        return kept

    def _give_up(self, reason: str) -> None:
        self.unrecorded_reason = reason
        self._chunks, self._pauses_ms = [], []

    def __iter__(self) -> Iterator[Any]:
        """Copies of the chunks so far."""
        return map(self._codec.restore, self._chunks)

    def recording(self, tokens: int, refusal: str | None) -> Recording:
        """The recording of the ended stream."""
        return Recording(self._chunks, self._pauses_ms, tokens, refusal)
