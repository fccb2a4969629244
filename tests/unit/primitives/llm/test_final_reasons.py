"""A finish reason ends a stream only if it is final: servers send it with every chunk, too early, or for one choice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from observability_integration.errors import PrimitiveTimeoutError, StreamInterruptedError, StreamStalledError
from observability_integration.primitives import LLMCallPrimitive, LLMTarget, TimeoutPrimitive, completion_of, pipeline
from observability_integration.testing import FakeClockLoop
from tests.langchain_doubles import AIMessageChunk
from tests.scripted_source import GoingOn, Source

pytestmark = [pytest.mark.once, pytest.mark.promise("L2", "L4")]

LOOP_FACTORY = FakeClockLoop
HANGS = 1e6


def chat(content: str | None = None, reason: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": reason}
    return {"object": "chat.completion.chunk", "id": "c1", "model": "m", "created": 1, "choices": [choice], **fields}


USAGE = chat(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5})


def as_dict(chunk: dict[str, Any]) -> Any:
    return chunk


def as_openai(chunk: dict[str, Any]) -> Any:
    return pytest.importorskip("openai.types.chat").ChatCompletionChunk.construct(**chunk)


def as_event_of_openai(chunk: dict[str, Any]) -> Any:
    events = pytest.importorskip("openai.lib.streaming.chat")
    return events.ChunkEvent.construct(type="chunk", chunk=as_openai(chunk), snapshot=None)


def as_event_of_mistral(chunk: dict[str, Any]) -> Any:
    """As ``CompletionEvent(data=CompletionChunk(...))``."""
    return SimpleNamespace(data=chunk)


def as_langchain(chunk: dict[str, Any]) -> Any:
    """As `langchain_openai` makes it of the chunk."""
    if not chunk["choices"]:
        tokens = chunk["usage"]
        usage = tokens and {"input_tokens": tokens["prompt_tokens"], "output_tokens": tokens["completion_tokens"]}
        return AIMessageChunk("", {}, usage_metadata=usage)
    (choice,) = chunk["choices"]
    reason = choice["finish_reason"]
    metadata = {"model_provider": "openai"} | ({"finish_reason": reason, "model_name": "m"} if reason else {})
    return AIMessageChunk(choice["delta"]["content"] or "", metadata)


SHAPES = [as_dict, as_openai, as_event_of_openai, as_event_of_mistral, as_langchain]


def guarded(source: Any, **options: Any) -> TimeoutPrimitive[Any, Any]:
    """A call whose stream is bounded like that of a pipeline."""
    call = LLMCallPrimitive[Any, Any](lambda _: source, model="m", streaming=True, collect=completion_of, **options)
    return TimeoutPrimitive(call, 100.0, first_chunk_seconds=20.0, idle_seconds=15.0)


def now() -> float:
    return asyncio.get_running_loop().time()


def unreadable() -> ValueError:
    return json.JSONDecodeError("no JSON", "{", 1)


A, B, STOP, ENOUGH = chat("a"), chat("b"), chat(reason="stop"), chat(reason="length")
A_STOP, B_STOP = chat("a", "stop"), chat("b", "stop")
RESET = ConnectionResetError

# What the provider sends; the text, or the error that the caller gets; after how many seconds.
WHOLE: dict[str, tuple[list[Any], str, float]] = {
    "the reason, and the end": ([A, B, STOP], "ab", 0.0),
    "the reason, and it hangs": ([A, B, STOP, HANGS], "ab", 2.0),
    "the reason, the usage, and it hangs": ([A, B, STOP, 1.0, USAGE, HANGS], "ab", 2.0),
    "the reason, and a reset": ([A, B, STOP, RESET()], "ab", 0.0),
    "the reason, and what cannot be read": ([A, B, STOP, unreadable()], "ab", 0.0),
    "the reason with the last content, and it hangs": ([A, B_STOP, HANGS], "ab", 2.0),
    "the reason with the last content, and a reset": ([A, B_STOP, RESET()], "ab", 0.0),
    "all in one chunk, the usage, and it hangs": ([A_STOP, USAGE, HANGS], "a", 2.0),
    "all in one chunk, and the end": ([A_STOP], "a", 0.0),
    "a reason with every chunk, and the end": ([A_STOP, 2.4, B_STOP, 9.0, A_STOP], "aba", 11.4),
    "a reason with every chunk, the usage, and it hangs": ([A_STOP, 9.0, B_STOP, USAGE, HANGS], "ab", 11.0),
    "a reason with every chunk but the first, and the end": ([A, 9.0, B_STOP, 1.0, A_STOP, 9.0, B_STOP], "abab", 19.0),
    "a reason before the content": ([STOP, 2.4, A, 9.0, B], "ab", 11.4),
    "content after the reason": ([A, STOP, 1.9, B, 9.0, A], "aba", 10.9),
    "content after the usage": ([A_STOP, USAGE, 1.9, B_STOP, 9.0, A_STOP], "aba", 10.9),
    "no content, but all tokens spent": ([ENOUGH, HANGS], "", 2.0),
    "no content, but filtered": ([chat(""), chat(reason="content_filter"), RESET()], "", 0.0),
    "a reason and a usage with every chunk": ([A_STOP, USAGE, B_STOP, USAGE, 2.4, A_STOP, USAGE], "aba", 2.4),
    "a usage without counts": ([A_STOP, chat(choices=[], usage={}), 2.4, B_STOP], "ab", 2.4),
    "words for no reason, and it hangs": ([chat("a", "null"), chat("b", "None"), STOP, HANGS], "ab", 2.0),
    "an empty answer and its usage": ([STOP, USAGE, HANGS], "", 2.0),
    "nothing but the reason, and the end": ([STOP], "", 0.0),
}
BROKEN: dict[str, tuple[list[Any], type[Exception], float]] = {
    "no reason": ([A, B], StreamInterruptedError, 0.0),
    "a null in words": ([A, chat("b", "null")], StreamInterruptedError, 0.0),
    "a reason that is unspecified": ([chat("a", "FINISH_REASON_UNSPECIFIED")], StreamInterruptedError, 0.0),
    "a reason with every chunk, and it hangs": ([A_STOP, 1.0, B_STOP, HANGS], StreamStalledError, 16.0),
    "a reason with every chunk, and a reset": ([A_STOP, B_STOP, RESET()], RESET, 0.0),
    "a reason with every chunk, and what cannot be read": ([A_STOP, unreadable()], ValueError, 0.0),
    "a reason with every chunk but the first, and it hangs": ([A, B_STOP, A_STOP, HANGS], StreamStalledError, 15.0),
    "a reason with the only content, and a reset": ([A_STOP, RESET()], RESET, 0.0),
    "a reason with the only content, cut by length": ([chat("a", "length"), RESET()], RESET, 0.0),
    "a reason before the content, and it hangs": ([STOP, HANGS], PrimitiveTimeoutError, 20.0),
    "a reason before the content, and it hangs later": ([STOP, A, HANGS], StreamStalledError, 15.0),
    "a reason before the content, and a reset": ([STOP, A, RESET()], RESET, 0.0),
    "content after the reason, and it hangs": ([A, STOP, B, HANGS], StreamStalledError, 15.0),
    "content after the usage, and a reset": ([A_STOP, USAGE, B, RESET()], RESET, 0.0),
}


def shaped(script: list[Any], shape: Callable[[Any], Any]) -> list[Any]:
    return [shape(item) if isinstance(item, dict) else item for item in script]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", WHOLE)
async def test_an_answer_that_is_whole(name: str, shape: Callable[[Any], Any]) -> None:
    """All of what was sent is there, and where nothing more is due, nothing is waited for or lost."""
    script, text, seconds = WHOLE[name]
    answer = await guarded(Source(*shaped(script, shape))).execute("q")
    assert (text, seconds) == (answer.text, pytest.approx(now()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", BROKEN)
async def test_an_answer_of_which_more_may_be_due(name: str, shape: Callable[[Any], Any]) -> None:
    """It is never a success, and the clock for a stream that stalls is the one of any other."""
    script, error, seconds = BROKEN[name]
    with pytest.raises(error):
        await guarded(Source(*shaped(script, shape))).execute("q")
    assert seconds == pytest.approx(now())


@pytest.mark.parametrize("last", [A_STOP, STOP])
async def test_what_cannot_be_read_in_the_middle_is_skipped(last: Any) -> None:
    """As in a stream with one reason: the chunks after it show that the answer went on."""
    answer = await guarded(GoingOn(B_STOP, unreadable(), last)).execute("q")
    assert "stop" == answer.finish_reason


ANTHROPIC = [
    {"type": "message_start", "message": {"id": "a", "model": "m", "stop_reason": None, "usage": {"input_tokens": 3}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
    {"type": "content_block_stop", "index": 0},
]
TOOL = {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "now"}}
MESSAGE_STOP = {"type": "message_stop"}
RESPONSES = [
    {"type": "response.created", "response": {"object": "response", "status": "in_progress", "output": []}},
    {"type": "response.output_text.delta", "delta": "a"},
]


def message_delta(reason: str = "end_turn") -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 2}}


def ended(status: str = "completed", **details: Any) -> dict[str, Any]:
    response = {"object": "response", "status": status, "output": [], **details}
    return {"type": f"response.{status}", "response": response}


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([*ANTHROPIC, message_delta(), HANGS], 2.0),
        ([*ANTHROPIC, message_delta(), MESSAGE_STOP, RESET()], 0.0),
        ([ANTHROPIC[0], TOOL, message_delta("tool_use"), HANGS], 2.0),
        ([ANTHROPIC[0], message_delta("refusal"), HANGS], 2.0),
        ([ANTHROPIC[0], message_delta(), MESSAGE_STOP, HANGS], 2.0),
        ([ANTHROPIC[0], message_delta(), ANTHROPIC[2], 9.0, ANTHROPIC[2], MESSAGE_STOP, HANGS], 11.0),
        ([ANTHROPIC[0], message_delta(), HANGS], PrimitiveTimeoutError),
        ([ANTHROPIC[0], message_delta(), ANTHROPIC[2], RESET()], RESET),
        ([*ANTHROPIC, message_delta(), ANTHROPIC[2], HANGS], StreamStalledError),
        ([*ANTHROPIC, MESSAGE_STOP], StreamInterruptedError),
        ([*RESPONSES, ended(), HANGS], 2.0),
        ([*RESPONSES, ended("incomplete", incomplete_details={"reason": "max_output_tokens"}), RESET()], 0.0),
        ([RESPONSES[0], ended(), HANGS], 2.0),
        (RESPONSES, StreamInterruptedError),
        ([*RESPONSES, HANGS], StreamStalledError),
    ],
)
async def test_the_last_event_is_final(script: list[Any], expected: Any) -> None:
    """Anthropic and OpenAI's responses say in an event of its own that nothing more comes."""
    if isinstance(expected, float):
        await guarded(Source(*script)).execute("q")
        assert expected == pytest.approx(now())
        return
    with pytest.raises(expected):
        await guarded(Source(*script)).execute("q")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([AIMessageChunk("a", {}), AIMessageChunk("", {"finish_reason": "stop"}), HANGS], 2.0),
        ([AIMessageChunk("a", {"stopReason": "end_turn"}), AIMessageChunk("", {}, chunk_position="last"), HANGS], 2.0),
        ([AIMessageChunk("a", {"finish_reason": "FINISH_REASON_UNSPECIFIED"}), RESET()], RESET),
        ([AIMessageChunk("a", {"model_provider": "p"}), AIMessageChunk("", {}, chunk_position="last")], "cut"),
        ([AIMessageChunk("a", {}), AIMessageChunk("", {}, chunk_position="last")], 0.0),
    ],
)
async def test_the_last_chunk_of_langchain(script: list[Any], expected: Any) -> None:
    """LangChain marks a last chunk, also of a stream that was cut: only with a reason is it an end."""
    error = StreamInterruptedError if expected == "cut" else expected
    if isinstance(expected, float):
        await guarded(Source(*script)).execute("q")
        assert expected == pytest.approx(now())
        return
    with pytest.raises(error):
        await guarded(Source(*script)).execute("q")


# Dicts of nobody's: content is what is not empty.
OWN_END = {"finish_reason": "stop"}


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([{"token": "a"}, {"token": "b"}, OWN_END], 0.0),
        ([{"token": "a"}, OWN_END, HANGS], 2.0),
        ([{"token": "a", **OWN_END}, 2.4, {"token": "b", **OWN_END}], 2.4),
        ([{"token": "a", **OWN_END}, HANGS], StreamStalledError),
    ],
)
async def test_chunks_of_no_known_shape(script: list[Any], expected: Any) -> None:
    """A reason at the top of a chunk follows the same rule."""
    if isinstance(expected, float):
        await guarded(Source(*script)).execute("q")
        assert expected == pytest.approx(now())
        return
    with pytest.raises(expected):
        await guarded(Source(*script)).execute("q")


async def test_a_call_that_announces_no_end_goes_on_after_a_reason() -> None:
    """An agent: the model's call of a tool ends with a reason, then the tool runs, then comes the answer."""
    asks = chat(reason="tool_calls")
    answer = await guarded(Source(A, asks, 9.0, B, STOP), announces_end=False).execute("q")
    assert ("ab", "stop", 9.0) == (answer.text, answer.finish_reason, pytest.approx(now()))
    with pytest.raises(ConnectionResetError):
        await guarded(Source(A, asks, RESET()), announces_end=False).execute("q")


@pytest.mark.parametrize(
    "extra",
    [{"id": "c1", "choices": None, "usage": {"prompt_tokens": 3}}, {"citations": ["x"]}, {"type": "done", "n": 1}],
    ids=repr,
)
async def test_what_a_server_adds_after_the_answer_is_no_content(extra: Any) -> None:
    """It has no form of the provider's chunks, so it does not take the end of the answer back."""
    assert "ab" == (await guarded(Source(A, B, STOP, extra, HANGS)).execute("q")).text
    assert 2.0 == pytest.approx(now())
    assert "ab" == (await guarded(Source(A, B, STOP, extra, RESET())).execute("q")).text


@pytest.mark.parametrize("part", ["images", "reasoning_details", "reasoning_content", "audio", "refusal", "tool_calls"])
async def test_an_answer_without_text_has_content(part: str) -> None:
    """What a server puts beside the text makes the reason after it final, too."""
    choice = {"index": 0, "delta": {part: [{"index": 0}]}, "finish_reason": None}
    await guarded(Source(chat(choices=[choice]), STOP, HANGS)).execute("q")
    assert 2.0 == pytest.approx(now())


# Several choices


FIRST, SECOND = [chat("a"), chat(reason="stop")], [chat("b", index=1), chat(reason="stop", index=1)]
TWO = {"n": 2, "messages": []}


async def texts_of(primitive: Any, request: Any) -> dict[int, str]:
    texts: dict[int, str] = {}
    async with primitive.stream(request) as chunks:
        async for each in chunks:
            for choice in each["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"]["content"] or "")
    return texts


@pytest.mark.parametrize(
    "request_",
    [
        TWO,
        SimpleNamespace(n=2),
        {"extra_body": {"n": 2}},
        {"prompt": ["x", "y"]},
        {"prompt": [[1, 2], [3]], "n": 1},
    ],
    ids=repr,
)
async def test_a_choice_that_begins_late_is_waited_for(request_: Any) -> None:
    """The end of the first is not the end of the stream, however long the pause between them."""
    source = Source(*FIRST, 9.0, *SECOND, HANGS)
    assert {0: "a", 1: "b"} == await texts_of(guarded(source), request_)
    assert 11.0 == pytest.approx(now())


async def test_the_context_form_and_execute_are_told_too() -> None:
    """The number is read from the request, whichever primitive passes it on."""
    seen: list[Any] = []

    async def call(request: Any, context: Any) -> Any:
        return Source(*FIRST, 9.0, *SECOND)

    primitive = LLMCallPrimitive[Any, Any](call, streaming=True, collect=seen.extend)
    await primitive.execute(TWO)
    assert [*FIRST, *SECOND] == seen


@pytest.mark.parametrize("request_", [{"messages": []}, "q", [{"role": "user"}], {"n": 1}, {"n": None}], ids=repr)
async def test_a_call_may_ask_for_more_than_its_request_says(request_: Any) -> None:
    """Where the number stands in the call itself, it may be said beside it; the request's own comes first."""
    source = Source(*FIRST, 9.0, *SECOND)
    expected = {0: "a"} if request_ == {"n": 1} else {0: "a", 1: "b"}
    assert expected == await texts_of(guarded(source, choices=2), request_)


async def test_what_asked_for_one_choice_gets_one() -> None:
    """Unless more have begun before the first ends."""
    assert {0: "a"} == await texts_of(guarded(Source(*FIRST, 9.0, *SECOND)), "q")
    begun = Source(FIRST[0], SECOND[0], FIRST[1], 9.0, SECOND[1])
    assert {0: "a", 1: "b"} == await texts_of(guarded(begun), "q")


async def test_a_server_that_knows_no_n_has_answered() -> None:
    """A choice that never came is no cut; one that began and did not end is."""
    assert {0: "a"} == await texts_of(guarded(Source(*FIRST, USAGE)), TWO)
    for script in ([*FIRST, SECOND[0]], [FIRST[0], *SECOND]):
        with pytest.raises(StreamInterruptedError):
            await texts_of(guarded(Source(*script)), TWO)
    with pytest.raises(ConnectionResetError):
        await texts_of(guarded(Source(*FIRST, USAGE, RESET())), TWO)


async def test_a_target_knows_the_parameters_of_its_requests() -> None:
    """``LLMTarget.openai(parameters={"n": 2})``: the caller's request does not show it."""

    async def create(**_: Any) -> Any:
        return Source(*FIRST, 9.0, *SECOND)

    completions = SimpleNamespace(create=create)
    client = SimpleNamespace(chat=SimpleNamespace(completions=completions))
    target = LLMTarget.openai(client, "m", parameters={"n": 2})
    assert {0: "a", 1: "b"} == await texts_of(pipeline([target]), "q")
    assert 1 == LLMTarget.openai(client, "m", parameters={"n": 2}, choices=1).choices
    assert LLMTarget.openai(client, "m", parameters={"n": "2"}).choices is None


# What becomes of the rest


@pytest.mark.parametrize(("script", "error_type"), [([A, STOP], None), ([A_STOP, B_STOP], "closed")])
async def test_a_reader_who_leaves_at_a_reason_has_the_answer_if_it_is_final(
    script: list[Any], error_type: str | None, tracing: Any
) -> None:
    """Who leaves at the first of many has not."""
    async with LLMCallPrimitive[Any, Any](lambda _: Source(*script)).stream("q") as chunks:
        for _ in script:
            await anext(chunks)
    assert error_type == tracing.named("chat").attributes.get("error.type")


async def test_a_close_that_fails_harms_no_answer_that_ended(metrics: Any) -> None:
    """A reason with every chunk, and the end: nothing is missing."""
    assert "a" == (await guarded(Source(A_STOP, on_close=RESET())).execute("q")).text
    assert 1 == metrics("telemetry.faults", site="llm_call.close")
    with pytest.raises(ConnectionResetError):
        async with guarded(Source(A_STOP, B_STOP, on_close=RESET())).stream("q") as chunks:
            await anext(chunks)


async def test_half_an_answer_is_asked_for_elsewhere() -> None:
    """The whole way: the target that hangs after a reason of every chunk's is given up, and the next one answers."""

    async def half(_: str) -> Any:
        return Source(A_STOP, B_STOP, HANGS)

    async def whole(_: str) -> Any:
        return Source(A, B, STOP)

    targets = [LLMTarget(call=half, streaming=True), LLMTarget(call=whole, streaming=True)]
    answer = await pipeline(targets).execute("q")
    assert ("ab", 15.0) == (answer.text, pytest.approx(now()))
