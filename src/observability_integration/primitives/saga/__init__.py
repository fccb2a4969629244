"""Steps with compensations, which undo them if a later step fails."""

from .primitive import SagaPrimitive, SagaStep

__all__ = [
    "SagaPrimitive",
    "SagaStep",
]
