"""CachePrimitive: returns a kept value instead of making the call, and makes equal calls only once."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from observability_integration.caching.engine import Engine
from observability_integration.caching.entry_options import check_tags, listed, no_entry
from observability_integration.caching.freshness import Freshness, TtlAdapter
from observability_integration.caching.keys import GLOBAL, KeySpace, check_scope
from observability_integration.caching.lookup import Lookup
from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.request_key import request_key
from observability_integration.caching.stores.choice import choose_store
from observability_integration.caching.stores.shared import CacheBackend
from observability_integration.caching.streams.recording import ChunkCodec, RecordingCodec
from observability_integration.caching.tiers import ABSENT
from observability_integration.caching.wire.encryption import Keyring
from observability_integration.caching.wire.frame import Wire
from observability_integration.checks import check_callable, check_cost, check_positive
from observability_integration.context import (
    WorkflowContext,
    current_deadline,
    earliest,
    reset_deadline,
    set_deadline,
)
from observability_integration.costs.usage import total_tokens_of
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.base import ChunkStream, In, Out, Step, WorkflowPrimitive
from observability_integration.primitives.lifting import Call, call_of, lift
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .admission import Admission
from .identity import Identifier, KeyFunction, ScopeFunction
from .record import CacheRecord, CacheStats
from .stream import CachedStream
from .streams import StreamCache, StreamCall, stream_digest

if TYPE_CHECKING:
    from observability_integration.caching.semantic import SemanticLookup

T = TypeVar("T")
__all__ = ["CachePrimitive", "CacheStats"]

_NO_KEY: Any = object()  # None is a key
_NO_TAGS: tuple[str, ...] = ()


class CachePrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Caches a call. Three forms, told apart by how they are made.

    *Wrapper form*: ``CachePrimitive(primitive, cache_key_fn)`` and `execute`.

    *Request form*: ``CachePrimitive.for_requests(primitive, scope=...)`` and `execute`: the key is the whole request.

    *Model form*: ``CachePrimitive(redis_url=...)`` and `get_or_compute`.

    Looks in memory (bounded), then in Redis if there is one, then makes the call; equal calls that overlap are made
    once, in this process and in all that share the Redis. Redis may be missing or broken in any way: the call goes on
    from memory (docs/semantics-cache.md). A hit is a value returned instead of a call. Exceptions are never kept, nor
    answers cut short; None is a value like any other.

    Args:
        primitive: what to call on a miss.
        cache_key_fn: function of ``(input)`` or ``(input, context)``, synchronous or not, that returns the key: text,
            bytes, numbers or a structure of them. If it raises, the call is made without the cache.
        ttl_seconds: how long a value is fresh, > 0.
        redis_client: ``redis.asyncio`` or synchronous client, also with ``decode_responses=True``; never closed by us.
        cost_per_call: USD that a hit saves; an estimate of yours.
        operation_name: label, and part of the key: caches of one name share entries. By default the primitive's name.
        redis_url: model form: where Redis is; connections are made when needed and closed by `aclose`.
        backend: a store of your own in place of Redis (see `caching.CacheBackend`).
        scope: entries are shared only within one scope, e.g. a tenant's id; ``GLOBAL`` shares them with everybody. In
            the forms that wrap a primitive also a function like `cache_key_fn`; if that raises, the cache is not used.
        policy: bounds, budgets, staleness.
        value_type: type of the values, if it is a pydantic model, dataclass or msgspec struct that Redis should keep.
        chunk_types: types of the chunks of a stream, if they are such types and Redis should keep streams of them.
        namespace: keeps apart operations of one name, e.g. of two applications on one Redis.
        tags: texts, the tags of every entry, or a function of the input that returns them; see `invalidate`. If it
            raises, or returns one text in place of several, the cache is not used.
        keyring: encrypts what is kept in Redis.
        admit: says whether a value may be kept, after all other reasons not to; if it raises, the value is not kept.
        semantic: also finds answers to what was asked in other words, once it has proved that it may; off by default.
        meaning_of: for `semantic`, a function of the input that returns the text that is asked, and all else that the
            answer depends on (model, parameters, earlier messages), as ``(all_else, text)``; None for neither.

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
        backend: CacheBackend | None = None,
        scope: str | ScopeFunction | None = GLOBAL,
        policy: CachePolicy | None = None,
        value_type: type[Any] | None = None,
        chunk_types: Sequence[type[Any]] = (),
        namespace: str = "",
        tags: Sequence[str] | Callable[[Any], Iterable[str]] = (),
        keyring: Keyring | None = None,
        admit: Callable[[Any], bool] | None = None,
        semantic: SemanticLookup | None = None,
        meaning_of: Callable[[Any], tuple[Any, str] | None] | None = None,
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
        backend: CacheBackend | None = None,
        scope: str | None = GLOBAL,
        policy: CachePolicy | None = None,
        value_type: type[Any] | None = None,
        namespace: str = "",
        keyring: Keyring | None = None,
        admit: Callable[[Any], bool] | None = None,
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
        backend: CacheBackend | None = None,
        scope: Any = GLOBAL,
        policy: CachePolicy | None = None,
        value_type: type[Any] | None = None,
        chunk_types: Sequence[type[Any]] = (),
        namespace: str = "",
        tags: Any = (),
        keyring: Keyring | None = None,
        admit: Callable[[Any], bool] | None = None,
        semantic: SemanticLookup | None = None,
        meaning_of: Callable[[Any], tuple[Any, str] | None] | None = None,
    ) -> None:
        _check_form(primitive, cache_key_fn, redis_url, scope, tags)
        check_positive("ttl_seconds", ttl_seconds)
        check_cost("cost_per_call", cost_per_call)
        self.cost_per_call = cost_per_call
        self.redis_client = redis_client
        self.policy = policy or CachePolicy()
        self._step: WorkflowPrimitive[Any, Any] | None = None if primitive is None else lift(primitive)
        self._call = None if self._step is None else call_of(self._step)
        self._semantic = semantic
        self._of_requests = False
        self._operation = operation_name or ("cache" if self._step is None else self._step.name)
        self._span_name = f"cache {self._operation}"
        self._keys = KeySpace(self._operation, GLOBAL if callable(scope) else scope, namespace)
        self._identifier = Identifier(self._keys, cache_key_fn, scope, tags, semantic, meaning_of)
        self._freshness = Freshness(self.policy, ttl_seconds)
        self._store = choose_store(self._operation, self.policy, url=redis_url, client=redis_client, backend=backend)
        wire = Wire(
            compress_above_bytes=self.policy.compress_above_bytes,
            keyring=keyring,
            max_bytes=self.policy.max_value_bytes,
        )
        chunks = ChunkCodec(chunk_types, self.policy.max_value_bytes)
        codec = RecordingCodec(value_type, chunks)
        self._engine = Engine(self._operation, self._keys, self._freshness, self._store, self.policy, codec, wire)
        self._admission = Admission(
            tool_calls=self.policy.store_tool_calls, any_temperature=self.policy.store_sampled, admit=admit
        )
        self._record = CacheRecord(self, self._operation)
        self._streams = StreamCache(self._operation, self._engine, self._record, self.policy, chunks)
        if self.policy.adaptive_ttl is not None:
            self._record.adapt(TtlAdapter(self.policy.adaptive_ttl, self._freshness))

    @classmethod
    def for_requests(
        cls,
        primitive: Step[In, Out],
        *,
        scope: str | ScopeFunction | None,
        exclude: Iterable[str] = (),
        **options: Any,
    ) -> CachePrimitive[In, Out]:
        """A cache of calls that take a whole request, in the shape of OpenAI's or Anthropic's.

        The key is the whole request, fields unknown today included, but for the few that cannot change the answer (see
        `caching.request_key`). Answers drawn at a temperature above 0 are not kept, unless ``policy.store_sampled``.

        Args:
            primitive: the call.
            scope: must be chosen: ``GLOBAL``, the name of one scope, or a function that returns it for each request.
            exclude: further fields of the request that do not change the answer.
            options: as for the wrapper form.

        Raises:
            ConfigurationError: see the class.
        """
        made = cls(primitive, functools.partial(request_key, exclude=frozenset(exclude)), scope=scope, **options)
        made._of_requests = True
        return made

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    @property
    def ttl_seconds(self) -> float:
        """The TTL in force, which an adaptive TTL changes."""
        return self._freshness.ttl_seconds

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """What is called on a miss."""
        return [] if self._step is None else [("", self._step)]

    def _label(self) -> str:
        where = "memory" if self._store is None else "memory, then shared store"
        return f"cache {self._operation} (ttl {self.ttl_seconds:g}s, {where})"

    def get_stats(self) -> CacheStats:
        """Counts since construction."""
        return self._record.stats(self.ttl_seconds)

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Returns the kept value for this input, or makes the call and keeps what it returns.

        Raises:
            ConfigurationError: in the model form, which has `get_or_compute` instead.
        """
        call = self._call
        if call is None:
            raise ConfigurationError("this CachePrimitive wraps nothing; use get_or_compute(key, compute_func)")
        if context is None and self._identifier.takes_context:
            context = WorkflowContext()
        span = spans.tracing.begin(self._span_name, {})
        try:
            if context is not None:
                spans.identify(span, context)
            started = time.perf_counter()
            try:
                digest = self._identifier.digest(input_data, context)
                if not isinstance(digest, bytes):
                    digest = await digest
            except Exception as error:  # noqa: BLE001 - the user's function must not fail the user's call
                note_fault("cache.key_fn", error)
                return cast("Out", await self._bypass(span, "key_error", lambda: call(input_data, context)))
            entry = self._engine.fresh(digest)
            if entry is not None:
                value = self._engine.value_of(digest, entry)
                if value is not ABSENT:
                    self._record.fresh_hit(span, started, self.cost_per_call, entry)
                    return cast("Out", value)
            lookup = self._lookup(call, digest, input_data, context, span, started)
            if isinstance(lookup, str):
                return cast("Out", await self._bypass(span, lookup, lambda: call(input_data, context)))
            if context is None or context.deadline is None:
                return cast("Out", await self._look_up(lookup, self.cost_per_call))
            token = set_deadline(earliest(current_deadline(), context.deadline))
            try:
                return cast("Out", await self._look_up(lookup, self.cost_per_call))
            finally:
                reset_deadline(token)
        finally:
            span.end()

    def _lookup(
        self,
        call: Call,
        digest: bytes,
        input_data: Any,
        context: WorkflowContext | None,
        span: OperationSpan,
        started: float,
    ) -> Lookup | str:
        # The lookup, or why the call must bypass the cache.
        try:
            tags, meaning = self._identifier.details(input_data, context)
            reason = self._admission.refuses_request(input_data) if self._of_requests else None
        except Exception as error:  # noqa: BLE001 - the user's function must not fail the user's call
            note_fault("cache.key_fn", error)
            return "key_error"
        if reason is not None:
            return reason

        def compute(detached: bool) -> Awaitable[Any]:
            return call(input_data, _without_deadline(context) if detached else context)

        return Lookup(digest, compute, span, started, self._record.miss, tags, self._judge, meaning)

    @overload
    async def get_or_compute(
        self,
        key: Any,
        compute_func: Callable[[], Awaitable[T]],
        cost_per_call: float | None = None,
        *,
        tags: Sequence[str] = (),
    ) -> T: ...

    @overload
    async def get_or_compute(
        self,
        key: Any,
        compute_func: Callable[[], T],
        cost_per_call: float | None = None,
        *,
        tags: Sequence[str] = (),
    ) -> T: ...

    async def get_or_compute(
        self,
        key: Any,
        compute_func: Callable[[], Any],
        cost_per_call: float | None = None,
        *,
        tags: Sequence[str] = _NO_TAGS,
    ) -> Any:
        """Returns the value kept under `key`, or calls ``compute_func()`` and keeps what it returns.

        Args:
            key: text, bytes, numbers or a structure of them.
            compute_func: async function, or a function that returns a value or an awaitable. What it decides by
                `caching.entry_options` goes for the entry it makes.
            cost_per_call: USD that a hit saves here, if not the primitive's.
            tags: tags of the entry, should one be made; see `invalidate`.

        Raises:
            TypeError: the key is of a type that has no canonical form, or a tag is no text.
            ConfigurationError: the cost is not one, or the tags are one text.
        """
        check_cost("cost_per_call", cost_per_call, optional=True)
        if tags is not _NO_TAGS:
            tags = check_tags(tags)
        digest = self._keys.digest(key)
        cost = self.cost_per_call if cost_per_call is None else cost_per_call
        span = spans.tracing.begin(self._span_name, {})
        try:
            started = time.perf_counter()
            entry = self._engine.fresh(digest)
            if entry is not None:
                value = self._engine.value_of(digest, entry)
                if value is not ABSENT:
                    self._record.fresh_hit(span, started, cost, entry)
                    return value

            async def compute(_: bool) -> Any:
                value: Any = compute_func()
                return await value if inspect.isawaitable(value) else value

            return await self._look_up(
                Lookup(digest, compute, span, started, self._record.miss, tags, self._judge), cost
            )
        finally:
            span.end()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """The stream for this input: replayed if it is kept, joined if it is under way, or begun and kept."""
        step = self._step
        if step is None:
            raise ConfigurationError("this CachePrimitive wraps nothing to stream from")
        if context is None and self._identifier.takes_context:
            context = WorkflowContext()

        def source(detached: bool) -> ChunkStream:
            return step.stream(input_data, _without_deadline(context) if detached else context)

        call = StreamCall(
            identify=lambda: self._identifier.identify(input_data, context),
            source=source,
            refuses=lambda: self._admission.refuses_request(input_data) if self._of_requests else None,
            judge=self._judge,
            context=context,
            cost_usd=self.cost_per_call,
        )
        return CachedStream(self._streams, call)

    async def invalidate(self, key: Any = _NO_KEY, *, tag: str | None = None) -> None:
        """Forgets the value kept under `key` (what `cache_key_fn` returns), or every value with `tag`.

        Here at once, in Redis within the budget or when it is back, and in the memory of the other processes as soon as
        Redis tells them. A call under way still answers its callers, and its value is not kept.

        Raises:
            TypeError: the key is of a type that has no canonical form, or the tag is no text.
            ConfigurationError: neither or both are given; or a tag, and a `backend` of your own, which knows no tags.
        """
        if (key is _NO_KEY) == (tag is None):
            raise ConfigurationError("give either a key or a tag")
        if tag is not None:
            await self._engine.forget_tag(self._keys.tag(tag))
        else:
            digest = self._keys.digest(key)
            await self._engine.forget(digest)
            if self._step is not None:
                await self._engine.forget(stream_digest(digest))
            if self._semantic is not None:
                await self._semantic.forget(digest.hex())

    async def clear(self) -> None:
        """Forgets every value kept by this object, and every one of this operation in the shared store (in all scopes).

        Calls under way still answer their callers, and their values are not kept.
        """
        await self._engine.clear()
        if self._semantic is not None:
            await self._semantic.clear()

    async def aclose(self) -> None:
        """Ends refreshes in the background and closes the connections this cache made itself, for the running loop."""
        await self._engine.aclose()

    async def _look_up(self, lookup: Lookup, cost: float) -> Any:
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
        elif served.tier == "uncopyable":
            return await self._bypass(span, "uncopyable", lambda: lookup.compute(False))
        else:
            self._record.hit(span, lookup.started, cost, served)
        return served.value

    def _judge(self, value: Any) -> tuple[int, str | None]:
        try:
            tokens = total_tokens_of(value)
        except Exception as error:  # noqa: BLE001 - an object of the user's may do anything when it is read
            note_fault("cache.usage", error)
            tokens = 0
        return tokens, self._admission.refuses(value)

    async def _bypass(self, span: OperationSpan, reason: str, compute: Callable[[], Awaitable[T]]) -> T:
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


def _without_deadline(context: WorkflowContext | None) -> WorkflowContext | None:
    if context is None or context.deadline is None:
        return context
    detached = context.child("refresh")
    detached.deadline = None
    return detached


def _check_form(primitive: Any, cache_key_fn: Any, redis_url: Any, scope: Any, tags: Any) -> None:
    if (primitive is None) != (cache_key_fn is None):
        raise ConfigurationError("primitive and cache_key_fn belong together")
    check_callable("cache_key_fn", cache_key_fn, optional=True)
    if primitive is not None and redis_url is not None:
        raise ConfigurationError("redis_url belongs to the form without a primitive; pass redis_client instead")
    if primitive is None and (callable(scope) or callable(tags) or tags):
        raise ConfigurationError("a function for scope, and tags, belong to the forms with a primitive")
    if not callable(tags):
        listed(tags)
    if not callable(scope):
        check_scope(scope)
