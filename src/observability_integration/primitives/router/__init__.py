"""RouterPrimitive: which route a call takes."""

from .primitive import Route, RouterPrimitive, RoutingDecision

__all__ = [
    "Route",
    "RouterPrimitive",
    "RoutingDecision",
]
