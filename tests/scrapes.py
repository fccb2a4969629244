"""What a scrape of the real port says, as numbers."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping

Labels = Mapping[str, str]


class Scrape:
    """The samples of one scrape, in the text format that Prometheus falls back to."""

    def __init__(self, text: str) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = [
            (sample.name, sample.labels, sample.value) for family in self.families.values() for sample in family.samples
        ]

    def series(self, name: str, **labels: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Every series of a sample name whose labels include the given ones, by its labels."""
        return {
            tuple(sorted(found.items())): value
            for sample, found, value in self._samples
            if sample == name and labels.items() <= found.items()
        }

    def value(self, name: str, **labels: str) -> float | None:
        """The value of the one series with exactly these labels; None where there is none."""
        return self.series(name).get(tuple(sorted(labels.items())))

    def buckets(self, name: str, **labels: str) -> dict[str, float]:
        """The cumulative counts of a histogram's series by upper bound."""
        found = self.series(f"{name}_bucket", **labels)
        return {dict(pairs)["le"]: value for pairs, value in found.items()}


def scrape(url: str | None) -> Scrape:
    """Reads the metrics at `url`."""
    assert url is not None, "nothing is served"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return Scrape(answer.read().decode())
