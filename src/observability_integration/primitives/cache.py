"""CachePrimitive: returns a kept value instead of making the call, and makes equal calls only once."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypedDict, TypeVar, cast, overload

from observability_integration.caching.codec import Kept
from observability_integration.caching.keys import GLOBAL, KeySpace
from observability_integration.caching.levels import ABSENT, Levels
from observability_integration.caching.policy import CachePolicy, check_cost, check_positive
from observability_integration.caching.single_flight import SingleFlight
from observability_integration.caching.stores.choice import choose_store
from observability_integration.caching.stores.shared import SharedStore
from observability_integration.context import (
    WorkflowContext,
    current_deadline,
    earliest,
    remaining,
    reset_deadline,
    set_deadline,
)
from observability_integration.errors import ConfigurationError, PrimitiveTimeoutError
from observability_integration.telemetry import spans
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.instruments import (
    CACHE_BYPASSES,
    CACHE_COST_SAVINGS,
    CACHE_HITS,
    CACHE_LATENCY,
    CACHE_MISSES,
    switch,
)
from observability_integration.telemetry.spans import OperationSpan

from .base import ChunkStream, In, Out, Step, WorkflowPrimitive
from .cache_stream import passed_through
from .lifting import call_of, lift, takes_context

T = TypeVar("T")
KeyFunction = Callable[[Any, WorkflowContext], Any] | Callable[[Any], Any]


class CacheStats(TypedDict):
    """What `CachePrimitive.get_stats` returns; `hit_rate` is hits / total, from 0 to 1."""

    operation: str
    hits: int
    misses: int
    total: int
    hit_rate: float
    cost_savings_usd: float


class _Lookup:
    """One lookup on its way: when it began, on which span, and what a hit saves."""

    __slots__ = ("cost", "from_backend", "span", "started")

    def __init__(self, span: OperationSpan, cost: float, started: float) -> None:
        self.span = span
        self.cost = cost
        self.started = started
        self.from_backend = False


class CachePrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Caches a call. Two forms, told apart by their keywords.

    *Wrapper form*: ``CachePrimitive(primitive, cache_key_fn)`` and `execute`.

    *Model form*: ``CachePrimitive(redis_url=...)`` and `get_or_compute`.

    Looks in memory (bounded), then in Redis if there is one, then makes the call; equal calls that overlap are made
    once. Redis may be missing or broken in any way: the call goes on from memory (docs/semantics-cache.md). A hit is
    a value returned instead of a call. Exceptions are never kept; None is a value like any other.

    Args:
        primitive: what to call on a miss.
        cache_key_fn: function of ``(input)`` or ``(input, context)``, synchronous or not, that returns the key: text,
            bytes, numbers or a structure of them. If it raises, the call is made without the cache.
        ttl_seconds: how long a value is kept, > 0.
        redis_client: ``redis.asyncio`` or synchronous client, also with ``decode_responses=True``; never closed by us.
        cost_per_call: USD that a hit saves; an estimate of yours.
        operation_name: label, and part of the key: caches of one name share entries. By default the primitive's name.
        redis_url: model form: where Redis is; connections are made when needed and closed by `aclose`.
        backend: a store of your own in place of Redis (see `caching.stores.shared.SharedStore`).
        scope: entries are shared only within one scope, e.g. a tenant's id; ``GLOBAL`` shares them with everybody.
        policy: bounds and budgets.
        value_type: type of the values, if it is a pydantic model, dataclass or msgspec struct that Redis should keep.

    Raises:
        ConfigurationError: a ttl that is not a finite number > 0, a bad cost, or keywords of both forms.
    """

    @overload
    def __init__(
        self,
        primitive: Step[In, Out],
        cache_key_fn: KeyFunction,
        ttl_seconds: float = 3600.0,
        redis_client: Any = None,
        cost_per_call: float = 0.01,
        operation_name: str | None = None,
        *,
        backend: SharedStore | None = None,
        scope: str | None = GLOBAL,
        policy: CachePolicy | None = None,
        value_type: type[Any] | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        *,
        redis_url: str | None = None,
        ttl_seconds: float = 3600.0,
        redis_client: Any = None,
        cost_per_call: float = 0.01,
        operation_name: str | None = None,
        backend: SharedStore | None = None,
        scope: str | None = GLOBAL,
        policy: CachePolicy | None = None,
        value_type: type[Any] | None = None,
    ) -> None: ...

    def __init__(
        self,
        primitive: Any = None,
        cache_key_fn: Any = None,
        ttl_seconds: float = 3600.0,
        redis_client: Any = None,
        cost_per_call: float = 0.01,
        operation_name: str | None = None,
        *,
        redis_url: str | None = None,
        backend: SharedStore | None = None,
        scope: str | None = GLOBAL,
        policy: CachePolicy | None = None,
        value_type: type[Any] | None = None,
    ) -> None:
        if (primitive is None) != (cache_key_fn is None):
            raise ConfigurationError("primitive and cache_key_fn belong together")
        if cache_key_fn is not None and not callable(cache_key_fn):
            raise ConfigurationError(f"cache_key_fn must be a function, got {type(cache_key_fn).__name__}")
        if primitive is not None and redis_url is not None:
            raise ConfigurationError("redis_url belongs to the form without a primitive; pass redis_client instead")
        check_positive("ttl_seconds", ttl_seconds)
        check_cost("cost_per_call", cost_per_call)
        self.ttl_seconds = ttl_seconds
        self.cost_per_call = cost_per_call
        self.redis_client = redis_client
        self.policy = policy or CachePolicy()
        self._step: WorkflowPrimitive[Any, Any] | None = None if primitive is None else lift(primitive)
        self._call = None if self._step is None else call_of(self._step)
        self._key_fn: Any = cache_key_fn
        self._key_takes_context = cache_key_fn is not None and takes_context(cache_key_fn)
        self._operation = operation_name or ("cache" if self._step is None else self._step.name)
        self._span_name = f"cache {self._operation}"
        self._keys = KeySpace(self._operation, scope)
        store = choose_store(self._operation, self.policy, url=redis_url, client=redis_client, backend=backend)
        self._levels = Levels(self._operation, self._keys, ttl_seconds, store, self.policy, value_type)
        self._flights = SingleFlight()
        self._total_hits = 0
        self._total_misses = 0
        self._saved_usd = 0.0
        self._hits = CACHE_HITS.declare(self, self._operation)
        self._misses = CACHE_MISSES.declare(self, self._operation)
        self._savings = CACHE_COST_SAVINGS.declare(self, self._operation)
        self._hit_latency = CACHE_LATENCY.declare(self, self._operation, "true")
        self._miss_latency = CACHE_LATENCY.declare(self, self._operation, "false")

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """What is called on a miss."""
        return [] if self._step is None else [("", self._step)]

    def _label(self) -> str:
        where = "memory, then shared store" if self._levels.has_shared else "memory"
        return f"cache {self._operation} (ttl {self.ttl_seconds:g}s, {where})"

    def get_stats(self) -> CacheStats:
        """Counts since construction."""
        hits, total = self._total_hits, self._total_hits + self._total_misses
        return {
            "operation": self._operation,
            "hits": hits,
            "misses": total - hits,
            "total": total,
            "hit_rate": hits / total if total else 0.0,
            # Rounded to a ten-billionth of a dollar, which is below any price and above the noise of adding floats.
            "cost_savings_usd": round(self._saved_usd, 10),
        }

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Returns the kept value for this input, or makes the call and keeps what it returns.

        Raises:
            ConfigurationError: in the model form, which has `get_or_compute` instead.
        """
        call = self._call
        if call is None:
            raise ConfigurationError("this CachePrimitive wraps nothing; use get_or_compute(key, compute_func)")
        if context is None and self._key_takes_context:
            context = WorkflowContext()
        span = spans.tracing.begin(self._span_name, {})
        try:
            if context is not None:
                spans.identify(span, context)
            started = time.perf_counter()
            try:
                key = self._key_fn(input_data, context) if self._key_takes_context else self._key_fn(input_data)
                if not isinstance(key, str) and inspect.isawaitable(key):
                    key = await key
                digest = self._keys.digest(key)
            except Exception as error:  # noqa: BLE001 - the user's function must not fail the user's call
                note_fault("cache.key_fn", error)
                return cast("Out", await self._bypass(span, "key_error", lambda: call(input_data, context)))
            value = self._levels.recall(digest)
            if value is not ABSENT:
                self._hit(span, started, self.cost_per_call, "memory")
                return cast("Out", value)
            lookup = _Lookup(span, self.cost_per_call, started)
            if context is None or context.deadline is None:
                return cast("Out", await self._fly(lookup, digest, lambda: call(input_data, context)))
            token = set_deadline(earliest(current_deadline(), context.deadline))
            try:
                return cast("Out", await self._fly(lookup, digest, lambda: call(input_data, context)))
            finally:
                reset_deadline(token)
        finally:
            span.end()

    @overload
    async def get_or_compute(
        self, key: Any, compute_func: Callable[[], Awaitable[T]], cost_per_call: float | None = None
    ) -> T: ...

    @overload
    async def get_or_compute(
        self, key: Any, compute_func: Callable[[], T], cost_per_call: float | None = None
    ) -> T: ...

    async def get_or_compute(
        self, key: Any, compute_func: Callable[[], Any], cost_per_call: float | None = None
    ) -> Any:
        """Returns the value kept under `key`, or calls ``compute_func()`` and keeps what it returns.

        Args:
            key: text, bytes, numbers or a structure of them.
            compute_func: async function, or a function that returns a value or an awaitable.
            cost_per_call: USD that a hit saves here, if not the primitive's.

        Raises:
            TypeError: the key is of a type that has no canonical form.
        """
        if cost_per_call is not None:
            check_cost("cost_per_call", cost_per_call)
        digest = self._keys.digest(key)
        span = spans.tracing.begin(self._span_name, {})
        try:
            lookup = _Lookup(span, self.cost_per_call if cost_per_call is None else cost_per_call, time.perf_counter())
            kept = self._levels.recall(digest)
            if kept is not ABSENT:
                self._hit(span, lookup.started, lookup.cost, "memory")
                return kept

            async def compute() -> Any:
                value: Any = compute_func()
                return await value if inspect.isawaitable(value) else value

            return await self._fly(lookup, digest, compute)
        finally:
            span.end()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Streams from the wrapped primitive; streams are not kept."""
        if self._step is None:
            raise ConfigurationError("this CachePrimitive wraps nothing to stream from")
        return passed_through(self._operation, self._step, input_data, context)

    async def invalidate(self, key: Any) -> None:
        """Forgets the value kept under `key` (what `cache_key_fn` returns), here and in the shared store.

        A call under way for it still answers its callers, and its value is not kept.

        Raises:
            TypeError: the key is of a type that has no canonical form.
        """
        digest = self._keys.digest(key)
        self._flights.forget(digest)
        await self._levels.forget(digest)

    async def clear(self) -> None:
        """Forgets every value kept by this object, and every one of this operation in the shared store (in all scopes).

        Calls under way still answer their callers, and their values are not kept.
        """
        self._flights.forget_all()
        await self._levels.clear()

    async def aclose(self) -> None:
        """Closes the connections this cache made itself, for the running event loop."""
        await self._levels.aclose()

    def _hit(self, span: OperationSpan, started: float, cost: float, tier: str) -> None:
        self._total_hits += 1
        self._saved_usd += cost
        if switch.on:  # each would find out for itself, at a third of what a hit costs in all
            self._hits.add()
            self._savings.add(cost)
            self._hit_latency.record(time.perf_counter() - started, span)
        if span is not spans.NO_SPAN:
            span.set_attribute("cache.hit", True)
            span.set_attribute("cache.tier", tier)

    def _miss(self, lookup: _Lookup) -> None:
        self._total_misses += 1
        self._misses.add()
        self._miss_latency.record(time.perf_counter() - lookup.started, lookup.span)

    async def _bypass(self, span: OperationSpan, reason: str, compute: Callable[[], Awaitable[T]]) -> T:
        CACHE_BYPASSES.series(self._operation, reason).add()
        span.set_attribute("cache.bypass", reason)
        token = spans.tracing.activate(span)
        try:
            return await compute()
        except Exception as error:
            spans.tracing.mark_failed(span, error)
            raise
        finally:
            spans.tracing.deactivate(token)

    def _fly(self, lookup: _Lookup, digest: bytes, compute: Callable[[], Awaitable[Any]]) -> Coroutine[Any, Any, Any]:
        way = self._lead if self._flights.join(digest) is None else self._follow
        return way(lookup, digest, compute)

    async def _follow(self, lookup: _Lookup, digest: bytes, compute: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            flight = self._flights.join(digest)
            if flight is None:
                return await self._lead(lookup, digest, compute)
            try:
                kept = await self._wait_for(lookup, flight)
            except PrimitiveTimeoutError as error:
                if error.deadline_source == "inherited" and remaining() != 0.0:
                    continue  # the one who made the call was in a greater hurry than we are
                self._failed(lookup, error)
                raise
            except Exception as error:
                self._failed(lookup, error)
                raise
            # A structure is handed to each caller anew, so that none can change another's.
            value = self._levels.hand_out(kept)
            if value is ABSENT:
                return await self._bypass(lookup.span, "uncopyable", compute)
            self._hit(lookup.span, lookup.started, lookup.cost, "flight")
            return value

    async def _lead(self, lookup: _Lookup, digest: bytes, compute: Callable[[], Awaitable[Any]]) -> Any:
        token = spans.tracing.activate(lookup.span)  # the flight copies the context as it departs
        try:
            flight = self._flights.depart(digest, lambda: self._flight(lookup, digest, compute))
        finally:
            spans.tracing.deactivate(token)
        try:
            value, _ = await asyncio.shield(flight)
        except Exception as error:
            lookup.span.set_attribute("cache.hit", False)
            spans.tracing.mark_failed(lookup.span, error)
            raise
        if lookup.from_backend:
            self._hit(lookup.span, lookup.started, lookup.cost, "backend")
        else:
            lookup.span.set_attribute("cache.hit", False)
        return value

    async def _flight(
        self, lookup: _Lookup, digest: bytes, compute: Callable[[], Awaitable[Any]]
    ) -> tuple[Any, Kept | None]:
        # The span is not touched here: the caller may be gone, and have ended it.
        current = functools.partial(self._flights.is_current, digest)
        if self._levels.has_shared:
            found = await self._levels.fetch(digest, current)
            lookup.from_backend = found is not None
            if found is not None:
                return found
        self._miss(lookup)
        value = await compute()
        return value, await self._levels.keep(digest, value, current)

    async def _wait_for(self, lookup: _Lookup, flight: asyncio.Task[tuple[Any, Kept | None]]) -> Kept | None:
        looked = time.perf_counter() - lookup.started
        try:
            return (await asyncio.shield(flight))[1]
        finally:
            lookup.started = time.perf_counter() - looked  # waiting for the call is no part of the lookup

    def _failed(self, lookup: _Lookup, error: Exception) -> None:
        self._miss(lookup)
        lookup.span.set_attribute("cache.hit", False)
        spans.tracing.mark_failed(lookup.span, error)
