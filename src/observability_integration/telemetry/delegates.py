"""Global providers that delegate to a replaceable inner provider.

OpenTelemetry accepts a global provider only once per process. These stay installed; `initialize_observability` sets
their inner provider and `shutdown_observability` removes it. A tracer, meter or instrument may be created at any time:
it uses the current inner provider, and does nothing while there is none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from opentelemetry import metrics as metrics_api
from opentelemetry import trace as trace_api
from opentelemetry.util._decorator import (
    _agnosticcontextmanager,  # pyright: ignore[reportPrivateUsage] - the API has no public equivalent
)

from .guard import note_fault
from .tracing.processors import GuardedProcessor


class DelegatingTracerProvider(trace_api.TracerProvider):
    """The tracer provider that this library installs globally."""

    def __init__(self) -> None:
        self.inner: Any = None

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Any = None,
    ) -> trace_api.Tracer:
        """Creates a tracer that delegates to the current provider."""
        identity = (instrumenting_module_name, instrumenting_library_version, schema_url, attributes)
        return _DelegatingTracer(self, identity)

    def add_span_processor(self, span_processor: Any) -> None:
        """Adds a processor to the current provider, until the next shutdown. Its exceptions are logged, not raised."""
        inner = self.inner
        if inner is not None:
            inner.add_span_processor(GuardedProcessor(span_processor))

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flushes the current provider."""
        inner = self.inner
        return True if inner is None else bool(inner.force_flush(timeout_millis))

    def shutdown(self) -> None:
        """Only flushes: the provider may be needed again, and `shutdown_observability` ends it."""
        self.force_flush()


class _DelegatingTracer(trace_api.Tracer):
    def __init__(self, provider: DelegatingTracerProvider, identity: tuple[Any, ...]) -> None:
        self._provider = provider
        self._identity = identity
        # One attribute, so that no thread reads a provider together with the tracer of another.
        self._bound: tuple[Any, trace_api.Tracer] = (None, trace_api.NoOpTracer())

    def _current(self) -> trace_api.Tracer:
        inner, (bound_to, tracer) = self._provider.inner, self._bound
        if inner is not bound_to:
            tracer = trace_api.NoOpTracer() if inner is None else inner.get_tracer(*self._identity)
            self._bound = (inner, tracer)
        return tracer

    def start_span(self, *args: Any, **kwargs: Any) -> trace_api.Span:
        """Starts a span with the tracer of the current provider."""
        return self._current().start_span(*args, **kwargs)

    # As a decorator it looks the current provider up at each call.
    @_agnosticcontextmanager
    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Iterator[trace_api.Span]:
        """Starts a span with the tracer of the current provider and makes it current."""
        with self._current().start_as_current_span(*args, **kwargs) as span:
            yield span


class _Delegating:
    """An instrument that delegates to one of the current provider."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make
        self._real: Any = None

    def follow(self, meter: metrics_api.Meter | None) -> None:
        """Creates the instrument on `meter` and delegates to it; None: to nothing."""
        try:
            self._real = None if meter is None else self._make(meter)
        except Exception as error:  # noqa: BLE001 - the SDK refuses some names; all other instruments must go on
            note_fault("metrics.instrument", error)
            self._real = None

    def add(self, *args: Any, **kwargs: Any) -> None:
        real = self._real
        if real is not None:
            real.add(*args, **kwargs)

    def record(self, *args: Any, **kwargs: Any) -> None:
        real = self._real
        if real is not None:
            real.record(*args, **kwargs)

    def set(self, *args: Any, **kwargs: Any) -> None:
        real = self._real
        if real is not None:
            real.set(*args, **kwargs)


class DelegatingMeterProvider(metrics_api.MeterProvider):
    """The meter provider that this library installs globally."""

    def __init__(self) -> None:
        self.inner: Any = None
        self._lock = threading.Lock()
        self._meters: dict[tuple[Any, ...], _DelegatingMeter] = {}

    def get_meter(
        self,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Any = None,
    ) -> metrics_api.Meter:
        """Returns the meter of that identity, which delegates to the current provider."""
        # Attributes may hold lists, which cannot be part of a key.
        key = (name, version, schema_url, repr(attributes and sorted(attributes.items())))
        with self._lock:
            meter = self._meters.get(key)
            if meter is None:
                meter = self._meters[key] = _DelegatingMeter(name, version, schema_url, attributes)
                meter.follow(self.inner)
            return meter

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Flushes the current provider."""
        inner = self.inner
        return True if inner is None else bool(inner.force_flush(timeout_millis))

    def shutdown(self, timeout_millis: float = 30_000) -> None:
        """Only flushes: the provider may be needed again, and `shutdown_observability` ends it."""
        self.force_flush(timeout_millis)

    def renew_locks(self) -> None:
        """Replaces the locks in a forked child: a thread of the parent, which the child lacks, may hold them."""
        self._lock = threading.Lock()
        for meter in self._meters.values():
            meter.renew_lock()

    def install(self, inner: Any) -> None:
        """Makes `inner` the current provider (None: none) and moves every existing instrument to it."""
        with self._lock:
            self.inner = inner
            for meter in self._meters.values():
                meter.follow(inner)


class _DelegatingMeter(metrics_api.Meter):
    def __init__(self, name: str, version: str | None, schema_url: str | None, attributes: Any) -> None:
        super().__init__(name, version=version, schema_url=schema_url)
        self._attributes = attributes
        self._instrument_lock = threading.Lock()
        self._instruments: dict[tuple[Any, ...], _Delegating] = {}
        self._inner: metrics_api.Meter | None = None

    def renew_lock(self) -> None:
        """See `DelegatingMeterProvider.renew_locks`."""
        self._instrument_lock = threading.Lock()

    def follow(self, provider: Any) -> None:
        """Moves this meter's instruments to `provider`."""
        with self._instrument_lock:
            self._inner = (
                None
                if provider is None
                else provider.get_meter(self.name, self.version, self.schema_url, self._attributes)
            )
            for instrument in self._instruments.values():
                instrument.follow(self._inner)

    def _instrument(self, key: tuple[Any, ...], make: Callable[[Any], Any]) -> Any:
        with self._instrument_lock:
            instrument = self._instruments.get(key)
            if instrument is None:
                instrument = self._instruments[key] = _Delegating(make)
                instrument.follow(self._inner)
            return instrument

    def create_counter(self, name: str, unit: str = "", description: str = "") -> Any:
        """Creates a counter that delegates to the current provider."""
        return self._instrument(("counter", name, unit), lambda m: m.create_counter(name, unit, description))

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> Any:
        """Creates an up-down counter that delegates to the current provider."""
        return self._instrument(("updown", name, unit), lambda m: m.create_up_down_counter(name, unit, description))

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> Any:
        """Creates a gauge that delegates to the current provider."""
        return self._instrument(("gauge", name, unit), lambda m: m.create_gauge(name, unit, description))

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> Any:
        """Creates a histogram that delegates to the current provider."""
        bounds = explicit_bucket_boundaries_advisory

        def make(meter: Any) -> Any:
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)

        return self._instrument(("histogram", name, unit), make)

    def create_observable_counter(self, name: str, callbacks: Any = None, unit: str = "", description: str = "") -> Any:
        """Creates an observable counter that delegates to the current provider."""
        return self._observable("create_observable_counter", name, callbacks, unit, description)

    def create_observable_up_down_counter(
        self, name: str, callbacks: Any = None, unit: str = "", description: str = ""
    ) -> Any:
        """Creates an observable up-down counter that delegates to the current provider."""
        return self._observable("create_observable_up_down_counter", name, callbacks, unit, description)

    def create_observable_gauge(self, name: str, callbacks: Any = None, unit: str = "", description: str = "") -> Any:
        """Creates an observable gauge that delegates to the current provider."""
        return self._observable("create_observable_gauge", name, callbacks, unit, description)

    def _observable(self, method: str, name: str, callbacks: Any, unit: str, description: str) -> Any:
        kept = list(callbacks or ())
        # The callbacks are part of the key: the SDK silently drops those of a second instrument of the same name.
        key = (method, name, unit, tuple(map(id, kept)))
        return self._instrument(key, lambda meter: getattr(meter, method)(name, kept, unit, description))


tracer_provider = DelegatingTracerProvider()
meter_provider = DelegatingMeterProvider()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=meter_provider.renew_locks)
