"""This library's own primitives around the common workload."""

from __future__ import annotations

from typing import Any

from observability_integration.primitives import CachePrimitive, LLMCallPrimitive, RouterPrimitive, TimeoutPrimitive

from . import workload
from .workload import Runnable, Work


class Ours:
    """Makes each primitive around some work."""

    name = "ours"

    def router(self, work: Work) -> Runnable:
        """The wrapper form, with two routes."""
        return self._router({workload.FAST: work.answer, workload.PREMIUM: work.answer})

    def cache(self, work: Work) -> Runnable:
        """The wrapper form, in memory."""
        return self._cache(work.answer, workload.key_of_prompt)

    def timeout(self, work: Work) -> Runnable:
        """The wrapper form."""
        return self._timeout(work.answer)

    def llm_call(self, work: Work) -> Runnable:
        """A call to a chat model."""
        return LLMCallPrimitive(work.answer, provider=workload.PROVIDER)

    def chain(self, work: Work) -> Runnable:
        """All four, one in the other, in the recommended order."""
        routes = {route: self._timeout(self.llm_call(work)) for route in workload.COST_PER_ROUTE_USD}
        return self._cache(self._router(routes), workload.key_of_request)

    def _router(self, routes: dict[str, Any]) -> RouterPrimitive[Any, Any]:
        return RouterPrimitive(routes, workload.choose, workload.FAST, workload.COST_PER_ROUTE_USD)

    def _cache(self, primitive: Any, key_of: Any) -> CachePrimitive[Any, Any]:
        return CachePrimitive(
            primitive,
            key_of,
            workload.TTL_SECONDS,
            cost_per_call=workload.SAVED_PER_HIT_USD,
            operation_name=workload.OPERATION,
        )

    def _timeout(self, primitive: Any) -> TimeoutPrimitive[Any, Any]:
        return TimeoutPrimitive(primitive, workload.TIMEOUT_SECONDS, workload.GRACE_SECONDS, workload.OPERATION)
