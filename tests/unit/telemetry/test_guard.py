"""Faults that were kept away from the caller: counted each time, logged once, without a word of a prompt."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from observability_integration.telemetry import guard
from observability_integration.telemetry.catalogue import Profile
from observability_integration.telemetry.catalogue.own import TELEMETRY_FAULTS
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.metrics import instruments

pytestmark = pytest.mark.promise("S9")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing was noted before, and counts are kept."""
    monkeypatch.setattr(guard, "_logged", set())
    instruments.start(exemplars=False, profiles=frozenset({Profile.V1_41}))
    yield
    instruments.stop()


def _raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_a_fault_is_counted_each_time_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A hook that fails on every request must not fill the disk, and must still be seen on a dashboard."""
    for _ in range(1000):
        note_fault("a.site", _raised(KeyError("k")))
    assert 1000 == TELEMETRY_FAULTS.series("a.site").value
    (record,) = caplog.records
    assert logging.WARNING == record.levelno
    assert record.getMessage().startswith(f"a.site raised KeyError at {Path(__file__)}:")


def test_another_site_or_type_is_another_fault(caplog: pytest.LogCaptureFixture) -> None:
    """The second bug of a hook must not hide behind the first."""
    for site, error in (("a", KeyError()), ("a", ValueError()), ("b", KeyError()), ("a", KeyError())):
        note_fault(site, error)
    assert ["a raised KeyError;", "a raised ValueError;", "b raised KeyError;"] == [
        record.getMessage().split(" the call")[0] for record in caplog.records
    ]


@pytest.mark.promise("X4")
def test_the_message_of_the_error_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A key function that fails quotes the prompt it failed on."""
    note_fault("a.site", _raised(ValueError("the secret question")))
    assert "secret" not in caplog.text


def test_what_is_remembered_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Error types made at run time must not grow a set for as long as the process lives."""
    for number in range(1000):
        note_fault("a.site", type(f"Error{number}", (Exception,), {})())
    assert 256 == len(guard._logged)
    assert 256 == len(caplog.records)
    assert 1000 == TELEMETRY_FAULTS.series("a.site").value
