"""A recording must give back the stream it was made of, chunk by chunk, or nothing at all."""

from __future__ import annotations

import copy
import dataclasses
import threading
from typing import Any

import msgspec
import pytest

from observability_integration.caching.codec import Codec, Unreadable
from observability_integration.caching.streams.recording import ChunkCodec, Recorder, Recording, RecordingCodec
from observability_integration.errors import ConfigurationError

pytestmark = [pytest.mark.once, pytest.mark.promise("C14")]

ENOUGH = 10_000


class Model(msgspec.Struct):
    text: str


@dataclasses.dataclass
class Plain:
    text: str


class Pydantic:
    """As much of a pydantic model as is used."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pydantic) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def model_dump_json(self, **_: Any) -> str:
        return msgspec.json.encode(self.text).decode()

    @classmethod
    def model_validate_json(cls, data: bytes) -> Pydantic:
        return cls(msgspec.json.decode(data, type=str))


TYPES = (Model, Plain, Pydantic)


def recorded(chunks: ChunkCodec, *stream: Any, seconds: float = 0.0) -> Recording:
    recorder = Recorder(chunks, ENOUGH)
    for number, chunk in enumerate(stream):
        assert recorder.record(chunk, 5.0 + number * seconds) is not None
    return recorder.recording(0, None)


def codec(*types: type[Any], value_type: type[Any] | None = None) -> tuple[ChunkCodec, RecordingCodec]:
    chunks = ChunkCodec(types, ENOUGH)
    return chunks, RecordingCodec(value_type, chunks)


def restored(chunks: ChunkCodec, recording: Recording) -> list[Any]:
    return [chunks.restore(chunk) for chunk in recording.chunks]


STREAMS: dict[str, list[Any]] = {
    "empty": [],
    "text": ["a", "", "b" * 300],
    "unicode": ["é", "日本", "👩‍🚀", "\x00"],
    "bytes": [b"data: x\n\n", b""],
    "dicts": [{"choices": [{"delta": {"content": "a"}, "index": 0}]}, {"usage": {"prompt_tokens": 3}}],
    "mixed": [None, 1, 2.5, True, "a", [1, {"a": None}]],
    "models": [Model("a"), Plain("b"), Pydantic("c"), "d"],
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_written_recording_gives_back_the_same_chunks(stream: list[Any]) -> None:
    """Byte for byte and type by type, with the pauses."""
    chunks, form = codec(*TYPES)
    data = form.encode(recorded(chunks, *stream, seconds=0.25))
    assert data is not None
    back = form.decode(data)
    assert stream == restored(chunks, back)
    assert [type(chunk) for chunk in stream] == [type(chunk) for chunk in restored(chunks, back)]
    assert ([0] + [250] * len(stream))[: len(stream)] == list(back.pauses_ms)
    kept = form.keep(back, data, ENOUGH)
    assert "encoded" == kept.form
    assert stream == restored(chunks, form.restore(kept))


def test_each_replay_has_chunks_of_its_own() -> None:
    """What one reader does to a chunk, the next must not see; nor what the producer does to it later."""
    chunks, _ = codec(Model)
    stream: list[Any] = [{"a": [1]}, Model("a"), {"b": (1,)}]
    recording = recorded(chunks, *stream)
    stream[0]["a"].append(2)
    stream[2]["b"] = "changed"
    first = restored(chunks, recording)
    first[0]["a"].append(3)
    first[1].text = "changed"
    first[2].clear()
    assert [{"a": [1]}, Model("a"), {"b": (1,)}] == restored(chunks, recording)


def test_what_would_not_come_back_equal_stays_in_memory() -> None:
    """A tuple becomes a list, and a model that the cache was not told of becomes a dict: neither is written."""
    chunks, form = codec()
    for chunk in ({"a": (1,)}, Model("a"), 2**70, "\ud800"):
        recording = recorded(chunks, "text", chunk)
        assert form.encode(recording) is None
        kept = form.keep(recording, None, ENOUGH)
        assert ["text", chunk] == restored(chunks, form.restore(kept))
        assert kept.size > 0


def test_values_are_kept_as_ever() -> None:
    """The codec of a cache is for its values too, and no value is taken for a recording."""
    chunks, form = codec()
    for value in ("a", b"\xc1", {"a": [1]}, [[0], [""], [b"\xa1a"]], None):
        data = form.encode(value)
        assert Codec().encode(value) == data
        assert data is not None
        assert value == form.decode(data)
        assert value == form.restore(form.keep(value, data, ENOUGH))
    _, typed = codec(value_type=Model)
    data = typed.encode(Model("a"))
    assert data is not None
    assert Model("a") == typed.decode(data)
    recording = typed.encode(recorded(chunks, "a"))
    assert recording is not None
    assert ["a"] == restored(chunks, typed.decode(recording))


def damaged() -> dict[str, bytes]:
    chunks, form = codec(Model)
    good = form.encode(recorded(chunks, "a", Model("b")))
    assert good is not None

    def written(*parts: Any) -> bytes:
        return b"\xc1" + msgspec.msgpack.encode(parts)

    name = f"{Model.__module__}.Model"
    cuts = {f"cut off after {length}": good[:length] for length in range(len(good))}
    return cuts | {
        "too long": good + b"\x00",
        "fewer pauses": written([0], ["", ""], [b"\xa1a", b"\xa1b"]),
        "fewer kinds": written([0, 0], [""], [b"\xa1a", b"\xa1b"]),
        "a pause before the beginning": written([-1], [""], [b"\xa1a"]),
        "a pause for ever": written([10_001], [""], [b"\xa1a"]),
        "a chunk of no type of ours": written([0], ["os.system"], [b"\xa1a"]),
        "a chunk of another type": written([0], [name], [b"\xa1a"]),
        "a chunk that is none": written([0], [""], [b"\xc1"]),
        "text for bytes": written([0], [""], ["a"]),
    }


@pytest.mark.parametrize("data", damaged().values(), ids=damaged())
def test_a_damaged_recording_is_unreadable(data: bytes) -> None:
    """Found out before the first chunk is handed out: a replay must not break off in the middle."""
    _, form = codec(Model)
    with pytest.raises(Unreadable):
        form.decode(data)


def test_a_recording_is_shared_not_copied() -> None:
    """It never changes, and copying it for each reader would cost more than the replay."""
    chunks, _ = codec()
    recording = recorded(chunks, {"a": (1,)})
    assert copy.deepcopy(recording) is recording


def test_types_that_cannot_be_rebuilt_are_refused() -> None:
    """As for the type of a value: when the cache is made, not when the first stream comes."""
    with pytest.raises(ConfigurationError):
        ChunkCodec([threading.Lock], ENOUGH)  # type: ignore[list-item]


def test_pauses_are_bounded() -> None:
    """Nobody gains by waiting as long as a stream that hung for a minute, nor by a clock that ran backwards."""
    chunks = ChunkCodec((), ENOUGH)
    recorder = Recorder(chunks, ENOUGH)
    for moment in (100.0, 100.0004, 160.0, 150.0):
        recorder.record("a", moment)
    assert [0, 0, 10_000, 0] == list(recorder.recording(0, None).pauses_ms)


@pytest.mark.parametrize("chunk", ["a" * 60, {"a": "b" * 60}, {"a": ("b" * 60,)}], ids=["text", "dict", "copy"])
def test_a_stream_that_is_too_large_is_lost(chunk: Any) -> None:
    """From the chunk on with which it no longer fits, and for good."""
    recorder = Recorder(ChunkCodec((), 1000), 1000)
    count = 0
    while recorder.record(chunk, 0.0) is not None:
        count += 1
        assert recorder.unrecorded_reason is None
    assert 1 <= count < 20
    assert "too_large" == recorder.unrecorded_reason
    assert recorder.record("", 0.0) is None
    assert [] == list(recorder)


def test_even_empty_chunks_count() -> None:
    """Each costs memory of its own, however little is in it."""
    recorder = Recorder(ChunkCodec((), 1000), 1000)
    count = 0
    while recorder.record("", 0.0) is not None:
        count += 1
    assert 10 < count < 50


def test_a_chunk_that_cannot_be_had_twice_loses_the_stream() -> None:
    """What holds a lock can be neither written nor copied."""
    recorder = Recorder(ChunkCodec((), ENOUGH), ENOUGH)
    recorder.record("a", 0.0)
    assert recorder.record({"lock": threading.Lock()}, 0.0) is None
    assert "uncopyable" == recorder.unrecorded_reason


def test_what_was_judged_goes_with_the_recording() -> None:
    """The tokens and the refusal are for whoever keeps it."""
    recorder = Recorder(ChunkCodec((), ENOUGH), ENOUGH)
    recording = recorder.recording(7, "length")
    assert (7, "length") == (recording.tokens, recording.refusal)
