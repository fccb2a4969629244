"""Circuit breakers, for one process or shared by processes."""

from .breaker import Breaker
from .policy import BreakerPolicy
from .primitive import CircuitBreakerPrimitive

__all__ = [
    "Breaker",
    "BreakerPolicy",
    "CircuitBreakerPrimitive",
]
