"""Data flow: steps in sequence, in parallel, or chosen by a condition."""

from .conditional import ConditionalPrimitive, SwitchPrimitive
from .parallel import ParallelPrimitive
from .sequential import SequentialPrimitive

__all__ = [
    "ConditionalPrimitive",
    "ParallelPrimitive",
    "SequentialPrimitive",
    "SwitchPrimitive",
]
