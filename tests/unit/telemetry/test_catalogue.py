"""The catalogue: complete, consistent, and the source of the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from observability_integration.telemetry.catalogue import CATALOGUE, Kind
from observability_integration.telemetry.catalogue.timeout import TIMEOUT_SUCCESSES
from observability_integration.telemetry.metrics import instruments

ROOT = Path(__file__).parents[3]

# What dashboards and alert rules may rely on: name, kind, labels.
CONTRACT = {
    ("router_decisions_total", "counter", ("route", "reason")),
    ("router_execution_seconds", "histogram", ("route",)),
    ("router_cost_savings_usd_total", "counter", ("route",)),
    ("router_errors_total", "counter", ("route", "error_type")),
    ("cache_hits_total", "counter", ("operation",)),
    ("cache_misses_total", "counter", ("operation",)),
    ("cache_hit_rate", "gauge", ("operation",)),
    ("cache_latency_seconds", "histogram", ("operation", "hit")),
    ("cache_cost_savings_usd_total", "counter", ("operation",)),
    ("timeout_successes_total", "counter", ("operation",)),
    ("timeout_failures_total", "counter", ("operation", "kind")),
    ("timeout_errors_total", "counter", ("operation", "error_type")),
    ("timeout_execution_seconds", "histogram", ("operation",)),
    ("timeout_rate", "gauge", ("operation",)),
    ("gen_ai_client_operation_duration_seconds", "histogram", None),
    ("gen_ai_client_token_usage", "histogram", None),
}


@pytest.mark.promise("M1")
def test_what_others_rely_on_is_in_the_catalogue():
    """A renamed metric breaks every dashboard that shows it."""
    known = {spec.prometheus_name: spec for spec in CATALOGUE}
    for name, kind, labels in CONTRACT:
        assert kind == known[name].kind.value
        assert labels in (None, known[name].prometheus_labels)


def test_names_are_unique_and_legal():
    """Two metrics of one name, or a name that Prometheus refuses, would spoil the whole scrape."""
    names = [spec.prometheus_name for spec in CATALOGUE]
    assert len(names) == len(set(names))
    for spec in CATALOGUE:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", spec.prometheus_name)
        assert (spec.kind is Kind.COUNTER) == spec.prometheus_name.endswith("_total")
        assert spec.description.endswith(".")
        assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in spec.prometheus_labels)


def test_histograms_have_rising_buckets_and_nothing_else_has_any():
    """Bounds out of order would make every quantile nonsense."""
    for spec in CATALOGUE:
        assert (spec.kind is Kind.HISTOGRAM) == bool(spec.buckets)
        assert list(spec.buckets) == sorted(set(spec.buckets))


def test_every_metric_has_its_instrument_or_is_derived_from_counters():
    """A metric in the table that nothing records would be documented and never seen."""
    kinds = {spec.name: spec.kind for spec in CATALOGUE}
    for spec in CATALOGUE:
        assert (spec.name in instruments.ALL) != bool(spec.ratio)
        assert all(kinds[name] is Kind.COUNTER for name in spec.ratio)


@pytest.mark.parametrize("name", ["timeout.successes", "timeout.rate"])
def test_a_name_is_declared_once(name: str):
    """A second metric of the name would take the first one's place at the exporters, which then lose its counts."""
    declared = dict(instruments.ALL)
    with pytest.raises(ValueError, match=name):
        instruments.counter(name, ("operation",), "Another.")
    with pytest.raises(ValueError, match=name):
        instruments.ratio(name, ("operation",), "Another.", TIMEOUT_SUCCESSES, [TIMEOUT_SUCCESSES])
    assert declared == instruments.ALL
    assert TIMEOUT_SUCCESSES is instruments.ALL["timeout.successes"]


@pytest.mark.parametrize("first", ["catalogue.timeout", "metrics.instruments", "metrics.snapshot", "guard"])
def test_the_catalogue_is_whole_and_in_order_whatever_is_imported_first(first: str):
    """A primitive imports the metrics of its own; a scrape and the documentation show all of them."""
    code = (
        f"import observability_integration.telemetry.{first}\n"
        "from observability_integration.telemetry.metrics import snapshot\n"
        "from observability_integration.telemetry.metrics.instruments import SPECS\n"
        "print(*SPECS)"
    )
    names = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert [spec.name for spec in CATALOGUE] == names


def test_the_documentation_is_what_the_catalogue_says():
    """`make docs` was run after the last change to the catalogue."""
    check = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], check=False)
    assert 0 == check.returncode, "run `make docs`"
