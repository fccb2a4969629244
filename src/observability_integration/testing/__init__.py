"""Tools for the tests of code that uses this library.

`FaultyProvider` misbehaves over a real socket, `FakeClockLoop` makes waiting take no time, `capture_telemetry` collects
spans, metrics and events, `assert_no_abandoned` finds timed-out work that still runs, and `set_testing` removes the
pauses between retries. `pytest_plugin` offers the first four as fixtures.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .abandoned import abandoned_work, assert_no_abandoned
    from .captured_spans import CapturedSpan
    from .captured_telemetry import CapturedTelemetry, capture_telemetry
    from .clock import FakeClockLoop
    from .fault_name import Fault
    from .faults import fault_of
    from .faulty_provider import FaultyProvider
    from .request_log import ReceivedRequest
    from .retry_switch import set_testing

__all__ = [
    "CapturedSpan",
    "CapturedTelemetry",
    "FakeClockLoop",
    "Fault",
    "FaultyProvider",
    "ReceivedRequest",
    "abandoned_work",
    "assert_no_abandoned",
    "capture_telemetry",
    "fault_of",
    "set_testing",
]

_HOME = {
    "CapturedSpan": "captured_spans",
    "CapturedTelemetry": "captured_telemetry",
    "FakeClockLoop": "clock",
    "Fault": "fault_name",
    "FaultyProvider": "faulty_provider",
    "ReceivedRequest": "request_log",
    "abandoned_work": "abandoned",
    "assert_no_abandoned": "abandoned",
    "capture_telemetry": "captured_telemetry",
    "fault_of": "faults",
    "set_testing": "retry_switch",
}


def __getattr__(name: str) -> Any:
    # Lazy: every run of pytest imports this package for the plugin, whether or not a test uses it.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
