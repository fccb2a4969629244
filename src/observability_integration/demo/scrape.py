"""Scrapes the metrics endpoint over HTTP."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one scrape.

    Attributes:
        text: the body of the response.
    """

    text: str

    def _named(self, name: str) -> list[tuple[dict[str, str], float]]:
        found: list[tuple[dict[str, str], float]] = []
        for line in self.text.splitlines():
            match = _SAMPLE.match(line)
            if match is not None and match["name"] == name:
                found.append((dict(_LABEL.findall(match["labels"] or "")), float(match["value"])))
        return found

    def total(self, name: str, **labels: str) -> float:
        """Returns the sum over all series of `name` with these `labels`."""
        return sum(value for found, value in self._named(name) if labels.items() <= found.items())

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Returns the sum over the series of `name`, by the value of one label."""
        sums: dict[str, float] = {}
        for labels, value in self._named(name):
            key = labels.get(label, "")
            sums[key] = sums.get(key, 0.0) + value
        return sums

    def lines(self, names: Sequence[str]) -> list[str]:
        """Returns the lines of these names whose value is not 0, unchanged."""
        matches = ((line, _SAMPLE.match(line)) for line in self.text.splitlines())
        return [line for line, match in matches if match and match["name"] in names and float(match["value"])]


async def scrape(url: str) -> Samples:
    """Sends one GET to the scrape endpoint."""

    def get() -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own loopback URL
            return str(answer.read().decode())

    return Samples(await asyncio.to_thread(get))
