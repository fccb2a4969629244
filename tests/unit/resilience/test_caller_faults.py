"""A mistake of the calling program is a kind of its own; what only looks like one keeps the kind that it has."""

from __future__ import annotations

import asyncio
import binascii
import json
import zlib
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import msgspec
import pytest

from observability_integration.errors import CircuitOpenError, ConfigurationError, StreamInterruptedError
from observability_integration.resilience.faults import Fault, FaultKind, classify
from observability_integration.resilience.faults.caller import CALLER_ERRORS, mark_begun

pytestmark = [pytest.mark.promise("K2", "F1"), pytest.mark.once]


def raised(run: Callable[[], Any]) -> Exception:
    """The exception as Python raises it, with traceback and context."""
    try:
        run()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def _misspelt() -> None:
    def create(*, model: str) -> None: ...

    create(modle="m")  # type: ignore[call-arg]


def _unbound() -> None:
    if len("") > 1:
        name = 1
    print(name)  # noqa: T201


MISTAKES: dict[str, Callable[[], Any]] = {
    "a misspelt parameter": _misspelt,
    "a missing item": lambda: {}["messages"],
    "a missing attribute": lambda: object().messages,  # type: ignore[attr-defined]
    "a wrong value": lambda: int("many"),
    "a missing name": lambda: eval("undefined_name"),
    "a name too early": _unbound,
    "a missing module": lambda: __import__("no_such_module_at_all"),
    "a missing import": lambda: exec("from json import nothing"),
    "a prompt that cannot be encoded": lambda: "\ud800".encode(),
    "a key that is no ASCII": lambda: "schlüssel".encode("ascii"),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_mistakes_as_python_raises_them(mistake: str) -> None:
    """They tell of the program alone: no provider has been asked yet."""
    fault = classify(raised(MISTAKES[mistake]))
    assert Fault("caller") == fault
    allows = (fault.retries_same_target, fault.turns_to_next, fault.turns_to_larger_window, fault.counts_against_target)
    assert not any(allows)


@pytest.mark.parametrize("each", sorted(CALLER_ERRORS, key=lambda each: each.__name__))
def test_each_class_of_mistake(each: type[Exception]) -> None:
    """Also empty, in a group, wrapped around another one, and in a circle; a header does not make it worth a retry."""
    error: Any = each.__new__(each)
    assert Fault("caller") == classify(error)
    assert Fault("caller") == classify(ExceptionGroup("g", [ConnectionError(), error]))
    error.__cause__ = KeyError("inner")
    assert Fault("caller") == classify(error)
    error.__cause__ = error
    assert Fault("caller") == classify(error)
    assert not Fault("caller", should_retry=True).retries_same_target


class ProviderDown(ValueError):
    """An application's error of a provider."""


class WrongShape(TypeError):
    """An application's error of an answer."""


class Model(msgspec.Struct):
    """An answer."""

    text: str


NOT_THE_CALLERS: dict[str, tuple[Callable[[], Any], FaultKind]] = {
    "an error of the application": (lambda: _throw(ProviderDown()), "unknown"),
    "another one": (lambda: _throw(WrongShape()), "unknown"),
    "a frozen value": (lambda: _throw(FrozenInstanceError()), "unknown"),
    "a list that is too short": (lambda: [][0], "unknown"),
    "an assertion": (lambda: _throw(AssertionError()), "unknown"),
    "a closed client": (lambda: _throw(RuntimeError("client has been closed")), "unknown"),
    "base64": (lambda: binascii.a2b_base64("a"), "unknown"),
    "zlib": (lambda: zlib.decompress(b"no"), "unknown"),
    "a reply that is no JSON": (lambda: json.loads("{"), "malformed"),
    "a reply that is no text": (lambda: b"\xff".decode(), "malformed"),
    "a reply that msgspec cannot read": (lambda: msgspec.json.decode(b"{"), "malformed"),
    "a reply of another shape": (lambda: msgspec.json.decode(b"{}", type=Model), "malformed"),
    "our own refusal of an argument": (lambda: _throw(ConfigurationError("no")), "invalid_request"),
    "our own breaker": (lambda: _throw(CircuitOpenError("t", 1.0)), "refused"),
}


def _throw(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("case", NOT_THE_CALLERS, ids=str)
def test_what_is_no_mistake_of_the_caller(case: str) -> None:
    """A subclass is some domain's own error, and a reply that cannot be read is the provider's."""
    run, kind = NOT_THE_CALLERS[case]
    assert kind == classify(raised(run)).kind


def test_replies_that_another_library_cannot_read() -> None:
    """Their errors are subclasses of ValueError, and the provider's all the same."""
    reply: Any = pytest.importorskip("pydantic").create_model("Reply", text=(str, ...))
    assert "malformed" == classify(raised(lambda: reply.model_validate_json("{}"))).kind
    decode_error = type("JSONDecodeError", (ValueError,), {"__module__": "ujson"})
    assert "malformed" == classify(decode_error("expected an object")).kind


@pytest.mark.parametrize(
    ("carried", "kind"),
    [
        ({"status_code": 503}, "overloaded"),
        ({"status": 401}, "auth"),
        ({"body": {"error": {"code": "context_length_exceeded"}}}, "context_length"),
        ({"response": type("Response", (), {"status_code": 429, "headers": {}})()}, "rate_limited"),
        ({"response": type("Response", (), {"status_code": 200})()}, "unknown"),
        ({"status": 200}, "unknown"),
        ({"body": ""}, "unknown"),
        ({"headers": {"x-should-retry": "true"}}, "unknown"),
        ({"request": object(), "detail": "none of a response"}, "caller"),
    ],
)
@pytest.mark.parametrize("each", [ValueError, TypeError, KeyError])
def test_an_error_with_a_response_is_by_its_response(
    each: type[Exception], carried: dict[str, Any], kind: FaultKind
) -> None:
    """With a response, the provider was asked and has answered."""
    error = each("no")
    error.__dict__.update(carried)
    assert kind == classify(error).kind


def _from(cause: BaseException, error: Exception) -> Exception:
    def run() -> None:
        raise error from cause

    return raised(run)


def _while(context: Exception, error: Exception, *, hidden: bool = False) -> Exception:
    def run() -> None:
        try:
            raise context
        except Exception:
            if hidden:
                raise error from None
            raise error  # noqa: B904 - the context is what is tested

    return raised(run)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: _from(ConnectionResetError(), ValueError()), "connection"),
        (lambda: _from(TimeoutError(), KeyError()), "timeout"),
        (lambda: _from(_from(ConnectionError(), ValueError()), TypeError()), "connection"),
        (lambda: _from(_from(ConnectionError(), RuntimeError()), TypeError()), "connection"),
        (lambda: _while(ConnectionError(), ValueError()), "connection"),
        (lambda: _while(raised(lambda: json.loads("")), ValueError()), "malformed"),
        (lambda: _while(ConnectionError(), ValueError(), hidden=True), "unknown"),
        (lambda: _while(KeyError(), ValueError(), hidden=True), "caller"),
        (lambda: _from(KeyError(), ValueError()), "caller"),
        (lambda: _from(RuntimeError(), ValueError()), "caller"),
        (lambda: _while(KeyError(), ProviderDown()), "unknown"),
        (lambda: _from(KeyError("choices"), RuntimeError("odd reply")), "unknown"),
        (lambda: _from(asyncio.CancelledError(), ValueError()), "cancelled"),
        (lambda: _from(StreamInterruptedError("op", 1, "cut"), ValueError()), "stream_cut"),
        (lambda: _from(ExceptionGroup("g", [ConnectionError(), TimeoutError()]), ValueError()), "timeout"),
    ],
)
def test_what_has_led_to_it_goes_before(make: Callable[[], Exception], kind: FaultKind) -> None:
    """Code around a provider translates its errors, often to ValueError: the fault stays the provider's."""
    assert kind == classify(make()).kind


def test_the_classifier_of_the_user_goes_before() -> None:
    """A program that reads the reply in the same function knows which KeyError is the provider's."""
    assert "malformed" == classify(KeyError("choices"), lambda _: "malformed").kind
    assert "caller" == classify(ConnectionError(), lambda _: "caller").kind


def test_after_the_answer_has_begun_it_is_the_providers() -> None:
    """The one class of error says something else once chunks have come; a known cause still goes before."""
    error = TypeError()
    mark_begun(error)
    assert Fault("malformed") == classify(error)
    assert Fault("caller") == classify(TypeError()), "noted on that exception alone"
    group = ExceptionGroup("g", [ValueError()])
    mark_begun(group)
    assert Fault("malformed") == classify(group)
    cut = _from(ConnectionError(), ValueError())
    mark_begun(cut)
    assert Fault("connection") == classify(cut)
    other = ProviderDown()
    mark_begun(other)
    assert (Fault("unknown"), {}) == (classify(other), vars(other))
