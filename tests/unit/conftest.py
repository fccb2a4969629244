"""What the unit tests share: the clock they run on, and counts from zero."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from observability_integration.telemetry import instruments
from observability_integration.telemetry.snapshot import snapshot


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A test module that names a `LOOP_FACTORY` runs on that loop."""
    module = getattr(item, "module", None)
    return {"loop": getattr(module, "LOOP_FACTORY", asyncio.new_event_loop)}


@pytest.fixture
def metrics() -> Iterator[Callable[..., Any]]:
    """Counts from zero: `metrics("timeout.failures", operation="ask", kind="total")` is what stands there now.

    A histogram is shown as the number of its measurements; a series that is not there, as None.
    """
    profiles = instruments.switch.profiles
    instruments.start(exemplars=False, profiles=frozenset())

    def value(name: str, **labels: str) -> float | None:
        for spec, points in snapshot():
            for point in points:
                if (spec.name, dict(point.attributes)) == (name, labels):
                    return sum(point.counts) if point.counts else point.value
        return None

    yield value
    instruments.stop()
    instruments.switch.profiles = profiles
