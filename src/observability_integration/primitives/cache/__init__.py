"""CachePrimitive: which key a call has, which answers are kept, and how streams are cached."""

from .primitive import CachePrimitive, CacheStats

__all__ = [
    "CachePrimitive",
    "CacheStats",
]
