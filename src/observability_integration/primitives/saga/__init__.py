"""Steps with compensations."""

from .primitive import SagaPrimitive, SagaStep

__all__ = [
    "SagaPrimitive",
    "SagaStep",
]
