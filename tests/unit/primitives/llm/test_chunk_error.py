"""An error that comes as a chunk is an error, and of the same kind as if it had come with a status."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from observability_integration.errors import ProviderStreamError
from observability_integration.primitives import LLMCallPrimitive
from observability_integration.primitives.llm.chunk_error import error_in
from observability_integration.resilience.faults import classify

pytestmark = pytest.mark.once

SECRET = "the words of the prompt"


def objects(value: Any) -> Any:
    """The same as an SDK has it."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: objects(item) for key, item in value.items()})
    return [objects(item) for item in value] if isinstance(value, list) else value


def failed(**error: Any) -> dict[str, Any]:
    return {"type": "response.failed", "response": {"status": "failed", "error": error or None}}


ERRORS: list[tuple[str, str, dict[str, Any]]] = [
    # Anthropic
    ("overloaded", "overloaded_error", {"type": "error", "error": {"type": "overloaded_error", "message": SECRET}}),
    ("rate_limited", "rate_limit_error", {"type": "error", "error": {"type": "rate_limit_error", "message": SECRET}}),
    ("auth", "authentication_error", {"type": "error", "error": {"type": "authentication_error"}}),
    # OpenAI responses
    ("context_length", "context_length_exceeded", {"type": "error", "code": "context_length_exceeded", "message": "x"}),
    ("content_filter", "content_policy_violation", {"type": "error", "code": "content_policy_violation"}),
    ("transient", "server_error", failed(code="server_error", message=SECRET)),
    ("rate_limited", "rate_limit_exceeded", failed(code="rate_limit_exceeded", message=SECRET)),
    ("transient", "error", failed()),
    # chat completions and what resembles them
    ("transient", "error", {"error": {"code": 502, "message": SECRET}}),
    ("rate_limited", "error", {"error": {"code": "429", "message": SECRET}}),
    ("context_length", "context_length_exceeded", {"error": {"message": "This model's maximum context length is 8"}}),
    ("rate_limited", "insufficient_quota", {"error": {"message": "Your credit balance is too low to go on"}}),
    ("content_filter", "content_filter", {"choices": [], "error": {"code": "content_filter", "message": SECRET}}),
    ("transient", "error", {"choices": [{"delta": {"content": "x"}, "finish_reason": "error"}]}),
    ("transient", "error", {"choices": [{"finish_reason": "error"}], "error": {"code": 502, "message": SECRET}}),
    ("rate_limited", "error", {"choices": [{"finish_reason": "error", "error": {"code": 429}}]}),
    # vLLM, TGI, FastAPI
    (
        "context_length",
        "context_length_exceeded",
        {"object": "error", "type": "BadRequestError", "code": 400, "message": "maximum context length is 10"},
    ),
    ("invalid_request", "BadRequestError", {"object": "error", "type": "BadRequestError", "code": 400}),
    ("transient", "generation", {"error": "CUDA out of memory", "error_type": "generation"}),
    ("transient", "error", {"error": SECRET}),
    ("transient", "error", {"detail": "Internal Server Error"}),
    ("transient", "error", {"detail": [{"loc": ["body"], "msg": SECRET}]}),
    # names that are none
    ("transient", "error", {"type": "error", "code": SECRET, "message": SECRET}),
    ("transient", "error", {"type": "error", "code": "x" * 65}),
    ("transient", "error", {"type": "error", "error": {"type": ["list"], "code": True, "message": 7}}),
]
NONE: list[Any] = [
    None,
    7,
    b"error",
    [],
    {},
    {"error": None},
    {"error": ""},
    {"error": {}},
    {"error": 7, "detail": 7},
    {"error": "step failed, went on", "step": 3},
    {"detail": "half-way", "percent": 50},
    {"choices": [{"delta": {"content": "error"}, "finish_reason": None}]},
    {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}], "error": None},
    {"type": "response.completed", "response": {"status": "completed", "error": None}},
    {"type": "message_start", "message": {"error": None}},
    object(),
]


@pytest.mark.parametrize("like", [dict, MappingProxyType, objects], ids=["dict", "mapping", "object"])
@pytest.mark.parametrize(("kind", "code", "chunk"), ERRORS)
def test_an_error_keeps_its_name_and_none_of_its_words(kind: str, code: str, chunk: Any, like: Any) -> None:
    """What is done about it depends on the kind; the message may hold the prompt."""
    error = error_in("ask", like(chunk))
    assert error is not None
    assert (code, kind) == (error.code, classify(error).kind)
    assert SECRET not in repr((str(error), vars(error)))
    twin = pickle.loads(pickle.dumps(error))
    assert (str(error), vars(error)) == (str(twin), vars(twin))
    assert "ask" in str(error)


@pytest.mark.parametrize("wrap", [lambda chunk: {"type": "chunk", "chunk": chunk}, lambda chunk: {"data": chunk}])
def test_an_error_inside_the_event_of_a_helper(wrap: Any) -> None:
    """The SDKs' helpers wrap the chunk, whatever it reports."""
    for chunk in (
        {"choices": [], "error": {"code": 502, "type": "overloaded_error", "message": SECRET}},
        {"choices": [{"index": 0, "finish_reason": "error", "error": {"type": "overloaded_error"}}]},
    ):
        error = error_in("ask", wrap(chunk))
        assert error is not None
        assert "overloaded" == classify(error).kind
    assert error_in("ask", wrap({"choices": [], "error": None})) is None


@pytest.mark.parametrize("chunk", NONE, ids=repr)
def test_other_chunks_are_none(chunk: Any) -> None:
    """A field of that name in somebody's own events is no error of a provider's."""
    assert error_in("ask", chunk) is None


def test_a_used_up_quota_is_not_asked_again() -> None:
    """Only the words say so, and they are not kept: the name must."""
    error = error_in("ask", {"error": {"type": "invalid_request_error", "message": "Your credit balance is too low"}})
    assert error is not None
    assert classify(error).should_retry is False
    assert "invalid_request_error" == error.type


def test_the_status_is_kept() -> None:
    """502 and 529 call for different things, and the code is only a number here."""
    error = error_in("ask", {"error": {"code": 529, "message": "x"}})
    assert error is not None
    assert (529, "overloaded") == (error.status_code, classify(error).kind)
    assert "status 529" in str(error)


@pytest.mark.promise("L2")
@pytest.mark.parametrize(
    "before", [[], [{"choices": [{"index": 0, "delta": {"content": "half"}}]}]], ids=["first", "mid"]
)
async def test_a_stream_that_reports_an_error_raises_it(before: list[Any], tracing: Any) -> None:
    """First or in the middle; the chunk itself is no part of an answer."""
    got: list[Any] = []

    async def call(_: Any) -> AsyncIterator[Any]:
        for chunk in before:
            yield chunk
        yield {"error": {"type": "overloaded_error", "message": SECRET}}

    async def read() -> None:
        async with LLMCallPrimitive[Any, Any](call, model="m").stream("q") as chunks:
            async for chunk in chunks:
                got.append(chunk)

    with pytest.raises(ProviderStreamError) as caught:
        await read()
    assert before == got
    assert ("chat m", "overloaded_error") == (caught.value.operation, caught.value.code)
    span = tracing.named("chat m")
    assert caught.value is span.error
    assert "gen_ai.response.time_to_first_chunk" not in span.attributes or before
    assert [] == tracing.unended()


@pytest.mark.promise("L2")
@pytest.mark.parametrize("status", ["failed", "cancelled"])
async def test_a_response_that_failed_did_not_end_well(status: str) -> None:
    """A status is no finish reason if it says that there is no answer."""

    async def call(_: Any) -> AsyncIterator[Any]:
        yield {"type": "response.output_text.delta", "delta": "half"}
        yield {"type": f"response.{status}", "response": {"object": "response", "status": status}}

    with pytest.raises(Exception, match=r"inside its stream|no_finish_reason"):
        await LLMCallPrimitive[Any, Any](call).execute("q")
