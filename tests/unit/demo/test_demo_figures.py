"""How the demonstration plans its workload, reads the scrape and reckons its figures."""

from __future__ import annotations

import math
from decimal import Decimal
from itertools import pairwise

import pytest

from observability_integration.demo.model_profiles import DEFAULT_PROFILES
from observability_integration.demo.scrape import Samples
from observability_integration.demo.workload import plan

pytestmark = pytest.mark.once

SCRAPE = Samples(
    """# HELP x_total Things.
# TYPE x_total counter
x_total{a="1",b="p q"} 2.0
x_total{a="2",b="say \\"hi\\""} 3.0
y 4.5
x_created{a="1"} 1.7e+09
z_total{a="1"} 0.0
"""
)


def test_a_scrape_is_read_by_name_and_label():
    """The proof of the demonstration stands on reading the endpoint's text, quotes and blanks included."""
    assert 5.0 == SCRAPE.total("x_total")
    assert 3.0 == SCRAPE.total("x_total", a="2")
    assert 0.0 == SCRAPE.total("missing")
    assert {"1": 2.0, "2": 3.0} == SCRAPE.by_label("x_total", "a")
    assert ["y 4.5"] == SCRAPE.lines(["y", "z_total"])


def test_the_plan_is_the_same_for_the_same_seed_and_repeats_some_questions():
    """A demonstration that differs at each run proves nothing; one without repeats shows no cache."""
    first = plan(300, requests_per_second=60.0, seed=1, with_faults=True)
    again = plan(300, requests_per_second=60.0, seed=1, with_faults=True)
    other = plan(300, requests_per_second=60.0, seed=2, with_faults=False)

    assert first == again
    assert first != other
    asked = [str(arrival.messages) for arrival in first]
    assert 30 < len(set(asked)) < 300
    assert all(a.at_seconds <= b.at_seconds for a, b in pairwise(first))
    assert 2.0 < first[-1].at_seconds < 12.0
    assert {"slow", "flaky", None} == {arrival.pinned_route for arrival in first}
    assert {None} == {arrival.pinned_route for arrival in other}


def test_quantiles_are_of_the_values_seen():
    """A quantile must be a latency that some caller really saw."""
    from observability_integration.demo.run import quantile

    values = [float(n) for n in range(1, 101)]
    assert [50.0, 95.0, 99.0, 100.0, 1.0] == [quantile(values, share) for share in (0.5, 0.95, 0.99, 1.0, 0.0)]
    assert 7.0 == quantile([7.0], 0.99)
    assert math.isnan(quantile([], 0.5))


@pytest.mark.needs_otel
def test_cost_counts_upstream_calls_against_everything_sent_to_the_premium_model():
    """The baseline is stated: no cache, no router, the premium model for every answered request."""
    from observability_integration.demo.pipeline import UpstreamCounts
    from observability_integration.demo.run import RunResult, cost

    profiles = {profile.name: profile for profile in DEFAULT_PROFILES}
    run = RunResult(usage_by_request=[("local-small", 1_000_000, 0), ("local-small", 0, 1_000_000)])
    upstream = {"local-small": UpstreamCounts(1, 1_000_000, 1_000_000), "local-slow": UpstreamCounts(1)}

    result = cost(run, upstream, profiles, "local-large")

    assert Decimal("0.75") == result.with_primitives
    assert Decimal("12.50") == result.without_primitives


@pytest.mark.needs_otel
def test_a_figure_that_differs_is_shown_and_fails_the_run():
    """The check at the end must be able to fail."""
    from rich.console import Console

    from observability_integration.demo.report import CrossCheck, print_scrape

    console = Console(record=True, width=120)
    assert print_scrape(console, "http://x", SCRAPE, [CrossCheck("lookups", 3, 3)])
    assert not print_scrape(console, "http://x", SCRAPE, [CrossCheck("lookups", 3, 3), CrossCheck("calls", 2, 3)])
    assert "DIFFER  calls: 2 scraped, 3 seen" in console.export_text()
