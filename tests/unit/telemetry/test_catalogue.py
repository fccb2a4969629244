"""The catalogue: complete, consistent, and the source of the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from observability_integration.telemetry.catalogue import CATALOGUE, Kind
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


def test_the_documentation_is_what_the_catalogue_says():
    """`make docs` was run after the last change to the catalogue."""
    check = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], check=False)
    assert 0 == check.returncode, "run `make docs`"
