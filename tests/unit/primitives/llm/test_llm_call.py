"""The LLM call: what is read from requests, answers and chunks of every shape, and what must never be."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from enum import StrEnum
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from observability_integration import WorkflowContext
from observability_integration.errors import ConfigurationError, StreamInterruptedError
from observability_integration.primitives import LLMCallPrimitive
from observability_integration.primitives.llm import facts as answer_facts
from observability_integration.primitives.llm import stream as llm_stream
from observability_integration.telemetry import guard
from observability_integration.telemetry.catalogue import Profile
from observability_integration.telemetry.metrics import instruments
from observability_integration.telemetry.metrics.snapshot import Point, snapshot
from tests.scripted_source import GoingOn

SECRET = "the secret question"
REQUEST = {"model": "asked", "messages": [{"role": "user", "content": SECRET}]}

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "answered",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "the secret answer"}}
    ],
    "usage": {
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 3},
    },
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1.0,
    "model": "answered",
    "status": "completed",
    "output": [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "the secret answer"}]}
    ],
    "usage": {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 8},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 17,
    },
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "answered",
    "content": [{"type": "text", "text": "the secret answer"}],
    "stop_reason": "end_turn",
    "usage": {
        "input_tokens": 4,
        "cache_read_input_tokens": 8,
        "cache_creation_input_tokens": 2,
        "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 3},
    },
}


def chunk(content: str | None = None, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    """One chunk of an OpenAI chat stream."""
    delta = {"role": "assistant"} if content is None else {"content": content}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "answered"}
    return {**base, "choices": choices, **more}


CHAT_STREAM = [
    chunk(),
    chunk("the secret"),
    chunk(" answer"),
    chunk("", "stop"),
    chunk(choices=[], usage=CHAT["usage"]),
]
RESPONSE_STREAM = [
    {"type": "response.created", "response": {**RESPONSE, "status": "in_progress", "usage": None}},
    {"type": "response.output_text.delta", "delta": "the secret"},
    {"type": "response.output_text.delta", "delta": " answer"},
    {"type": "response.completed", "response": RESPONSE},
]
MESSAGE_STREAM = [
    {
        "type": "message_start",
        "message": {
            **MESSAGE,
            "stop_reason": None,
            "usage": {
                "input_tokens": 4,
                "cache_read_input_tokens": 8,
                "cache_creation_input_tokens": 2,
                "output_tokens": 1,
            },
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "the secret"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " answer"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
]


def as_dict(answer: Any) -> Any:
    return answer


def as_openai_chat(answer: Any) -> Any:
    types = pytest.importorskip("openai.types.chat")
    kind = types.ChatCompletionChunk if answer["object"] == "chat.completion.chunk" else types.ChatCompletion
    return kind.construct(**answer)


def as_openai_response(answer: Any) -> Any:
    types = pytest.importorskip("openai.types.responses")
    kinds = {
        "response.created": types.ResponseCreatedEvent,
        "response.output_text.delta": types.ResponseTextDeltaEvent,
        "response.completed": types.ResponseCompletedEvent,
        "response.incomplete": types.ResponseIncompleteEvent,
    }
    return kinds.get(answer.get("type"), types.Response).construct(**answer)


def as_anthropic(answer: Any) -> Any:
    types = pytest.importorskip("anthropic.types")
    kinds = {
        "message_start": types.RawMessageStartEvent,
        "content_block_start": types.RawContentBlockStartEvent,
        "content_block_delta": types.RawContentBlockDeltaEvent,
        "content_block_stop": types.RawContentBlockStopEvent,
        "message_delta": types.RawMessageDeltaEvent,
        "message_stop": types.RawMessageStopEvent,
        "message": types.Message,
    }
    kind = kinds.get(answer["type"])
    return answer if kind is None else kind.construct(**answer)


SHAPES = [
    pytest.param(CHAT, as_dict, 12, None, id="chat dict"),
    pytest.param(CHAT, as_openai_chat, 12, None, id="chat"),
    pytest.param(RESPONSE, as_dict, 12, None, id="response dict"),
    pytest.param(RESPONSE, as_openai_response, 12, None, id="response"),
    pytest.param(MESSAGE, as_dict, 14, 2, id="message dict"),
    pytest.param(MESSAGE, as_anthropic, 14, 2, id="message"),
]
STREAMS = [
    pytest.param(CHAT_STREAM, as_dict, 12, "stop", id="chat dict"),
    pytest.param(CHAT_STREAM, as_openai_chat, 12, "stop", id="chat"),
    pytest.param(RESPONSE_STREAM, as_dict, 12, "completed", id="response dict"),
    pytest.param(RESPONSE_STREAM, as_openai_response, 12, "completed", id="response"),
    pytest.param(MESSAGE_STREAM, as_dict, 14, "end_turn", id="message dict"),
    pytest.param(MESSAGE_STREAM, as_anthropic, 14, "end_turn", id="message"),
]


def answering(answer: Any, **options: Any) -> LLMCallPrimitive[Any, Any]:
    async def call(request: Any) -> Any:
        return answer

    return LLMCallPrimitive(call, **options)


def streaming(chunks: list[Any], **options: Any) -> LLMCallPrimitive[Any, Any]:
    async def call(request: Any) -> AsyncIterator[Any]:
        for each in chunks:
            yield each

    return LLMCallPrimitive(call, **options)


async def read_all(primitive: LLMCallPrimitive[Any, Any], request: Any = REQUEST) -> list[Any]:
    async with primitive.stream(request) as chunks:
        return [each async for each in chunks]


@pytest.fixture(autouse=True)
def nothing_noted_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test sees the first fault of its kind in the log."""
    monkeypatch.setattr(guard, "_logged", set())


@pytest.fixture
def profile() -> Iterator[Callable[..., None]]:
    """Starts counting in the given profiles."""

    def start(*profiles: Profile) -> None:
        instruments.start(exemplars=False, profiles=frozenset(profiles))

    yield start
    instruments.stop()


def points(prefix: str = "gen_ai.") -> dict[str, list[Point]]:
    """What was measured, by metric."""
    found = {spec.name: shown for spec, shown in snapshot() if spec.name.startswith(prefix)}
    return {
        name: kept
        for name, shown in found.items()
        if (kept := [point for point in shown if point.value or point.counts])
    }


# What is read from an answer


@pytest.mark.promise("L1")
@pytest.mark.parametrize(("answer", "shape", "input_tokens", "written"), SHAPES)
async def test_the_span_tells_what_the_answer_says(
    answer: Any, shape: Any, input_tokens: int, written: int | None, tracing: Any, profile: Callable[..., None]
) -> None:
    """Model, id, reasons and tokens, from every shape in use; Anthropic's input is the sum of its parts."""
    profile(Profile.V1_41)
    given = shape(answer)
    primitive = answering(given, provider="some", server_url="https://user:pass@api.example.com/v1")
    assert given is await primitive.execute(REQUEST)

    span = tracing.named("chat asked")
    reason = answer.get("stop_reason") or answer.get("status") or answer["choices"][0]["finish_reason"]
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "some",
        "server.address": "api.example.com",
        "server.port": 443,
        "gen_ai.request.model": "asked",
        "gen_ai.response.model": "answered",
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.finish_reasons": (reason,),
        "gen_ai.usage.input_tokens": input_tokens,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 8,
        "gen_ai.usage.reasoning.output_tokens": 3,
    }
    if written is not None:
        expected["gen_ai.usage.cache_creation.input_tokens"] = written
    assert expected == span.attributes
    assert span.error is None
    assert [] == tracing.unended()


@pytest.mark.promise("L1")
async def test_a_response_that_is_incomplete_says_why(tracing: Any) -> None:
    """Cut by length is not the same as completed, and only the details tell it."""
    answer = {**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    await answering(as_openai_response(answer)).execute(REQUEST)
    assert ("max_output_tokens",) == tracing.named("chat asked").attributes["gen_ai.response.finish_reasons"]


@pytest.mark.promise("L1")
async def test_every_choice_has_its_reason(tracing: Any) -> None:
    """With n = 2 one may be cut and the other not."""
    choices = [{"finish_reason": "stop"}, {"finish_reason": "length"}, {"finish_reason": None}]
    await answering({**CHAT, "choices": choices}).execute(REQUEST)
    assert ("stop", "length") == tracing.named("chat asked").attributes["gen_ai.response.finish_reasons"]


@pytest.mark.promise("L1")
@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 3}, {"input": 3}),
        ({"prompt_tokens": 0, "completion_tokens": 0}, {"input": 0, "output": 0}),
        ({"prompt_tokens": -1, "completion_tokens": 5}, {"output": None}),
        ({"prompt_tokens": True, "completion_tokens": 2}, {}),
        ({"prompt_tokens": "12", "completion_tokens": 2.5}, {}),
        ({"prompt_tokens": 10**30, "completion_tokens": float("nan")}, {}),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9}}, {"input": 3}),
        ({"prompt_tokens": 3, "prompt_tokens_details": "none"}, {"input": 3}),
        ({"input_tokens": 3, "output_tokens": 4}, {"input": 3, "output": 4}),
        ({"output_tokens": 4}, {"output": 4}),
        ([], {}),
        ("a lot", {}),
    ],
)
async def test_a_count_that_cannot_be_is_unknown(usage: Any, expected: dict[str, int | None], tracing: Any) -> None:
    """A wrong number on a bill is worse than none: parts greater than their whole, negatives and texts are left out."""
    await answering({"id": "x", "usage": usage}).execute(REQUEST)
    attributes = tracing.named("chat asked").attributes
    found = {key.split(".")[2].removesuffix("_tokens"): value for key, value in attributes.items() if ".usage." in key}
    assert {key: value for key, value in expected.items() if value is not None} == found


class Raising:
    """An answer whose every attribute raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(SECRET)


class RaisingUsage:
    id = "x"
    model = "answered"

    @property
    def usage(self) -> Any:
        raise ValueError(SECRET)


class BadDump:
    def model_dump(self, **options: Any) -> Any:
        raise TypeError(SECRET)


def cyclic() -> dict[str, Any]:
    answer: dict[str, Any] = {"id": "x"}
    answer["usage"] = answer["choices"] = answer["message"] = answer["response"] = answer
    return answer


def deep() -> Any:
    answer: Any = "the end"
    for _ in range(10_000):
        answer = [answer]
    return {"content": answer}


ODD: list[Callable[[], Any]] = [
    Raising,
    RaisingUsage,
    BadDump,
    cyclic,
    deep,
    MagicMock,
    AsyncMock,
    lambda: None,
    lambda: "\ud800",
    lambda: 7,
    lambda: b"\xff",
    dict,
    list,
    lambda: object(),
    lambda: {"choices": 7, "usage": 7, "model": 7, "id": 7},
    lambda: {"choices": [None, 7, "x", {}], "usage": None},
    lambda: {1: 2},
    lambda: {"id": "\ud800", "model": "m" * 1_000_000},
    lambda: {"content": "x" * 1_000_000},
    lambda: Exception,
    lambda: ValueError(SECRET),
]


@pytest.mark.promise("L1")
@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("make", ODD)
async def test_an_odd_answer_is_the_callers_all_the_same(
    make: Callable[[], Any],
    captures: bool,
    tracing: Any,
    profile: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever a provider, a mock or a gateway returns, the caller gets it, and the call counts as one success."""
    profile(Profile.V1_41)
    tracing.captures_content = captures
    answer = make()
    assert answer is await answering(answer).execute(REQUEST)
    assert [] == tracing.unended()
    (duration,) = points()["gen_ai.client.operation.duration"]
    assert 1 == sum(duration.counts)
    assert "error.type" not in duration.attributes
    assert SECRET not in caplog.text


@pytest.mark.promise("L1")
@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("make", ODD)
async def test_an_odd_chunk_is_the_callers_all_the_same(
    make: Callable[[], Any], captures: bool, tracing: Any, profile: Callable[..., None]
) -> None:
    """In a stream just the same: it is handed on, and the stream ends well."""
    profile(Profile.V1_41)
    tracing.captures_content = captures
    odd = make()
    received = await read_all(streaming([odd, "text", odd, chunk("x", "stop")]))
    assert odd is received[0]
    assert 4 == len(received)
    assert "success" == tracing.named("chat asked").attributes["outcome"]
    assert [] == tracing.unended()


@pytest.mark.promise("L1")
@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("make", ODD)
async def test_an_odd_request_is_sent_all_the_same(make: Callable[[], Any], captures: bool, tracing: Any) -> None:
    """The request is the user's; we only look at it."""
    tracing.captures_content = captures
    request = make()
    seen: list[Any] = []

    async def call(request: Any) -> str:
        seen.append(request)
        return "fine"

    assert "fine" == await LLMCallPrimitive(call).execute(request)
    assert request is seen[0]
    assert [] == tracing.unended()


async def test_a_fault_in_reading_is_counted_and_logged_without_its_message(
    metrics: Callable[..., Any], tracing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody must be able to see that tokens are missing, and why, without the prompt in the log."""
    await answering(RaisingUsage()).execute(REQUEST)
    assert 1 == metrics("telemetry.faults", site="llm_call.answer")
    assert "llm_call.answer raised ValueError" in caplog.text
    assert SECRET not in caplog.text


# The request


@pytest.mark.parametrize(
    ("request_", "options", "name"),
    [
        (REQUEST, {}, "chat asked"),
        (REQUEST, {"model": "fixed"}, "chat fixed"),
        (SECRET, {}, "chat"),
        ({"model": ""}, {}, "chat"),
        ({"model": 7}, {}, "chat"),
        ({"model": "half \ud800"}, {}, "chat half ?"),
        (REQUEST, {"operation": "embeddings"}, "embeddings asked"),
    ],
)
async def test_the_span_is_named_by_operation_and_model(
    request_: Any, options: dict[str, Any], name: str, tracing: Any
) -> None:
    """As the conventions have it; never by the text of a prompt."""
    await answering("fine", **options).execute(request_)
    assert [name] == [span.name for span in tracing.spans]


async def test_an_enum_of_models_goes_by_its_value(tracing: Any) -> None:
    """``Model.SMALL`` is a name in the caller's code, not the model's."""

    class Model(StrEnum):
        SMALL = "small-1"

    primitive = answering("fine", model=Model.SMALL)
    await primitive.execute(SECRET)
    assert "small-1" == tracing.named("chat small-1").attributes["gen_ai.request.model"]


async def test_the_parameters_of_the_request_are_on_the_span(tracing: Any) -> None:
    """Temperature and limits explain an answer; texts among the parameters are not taken."""
    request = {**REQUEST, "temperature": 0.2, "max_tokens": 7, "seed": 3, "top_p": SECRET, "stop": SECRET}
    await answering("fine").execute(request)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "asked",
        "gen_ai.request.temperature": 0.2,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.seed": 3,
    }
    assert expected == tracing.named("chat asked").attributes


async def test_the_context_is_passed_where_it_is_wanted(tracing: Any) -> None:
    """And its ids are on the span."""
    seen: list[WorkflowContext] = []

    async def call(request: Any, context: WorkflowContext) -> str:
        seen.append(context)
        return "fine"

    async def stream(request: Any, context: WorkflowContext) -> AsyncIterator[str]:
        seen.append(context)
        yield "fine"

    primitive = LLMCallPrimitive[Any, Any](call, stream_call=stream)
    context = WorkflowContext("w-1")
    await primitive.execute(REQUEST, context)
    async with primitive.stream(REQUEST, context) as chunks:
        assert ["fine"] == [each async for each in chunks]
    assert [context, context] == seen
    await primitive.execute(REQUEST)
    assert isinstance(seen[2], WorkflowContext)
    assert ["w-1", "w-1", None] == [span.attributes.get("workflow.id") for span in tracing.spans]


@pytest.mark.promise("B5")
def test_it_prints_well() -> None:
    """What a description of a chain shows."""
    assert "llm call chat" == answering("fine").describe()
    assert "llm call chat small (openai)" == answering("fine", model="small", provider="openai").describe()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.example.com/v1", ("api.example.com", 443)),
        ("http://127.0.0.1:8000/v1", ("127.0.0.1", 8000)),
        ("http://user:password@example.com", ("example.com", 80)),
        ("https://[::1]:8443", ("::1", 8443)),
    ],
)
@pytest.mark.promise("X4")
async def test_the_server_is_named_without_credentials(url: str, expected: tuple[str, int], tracing: Any) -> None:
    """A base URL may hold a password."""
    await answering("fine", server_url=url).execute(REQUEST)
    attributes = tracing.named("chat asked").attributes
    assert expected == (attributes["server.address"], attributes["server.port"])
    assert "password" not in str(attributes)


@pytest.mark.parametrize("url", ["", "api.example.com", "http://", "http://host:port", "http://[::1"])
@pytest.mark.promise("X4")
def test_what_is_no_url_is_refused(url: str) -> None:
    """At construction, and without repeating what may hold a password."""
    with pytest.raises(ConfigurationError, match="server_url"):
        answering("fine", server_url=url)


async def test_a_synchronous_call_is_refused() -> None:
    """A blocking client would hold up the loop; the message says what is wanted."""
    with pytest.raises(ConfigurationError, match="async"):
        await LLMCallPrimitive(lambda request: "fine").execute(REQUEST)
    with pytest.raises(ConfigurationError, match="must take"):
        LLMCallPrimitive(lambda: None)


# Errors


class ProviderError(Exception):
    pass


@pytest.mark.promise("B3", "X4")
async def test_an_error_passes_unchanged_and_is_counted_by_type(
    tracing: Any, profile: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """Providers quote the prompt in their errors: the type is ours to record, the message is the caller's."""
    profile(Profile.V1_41)
    error = ProviderError(SECRET)

    async def call(request: Any) -> str:
        raise error

    with pytest.raises(ProviderError) as caught:
        await LLMCallPrimitive(call, provider="some").execute(REQUEST)
    assert error is caught.value
    span = tracing.named("chat asked")
    assert error is span.error
    assert SECRET not in str(span.attributes)
    (duration,) = points()["gen_ai.client.operation.duration"]
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "some",
        "gen_ai.request.model": "asked",
        "error.type": f"{__name__}.ProviderError",
    } == duration.attributes
    assert "" == caplog.text
    assert [] == tracing.unended()


async def test_a_cancelled_call_is_counted_as_such(tracing: Any, profile: Callable[..., None]) -> None:
    """A user who left is no error of the provider, yet the tokens may be billed: the call must not vanish."""
    profile(Profile.V1_41)
    running = asyncio.Event()

    async def call(request: Any) -> None:
        running.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(LLMCallPrimitive[Any, None](call).execute(REQUEST))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    span = tracing.named("chat asked")
    assert "cancelled" == span.attributes["error.type"]
    assert span.error is None
    (duration,) = points()["gen_ai.client.operation.duration"]
    assert "cancelled" == duration.attributes["error.type"]
    assert [] == tracing.unended()


# Metrics

WHO = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "some",
    "gen_ai.request.model": "asked",
    "gen_ai.response.model": "answered",
}
V1_41 = {
    "gen_ai.client.operation.duration": [({}, 1)],
    "gen_ai.client.token.usage": [({"gen_ai.token.type": "input"}, 14), ({"gen_ai.token.type": "output"}, 5)],
}
ANY = {"gen_ai.token.modality": "unknown"}
LATEST = {
    "gen_ai.client.inference.duration": [({}, 1)],
    "gen_ai.client.inference.operation.input_tokens": [({}, 14)],
    "gen_ai.client.inference.operation.output_tokens": [({}, 5)],
    "gen_ai.client.inference.usage.input_tokens": [(ANY, 14)],
    "gen_ai.client.inference.usage.output_tokens": [(ANY, 5)],
    "gen_ai.client.inference.usage.cache_read.input_tokens": [(ANY, 8)],
    "gen_ai.client.inference.usage.cache_write.input_tokens": [(ANY, 2)],
    "gen_ai.client.inference.usage.reasoning.output_tokens": [(ANY, 3)],
}
PROFILES = [
    pytest.param([Profile.V1_41], V1_41, id="v1.41"),
    pytest.param([Profile.LATEST], LATEST, id="latest"),
    pytest.param([Profile.V1_41, Profile.LATEST], V1_41 | LATEST, id="both"),
]
WRITTEN = {
    Profile.V1_41: "gen_ai.usage.cache_creation.input_tokens",
    Profile.LATEST: "gen_ai.usage.cache_write.input_tokens",
}


@pytest.mark.promise("L1", "M10")
@pytest.mark.parametrize(("profiles", "expected"), PROFILES)
async def test_a_call_is_measured_in_the_chosen_profile(
    profiles: list[Profile], expected: dict[str, Any], profile: Callable[..., None], tracing: Any
) -> None:
    """Dashboards are written for one spelling or the other; exactly the metrics of the chosen one, nothing else."""
    profile(*profiles)
    await answering(MESSAGE, provider="some").execute(REQUEST)

    found = points()
    assert set(expected) == set(found)
    for name, series in expected.items():
        shown = [
            ({key: value for key, value in point.attributes.items() if WHO.get(key) != value}, point)
            for point in found[name]
        ]
        if "duration" in name:
            assert [(extra, count) for extra, count in series] == [(extra, sum(point.counts)) for extra, point in shown]
        else:
            assert [(extra, count) for extra, count in series] == [(extra, point.value) for extra, point in shown]
        assert all(set(WHO) <= set(point.attributes) for point in found[name])
    attributes = tracing.named("chat asked").attributes
    assert {WRITTEN[each] for each in profiles} == {key for key in attributes if key in WRITTEN.values()}


@pytest.mark.promise("M10")
async def test_a_failed_call_measures_no_tokens_in_v1_41_and_zero_in_the_latest(profile: Callable[..., None]) -> None:
    """What the two conventions ask for where nothing is known."""
    profile(Profile.V1_41, Profile.LATEST)

    async def call(request: Any) -> str:
        raise ProviderError

    with pytest.raises(ProviderError):
        await LLMCallPrimitive(call).execute(REQUEST)
    assert "gen_ai.client.token.usage" not in points()
    (tokens,) = points()["gen_ai.client.inference.operation.input_tokens"]
    assert (0, 1) == (tokens.value, sum(tokens.counts))


@pytest.mark.promise("M10")
async def test_an_answer_without_usage_measures_no_tokens(profile: Callable[..., None]) -> None:
    """Unknown is not zero: an average over zeros would be too low."""
    profile(Profile.V1_41, Profile.LATEST)
    await answering({"id": "x", "choices": []}).execute(REQUEST)
    assert {"gen_ai.client.operation.duration", "gen_ai.client.inference.duration"} == set(points())


async def test_while_telemetry_is_off_nothing_is_read() -> None:
    """An answer whose attributes are lazy or expensive is left alone when nobody wants to know."""

    read: list[str] = []

    class Lazy:
        def __getattribute__(self, name: str) -> Any:
            read.append(name)
            return object.__getattribute__(self, name)

    answer = Lazy()
    assert answer is await answering(answer, model="small").execute(SECRET)
    assert [] == read


# Streams


@pytest.mark.promise("L1", "X3")
@pytest.mark.parametrize(("chunks", "shape", "input_tokens", "reason"), STREAMS)
async def test_a_stream_tells_what_its_chunks_say(
    chunks: list[Any], shape: Any, input_tokens: int, reason: str, tracing: Any, profile: Callable[..., None]
) -> None:
    """Tokens come in the last chunk, or in the first and the last; the first chunk is the first with content."""
    profile(Profile.V1_41, Profile.LATEST)
    given = [shape(each) for each in chunks]
    assert given == await read_all(streaming(given, provider="some"))

    attributes = tracing.named("chat asked").attributes
    assert attributes["gen_ai.request.stream"] is True
    assert "answered" == attributes["gen_ai.response.model"]
    assert attributes["gen_ai.response.id"] in ("chatcmpl-1", "resp_1", "msg_1")
    assert (reason,) == attributes["gen_ai.response.finish_reasons"]
    assert (input_tokens, 5) == (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"])
    assert 8 == attributes["gen_ai.usage.cache_read.input_tokens"]
    assert attributes["gen_ai.response.time_to_first_chunk"] >= 0
    assert "success" == attributes["outcome"]
    assert [] == tracing.unended()

    found = points()
    request = {key: value for key, value in WHO.items() if key != "gen_ai.response.model"}
    for part in ("operation", "inference"):
        (first,) = found[f"gen_ai.client.{part}.time_to_first_chunk"]
        (gap,) = found[f"gen_ai.client.{part}.time_per_output_chunk"]
        (duration,) = found[f"gen_ai.client.{part}.duration"]
        assert [1, 1, 1] == [sum(each.counts) for each in (first, gap, duration)]
        assert [request, request, WHO] == [each.attributes for each in (first, gap, duration)]
    assert [input_tokens, 5] == [point.value for point in found["gen_ai.client.token.usage"]]


@pytest.mark.promise("L2")
@pytest.mark.parametrize(("chunks", "shape", "input_tokens", "reason"), STREAMS)
async def test_a_stream_without_a_finish_reason_is_an_error(
    chunks: list[Any], shape: Any, input_tokens: int, reason: str, tracing: Any, profile: Callable[..., None]
) -> None:
    """A proxy that ends a stream in good order half-way through must not have its half answer taken for a whole one."""
    profile(Profile.V1_41)
    half = [shape(each) for each in chunks[:3]]
    received: list[Any] = []

    async def read() -> None:
        async with streaming(half, model="small").stream(REQUEST) as stream:
            async for each in stream:
                received.append(each)

    with pytest.raises(StreamInterruptedError) as caught:
        await read()
    assert half == received
    error = caught.value
    assert ("chat small", 3, "no_finish_reason") == (error.operation, error.chunks, error.reason)
    span = tracing.named("chat small")
    assert error is span.error
    assert "error" == span.attributes["outcome"]
    (duration,) = points()["gen_ai.client.operation.duration"]
    assert "observability_integration.errors.StreamInterruptedError" == duration.attributes["error.type"]
    assert [] == tracing.unended()


@pytest.mark.promise("L2")
async def test_an_incomplete_response_is_an_end(tracing: Any) -> None:
    """Cut by its own token limit, a stream of events has said so: that is an answer, with its reason."""
    response = {**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    events = [*RESPONSE_STREAM[:3], {"type": "response.incomplete", "response": response}]
    await read_all(streaming([as_openai_response(event) for event in events]))
    assert ("max_output_tokens",) == tracing.named("chat asked").attributes["gen_ai.response.finish_reasons"]


@pytest.mark.parametrize("chunks", [[], ["plain ", "text"], [b"bytes"], [{"token": "x"}], [7, None]])
@pytest.mark.promise("L2")
async def test_what_is_no_providers_stream_needs_no_finish_reason(chunks: list[Any], tracing: Any) -> None:
    """A generator of words announces its end by ending."""
    assert chunks == await read_all(streaming(chunks))
    assert "success" == tracing.named("chat asked").attributes["outcome"]


async def test_an_async_generator_function_is_gathered_by_execute(tracing: Any) -> None:
    """One function serves both ways of calling; text is joined."""
    assert "one two" == await streaming(["one ", "two"]).execute(REQUEST)
    assert CHAT_STREAM == await streaming(CHAT_STREAM).execute(REQUEST)
    assert 2 == len(tracing.spans)
    assert [] == tracing.unended()


class SdkStream:
    """A stream as SDKs hand it out: iterated anew, closed by itself, holding a connection."""

    def __init__(self, chunks: list[Any], *, synchronous_close: bool = False) -> None:
        self._chunks = chunks
        self.closes = 0
        self.synchronous_close = synchronous_close

    async def _iterate(self) -> AsyncIterator[Any]:
        for each in self._chunks:
            yield each

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._iterate()

    def close(self) -> Any:
        self.closes += 1
        return None if self.synchronous_close else asyncio.sleep(0)


@pytest.mark.parametrize("synchronous_close", [False, True])
async def test_a_call_that_returns_a_stream_is_awaited_and_the_stream_closed(
    synchronous_close: bool, tracing: Any
) -> None:
    """``await client.chat.completions.create(stream=True)``: left open, its connection never returns to the pool."""
    source = SdkStream(CHAT_STREAM, synchronous_close=synchronous_close)
    primitive = answering(source)
    assert CHAT_STREAM == await read_all(primitive)
    assert 1 == source.closes
    async with primitive.stream(REQUEST) as chunks:
        await anext(chunks)
    assert 2 == source.closes
    assert [] == tracing.unended()


async def test_a_call_of_its_own_for_streams() -> None:
    """SDKs have a method for each."""
    primitive = answering("whole", stream_call=lambda request: SdkStream(["in ", "parts"]))
    assert "whole" == await primitive.execute(REQUEST)
    assert ["in ", "parts"] == await read_all(primitive)


async def test_a_call_that_is_not_async_is_refused(tracing: Any) -> None:
    """The message names the knob; the span is ended."""
    with pytest.raises(ConfigurationError, match="stream_call="):
        await read_all(LLMCallPrimitive(lambda request: "whole"))
    assert [] == tracing.unended()


async def test_the_time_of_a_slow_reader_is_not_the_producers(profile: Callable[..., None], monkeypatch: Any) -> None:
    """Else a dashboard shows a slow model where a slow consumer is; what is no content belongs to the next gap."""
    profile(Profile.V1_41)
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def call(request: Any) -> AsyncIterator[Any]:
        for seconds, each in ((2.0, chunk()), (1.0, chunk("a")), (4.0, chunk("")), (8.0, chunk("b", "stop"))):
            passes(seconds)
            yield each

    async with LLMCallPrimitive[Any, Any](call).stream(REQUEST) as chunks:
        async for _ in chunks:
            passes(100.0)
    found = points()
    assert [3.0] == [point.value for point in found["gen_ai.client.operation.time_to_first_chunk"]]
    assert [12.0] == [point.value for point in found["gen_ai.client.operation.time_per_output_chunk"]]


@pytest.mark.parametrize("streams", [False, True])
async def test_names_that_cannot_be_sent_are_spelled_otherwise(
    streams: bool, tracing: Any, profile: Callable[..., None]
) -> None:
    """One half of a surrogate pair, which JSON may hold, would keep a whole batch of spans from being exported."""
    profile(Profile.V1_41)
    odd = chunk("x", "st\ud800", id="c\ud800", model="m\ud800")
    primitive = streaming([odd]) if streams else answering(odd)
    await (read_all(primitive) if streams else primitive.execute(REQUEST))
    attributes = tracing.named("chat asked").attributes
    assert ("m?", "c?", ("st?",)) == (
        attributes["gen_ai.response.model"],
        attributes["gen_ai.response.id"],
        attributes["gen_ai.response.finish_reasons"],
    )
    (duration,) = points()["gen_ai.client.operation.duration"]
    assert "m?" == duration.attributes["gen_ai.response.model"]


@pytest.mark.parametrize("shape", [as_dict, as_openai_chat])
async def test_most_chunks_are_not_searched_for_what_they_never_hold(
    shape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long answer has thousands: their usage, and whether they report an error, is asked only where it may be."""
    asked: list[str] = []

    def count(module: Any, name: str) -> None:
        real = getattr(module, name)

        def counting(*args: Any) -> Any:
            asked.append(name)
            return real(*args)

        monkeypatch.setattr(module, name, counting)

    count(llm_stream, "error_in")
    count(answer_facts, "usage_of")
    count(answer_facts, "model_of")
    await read_all(streaming([*(shape(chunk("a")) for _ in range(50)), shape(chunk("b", "stop"))]))
    assert 1 == asked.count("model_of")
    assert 0 == asked.count("usage_of")
    assert 2 >= asked.count("error_in")


@pytest.mark.parametrize(("read", "error_type"), [(2, "closed"), (4, None)])
async def test_a_reader_who_leaves_early_is_told_from_one_who_has_the_answer(
    read: int, error_type: str | None, tracing: Any, profile: Callable[..., None]
) -> None:
    """Many readers stop at the finish reason; those who stop before it have left the answer."""
    profile(Profile.V1_41)
    async with streaming(CHAT_STREAM).stream(REQUEST) as chunks:
        for _ in range(read):
            await anext(chunks)
    (duration,) = points()["gen_ai.client.operation.duration"]
    assert error_type == duration.attributes.get("error.type")
    assert tracing.named("chat asked").error is None
    assert [] == tracing.unended()


@pytest.mark.promise("B3")
@pytest.mark.parametrize("at", ["opening", "reading"])
async def test_an_error_of_the_stream_passes_unchanged(at: str, tracing: Any, profile: Callable[..., None]) -> None:
    """Refused at once or cut in the middle: the provider's own exception, counted once."""
    profile(Profile.V1_41)
    error = ProviderError(SECRET)

    async def cut(request: Any) -> AsyncIterator[Any]:
        yield chunk("the secret")
        raise error

    async def refused(request: Any) -> Any:
        raise error

    with pytest.raises(ProviderError) as caught:
        await read_all(LLMCallPrimitive(cut if at == "reading" else refused))
    assert error is caught.value
    (duration,) = points()["gen_ai.client.operation.duration"]
    assert f"{__name__}.ProviderError" == duration.attributes["error.type"]
    assert error is tracing.named("chat asked").error
    assert [] == tracing.unended()


async def test_a_cancelled_stream_is_counted_as_such(tracing: Any, profile: Callable[..., None]) -> None:
    """The same as for a call."""
    profile(Profile.V1_41)
    waiting = asyncio.Event()

    async def call(request: Any) -> AsyncIterator[Any]:
        yield chunk("the secret")
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(read_all(LLMCallPrimitive(call)))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (duration,) = points()["gen_ai.client.operation.duration"]
    assert "cancelled" == duration.attributes["error.type"]
    assert "cancelled" == tracing.named("chat asked").attributes["error.type"]
    assert [] == tracing.unended()


# Content


@pytest.mark.promise("X4")
@pytest.mark.parametrize(("answer", "shape", "input_tokens", "written"), SHAPES)
async def test_no_text_is_captured_unless_asked_for(
    answer: Any, shape: Any, input_tokens: int, written: int | None, tracing: Any, profile: Callable[..., None]
) -> None:
    """Prompts hold what users confide: by default not a word of it is in a span or a label."""
    profile(Profile.V1_41, Profile.LATEST)
    await answering(shape(answer)).execute(REQUEST)
    assert "secret" not in str([(span.name, span.attributes, span.events) for span in tracing.spans])
    assert "secret" not in str(snapshot())


@pytest.mark.promise("X4")
@pytest.mark.parametrize(("answer", "shape", "input_tokens", "written"), SHAPES)
async def test_texts_are_captured_when_asked_for(
    answer: Any, shape: Any, input_tokens: int, written: int | None, tracing: Any, profile: Callable[..., None]
) -> None:
    """Whoever switches it on finds question and answer as JSON on the span, and still none in a label."""
    profile(Profile.V1_41, Profile.LATEST)
    tracing.captures_content = True
    await answering(shape(answer)).execute(REQUEST)
    attributes = tracing.named("chat asked").attributes
    assert REQUEST["messages"] == json.loads(attributes["gen_ai.input.messages"])
    assert "the secret answer" in attributes["gen_ai.output.messages"]
    assert isinstance(json.loads(attributes["gen_ai.output.messages"]), list)
    assert "secret" not in str(snapshot())


@pytest.mark.promise("X4")
@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize(("chunks", "shape", "input_tokens", "reason"), STREAMS)
async def test_a_streamed_text_is_captured_when_asked_for(
    chunks: list[Any], shape: Any, input_tokens: int, reason: str, captures: bool, tracing: Any
) -> None:
    """The parts are put together; off, there is nothing."""
    tracing.captures_content = captures
    await read_all(streaming([shape(each) for each in chunks]))
    attributes = tracing.named("chat asked").attributes
    if not captures:
        assert "secret" not in str(attributes)
        return
    expected = [{"role": "assistant", "content": "the secret answer"}]
    assert expected == json.loads(attributes["gen_ai.output.messages"])


@pytest.mark.promise("X4")
@pytest.mark.parametrize(
    "other",
    [
        {"type": "response.reasoning_text.delta", "delta": "hm"},
        {"type": "response.function_call_arguments.delta", "delta": "{}"},
        {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{}"}},
    ],
    ids=lambda other: other.get("type"),
)
async def test_what_is_no_text_is_not_captured_as_such(other: Any, tracing: Any) -> None:
    """An answer is not what the model thought on its way, nor what it tells a tool."""
    tracing.captures_content = True
    await read_all(streaming([*RESPONSE_STREAM[:1], other, *RESPONSE_STREAM[1:]]))
    (message,) = json.loads(tracing.named("chat asked").attributes["gen_ai.output.messages"])
    assert "the secret answer" == message["content"]


@pytest.mark.promise("X4")
async def test_plain_text_is_captured_when_asked_for(tracing: Any) -> None:
    """A function from text to text has neither messages nor choices."""
    tracing.captures_content = True
    await answering("the secret answer").execute(SECRET)
    await read_all(streaming(["the secret", " answer"]), {"input": SECRET})
    whole, streamed = tracing.spans
    assert (SECRET, "the secret answer") == (
        json.loads(whole.attributes["gen_ai.input.messages"]),
        json.loads(whole.attributes["gen_ai.output.messages"]),
    )
    assert SECRET == json.loads(streamed.attributes["gen_ai.input.messages"])
    assert "the secret answer" == json.loads(streamed.attributes["gen_ai.output.messages"])[0]["content"]


@pytest.mark.needs_otel
@pytest.mark.promise("X4")
@pytest.mark.parametrize(
    ("value", "captures"),
    [
        (None, False),
        ("", False),
        ("NO_CONTENT", False),
        ("EVENT_ONLY", False),
        ("false", False),
        ("SPAN_ONLY", True),
        ("span_and_event", True),
        ("true", True),
    ],
)
def test_the_environment_decides_whether_texts_are_captured(
    value: str | None, captures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standard variable, with its three values and the one that older instrumentations took."""
    from observability_integration.telemetry.tracing.otel_tracing import OtelTracing

    name = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
    monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    assert captures is OtelTracing().captures_content


# Chunks that cannot be read


def _part(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}


def _unreadable() -> ValueError:
    return json.JSONDecodeError("no JSON", "{", 1)


def _reads(*chunks: Any) -> LLMCallPrimitive[Any, Any]:
    async def call(_: Any) -> Any:
        return GoingOn(*chunks)

    return LLMCallPrimitive(call, model="m", streaming=True)


@pytest.mark.promise("L4")
@pytest.mark.parametrize(
    "chunks",
    [
        [_unreadable(), _part("a"), _part("b", "stop")],
        [_part("a"), _unreadable(), _part("b", "stop")],
        [_part("a"), _part("b", "stop"), _unreadable()],
        [_part("a"), _part("b", "stop"), ConnectionResetError()],
    ],
    ids=["first", "middle", "last", "reset after the reason"],
)
async def test_what_cannot_be_read_is_skipped_if_the_rest_completes(chunks: list[Any], metrics: Any) -> None:
    """One broken frame is no reason to throw a whole answer away."""
    assert [_part("a"), _part("b", "stop")] == await _reads(*chunks).execute("q")
    skipped = metrics("stream.malformed_chunks", operation="chat m", outcome="skipped")
    assert skipped == (1 if isinstance(chunks[0], ValueError) or isinstance(chunks[1], ValueError) else None)


@pytest.mark.promise("L4")
@pytest.mark.parametrize(("last", "outcome"), [(_part("b", "stop"), "skipped"), (_part("b"), "fatal")])
async def test_what_was_skipped_is_counted_however_it_ends(last: Any, outcome: str, metrics: Any) -> None:
    """A fault that comes too late to harm, or one that harms, hides nothing."""
    chunks = [_part("a"), _unreadable(), last, ConnectionResetError()]
    with contextlib.nullcontext() if outcome == "skipped" else pytest.raises(ConnectionResetError):
        await _reads(*chunks).execute("q")
    assert 1 == metrics("stream.malformed_chunks", operation="chat m", outcome=outcome)


@pytest.mark.promise("L4")
@pytest.mark.parametrize(
    "chunks",
    [
        [_part("a"), _unreadable()],
        [_part("a"), _unreadable(), _part("b")],
        ["a", _unreadable()],
        [_unreadable()],
        [_unreadable() for _ in range(40)],
    ],
    ids=["last", "no reason", "text", "alone", "for ever"],
)
async def test_what_cannot_be_read_is_a_fault_if_the_rest_does_not(chunks: list[Any], metrics: Any) -> None:
    """It may have been the end of the answer."""
    with pytest.raises(json.JSONDecodeError):
        await _reads(*chunks).execute("q")
    if len(chunks) < 16:
        assert 1 == metrics("stream.malformed_chunks", operation="chat m", outcome="fatal")


@pytest.mark.promise("L4")
async def test_text_after_what_cannot_be_read_is_an_answer() -> None:
    """Text has no reason to end with: that more came and it ended is all there is to know."""
    assert "ab" == await _reads("a", _unreadable(), "b").execute("q")


async def test_a_generator_that_broke_is_a_fault() -> None:
    """That is how the SDKs read: after the error there is nothing more."""

    async def generate(_: Any) -> AsyncIterator[Any]:
        yield _part("a")
        raise _unreadable()

    with pytest.raises(json.JSONDecodeError):
        await LLMCallPrimitive[Any, Any](generate).execute("q")
