"""The names under which a faulty provider misbehaves: readable, complete, and the same in both directions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability_integration.errors import ConfigurationError
from observability_integration.testing import Fault, fault_of, faults
from observability_integration.testing.faults import (
    FAULTS,
    CutAt,
    Flapping,
    FlappingEvery,
    RateLimited,
    RateLimitedWithRetryAfter,
    SlowFirstToken,
    Unavailable,
)
from observability_integration.testing.request_log import ReceivedRequest, RequestLog, redact_headers

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("fault", "model"),
    [
        (CutAt(5), "faulty-cut-at-5"),
        (CutAt(0), "faulty-cut-at-0"),
        (RateLimited(), "faulty-429"),
        (RateLimited(3), "faulty-429-first-3"),
        (RateLimitedWithRetryAfter(2), "faulty-429-retry-after-2"),
        (RateLimitedWithRetryAfter(0.5, 3), "faulty-429-retry-after-0.5-first-3"),
        (Unavailable(), "faulty-503"),
        (Unavailable(60), "faulty-503-for-60"),
        (SlowFirstToken(0.000001), "faulty-slow-first-token-0.000001"),
        (FlappingEvery(3), "faulty-flapping-every-3"),
        (Flapping(10, 2.5), "faulty-flapping-good-10-bad-2.5"),
    ],
)
def test_a_fault_has_a_name_that_can_be_read(fault: Fault, model: str) -> None:
    """Whoever sees the name in a test or a log knows what was asked for, and the provider reads it back."""
    assert model == fault.model
    assert fault == fault_of(model)
    assert fault == fault_of(f"{model}:any label, even: this")


NUMBERS = {
    "seconds": st.integers(0, 10**9).map(lambda micros: micros / 10**6),
    "token": st.integers(0, 10**6),
    "other": st.integers(1, 10**6),
}


@given(st.data())
def test_every_name_is_read_back(data: st.DataObject) -> None:
    """No two faults share a name, whatever the numbers in it."""
    kind: Any = data.draw(st.sampled_from(FAULTS))
    names = [name for name in kind.__dataclass_fields__ if name != "template"]
    values = {
        name: data.draw(NUMBERS["seconds" if name.endswith("seconds") else "token" if name == "token" else "other"])
        for name in names
    }
    fault = kind(**values)

    assert fault == fault_of(fault.model)


def test_the_table_is_complete() -> None:
    """Every class of a fault is in the table, in the documentation and on the list, each with its own sentence."""
    classes = {
        each
        for each in vars(faults).values()
        if isinstance(each, type) and issubclass(each, Fault) and each is not Fault
    }
    assert classes == set(FAULTS)
    documented = "".join((faults.__doc__ or "").split())
    for kind in FAULTS:
        # The longest names are broken over two lines of the table.
        before, _, after = kind.template.rpartition("[" if "[" in kind.template else "-bad")
        assert (before or after) in documented
        assert after in documented
    assert len(FAULTS) == len({kind.__doc__ for kind in FAULTS})
    page = (Path(__file__).parents[3] / "docs" / "testing.md").read_text()
    assert [kind.template for kind in FAULTS] == re.findall(r"^\| `(faulty-.*?)` \|", page, re.MULTILINE)


@pytest.mark.parametrize("model", ["gpt-4o", "", "local-faulty-reset", "Faulty-reset"])
def test_other_models_are_good(model: str) -> None:
    """Only the prefix makes a fault."""
    assert fault_of(model) is None


@pytest.mark.parametrize(
    "model",
    [
        "faulty-",
        "faulty-cut-at-",
        "faulty-cut-at-1.5",
        "faulty-cut-at--1",
        "faulty-cut-at-5 ",
        "faulty-cut-at-99999999",
        "faulty-cut-at-9999999",
        "faulty-slow-first-token-1e3",
        "faulty-slow-first-token-nan",
        "faulty-flapping-every-0",
        "faulty-429-first-0",
        "faulty-500-twice",
    ],
)
def test_a_misspelt_fault_is_no_good_model(model: str) -> None:
    """A test with a typo in the name of its fault must not pass because nothing went wrong."""
    with pytest.raises(ConfigurationError):
        fault_of(model)


async def test_a_fault_says_what_it_does() -> None:
    """A class without behaviour would answer nothing at all."""
    with pytest.raises(NotImplementedError):
        await Fault().play(None)  # type: ignore[arg-type]
    assert all("play" in vars(kind) for kind in FAULTS)


def test_the_log_is_bounded() -> None:
    """A long test keeps the latest requests only, and still counts them all."""
    log = RequestLog(max_requests=2)
    added = [log.add(ReceivedRequest("a", seconds, {}, stream=False)) for seconds in (1.0, 2.0, 4.0)]

    assert [(1, 1.0), (2, 1.0), (3, 1.0)] == added
    assert [2.0, 4.0] == [request.time_seconds for request in log.requests]
    assert (3, 0, [2.0]) == (log.attempts("a"), log.attempts("b"), log.gaps("a"))


def test_secrets_are_redacted() -> None:
    """Whichever header a provider's client carries its key in."""
    names = "authorization proxy-authorization api-key x-api-key cookie x-goog-api-key xi-api-key apikey x-auth-token "
    gateways = "ocp-apim-subscription-key x-amz-security-token cf-aig-authorization helicone-auth x-functions-key"
    secret = dict.fromkeys((names + gateways).split(), "sk-1")
    plain = dict.fromkeys(["accept", "idempotency-key", "x-max-tokens", "author", "x-request-deadline-ms"], "a")

    assert {**dict.fromkeys(secret, "[redacted]"), **plain} == redact_headers({**secret, **plain})
