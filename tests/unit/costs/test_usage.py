"""Usage is what hits are said to save, and it is read from whatever an answer happens to be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import MagicMock

import pytest

from observability_integration.costs.usage import (
    Usage,
    choices_of,
    finish_reasons_of,
    id_of,
    is_provider_chunk,
    model_of,
    read,
    total_tokens_of,
    usage_of,
)


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


@pytest.mark.parametrize("form", [dict, lambda event: SimpleNamespace(**event)], ids=["dict", "object"])
@pytest.mark.parametrize("event", [{"type": "chunk", "chunk": None}, {"data": None}], ids=["openai", "mistral"])
@pytest.mark.parametrize("choices", [[], [{"index": 0, "finish_reason": "stop"}]], ids=["usage", "reason"])
def test_the_chunk_inside_an_event_is_read(event: dict[str, Any], form: Any, choices: list[Any]) -> None:
    """The stream helpers of OpenAI's and Mistral's SDKs wrap the chunks of the provider."""
    chunk = {"choices": choices, "usage": _CHAT, "model": "m", "id": "c1"}
    wrapped = form({name: value or chunk for name, value in event.items()})
    assert (Usage(3, 4), 7) == (usage_of(wrapped), total_tokens_of(wrapped))
    assert ("m", "c1", choices) == (model_of(wrapped), id_of(wrapped), choices_of(wrapped))
    assert (("stop",) if choices else ()) == finish_reasons_of(wrapped)
    assert is_provider_chunk(wrapped)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "chunk", "chunk": "text"},
        {"type": "chunk", "chunk": {"choices": "none"}},
        {"type": "chunk"},
        {"type": "other", "chunk": {"choices": []}},
        {"type": ["chunk"], "chunk": {"choices": []}},
        {"data": {"usage": _CHAT}},
        {"data": {"data": {"choices": []}}},
        {"chunk": {"choices": []}},
    ],
    ids=repr,
)
def test_what_only_looks_like_such_an_event(event: dict[str, Any]) -> None:
    """A field of that name may hold anything."""
    assert choices_of(event) is None
    assert Usage() == usage_of(event)
    assert not is_provider_chunk(event)


class TestRead:
    """Reading a pydantic model by its fields must find exactly what its attributes are."""

    @pytest.fixture
    def model(self) -> Any:
        pydantic = pytest.importorskip("pydantic")

        class Model(pydantic.BaseModel, extra="allow"):  # type: ignore[misc, name-defined, call-arg]
            told: int = 1
            nothing: int | None = None
            constant: ClassVar[int] = 5

            @property
            def derived(self) -> int:
                return self.told + 1

        return Model

    def test_what_a_model_has(self, model: Any) -> None:
        """Fields, what was sent besides, properties and constants; None for what is not there, or was not set."""
        made = model(told=3, more=4)
        names = ("told", "nothing", "more", "derived", "constant", "missing", "model_extra")
        assert [3, None, 4, 4, 5, None, {"more": 4}] == [read(made, name) for name in names]
        assert [None, None] == [read(model.model_construct(), name) for name in ("missing", "nothing")]
        assert 1 == read({"a": made.model_construct()}, "a", "told")

    def test_what_only_looks_like_one(self, model: Any) -> None:
        """A mock says that it is of the class it stands for; an unfinished or peculiar model is asked itself."""

        class Peculiar(model):  # type: ignore[misc]
            def __getattr__(self, name: str) -> Any:
                return f"any {name}"

        class Proxy:
            __slots__ = ()
            __class__ = model

            def __getattr__(self, name: str) -> Any:
                return 7

        assert [9, 7] == [read(MagicMock(spec=model, told=9), "told"), read(Proxy(), "missing")]
        assert "any missing" == read(Peculiar(), "missing")
        assert read(model.__new__(model), "missing") is None

    def test_a_property_that_fails_is_not_hidden(self, model: Any) -> None:
        """Whoever reads is told, as by any other object."""

        class Failing(model):  # type: ignore[misc]
            @property
            def broken(self) -> int:
                raise LookupError

        with pytest.raises(LookupError):
            read(Failing(), "broken")


def test_a_later_report_adds_to_an_earlier_one() -> None:
    """Reports are cumulative, and one that says nothing changes nothing."""
    first = Usage(3, 1, 2)
    assert first is first.merged(usage_of({"choices": []}))
    assert Usage(3, 4, 2) == first.merged(Usage(None, 4, 1))
