"""Large payloads are compressed where it pays, and what is read cannot take more memory than allowed."""

from __future__ import annotations

import contextlib
import sys
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from observability_integration.caching.codec import Unreadable
from observability_integration.caching.wire import compression

pytestmark = pytest.mark.once

_LIMIT = 1024 * 1024
_TEXT = b"What is the capital of France? " * 100


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    compression._load.cache_clear()
    monkeypatch.setitem(sys.modules, "zstandard", None)
    yield
    compression._load.cache_clear()


def _reason(data: bytes, max_bytes: int = _LIMIT) -> str:
    with pytest.raises(Unreadable) as caught:
        compression.decompress(data, max_bytes)
    return caught.value.reason


@given(st.binary(min_size=1, max_size=20), st.integers(50, 2000))
def test_what_is_compressed_comes_back(part: bytes, times: int) -> None:
    """The limit is what the payload may have, to the byte."""
    data = part * times
    compressed = compression.compress(data)
    assert compressed is not None
    assert len(compressed) < len(data)
    assert data == compression.decompress(compressed, len(data))
    assert "size" == _reason(compressed, len(data) - 1)


def test_what_does_not_shrink_is_left_alone() -> None:
    """Images and audio are compressed already; doing it again costs time on every hit."""
    noise = bytes((index * index * 2654435761 >> 11) % 256 for index in range(1000))
    assert compression.compress(noise) is None
    assert compression.compress(b"") is None


def test_a_bomb_is_not_set_off() -> None:
    """A gigabyte of zeros fits into 33 kB: unpacking it would end the process."""
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * _LIMIT))
    assert len(bomb) < 16 * 1024
    tracemalloc.start()
    try:
        assert "size" == _reason(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2 * _LIMIT
    finally:
        tracemalloc.stop()


def test_a_bomb_with_a_false_label_is_not_set_off() -> None:
    """The announced size is written by whoever made the frame."""
    frame = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(_LIMIT))
    assert b"\xa0\x00\x00\x10\x00" == frame[4:9]  # one segment, size in four bytes
    lie = frame[:5] + (1000).to_bytes(4, "little") + frame[9:]
    assert 1000 == zstandard.frame_content_size(lie)
    assert "compression" == _reason(lie)
    boast = frame[:5] + (2**32 - 1).to_bytes(4, "little") + frame[9:]
    assert "size" == _reason(boast)


def test_a_size_that_is_not_announced_is_refused() -> None:
    """Ours always announce it; without it, only unpacking would tell."""
    assert "compression" == _reason(zstandard.ZstdCompressor(write_content_size=False).compress(_TEXT))


def test_only_a_single_whole_frame_is_read() -> None:
    """The first frame's size says nothing about a second one, and half a frame is half an answer."""
    frame = compression.compress(_TEXT)
    assert frame is not None
    assert "compression" == _reason(frame + frame)
    assert "compression" == _reason(frame + b"\x00")
    assert all(_reason(frame[:end]) == "compression" for end in range(len(frame)))


@given(st.binary())
def test_garbage_never_raises_anything_else(data: bytes) -> None:
    """`Unreadable` is what the cache expects; anything else would reach the caller."""
    for start in (b"", zstandard.FRAME_HEADER, zstandard.FRAME_HEADER + b"\x20", b"\x50\x2a\x4d\x18"):
        with contextlib.suppress(Unreadable):
            assert len(compression.decompress(start + data, 100)) <= 100


def test_threads_do_not_share_what_must_not_be_shared() -> None:
    """The package's objects are for one thread at a time, and a process may run an event loop in each of several."""
    made: list[object] = []
    results: list[bool] = []

    def work() -> None:
        zstd = compression._load()
        assert zstd is not None
        made.extend((zstd.compress, zstd.decompress))
        frame = compression.compress(_TEXT)
        results.append(frame is not None and compression.decompress(frame, _LIMIT) == _TEXT)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [True] * 3 == results
    assert 6 == len({id(getattr(method, "__self__", None)) for method in made})


def test_without_the_package_nothing_is_compressed(without_package: None) -> None:
    """It saves memory, and is not worth failing a call for."""
    assert not compression.available()
    assert compression.compress(_TEXT) is None


def test_without_the_package_compressed_entries_are_misses() -> None:
    """Another process may have it; its entries are none for this one."""
    frame = compression.compress(_TEXT)
    assert frame is not None
    assert compression.available()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "zstandard", None)
        compression._load.cache_clear()
        assert "compression" == _reason(frame)
    compression._load.cache_clear()
    assert _TEXT == compression.decompress(frame, _LIMIT)
