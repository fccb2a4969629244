"""Refuses wrong numbers where they are set."""

from __future__ import annotations

from typing import Any

from observability_integration.errors import ConfigurationError


def check_count(knob: str, value: Any, least: int) -> None:
    """Refuses what is not an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{knob} must be an integer >= {least}, got {value!r}")
