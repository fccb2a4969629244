"""RouterPrimitive: which route a call takes."""

from .model_choice import Route, RoutingDecision
from .primitive import RouterPrimitive

__all__ = [
    "Route",
    "RouterPrimitive",
    "RoutingDecision",
]
