"""Routing of calls: to named routes, or to one of two models."""

from .model_choice import Route, RoutingDecision
from .primitive import RouterPrimitive

__all__ = [
    "Route",
    "RouterPrimitive",
    "RoutingDecision",
]
