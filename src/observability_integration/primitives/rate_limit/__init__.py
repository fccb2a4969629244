"""Limits of requests and tokens per minute, in one process or through Redis."""

from .primitive import RateLimitPrimitive, RateLimitStats

__all__ = [
    "RateLimitPrimitive",
    "RateLimitStats",
]
