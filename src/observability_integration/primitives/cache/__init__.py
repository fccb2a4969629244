"""Caches calls and streams: their keys, the answers that may be stored, and the lookups."""

from .primitive import CachePrimitive
from .record import CacheStats

__all__ = [
    "CachePrimitive",
    "CacheStats",
]
