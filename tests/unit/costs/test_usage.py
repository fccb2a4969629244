"""Usage is what hits are said to save, and it is read from whatever an answer happens to be."""

from __future__ import annotations

from typing import Any

import pytest

from observability_integration.costs.usage import Usage, total_tokens_of, usage_of


class _Array:
    """Like numpy's, which do not say whether they are empty."""

    def __repr__(self) -> str:
        return "array"

    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array with more than one element is ambiguous")


class _Reported(_Array):
    prompt_tokens = 3
    completion_tokens = 4


_CHAT = {"prompt_tokens": 3, "completion_tokens": 4}


@pytest.mark.parametrize("usage", [_Array(), {}, [], "", 0, 0.0, False, None, "much", 7], ids=repr)
def test_what_is_no_usage_is_unknown(usage: Any) -> None:
    """A field of that name may hold anything."""
    assert Usage() == usage_of({"usage": usage})
    assert 0 == total_tokens_of({"usage": usage})


@pytest.mark.parametrize("usage", [{}, [], "", 0, 0.0, False, None], ids=repr)
def test_where_nothing_is_said_the_usage_may_stand_elsewhere(usage: Any) -> None:
    """An empty field is as none."""
    assert 7 == total_tokens_of({"usage": usage, "message": {"usage": usage}, "response": {"usage": _CHAT}})


@pytest.mark.parametrize("usage", [_CHAT, _Reported()], ids=["dict", "object"])
@pytest.mark.parametrize("place", [None, "message", "response"])
def test_usage_is_found_in_each_of_its_places(usage: Any, place: str | None) -> None:
    """An answer has it at the top, a chunk in the message or the response that it holds."""
    answer: Any = {"usage": usage}
    if place is not None:
        answer = {place: answer}
    assert Usage(3, 4) == usage_of(answer)
    assert 7 == total_tokens_of(answer)
