"""Zstandard for large payloads, if the package is installed.

What is read may be anybody's: nothing is decompressed whose size is not announced, or announced as more than allowed.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

from observability_integration.caching.codec import Unreadable

_LEVEL = 3  # zstd's own default


class _Tools(threading.local):
    # The package's objects must not be used by two threads at once, and take longer to make than to use.
    def __init__(self, zstandard: Any) -> None:
        self.compress = zstandard.ZstdCompressor(level=_LEVEL).compress
        self.expand = zstandard.ZstdDecompressor().decompress
        self.announced = zstandard.frame_content_size


@functools.cache
def _tools() -> _Tools | None:
    try:
        import zstandard
    except ImportError:
        return None
    return _Tools(zstandard)


def available() -> bool:
    """Whether the package is installed; if so, it is imported."""
    return _tools() is not None


def compress(data: bytes) -> bytes | None:
    """The data compressed, or None if that would not make it smaller, or the package is missing."""
    if (tools := _tools()) is None:
        return None
    compressed: bytes = tools.compress(data)
    return compressed if len(compressed) < len(data) else None


def expand(data: bytes, max_bytes: int) -> bytes:
    """What was compressed.

    Raises:
        Unreadable: it is no single frame that announces at most `max_bytes` and holds as much, or the package is
            missing; the reason is ``compression``, or ``size`` for what is too large.
    """
    if (tools := _tools()) is None:
        raise Unreadable("compression")
    try:
        size: int = tools.announced(data)  # the package would allocate that much, whatever it is
        if size <= max_bytes:  # -1 if nothing is announced, which the package then refuses
            expanded: bytes = tools.expand(data, allow_extra_data=False)
            return expanded
    except Exception as error:
        raise Unreadable("compression") from error
    raise Unreadable("size")
