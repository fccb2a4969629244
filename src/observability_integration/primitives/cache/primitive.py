"""`CachePrimitive`: returns stored values instead of making calls, and makes equal concurrent calls once."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from observability_integration.caching.engine import Engine
from observability_integration.caching.entry_options import check_tags
from observability_integration.caching.freshness import Freshness, TtlAdapter
from observability_integration.caching.keys import GLOBAL, GlobalScope, KeySpace
from observability_integration.caching.lookup import Lookup
from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.request_key import request_key
from observability_integration.caching.stores.choice import choose_store
from observability_integration.caching.stores.shared import CacheBackend
from observability_integration.caching.streams.recording import ChunkCodec, RecordingCodec
from observability_integration.caching.tiers import ABSENT
from observability_integration.caching.wire.encryption import Keyring
from observability_integration.caching.wire.frame import Wire
from observability_integration.checks import check_cost, check_positive
from observability_integration.context import (
    WorkflowContext,
)
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.base import ChunkStream, In, Out, Step, WorkflowPrimitive
from observability_integration.primitives.lifting import call_of, lift
from observability_integration.telemetry.tracing import spans

from .admission import Admission
from .forms import check_form
from .identity import Identifier, KeyFunction, ScopeFunction, bypass_reason
from .read_through import ReadThrough, without_deadline
from .record import CacheRecord, CacheStats
from .stream import CachedStream
from .streams import StreamCache, StreamCall, stream_digest

if TYPE_CHECKING:
    from observability_integration.caching.semantic import SemanticLookup

T = TypeVar("T")

_NO_TAGS: tuple[str, ...] = ()


class CachePrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Caches a call, in one of three forms.

    *Wrapper form*: ``CachePrimitive(primitive, cache_key_fn)`` and `execute`.

    *Request form*: ``CachePrimitive.for_requests(primitive, scope=...)`` and `execute`; the key is the whole request.

    *Model form*: ``CachePrimitive(redis_url=...)`` and `get_or_compute`.

    Looks in memory (bounded), then in Redis if there is one, then makes the call. Equal calls that overlap are made
    once, in this process and in all that share the Redis. If Redis is missing or fails in any way, the cache works from
    memory (docs/semantics-cache.md). A hit is a value returned instead of a call. Exceptions and cut answers are never
    stored; None is a value like any other.

    Args:
        primitive: called on a miss.
        cache_key_fn: function of ``(input)`` or ``(input, context)``, synchronous or not, that returns the key: text,
            bytes, numbers or a structure of them. If it raises or returns None, the call bypasses the cache.
        ttl_seconds: time until a value is stale, > 0.
        redis_client: ``redis.asyncio`` or synchronous client, also with ``decode_responses=True``; never closed.
        cost_per_call: USD that a hit saves, by your estimate.
        operation_name: label, and part of the key: caches of one name share entries. By default the primitive's name.
        redis_url: model form: URL of Redis; the cache connects when needed, and `aclose` closes the connections.
        backend: your own store instead of Redis (see `caching.CacheBackend`).
        scope: entries are shared only within one scope, e.g. a tenant's id; ``GLOBAL`` shares them among all callers.
            In the forms that wrap a primitive also a function like `cache_key_fn`; if it raises, or returns None or
            blank text, the call bypasses the cache.
        policy: bounds, budgets, staleness.
        value_type: type of the values, if Redis should store a pydantic model, dataclass or msgspec struct.
        chunk_types: types of the chunks of a stream, if Redis should store streams of such types.
        namespace: separates operations of one name, e.g. of two applications on one Redis.
        tags: the tags of every entry, or a function of the input that returns them; see `invalidate`. If it raises, or
            returns one text instead of a sequence, the call bypasses the cache.
        keyring: encrypts the values in Redis.
        admit: returns whether a value may be stored, after all other rules; if it raises, the value is not stored.
        semantic: also finds answers to the same question in other words, once its precision is proved; off by default.
        meaning_of: for `semantic`, a function of the input that returns ``(all_else, text)``: the text of the question,
            and all else that the answer depends on (model, parameters, earlier messages). None, or a text that is
            None or blank, skips the lookup.

    Raises:
        ConfigurationError: a ttl that is not a finite number > 0, a bad cost, a scope that is None or blank, or
            keywords of both forms.
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
        scope: str | GlobalScope | ScopeFunction = GLOBAL,
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
        scope: str | GlobalScope = GLOBAL,
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
        check_form(primitive, cache_key_fn, redis_url, scope, tags)
        check_positive("ttl_seconds", ttl_seconds)
        check_cost("cost_per_call", cost_per_call)
        self.cost_per_call = cost_per_call
        self.redis_client = redis_client
        self.policy = knobs = policy or CachePolicy()
        self._step: WorkflowPrimitive[Any, Any] | None = None if primitive is None else lift(primitive)
        self._call = None if self._step is None else call_of(self._step)
        self._semantic = semantic
        self._operation = operation_name or ("cache" if self._step is None else self._step.name)
        self._span_name = f"cache {self._operation}"
        self._keys = KeySpace(self._operation, GLOBAL if callable(scope) else scope, namespace)
        self._identifier = Identifier(self._keys, cache_key_fn, scope, tags, semantic, meaning_of)
        self._freshness = Freshness(self.policy, ttl_seconds)
        self._store = choose_store(self._operation, self.policy, url=redis_url, client=redis_client, backend=backend)
        wire = Wire(compress_above_bytes=knobs.compress_above_bytes, keyring=keyring, max_bytes=knobs.max_value_bytes)
        chunks = ChunkCodec(chunk_types, self.policy.max_value_bytes)
        codec = RecordingCodec(value_type, chunks)
        self._engine = Engine(self._operation, self._keys, self._freshness, self._store, self.policy, codec, wire)
        admission = Admission(tool_calls=knobs.store_tool_calls, any_temperature=knobs.store_sampled, admit=admit)
        self._record = CacheRecord(self, self._operation)
        self._reads = ReadThrough(self._engine, self._record, self._identifier, admission)
        self._streams = StreamCache(self._operation, self._engine, self._record, self.policy, chunks)
        if self.policy.adaptive_ttl is not None:
            self._record.adapt(TtlAdapter(self.policy.adaptive_ttl, self._freshness))

    @classmethod
    def for_requests(
        cls,
        primitive: Step[In, Out],
        *,
        scope: str | GlobalScope | ScopeFunction,
        exclude: Iterable[str] = (),
        **options: Any,
    ) -> CachePrimitive[In, Out]:
        """A cache of calls that take a whole request, in the shape of OpenAI's or Anthropic's.

        The key is the whole request, fields unknown today included, but for the few that cannot change the answer (see
        `caching.request_key`). Answers sampled at a temperature above 0 are not stored unless ``policy.store_sampled``.

        Args:
            primitive: called on a miss.
            scope: required: ``GLOBAL``, the name of one scope, or a function that returns it for each request.
            exclude: further fields of the request that do not change the answer.
            options: the other arguments of the wrapper form.

        Raises:
            ConfigurationError: see the class.
        """
        cache = cls(primitive, functools.partial(request_key, exclude=frozenset(exclude)), scope=scope, **options)
        cache._reads.judges_requests = True
        return cache

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    @property
    def ttl_seconds(self) -> float:
        """The current TTL, in seconds; an adaptive TTL changes it."""
        return self._freshness.ttl_seconds

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The wrapped primitive, called on a miss."""
        return [] if self._step is None else [("", self._step)]

    def _label(self) -> str:
        where = "memory" if self._store is None else "memory, then shared store"
        return f"cache {self._operation} (ttl {self.ttl_seconds:g}s, {where})"

    def get_stats(self) -> CacheStats:
        """Returns the counts since construction."""
        return self._record.stats(self.ttl_seconds)

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Returns the stored value for this input, or makes the call and stores its value.

        Raises:
            ConfigurationError: the cache has the model form; use `get_or_compute`.
            Exception: the error of the call, unchanged.
        """
        call = self._call
        if call is None:
            raise ConfigurationError("this CachePrimitive wraps nothing; use get_or_compute(key, compute_func)")
        if context is None and self._identifier.takes_context:
            context = WorkflowContext()
        span = spans.begin(self._span_name, context)
        try:
            started = time.perf_counter()
            try:
                digest = self._identifier.digest(input_data, context)
                if not isinstance(digest, bytes):
                    digest = await digest
            except Exception as error:  # noqa: BLE001 - the user's function must not fail the user's call
                reason = bypass_reason(error, self._operation)
                return cast("Out", await self._reads.bypass(span, reason, lambda: call(input_data, context), context))
            entry = self._engine.fresh(digest)
            if entry is not None:
                value = self._engine.value_of(digest, entry)
                if value is not ABSENT:
                    self._record.fresh_hit(span, started, self.cost_per_call, entry)
                    return cast("Out", value)
            lookup = self._reads.lookup(call, digest, input_data, context, span, started)
            if isinstance(lookup, str):
                return cast("Out", await self._reads.bypass(span, lookup, lambda: call(input_data, context), context))
            return cast("Out", await self._reads.serve_within(lookup, self.cost_per_call, context))
        finally:
            span.end()

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
        """Returns the value stored under `key`, or calls ``compute_func()`` and stores its value.

        Args:
            key: text, bytes, numbers or a structure of them.
            compute_func: async function, or a function that returns a value or an awaitable. Its
                `caching.entry_options` apply to the entry.
            cost_per_call: USD that a hit saves; by default the primitive's.
            tags: tags of the entry, if this call makes it; see `invalidate`.

        Raises:
            TypeError: the key is None or has no canonical form, or a tag is no text.
            ConfigurationError: the cost is out of range, the tags are one text, or the scope of this cache is a
                function of the input, which is not known here.
        """
        if self._identifier.varies_scope:
            raise ConfigurationError("the scope of this cache is a function of the input; use execute")
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

            return await self._reads.serve(
                Lookup(digest, compute, span, started, self._record.miss, tags, self._reads.judge), cost
            )
        finally:
            span.end()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Streams for this input: replays a stored stream, joins one in flight, or starts and stores one."""
        step = self._step
        if step is None:
            raise ConfigurationError("this CachePrimitive wraps nothing to stream from")
        if context is None and self._identifier.takes_context:
            context = WorkflowContext()

        def source(detached: bool) -> ChunkStream:
            return step.stream(input_data, without_deadline(context) if detached else context)

        call = StreamCall(
            identify=lambda: self._identifier.identify(input_data, context),
            source=source,
            refuses=lambda: self._reads.refuses_request(input_data),
            judge=self._reads.judge,
            context=context,
            cost_usd=self.cost_per_call,
        )
        return CachedStream(self._streams, call)

    async def invalidate(
        self, key: Any = None, *, tag: str | None = None, scope: str | GlobalScope | None = None
    ) -> None:
        """Deletes the value stored under `key` (the result of `cache_key_fn`), or every value with `tag`.

        If the scope of this cache is a function, `scope` is what it returned for the input of the key.

        Deletes in this process at once, in Redis within the budget or once it recovers, and in other processes once
        Redis notifies them. A call in flight still answers its callers, but its value is not stored.

        Raises:
            TypeError: the key has no canonical form, or the tag is no text.
            ConfigurationError: neither or both are given, None being no key; a tag is given with a `backend`, which has
                no tags, or with a scope; or the scope of the key is missing, or is fixed and given.
        """
        if (key is None) == (tag is None) or (scope is not None and tag is not None):
            raise ConfigurationError("give either a key or a tag; a scope goes with a key only")
        if tag is not None:
            await self._engine.forget_tag(self._keys.tag(tag))
        else:
            digest = self._identifier.digest_of_key(key, scope)
            await self._engine.forget(digest)
            if self._step is not None:
                await self._engine.forget(stream_digest(digest))
            if self._semantic is not None:
                await self._semantic.forget(digest.hex())

    async def clear(self) -> None:
        """Deletes every value of this object, and every value of this operation in the shared store (in all scopes).

        Calls in flight still answer their callers, but their values are not stored.
        """
        await self._engine.clear()
        if self._semantic is not None:
            await self._semantic.clear()

    async def aclose(self) -> None:
        """Ends background refreshes, and closes the cache's own connections, for the running loop."""
        await self._engine.aclose()
