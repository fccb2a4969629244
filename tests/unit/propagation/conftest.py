"""The two ways in which trace and baggage are in force: OpenTelemetry's, and our own where nobody uses it."""

from __future__ import annotations

import pytest

from observability_integration.propagation import ambient


@pytest.fixture(params=["plain", pytest.param("opentelemetry", marks=pytest.mark.needs_otel)])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is in use."""
    way: str = request.param
    monkeypatch.setattr(ambient, "opentelemetry_in_use", lambda: way == "opentelemetry")
    return way
