"""A second call where the first one is slow."""

from .primitive import HedgePrimitive

__all__ = [
    "HedgePrimitive",
]
