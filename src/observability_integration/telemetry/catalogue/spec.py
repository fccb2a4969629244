"""What a metric is: name, kind, unit, labels and buckets, and the bucket bounds that several metrics share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# An LLM call takes from 10 ms (a warm, tiny model) to minutes (a reasoning model): 0.01 s to 120 s, about ×2 apart.
LLM_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
# A lookup takes from microseconds (memory) to a Redis that is about to be given up.
LOOKUP_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
# An answer takes from a few bytes (a label) to a megabyte, the largest that is kept by default.
ENTRY_BYTES = (64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
# An entry is hit from a second after it was made (a retry) to the end of a TTL of days.
AGE_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0, 604800.0)
# A wait for a turn or a retry takes from a turn of the loop to the minute that nobody waits longer than.
WAIT_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# elapsed / limit: a timeout that is always used to 10 % is too long, one used to 90 % is about to fire.
UTILIZATION = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5)
# OpenTelemetry semantic conventions v1.41, gen-ai metrics: the advised boundaries.
GEN_AI_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
GEN_AI_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)

# As the reader spells them (prometheus_names.unit_word, which needs OpenTelemetry); {token} is no word.
_UNIT_WORDS = {"s": "seconds", "By": "bytes"}


class Kind(Enum):
    """What an instrument counts."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Profile(Enum):
    """Which spelling of the gen_ai conventions a metric belongs to."""

    ALWAYS = "always"
    V1_41 = "v1.41"
    LATEST = "latest"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: OpenTelemetry instrument name.
        kind: counter, gauge or histogram.
        labels: attribute keys, in the order in which values are given.
        description: one sentence, shown as HELP.
        unit: UCUM unit; empty for plain numbers and ratios.
        buckets: upper bounds of a histogram.
        ratio: for a gauge derived from counters: (part, whole...), summed over the labels the gauge does not have.
        profile: the gen_ai profile in which it is emitted.
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
        """The family name in a scrape (a histogram adds ``_bucket``, ``_sum`` and ``_count``)."""
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


OPERATION = ("operation",)
