"""For applications that are served over HTTP."""

from .asgi import DeadlineMiddleware

__all__ = ["DeadlineMiddleware"]
