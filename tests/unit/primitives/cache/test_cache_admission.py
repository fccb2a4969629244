"""What is kept is handed to others: an answer that was cut, filtered or empty must not become everybody's answer."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any, get_args

import pytest

from observability_integration.errors import ConfigurationError
from observability_integration.primitives import Completion, ToolCall
from observability_integration.primitives.cache import admission as cache_admission
from observability_integration.primitives.cache.admission import (
    _BY_FINISH_REASON,
    _BY_SEVERITY,
    _BY_STATUS,
    Admission,
    RefusalReason,
)
from tests.langchain_doubles import AIMessage, AIMessageChunk

pytestmark = pytest.mark.once

ADMISSION = Admission()
_CALL = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}


def _chat(finish_reason: str | None = "stop", **message: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "Paris", **message}
    choice = {"index": 0, "finish_reason": finish_reason, "message": message, "logprobs": None}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def _response(*output: dict[str, Any], status: str = "completed", **fields: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "output": list(output) or [_spoken("Paris")],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "status": status,
        "error": None,
        **fields,
    }


def _spoken(text: str) -> dict[str, Any]:
    return _item("message", content=[{"type": "output_text", "text": text, "annotations": []}])


def _item(kind: str, **fields: Any) -> dict[str, Any]:
    return {"id": "i", "type": kind, "role": "assistant", "status": "completed", **fields}


def _message(stop_reason: str | None = "end_turn", *content: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": list(content) or [{"type": "text", "text": "Paris", "citations": None}],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


_TOOL_USE = {"type": "tool_use", "id": "t", "name": "look_up", "input": {}}
_THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
_REFUSED = _item("message", content=[{"type": "refusal", "refusal": "No."}])
_FUNCTION_CALL = _item("function_call", call_id="c", name="look_up", arguments="{}")
_SEARCH = _item("web_search_call", action={"type": "search", "query": "q"})
_PICTURE = _item("image_generation_call", result="aGk=")

_ANSWERS: list[tuple[str, dict[str, Any], RefusalReason | None]] = [
    ("chat, whole", _chat(), None),
    ("chat, ended in a way of its own", _chat("eos"), None),
    ("chat, cut", _chat("length"), "length"),
    ("chat, cut before it said anything", _chat("length", content=None), "length"),
    ("chat, filtered", _chat("content_filter"), "content_filter"),
    ("chat, refused", _chat(content=None, refusal="No."), "content_filter"),
    ("chat, calls a tool", _chat("tool_calls", content=None, tool_calls=[_CALL]), "tool_call"),
    ("chat, calls a tool on the side", _chat(tool_calls=[_CALL]), "tool_call"),
    ("chat, calls a function", _chat("function_call", content=None, function_call=_CALL["function"]), "tool_call"),
    ("chat, empty", _chat(content=""), "empty"),
    ("chat, blank", _chat(content=" \n"), "empty"),
    ("chat, nothing", _chat(content=None), "empty"),
    ("chat, only thought", _chat(content=None, reasoning_content="Hm."), "empty"),
    ("chat, spoken aloud", _chat(content=None, audio={"id": "a", "data": "", "expires_at": 1, "transcript": ""}), None),
    ("chat, no choices", {**_chat(), "choices": []}, "empty"),
    ("chat, one of two cut", {**_chat(), "choices": _chat()["choices"] + _chat("length")["choices"]}, "length"),
    ("chat, an error beside", {**_chat(), "error": {"message": "overloaded", "code": 502}}, "error"),
    ("response, whole", _response(), None),
    ("response, cut", _response(status="incomplete", incomplete_details={"reason": "max_output_tokens"}), "length"),
    (
        "response, filtered",
        _response(status="incomplete", incomplete_details={"reason": "content_filter"}),
        "content_filter",
    ),
    ("response, incomplete", _response(status="incomplete"), "length"),
    ("response, failed", _response(status="failed", error={"code": "server_error", "message": "m"}), "error"),
    ("response, refused", _response(_REFUSED), "content_filter"),
    ("response, cancelled", _response(status="cancelled"), "length"),
    ("response, still under way", _response(status="in_progress"), "length"),
    ("response, in the background", {**_response(status="queued"), "output": []}, "length"),
    ("response, calls a function", _response(_FUNCTION_CALL), "tool_call"),
    ("response, says something and calls", _response(_spoken("Wait."), _FUNCTION_CALL), "tool_call"),
    ("response, has searched", _response(_SEARCH, _spoken("Paris")), None),
    ("response, has only searched", _response(_SEARCH), "empty"),
    ("response, a picture", _response(_PICTURE), None),
    ("response, blank", _response(_spoken(" ")), "empty"),
    ("response, only thought", _response(_item("reasoning", summary=[])), "empty"),
    ("message, whole", _message(), None),
    ("message, ended by a stop sequence", _message("stop_sequence"), None),
    ("message, cut", _message("max_tokens"), "length"),
    ("message, window full", _message("model_context_window_exceeded"), "length"),
    ("message, paused", _message("pause_turn"), "length"),
    ("message, refused", _message("refusal"), "content_filter"),
    ("message, uses a tool", _message("tool_use", _TOOL_USE), "tool_call"),
    ("message, uses a tool on the side", _message("end_turn", _TOOL_USE), "tool_call"),
    ("message, cut in a tool's input", _message("max_tokens", _TOOL_USE), "length"),
    ("message, only thought", _message("end_turn", _THOUGHT), "empty"),
    ("message, blank", _message("end_turn", {"type": "text", "text": ""}), "empty"),
    ("message, nothing", {**_message(), "content": []}, "empty"),
]


class _OwnText(str):
    """As Mistral's SDK has what it does not know."""


def _as_object(answer: dict[str, Any]) -> Any:
    module, name = {
        "chat.completion": ("openai.types.chat", "ChatCompletion"),
        "response": ("openai.types.responses", "Response"),
        "message": ("anthropic.types", "Message"),
    }[answer.get("object") or answer["type"]]
    kind = getattr(pytest.importorskip(module), name)
    # Built like the SDKs do: without validation at the top, and with the right classes below.
    return kind.construct(**answer)


_AI_CALL = {"name": "look_up", "args": {}, "id": "c"}
_THINKING = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
_INCOMPLETE = {"object": "response", "status": "incomplete"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (AIMessage("Paris", {"finish_reason": "stop"}), None),
        (AIMessage("Paris"), None),
        (AIMessage("Paris", {"finish_reason": "length"}), "length"),
        (AIMessage("Paris", {"stop_reason": "max_tokens"}), "length"),
        (AIMessage("Paris", {"done_reason": "length"}), "length"),
        (AIMessage("Paris", {"finish_reason": "SAFETY"}), "content_filter"),
        (AIMessage("Paris", {"stopReason": "guardrail_intervened"}), "content_filter"),
        (AIMessage("Paris", _INCOMPLETE), "length"),
        (AIMessage("Paris", {**_INCOMPLETE, "incomplete_details": {"reason": "content_filter"}}), "content_filter"),
        (AIMessage("", {"stop_reason": "refusal"}), "content_filter"),
        (AIMessage("", {"finish_reason": "stop"}, additional_kwargs={"refusal": "No."}), "content_filter"),
        (AIMessage("", {"finish_reason": "tool_calls"}, tool_calls=[_AI_CALL]), "tool_call"),
        (AIMessage("Wait.", {"finish_reason": "stop"}, tool_calls=[_AI_CALL]), "tool_call"),
        (AIMessage("", {"finish_reason": "stop"}), "empty"),
        (AIMessage([], {"finish_reason": "stop"}), "empty"),
        (AIMessage([_THINKING], {"stop_reason": "end_turn"}), "empty"),
        (AIMessage([_THINKING, {"type": "text", "text": "Paris"}], {"stop_reason": "end_turn"}), None),
        (AIMessage(["Paris"], {"finish_reason": "stop"}), None),
        (AIMessageChunk("Paris", {"finish_reason": "length"}), "length"),
        ({"type": "ai", "content": "Paris", "response_metadata": {"finish_reason": "length"}}, "length"),
        (Completion("Paris", finish_reason="stop"), None),
        (Completion("Paris"), None),
        (Completion("Paris", finish_reason="length"), "length"),
        (Completion("Paris", finish_reason=_OwnText("content_filter")), "content_filter"),
        (Completion("Paris", finish_reason="insufficient_system_resource"), "length"),
        (Completion("", finish_reason="stop", refusal="No."), "content_filter"),
        (Completion("", finish_reason="tool_calls", tool_calls=(ToolCall("c", "f", "{}"),)), "tool_call"),
        (Completion(" ", finish_reason="stop"), "empty"),
    ],
)
def test_messages_of_langchain_and_joined_answers_are_judged_too(answer: Any, expected: RefusalReason | None) -> None:
    """What is handed on in another form is as whole, or as cut, as it was."""
    assert expected == ADMISSION.refuses(answer)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("MALFORMED_FUNCTION_CALL", "error"),
        ("malformed_model_output", "error"),
        ("malformed_tool_use", "error"),
        ("TOO_MANY_TOOL_CALLS", "error"),
        ("MISSING_THOUGHT_SIGNATURE", "error"),
        ("LANGUAGE", "content_filter"),
        ("IMAGE_PROHIBITED_CONTENT", "content_filter"),
        ("IMAGE_RECITATION", "content_filter"),
        ("TIMEOUT", "length"),
        ("OTHER", "length"),
        ("TOOL_CALL", "tool_call"),
        ("COMPLETE", None),
        ("STOP_SEQUENCE", None),
        ("eos_token", None),
    ],
)
def test_finish_reasons_of_providers(reason: str, expected: RefusalReason | None) -> None:
    """Cohere's, Bedrock's and Gemini's own words; an unknown word is a normal end."""
    choice = {"message": {"content": "Paris"}, "finish_reason": reason}
    assert expected == ADMISSION.refuses({"object": "chat.completion", "choices": [choice]})


@pytest.mark.parametrize(("answer", "expected"), [case[1:] for case in _ANSWERS], ids=[case[0] for case in _ANSWERS])
@pytest.mark.parametrize("form", [dict, _as_object], ids=["dict", "object"])
def test_answers_are_judged_by_their_shape(form: Any, answer: dict[str, Any], expected: RefusalReason | None) -> None:
    """The SDKs' objects and the dicts of those who speak HTTP themselves must come to the same."""
    assert expected == ADMISSION.refuses(form(answer))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"choices": [{"text": "Paris", "finish_reason": "stop"}]}, None),
        ({"choices": [{"text": "", "finish_reason": "stop"}]}, "empty"),
        ({"choices": [{"message": {"content": "Paris"}, "finish_reason": "SAFETY"}]}, "content_filter"),
        ({"choices": [{"message": {"content": "Paris"}, "error": {"code": 502}}]}, "error"),
        ({"choices": ({"message": {"content": [{"type": "text", "text": "Paris"}]}},)}, None),
        ({"choices": [{"message": {"content": [{"type": "text", "text": " "}]}}]}, "empty"),
        ({"choices": [{"message": {"content": "", "images": [{"image_url": {"url": "data:"}}]}}]}, None),
        (_response(_item("a_call_of_the_future_call")), "tool_call"),
        (_response(_item("mcp_approval_request")), "tool_call"),
        (_response(_item("message", content=None)), "empty"),
        ({"error": {"message": "m", "type": "server_error", "param": None, "code": None}}, "error"),
        ({"error": {"message": "m", "code": 429}}, "error"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "m"}, "request_id": "r"}, "error"),
    ],
)
def test_shapes_that_no_sdk_makes_are_judged_too(answer: Any, expected: RefusalReason | None) -> None:
    """Servers that speak a provider's dialect leave out fields, or add some."""
    assert expected == ADMISSION.refuses(answer)


def test_an_error_that_came_as_an_answer_is_none() -> None:
    """Who calls over HTTP without an SDK may return the body of an error like any other."""
    types = pytest.importorskip("anthropic.types")
    error = types.ErrorResponse.construct(
        type="error", error={"type": "overloaded_error", "message": "m"}, request_id=None
    )
    assert "error" == ADMISSION.refuses(error)


class _Anything:
    def __getattr__(self, name: str) -> Any:
        return _Anything()


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", None, b"", 0, False, [], {}, "Paris", ["Paris"], [""], {"text": ""}),
        *({"choices": []}, {"choices": ["a", "b"]}, {"choices": [{"label": "a"}]}, {"choices": "ab"}),
        *({"error": None}, {"error": "none"}, {"error": {"rate": 0.1}}, {"error": {"message": "m"}}),
        *({"output": []}, {"object": "response"}, {"object": "response", "output": "text"}),
        *({"type": "message", "content": ""}, {"type": "message"}, {"status": "failed"}, {"finish_reason": "length"}),
        *(object(), _Anything(), print),
    ],
    ids=repr,
)
def test_values_of_no_such_shape_are_not_judged(value: Any) -> None:
    """A cache is used for more than models, and there nothing at all may be the right answer."""
    assert ADMISSION.refuses(value) is None


def test_every_reason_is_one_of_the_closed_set() -> None:
    """Each becomes a label of a counter, and of several the gravest must be known."""
    named = {*_BY_FINISH_REASON.values(), *_BY_STATUS.values()}
    assert named <= set(_BY_SEVERITY)
    assert {*_BY_SEVERITY, "temperature", "declined", "too_large"} == set(get_args(RefusalReason))


def test_answers_that_call_tools_are_kept_if_asked() -> None:
    """Where tools are pure, their calls may be kept like anything else, but not those that were cut."""
    admission = Admission(tool_calls=True)
    assert admission.refuses(_chat("tool_calls", content=None, tool_calls=[_CALL])) is None
    assert admission.refuses(_response(_FUNCTION_CALL)) is None
    assert admission.refuses(_message("tool_use", _TOOL_USE)) is None
    assert "length" == admission.refuses(_chat("length", content=None, tool_calls=[_CALL]))
    assert admission.refuses(_chat("tool_use", content="")) is None  # as it may be put together from a stream
    assert "empty" == admission.refuses(_chat(content=None))


class NotGiven:
    """As the SDKs mark what is not sent."""


class _Float:
    """A number that is no float, as numpy's are."""

    def __init__(self, value: float) -> None:
        self._value = value

    def __float__(self) -> float:
        return self._value


_STILL = [0, 0.0, -0.0, "0", "0.0", Decimal(0), _Float(0.0), None, NotGiven()]
_VARYING = [0.1, 1, "0.7", " 1e-3 ", Decimal("0.7"), Fraction(7, 10), _Float(0.7), float("nan"), "nan", float("inf")]
_UNREADABLE = ["hot", "", [0], {}, object(), 10**400, Decimal("sNaN")]


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        *((temperature, None) for temperature in _STILL),
        *((temperature, "temperature") for temperature in [*_VARYING, *_UNREADABLE]),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_temperature_asks_for_answers_that_vary(temperature: Any, expected: RefusalReason | None) -> None:
    """One kept for all would be the opposite; with `any_temperature` that is what the user wants.

    Read from JSON or from a table it may be of any type, and an SDK sends what is in `extra_body` with the rest.
    """
    for request in (
        {"messages": [], "temperature": temperature},
        _Request(temperature),
        {"temperature": 0, "extra_body": {"temperature": temperature}},
    ):
        assert expected == ADMISSION.refuses_request(request)
        assert Admission(any_temperature=True).refuses_request(request) is None


class _Request:
    def __init__(self, temperature: Any) -> None:
        self.temperature = temperature


@pytest.mark.parametrize(
    "request_", [{"messages": []}, {"extra_body": None}, {"extra_body": {"top_k": 5}}, "Hi", ["Hi"], None, {}]
)
def test_a_request_that_names_no_temperature_is_not_refused(request_: Any) -> None:
    """Most name none, and models that reason accept none; a cache that never kept anything would be no use."""
    assert ADMISSION.refuses_request(request_) is None


def test_the_user_has_the_last_word() -> None:
    """Only the user knows an apology from an answer; what is refused anyway is not shown to the function."""
    seen: list[Any] = []

    def admit(answer: Any) -> bool:
        seen.append(answer)
        return "sorry" not in answer

    admission = Admission(admit=admit)
    assert admission.refuses("Paris") is None
    assert "declined" == admission.refuses("I am sorry.")
    assert "length" == admission.refuses(_chat("length"))
    assert ["Paris", "I am sorry."] == seen


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, type[BaseException]]]:
    """What was noted of functions and objects of the user's that failed."""
    noted: list[tuple[str, type[BaseException]]] = []
    monkeypatch.setattr(cache_admission, "note_fault", lambda site, error: noted.append((site, type(error))))
    return noted


def test_a_function_that_fails_keeps_nothing_and_fails_no_call(faults: list[Any]) -> None:
    """It was asked to find what must not be kept; if it cannot, the answer still goes to the caller."""

    def admit(answer: Any) -> bool:
        raise RuntimeError(answer)

    assert "declined" == Admission(admit=admit).refuses("Paris")
    assert [("cache.admit", RuntimeError)] == faults


class _Hostile:
    @property
    def object(self) -> str:
        raise RuntimeError("read me and fail")

    @property
    def temperature(self) -> float:
        raise RuntimeError("read me and fail")


def test_an_object_that_cannot_be_read_fails_no_call(faults: list[Any]) -> None:
    """What is no model's answer may be anything, down to an object whose attributes raise, or even its class."""
    assert ADMISSION.refuses(_Hostile()) is None
    assert ADMISSION.refuses(_Proxy()) is None
    assert "temperature" == ADMISSION.refuses_request(_Hostile())
    assert 3 * [("cache.admit", RuntimeError)] == faults


class _Proxy:
    """Stands for an object that is not there."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("bound to nothing")


@pytest.mark.parametrize("given", ["text", True])
def test_what_is_no_function_is_refused(given: Any) -> None:
    """At construction, where the mistake is, and not at the first answer."""
    with pytest.raises(ConfigurationError, match="admit"):
        Admission(admit=given)


def test_an_asynchronous_function_is_refused() -> None:
    """It would return a coroutine, which is true, and keep everything."""

    async def admit(answer: Any) -> bool:
        raise AssertionError

    with pytest.raises(ConfigurationError, match="asynchronous"):
        Admission(admit=admit)  # type: ignore[arg-type]
