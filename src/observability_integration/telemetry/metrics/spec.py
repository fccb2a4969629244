"""The description of a metric: name, kind, unit, labels and buckets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# The same words as prometheus.names.unit_word, which needs OpenTelemetry; an annotation such as {token} adds none.
_UNIT_WORDS = {"s": "seconds", "By": "bytes"}


class Kind(Enum):
    """The kind of an instrument."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Profile(Enum):
    """The version of the gen_ai conventions that a metric belongs to."""

    ALWAYS = "always"
    V1_41 = "v1.41"
    LATEST = "latest"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: OpenTelemetry instrument name.
        kind: counter, gauge or histogram.
        labels: attribute keys, in the order of the values given to `Instrument.series`.
        description: one sentence, shown as HELP.
        unit: UCUM unit; empty for plain numbers and ratios.
        buckets: upper bounds of a histogram.
        ratio: for a gauge derived from counters, their names: (part, whole...), summed over labels it lacks.
        profile: the gen_ai profile that emits it.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    description: str
    unit: str = ""
    buckets: tuple[float, ...] = ()
    ratio: tuple[str, ...] = ()
    profile: Profile = Profile.ALWAYS

    @property
    def prometheus_name(self) -> str:
        """The family name in a scrape; a histogram adds ``_bucket``, ``_sum`` and ``_count``."""
        counts = self.kind is Kind.COUNTER
        name = self.name.replace(".", "_")
        if counts:
            name = name.removesuffix("_total")
        word = _UNIT_WORDS.get(self.unit)
        if word and not name.endswith(f"_{word}"):
            name += f"_{word}"
        return f"{name}_total" if counts else name

    @property
    def prometheus_labels(self) -> tuple[str, ...]:
        """The label names in a scrape."""
        return tuple(label.replace(".", "_") for label in self.labels)
