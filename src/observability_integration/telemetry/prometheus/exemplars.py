"""Keeps the last exemplar of every bucket: the SDK returns each one once, and there may be several scrapers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from opentelemetry.sdk.metrics import Exemplar as OTelExemplar
from prometheus_client.core import Exemplar, Timestamp

from .names import number_of

LabelKey = tuple[tuple[str, str], ...]

MAX_EXEMPLARS = 10_000  # about 5 MB: 15 buckets of 650 series; beyond it the oldest is dropped


class ExemplarKey(NamedTuple):
    """The bucket or counter of an exemplar.

    Attributes:
        family: name of the metric family.
        labels: the labels of the series, sorted.
        le: upper bound of the bucket, as exported; empty for a counter.
    """

    family: str
    labels: LabelKey
    le: str = ""


def _rendered(exemplar: OTelExemplar, trace_id: int, span_id: int) -> Exemplar:
    # Only the ids: a View removed the filtered attributes on purpose, for their number or their content.
    labels = {"trace_id": f"{trace_id:032x}", "span_id": f"{span_id:016x}"}
    return Exemplar(labels, number_of(exemplar.value), Timestamp(*divmod(exemplar.time_unix_nano, 1_000_000_000)))


class ExemplarStore:
    """Exemplars by bucket. Not thread-safe: a scrape holds the reader's lock."""

    def __init__(self, limit: int = MAX_EXEMPLARS) -> None:
        self._limit = limit
        self._kept: dict[ExemplarKey, tuple[int, Exemplar]] = {}

    def offer(self, key: ExemplarKey, exemplars: Iterable[OTelExemplar]) -> None:
        """Keeps the latest of `exemplars` that has a span, if it is newer than the present one."""
        traced = [exemplar for exemplar in exemplars if exemplar.trace_id and exemplar.span_id]
        if not traced:
            return
        latest = max(traced, key=lambda exemplar: exemplar.time_unix_nano)
        kept = self._kept.get(key)
        if kept is not None and kept[0] >= latest.time_unix_nano:
            return
        self._kept.pop(key, None)
        self._kept[key] = (latest.time_unix_nano, _rendered(latest, latest.trace_id or 0, latest.span_id or 0))
        if len(self._kept) > self._limit:
            del self._kept[next(iter(self._kept))]

    def get(self, key: ExemplarKey) -> Exemplar | None:
        """The exemplar of a bucket or counter; None if it has none."""
        kept = self._kept.get(key)
        return None if kept is None else kept[1]
