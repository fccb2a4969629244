"""Retries of one target: backoff, budget, deadline."""

from .primitive import RetryPrimitive

__all__ = [
    "RetryPrimitive",
]
