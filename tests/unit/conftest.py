"""What the unit tests share: the clock they run on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A test module that names a `LOOP_FACTORY` runs on that loop."""
    module = getattr(item, "module", None)
    return {"loop": getattr(module, "LOOP_FACTORY", asyncio.new_event_loop)}
