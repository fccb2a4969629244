"""How many choices a request asks for, whatever the request is."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from observability_integration.errors import ConfigurationError
from observability_integration.primitives import LLMCallPrimitive
from observability_integration.primitives.llm.choices import requested_choices

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"n": 2}, 2),
        (MappingProxyType({"n": 2}), 2),
        (SimpleNamespace(n=3), 3),
        ({"extra_body": {"n": 4}}, 4),
        ({"n": 2, "extra_body": {"n": 4}}, 2),
        ({"prompt": "x", "n": 2}, 2),
        ({"prompt": ["x", "y", "z"]}, 3),
        ({"prompt": ("x", "y"), "n": 2}, 4),
        ({"prompt": [[1, 2], [3], [4]], "n": 2}, 6),
        ({"prompt": [1, 2, 3], "n": 2}, 2),
        ({"prompt": [1, 2, 3]}, None),
        ({"prompt": []}, None),
        ({"prompt": ["x"] * 20_000}, None),
        ({"n": 10_000}, 10_000),
        *(({"n": value}, None) for value in (0, -1, True, "2", 2.0, None, 10_001, 10**400, [2], {}, float("nan"))),
        *((value, None) for value in (None, "n", b"n", 7, [], [{"n": 2}], object(), MagicMock())),
    ],
)
def test_the_number_is_read_if_it_is_one(request_: Any, expected: int | None) -> None:
    """What is no such number is as none: the choices that come are counted instead."""
    assert expected == requested_choices(request_)


class Hostile:
    """A request whose fields cannot be read."""

    @property
    def n(self) -> int:
        raise LookupError


async def test_a_request_that_cannot_be_read_is_sent_all_the_same(metrics: Any) -> None:
    """Nobody's call fails for the sake of a number."""

    async def call(_: Any) -> Any:
        yield "a"

    assert "a" == await LLMCallPrimitive[Any, Any](call).execute(Hostile())
    assert metrics("telemetry.faults", site="llm_call.request")


@pytest.mark.parametrize("choices", [0, -1, True, "2", 1.5])
def test_a_knob_that_is_no_number_is_refused(choices: Any) -> None:
    """At construction, where the mistake is."""
    with pytest.raises(ConfigurationError, match="choices"):
        LLMCallPrimitive(lambda _: None, choices=choices)
