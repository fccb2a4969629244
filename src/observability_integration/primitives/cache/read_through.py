"""Reads through the cache: serves a lookup by the engine, which makes the call on a miss, or bypasses the cache."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from observability_integration.caching.engine import Engine
from observability_integration.caching.entry_options import no_entry
from observability_integration.caching.lookup import Lookup
from observability_integration.context import (
    WorkflowContext,
    current_deadline,
    deadline_of,
    earliest,
    reset_deadline,
    set_deadline,
)
from observability_integration.costs.usage import total_tokens_of
from observability_integration.primitives.base import check_time_left
from observability_integration.primitives.lifting import Call
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .admission import Admission
from .identity import Identifier, bypass_reason
from .record import CacheRecord

T = TypeVar("T")


class ReadThrough:
    """The lookups of one cache, after its key is known and memory has no fresh entry.

    Args:
        engine: looks values up and stores them.
        record: counts the lookups.
        identifier: computes tags and meanings.
        admission: decides which values may be stored.

    Attributes:
        judges_requests: whether the inputs are requests to a model, which may forbid the store of their answers.
    """

    def __init__(self, engine: Engine, record: CacheRecord, identifier: Identifier, admission: Admission) -> None:
        self._engine = engine
        self._record = record
        self._identifier = identifier
        self._admission = admission
        self.judges_requests = False

    def lookup(
        self,
        call: Call,
        digest: bytes,
        input_data: Any,
        context: WorkflowContext | None,
        span: OperationSpan,
        started: float,
    ) -> Lookup | str:
        """Returns the lookup of a call's input, or the reason to bypass the cache."""
        try:
            tags, meaning = self._identifier.details(input_data, digest)
            reason = self.refuses_request(input_data)
        except Exception as error:  # noqa: BLE001 - the user's function must not fail the user's call
            return bypass_reason(error, self._record.operation)
        if reason is not None:
            return reason

        def compute(detached: bool) -> Awaitable[Any]:
            return call(input_data, without_deadline(context) if detached else context)

        return Lookup(digest, compute, span, started, self._record.miss, tags, self.judge, meaning)

    async def serve_within(self, lookup: Lookup, cost_usd: float, context: object) -> Any:
        """As `serve`, within the deadline of the context, which may be of any type."""
        deadline = deadline_of(context)
        if deadline is None:
            return await self.serve(lookup, cost_usd)
        token = set_deadline(earliest(current_deadline(), deadline))
        try:
            return await self.serve(lookup, cost_usd)
        finally:
            reset_deadline(token)

    async def serve(self, lookup: Lookup, cost_usd: float) -> Any:
        """Returns the value for a lookup, and counts how it was found; `cost_usd` is what a hit saves.

        Raises:
            Exception: the error of the call.
        """
        span = lookup.span
        served = self._engine.serve_from_memory(lookup)
        if served is None:
            try:
                served = await self._engine.fetch_or_compute(lookup)
            except Exception as error:
                span.set_attribute("cache.hit", False)
                spans.tracing.mark_failed(span, error)
                raise
        if served.tier == "call":
            span.set_attribute("cache.hit", False)
        elif served.tier in ("uncopyable", "reentrant"):
            return await self.bypass(span, served.tier, lambda: lookup.compute(False))
        else:
            self._record.hit(span, lookup.started, cost_usd, served)
        return served.value

    async def bypass(
        self, span: OperationSpan, reason: str, compute: Callable[[], Awaitable[T]], context: object = None
    ) -> T:
        """Makes the call without the cache, and counts the bypass.

        Raises:
            PrimitiveTimeoutError: the deadline has passed.
            Exception: the error of the call.
        """
        check_time_left(self._record.operation, context)
        self._record.bypass(span, reason)
        token = spans.tracing.activate(span)
        try:
            with no_entry():
                return await compute()
        except Exception as error:
            spans.tracing.mark_failed(span, error)
            raise
        finally:
            spans.tracing.deactivate(token)

    def refuses_request(self, request: Any) -> str | None:
        """Returns why no answer to a request may be stored; None if it may, or if inputs are no requests."""
        return self._admission.refuses_request(request) if self.judges_requests else None

    def judge(self, value: Any) -> tuple[int, str | None]:
        """Returns the tokens that a hit on a value saves, and why the value must not be stored, or None."""
        try:
            tokens = total_tokens_of(value)
        except Exception as error:  # noqa: BLE001 - to read a user's object may raise any error
            note_fault("cache.usage", error)
            tokens = 0
        return tokens, self._admission.refuses(value)


def without_deadline(context: WorkflowContext | None) -> WorkflowContext | None:
    """Returns a context without a deadline, for a call that runs detached from its caller."""
    if type(context) is not WorkflowContext or context.deadline is None:
        return context
    detached = context.child("refresh")
    detached.deadline = None
    return detached
