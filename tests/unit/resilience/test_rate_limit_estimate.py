"""How many tokens a request is taken for."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from observability_integration.resilience.rate_limit_estimate import estimate_tokens, estimated

pytestmark = pytest.mark.once

LOOP: list[Any] = []
LOOP.append(LOOP)


class Broken(dict[str, Any]):
    def get(self, *_: Any) -> Any:
        raise RuntimeError


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        ("", 0),
        ("abcde", 2),
        ("é" * 8, 2),
        (None, 0),
        (7, 0),
        (b"12345678", 0),
        ({"messages": [{"role": "user", "content": "12345678"}], "max_tokens": 100}, 102),
        ({"messages": [{"content": [{"type": "text", "text": "1234"}, {"image_url": "data:" + "x" * 999}]}]}, 1),
        ({"system": "1234", "messages": [], "max_completion_tokens": 5, "max_tokens": 9}, 6),
        ({"input": "12345678", "instructions": "1234", "max_output_tokens": 10}, 13),
        ({"contents": [{"parts": [{"text": "1234"}]}]}, 1),
        (SimpleNamespace(prompt="12345678", max_tokens=4), 6),
        ([{"content": "1234"}, "1234"], 2),
        ({"prompt": "1234", "max_tokens": True}, 1),
        ({"prompt": "1234", "max_tokens": -5}, 1),
        ({"prompt": "1234", "max_tokens": "9"}, 1),
        (LOOP, 0),
    ],
)
def test_by_default(request_: Any, tokens: int) -> None:
    """Text of the known shapes by its length, and what the model may answer with; nothing else counts."""
    assert tokens == estimate_tokens(request_)


def test_a_function_of_the_users_is_asked_first() -> None:
    """They may have a tokenizer."""
    assert 7.0 == estimated(lambda request: len(request), "1234567")


@pytest.mark.parametrize("said", [math.nan, math.inf, -1, True, None, "9", KeyError("the prompt")])
def test_a_function_that_fails_is_counted_and_the_default_taken(said: Any, metrics: Any) -> None:
    """A mistake in it must neither fail a call nor let it through for nothing."""

    def function(_: Any) -> Any:
        if isinstance(said, Exception):
            raise said
        return said

    assert 2.0 == estimated(function, "12345678")
    assert 1 == metrics("telemetry.faults", site="rate_limit.estimate_tokens")


def test_a_request_that_cannot_be_read_counts_nothing(metrics: Any) -> None:
    """What it used is charged when the answer says it."""
    assert 0.0 == estimated(None, Broken())
    assert 1 == metrics("telemetry.faults", site="rate_limit.request")
