"""TimeoutPrimitive: limits, grace, and clocks for streams."""

from .primitive import GraceMode, PrimitiveTimeoutError, TimeoutError, TimeoutPrimitive, TimeoutStats

__all__ = [
    "GraceMode",
    "PrimitiveTimeoutError",
    "TimeoutError",
    "TimeoutPrimitive",
    "TimeoutStats",
]
