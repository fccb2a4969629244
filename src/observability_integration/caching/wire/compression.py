"""Compression of large payloads with Zstandard, if the package is installed.

Any program may have written the data: it is decompressed only if it announces a size within the limit.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

from observability_integration.caching.codec import Unreadable

_LEVEL = 3  # zstd's own default


class _Zstandard(threading.local):
    # The package's objects are not thread-safe, and take longer to make than to use.
    def __init__(self, zstandard: Any) -> None:
        self.compress = zstandard.ZstdCompressor(level=_LEVEL).compress
        self.decompress = zstandard.ZstdDecompressor().decompress
        self.announced_size = zstandard.frame_content_size


@functools.cache
def _load() -> _Zstandard | None:
    try:
        import zstandard
    except ImportError:
        return None
    return _Zstandard(zstandard)


def available() -> bool:
    """Whether the package is installed; if so, it is imported."""
    return _load() is not None


def compress(data: bytes) -> bytes | None:
    """Compresses the data; None if the package is missing or the result would not be smaller."""
    if (zstd := _load()) is None:
        return None
    compressed: bytes = zstd.compress(data)
    return compressed if len(compressed) < len(data) else None


def decompress(data: bytes, max_bytes: int) -> bytes:
    """Decompresses the data.

    Raises:
        Unreadable: the package is missing, or the data is not a single frame that announces its size (reason
            ``compression``), or the size is above `max_bytes` (reason ``size``).
    """
    if (zstd := _load()) is None:
        raise Unreadable("compression")
    try:
        size: int = zstd.announced_size(data)  # the package allocates as much as announced
        if size <= max_bytes:  # -1 if no size is announced, which the package then refuses
            decompressed: bytes = zstd.decompress(data, allow_extra_data=False)
            return decompressed
    except Exception as error:
        raise Unreadable("compression") from error
    raise Unreadable("size")
