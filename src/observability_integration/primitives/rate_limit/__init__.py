"""Requests and tokens a minute, in one process or through Redis."""

from .primitive import RateLimitPrimitive, RateLimitStats

__all__ = [
    "RateLimitPrimitive",
    "RateLimitStats",
]
