"""Middleware for web applications."""

from .asgi import DeadlineMiddleware

__all__ = ["DeadlineMiddleware"]
