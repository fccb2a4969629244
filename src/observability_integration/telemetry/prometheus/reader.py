"""The metric reader behind the scrape endpoint.

Extends the official reader and replaces its translation. The official one shifts label values when two scopes share a
metric name, fails the whole scrape on an exponential histogram, repeats HELP and TYPE, and exports neither exemplars
nor start times. Its temporality, and its type as the SDK sees it, are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import (
    Counter,
    Histogram,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
    _Gauge,  # pyright: ignore[reportPrivateUsage] - there is no other public import
)
from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric as Family

from .exemplars import ExemplarStore
from .families import FamilySet, Notices

_INSTRUMENTS = (
    Counter,
    Histogram,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
    _Gauge,
)
_LOCK_SECONDS = 10.0  # the default scrape_timeout of Prometheus: after it no client waits for this scrape


class _Collector:
    """The collector in the registry; the reader cannot be it, because its ``collect`` does something else."""

    def __init__(self, families: Callable[[], list[Family]]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families()


class PrometheusReader(PrometheusMetricReader):
    """Translates the metrics of the SDK and of `own_metrics`, once per scrape of `registry`.

    Attributes:
        registry: the registry to scrape; this reader's own, never prometheus_client's global one. If a callback or
            point is broken, collecting from it raises that exception and yields no metrics.
    """

    def __init__(
        self,
        *,
        own_metrics: Callable[[], Sequence[ScopeMetrics]] | None = None,
        scope_labels: bool = False,
        resource: Resource | None = None,
        target_info: bool = True,
        cardinality_limit: int | None = None,
    ) -> None:
        """Creates a reader for a MeterProvider.

        Args:
            own_metrics: returns cumulative metrics outside of any MeterProvider; called at each scrape.
            scope_labels: whether every series has ``otel_scope_*`` labels, which name the library that measured it.
            resource: the labels of ``target_info``; by default the resource of the MeterProvider, which is known
                only after the first measurement.
            target_info: whether ``target_info`` is exported.
            cardinality_limit: label sets of one instrument; further ones share one overflow series. By default 2000,
                as in the SDK specification. Needs opentelemetry-exporter-prometheus 0.66b2 or later.

        Raises:
            ValueError: `cardinality_limit` is not a positive number.
        """
        limits: dict[str, Any] = {}
        if cardinality_limit is not None:
            limits["cardinality_limits"] = dict.fromkeys(_INSTRUMENTS, cardinality_limit)
        # The base class registers its own translation; this registry is not scraped.
        super().__init__(registry=CollectorRegistry(), **limits)
        self.registry = CollectorRegistry()
        self._own_metrics = own_metrics
        self._scope_labels = scope_labels
        self._resource = resource
        self._target_info = target_info
        self._exemplars = ExemplarStore()
        self._notices = Notices()
        self._delivered: MetricsData | None = None
        self._scrape_lock = Lock()
        self._scraped = _Collector(self._scrape)
        self.registry.register(self._scraped)

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        # Translated later: a flush of the provider calls this too, and the last data is complete.
        self._delivered = metrics_data

    def _scrape(self) -> list[Family]:
        if not self._scrape_lock.acquire(timeout=_LOCK_SECONDS):
            raise TimeoutError("an earlier scrape is still being collected")
        try:
            self.collect()
            delivered, self._delivered = self._delivered, None
            return self._translated(delivered)
        finally:
            self._scrape_lock.release()

    def _translated(self, delivered: MetricsData | None) -> list[Family]:
        resource_metrics: Sequence[ResourceMetrics] = () if delivered is None else delivered.resource_metrics
        resource = self._resource
        if resource is None and resource_metrics:
            resource = resource_metrics[0].resource
        families = FamilySet(self._exemplars, self._notices, scope_labels=self._scope_labels)
        if self._target_info and resource is not None:
            families.add_target(resource)
        for of_resource in resource_metrics:
            for scope_metrics in of_resource.scope_metrics:
                families.add(scope_metrics)
        if self._own_metrics is not None:
            for scope_metrics in self._own_metrics():
                families.add(scope_metrics)
        return families.render()

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Unregisters, so that scrapes are empty; a second call does nothing."""
        with suppress(KeyError):  # unregistered before
            self.registry.unregister(self._scraped)
        with suppress(KeyError):
            super().shutdown(timeout_millis, **kwargs)  # pyright: ignore[reportUnknownMemberType] - kwargs are untyped there
