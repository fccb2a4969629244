"""The metric reader behind the scrape endpoint.

It is the official reader with the translation replaced. The official one shifts label values when two scopes share a
metric name, fails the whole scrape on an exponential histogram, repeats HELP and TYPE, and exports neither exemplars
nor start times; what it decides about temporality and about its identity towards the SDK stays in force.
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
    _Gauge,  # pyright: ignore[reportPrivateUsage] - underscored, yet the one public place to get it from
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
_TURN_SECONDS = 10.0  # Prometheus gives up on a scrape after 10 s by default, so there is no one left to wait for


class _Collector:
    """What the registry asks; apart from the reader because there ``collect`` already means something else."""

    def __init__(self, families: Callable[[], list[Family]]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families()


class PrometheusReader(PrometheusMetricReader):
    """Translates what the SDK, and whoever else is asked, has measured; once per scrape of `registry`.

    Attributes:
        registry: where the metrics can be scraped; this reader's own, never prometheus_client's global one. Collecting
            from it raises what a broken callback or point raises, and yields nothing partial.
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
        """Creates a reader to be given to a MeterProvider.

        Args:
            own_metrics: called at each scrape for cumulative metrics that no MeterProvider knows of.
            scope_labels: whether every series says by ``otel_scope_*`` which library measured it.
            resource: what ``target_info`` tells; by default the resource of the MeterProvider, which is known only
                once an instrument has reported.
            target_info: whether ``target_info`` is exported.
            cardinality_limit: label sets kept of one instrument before the rest is added up in one series; by default
                2000, as the SDK specification has it. Needs opentelemetry-exporter-prometheus 0.66b2 or later.

        Raises:
            ValueError: `cardinality_limit` is not a positive number.
        """
        limits: dict[str, Any] = {}
        if cardinality_limit is not None:
            limits["cardinality_limits"] = dict.fromkeys(_INSTRUMENTS, cardinality_limit)
        # The parent registers its own translation somewhere; here it is a registry that nobody scrapes.
        super().__init__(registry=CollectorRegistry(), **limits)
        self.registry = CollectorRegistry()
        self._own_metrics = own_metrics
        self._scope_labels = scope_labels
        self._resource = resource
        self._target_info = target_info
        self._exemplars = ExemplarStore()
        self._notices = Notices()
        self._delivered: MetricsData | None = None
        self._turn = Lock()
        self._scraped = _Collector(self._scrape)
        self.registry.register(self._scraped)

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        # Not translated yet: a flush of the provider ends here as well, and whatever comes last is complete.
        self._delivered = metrics_data

    def _scrape(self) -> list[Family]:
        if not self._turn.acquire(timeout=_TURN_SECONDS):
            raise TimeoutError("an earlier scrape is still being collected")
        try:
            self.collect()
            delivered, self._delivered = self._delivered, None
            return self._translated(delivered)
        finally:
            self._turn.release()

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
        """Withdraws from the registry, so that scrapes come back empty; more than once does no harm."""
        with suppress(KeyError):  # it was withdrawn before
            self.registry.unregister(self._scraped)
        with suppress(KeyError):
            super().shutdown(timeout_millis, **kwargs)  # pyright: ignore[reportUnknownMemberType] - kwargs are untyped there
