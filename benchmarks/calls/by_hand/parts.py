"""Router, cache, timeout and LLM call with telemetry written by hand, with care for speed.

Attribute sets are built once, and span attributes are set several at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from sys import getsizeof
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, SpanKind, Tracer

from benchmarks import workload
from benchmarks.calls.bare.kit import MISSING, Store, finished_within, hashed
from benchmarks.measure import Call

from .spans import QUIET, ended, failed

if TYPE_CHECKING:
    from .instruments import Instruments


class Router:
    """A router with a span, decisions, durations and savings."""

    def __init__(self, tracer: Tracer, instruments: Instruments, routes: Mapping[str, Call]) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._routes = routes
        dearest = max(workload.COST_PER_ROUTE_USD.values())
        self._saving_usd = {route: round(dearest - cost, 10) for route, cost in workload.COST_PER_ROUTE_USD.items()}
        self._by_route = {route: {"route": route} for route in routes}
        reasons = ("routing_function", "invalid_route_fallback", "routing_error_fallback")
        self._decisions = {
            (route, reason): {"route": route, "reason": reason} for route in routes for reason in reasons
        }
        self._on_span = {
            (route, reason): {"router.route": route, "router.reason": reason} for route, reason in self._decisions
        }

    async def execute(self, request: Any) -> Any:
        """Runs the chosen route."""
        instruments = self._instruments
        with self._tracer.start_as_current_span("router", **QUIET) as span:
            decision = self._decide(request)
            instruments.router_decisions.add(1, self._decisions[decision])
            span.set_attributes(self._on_span[decision])
            route = decision[0]
            by_route = self._by_route[route]
            started = perf_counter()
            try:
                answer = await self._routes[route](request)
            except BaseException as error:
                if isinstance(error, Exception):
                    instruments.router_errors.add(1, {"route": route, "error_type": type(error).__qualname__})
                ended(span, error)
                raise
            finally:
                instruments.router_execution.record(perf_counter() - started, by_route)
            if self._saving_usd[route] > 0:
                instruments.router_savings.add(self._saving_usd[route], by_route)
            span.set_attribute("outcome", "success")
            return answer

    def _decide(self, request: Any) -> tuple[str, str]:
        try:
            route = workload.choose(request)
        except Exception as error:
            labels = {"route": workload.FAST, "error_type": type(error).__qualname__}
            self._instruments.router_errors.add(1, labels)
            return workload.FAST, "routing_error_fallback"
        return (route, "routing_function") if route in self._routes else (workload.FAST, "invalid_route_fallback")


def _tokens_of(answer: Any) -> int:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    return 0 if usage is None else int(usage["prompt_tokens"] + usage["completion_tokens"])


class Cache:
    """A cache with a span, hits, misses, savings and the time of lookups."""

    _OPERATION: Mapping[str, str] = {"operation": workload.OPERATION}
    _HIT: Mapping[str, str] = {"operation": workload.OPERATION, "hit": "true"}
    _MISS: Mapping[str, str] = {"operation": workload.OPERATION, "hit": "false"}
    _SPAN_HIT: Mapping[str, Any] = {"cache.hit": True, "cache.tier": "memory", "cache.freshness": "fresh"}
    _SPAN_JOINED: Mapping[str, Any] = {"cache.hit": True, "cache.tier": "flight", "cache.freshness": "coalesced"}
    _SERVED: Mapping[str, str] = {**_OPERATION, "tier": "memory", "freshness": "fresh"}
    _JOINED: Mapping[str, str] = {**_OPERATION, "tier": "flight", "freshness": "coalesced"}
    _ABSENT: Mapping[str, str] = {**_OPERATION, "reason": "absent"}
    _MEMORY: Mapping[str, str] = {**_OPERATION, "tier": "memory"}
    _SUCCESS: Mapping[str, str] = {**_OPERATION, "outcome": "success"}
    _WAITED: Mapping[str, str] = {**_OPERATION, "reach": "process"}

    def __init__(self, tracer: Tracer, instruments: Instruments, call: Call, key_of: Callable[[Any], str]) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._call = call
        self._key_of = key_of
        self._store = Store(workload.TTL_SECONDS, workload.MAX_ENTRIES)
        self._flights: dict[bytes, asyncio.Task[Any]] = {}
        self._span_name = f"cache {workload.OPERATION}"
        self.hits = 0
        self.misses = 0

    async def execute(self, request: Any) -> Any:
        """Returns the stored value, or a new one."""
        with self._tracer.start_as_current_span(self._span_name, **QUIET) as span:
            started = perf_counter()
            key = hashed(self._key_of(request))
            kept = self._store.get(key)
            if kept is not MISSING:
                self._instruments.cache_tier_latency.record(perf_counter() - started, self._MEMORY)
                self._hit(span, started, self._SPAN_HIT, self._SERVED, kept)
                return kept[0]
            flight = self._flights.get(key)
            try:
                if flight is not None:
                    waited_since = perf_counter()
                    await asyncio.shield(flight)
                    self._instruments.cache_lock_wait.record(perf_counter() - waited_since, self._WAITED)
                    kept = self._store.get(key)
                    self._hit(span, started, self._SPAN_JOINED, self._JOINED, kept)
                    return kept[0]
                self._miss(span, started)
                flight = self._flights[key] = asyncio.create_task(self._compute(key, request))
                return await asyncio.shield(flight)
            except Exception as error:
                failed(span, error)
                raise

    def _hit(
        self, span: Span, started: float, on_span: Mapping[str, Any], served: Mapping[str, str], kept: Any
    ) -> None:
        self.hits += 1
        instruments = self._instruments
        instruments.cache_served.add(1, served)
        instruments.cache_hit_age.record(perf_counter() - kept[1], self._OPERATION)
        if kept[2]:
            instruments.cache_saved_tokens.add(kept[2], self._OPERATION)
        instruments.cache_hits.add(1, self._OPERATION)
        instruments.cache_savings.add(workload.SAVED_PER_HIT_USD, self._OPERATION)
        instruments.cache_latency.record(perf_counter() - started, self._HIT)
        span.set_attributes(on_span)

    def _miss(self, span: Span, started: float) -> None:
        self.misses += 1
        instruments = self._instruments
        instruments.cache_misses.add(1, self._OPERATION)
        instruments.cache_missed.add(1, self._ABSENT)
        instruments.cache_latency.record(perf_counter() - started, self._MISS)
        span.set_attribute("cache.hit", False)

    async def _compute(self, key: bytes, request: Any) -> Any:
        try:
            began = perf_counter()
            value = await self._call(request)
            instruments = self._instruments
            instruments.cache_compute.record(perf_counter() - began, self._SUCCESS)
            instruments.cache_entry_size.record(getsizeof(value), self._OPERATION)
            self._store.put(key, (value, began, _tokens_of(value)))
            return value
        finally:
            del self._flights[key]

    def get_stats(self) -> dict[str, Any]:
        """Returns hits and misses."""
        return {"hits": self.hits, "misses": self.misses}


class Timeout:
    """A timeout with a span, successes, failures, durations and utilization of the limit."""

    def __init__(
        self,
        tracer: Tracer,
        instruments: Instruments,
        call: Call,
        operation: str = workload.OPERATION,
        limit_seconds: float = workload.TIMEOUT_SECONDS,
        grace_seconds: float = workload.GRACE_SECONDS,
    ) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._call = call
        self._limit_seconds = limit_seconds
        self._grace_seconds = grace_seconds
        self._span_name = f"timeout {operation}"
        self._operation = {"operation": operation}
        self._failure = {"operation": operation, "kind": "total"}
        self._on_span = {"timeout.limit_seconds": limit_seconds}
        self.successes = 0
        self.failures = 0

    async def execute(self, request: Any) -> Any:
        """Returns the answer, or raises TimeoutError."""
        instruments = self._instruments
        with self._tracer.start_as_current_span(self._span_name, attributes=self._on_span, **QUIET) as span:
            started = perf_counter()
            task = asyncio.create_task(self._call(request))
            try:
                in_time = await finished_within(task, self._limit_seconds, self._grace_seconds)
            finally:
                elapsed = perf_counter() - started
                instruments.timeout_execution.record(elapsed, self._operation)
                instruments.timeout_utilization.record(elapsed / self._limit_seconds, self._operation)
            if not in_time:
                self.failures += 1
                instruments.timeout_failures.add(1, self._failure)
                raise self._ended(span, "timeout", TimeoutError())
            error = task.exception()
            if error is not None:
                labels = {**self._operation, "error_type": type(error).__qualname__}
                instruments.timeout_errors.add(1, labels)
                raise self._ended(span, "error", error)
            self.successes += 1
            instruments.timeout_successes.add(1, self._operation)
            span.set_attribute("outcome", "success")
            return task.result()

    def _ended(self, span: Span, outcome: str, error: BaseException) -> BaseException:
        span.set_attribute("outcome", outcome)
        failed(span, error)
        return error

    def get_stats(self) -> dict[str, Any]:
        """Returns successes and failures."""
        return {"successes": self.successes, "failures": self.failures}


class LLMCall:
    """A call to a chat model with its CLIENT span, tokens and duration by the gen_ai conventions."""

    _BASE: Mapping[str, str] = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": workload.PROVIDER}

    def __init__(self, tracer: Tracer, instruments: Instruments, call: Call) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._call = call
        self._labels: dict[tuple[str, str], tuple[dict[str, str], ...]] = {}

    async def execute(self, request: dict[str, Any]) -> Any:
        """Calls the provider once."""
        instruments = self._instruments
        model = request["model"]
        on_span = {
            **self._BASE,
            "gen_ai.request.model": model,
            "gen_ai.request.temperature": request["temperature"],
            "gen_ai.request.max_tokens": request["max_tokens"],
        }
        with self._tracer.start_as_current_span(
            f"chat {model}", kind=SpanKind.CLIENT, attributes=on_span, **QUIET
        ) as span:
            started = perf_counter()
            try:
                answer = await self._call(request)
            except Exception as error:
                labels = {**self._BASE, "gen_ai.request.model": model, "error.type": type(error).__qualname__}
                instruments.llm_duration.record(perf_counter() - started, labels)
                failed(span, error)
                raise
            usage = answer["usage"]
            duration, of_input, of_output = self._labels_of(model, answer["model"])
            instruments.llm_duration.record(perf_counter() - started, duration)
            instruments.llm_tokens.record(usage["prompt_tokens"], of_input)
            instruments.llm_tokens.record(usage["completion_tokens"], of_output)
            span.set_attributes(
                {
                    "gen_ai.response.model": answer["model"],
                    "gen_ai.response.id": answer["id"],
                    "gen_ai.response.finish_reasons": tuple(choice["finish_reason"] for choice in answer["choices"]),
                    "gen_ai.usage.input_tokens": usage["prompt_tokens"],
                    "gen_ai.usage.output_tokens": usage["completion_tokens"],
                }
            )
            return answer

    def _labels_of(self, requested: str, answered: str) -> tuple[dict[str, str], ...]:
        labels = self._labels.get((requested, answered))
        if labels is None:
            both = {**self._BASE, "gen_ai.request.model": requested, "gen_ai.response.model": answered}
            labels = (both, {**both, "gen_ai.token.type": "input"}, {**both, "gen_ai.token.type": "output"})
            self._labels[requested, answered] = labels
        return labels
