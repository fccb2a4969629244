"""LangChain's messages, whole and in chunks: what is read of them, and that a cut one is known."""

from __future__ import annotations

from typing import Any

import pytest

from observability_integration.costs.usage import Usage, finish_reasons_of, id_of, model_of, total_tokens_of, usage_of
from observability_integration.errors import StreamInterruptedError
from observability_integration.primitives import (
    CachePrimitive,
    Completion,
    LLMCallPrimitive,
    LLMTarget,
    ToolCall,
    pipeline,
)
from observability_integration.primitives.chunks import chunk_text, is_content
from tests.langchain_doubles import AIMessage, AIMessageChunk
from tests.scripted_source import Source

pytestmark = [pytest.mark.once, pytest.mark.promise("L1", "L2")]

OPENAI = {"model_provider": "openai"}
LAST = AIMessageChunk("", {}, chunk_position="last")


def tokens(input_tokens: int, output_tokens: int, **details: Any) -> dict[str, Any]:
    return {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        **details,
    }


def openai(reason: str | None = "stop") -> list[AIMessageChunk]:
    """What `langchain_openai` makes of a stream with this reason; None for one that was cut."""
    begun = [AIMessageChunk(text, OPENAI) for text in ("", "Hel", "lo")]
    if reason is None:
        return [*begun, LAST]
    metadata = {"finish_reason": reason, "model_name": "m", **OPENAI}
    return [*begun, AIMessageChunk("", metadata), AIMessageChunk("", {}, usage_metadata=tokens(3, 2)), LAST]


PROVIDER = {"model_provider": "anthropic"}
ANTHROPIC = [
    AIMessageChunk("", {"model_name": "claude", **PROVIDER}, usage_metadata=tokens(3, 0)),
    AIMessageChunk([{"type": "thinking", "thinking": "hm", "index": 0}], PROVIDER),
    AIMessageChunk([{"type": "text", "text": "Hel", "index": 1}], PROVIDER),
    AIMessageChunk("lo", PROVIDER),
    AIMessageChunk(
        [{"type": "tool_use", "id": "t", "name": "add", "input": {}, "index": 2}],
        PROVIDER,
        tool_call_chunks=[{"name": "add", "args": "", "id": "t", "index": 2}],
        tool_calls=[{"name": "add", "args": {}, "id": "t"}],
    ),
    AIMessageChunk(
        [{"type": "input_json_delta", "partial_json": '{"a":1}', "index": 2}],
        PROVIDER,
        tool_call_chunks=[{"name": None, "args": '{"a":1}', "id": None, "index": 2}],
    ),
    AIMessageChunk("", {"stop_reason": "tool_use", **PROVIDER}, usage_metadata=tokens(0, 9), chunk_position="last"),
]
RESPONSES = [
    AIMessageChunk([], {"id": "r1", **OPENAI}, id="r1"),
    AIMessageChunk([{"type": "text", "text": "Hello", "index": 0}], OPENAI),
    AIMessageChunk(
        [],
        {"model": "m", "object": "response", "status": "completed", **OPENAI},
        usage_metadata=tokens(3, 2, input_token_details={"cache_read": 1}, output_token_details={"reasoning": 1}),
        chunk_position="last",
    ),
]


def target(chunks: list[Any]) -> LLMTarget:
    async def call(_: str) -> Any:
        return Source(*chunks)

    return LLMTarget(call=call, streaming=True, max_attempts=1)


def used(prompt: int, output: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (openai(), Completion("Hello", "m", "stop", used(3, 2))),
        (
            ANTHROPIC,
            Completion("Hello", "claude", "tool_use", used(3, 9), (ToolCall("t", "add", '{"a":1}'),)),
        ),
        (RESPONSES, Completion("Hello", "m", "completed", used(3, 2), id="r1")),
        ([AIMessageChunk("a"), AIMessageChunk("b", chunk_position="last")], Completion("ab")),
        ([AIMessageChunk(["a", {"type": "text", "text": "b"}])], Completion("ab")),
        (
            [
                AIMessageChunk("a", usage_metadata=tokens(3, 1)),
                AIMessageChunk("b", {"finish_reason": "STOP"}, usage_metadata=tokens(0, 2)),
            ],
            Completion("ab", None, "STOP", used(3, 3)),
        ),
        (
            [AIMessage("", {"finish_reason": "tool_calls"}, tool_calls=[{"name": "f", "args": {"a": 1}, "id": "t"}])],
            Completion("", None, "tool_calls", None, (ToolCall("t", "f", '{"a": 1}'),)),
        ),
        (
            [AIMessage("", {"finish_reason": "stop", "id": "c1"}, additional_kwargs={"refusal": "No."})],
            Completion("", None, "stop", None, (), "No.", "c1"),
        ),
    ],
    ids=["openai", "anthropic", "responses", "fake", "texts", "tokens", "tools", "refusal"],
)
async def test_a_stream_becomes_one_answer(chunks: list[Any], expected: Completion) -> None:
    """The same that the provider's own SDK leads to, also of a fake model, which has no metadata."""
    assert expected == await pipeline([target(chunks)]).execute("q")


NAMED = {"model_name": "m", "finish_reason": "FINISH_REASON_UNSPECIFIED"}


@pytest.mark.parametrize(
    "chunks",
    [
        openai(None),
        [*ANTHROPIC[:4], LAST],
        [*RESPONSES[:2], LAST],
        [AIMessageChunk("", {"model_name": "m"}), AIMessageChunk("a")],
        [AIMessageChunk("a", NAMED), AIMessageChunk("b", NAMED), LAST],
    ],
    ids=["openai", "anthropic", "responses", "earlier version", "google"],
)
async def test_a_cut_stream_is_none(chunks: list[Any]) -> None:
    """LangChain ends it like any other, even with a chunk that says it is the last."""
    with pytest.raises(StreamInterruptedError) as caught:
        await pipeline([target(chunks)]).execute("q")
    assert "no_finish_reason" == caught.value.reason
    assert "Hello" == (await pipeline([target(chunks), target_named(openai(), "whole")]).execute("q")).text


def target_named(chunks: list[Any], name: str) -> LLMTarget:
    async def call(_: str) -> Any:
        return Source(*chunks)

    return LLMTarget(call=call, streaming=True, name=name)


async def test_chunks_without_metadata_may_be_said_to_end_with_a_reason() -> None:
    """Integrations that name no provider look like fake models until their last chunk."""
    chunks = [AIMessageChunk("a"), LAST]
    call = LLMCallPrimitive[Any, Any](lambda _: Source(*chunks), streaming=True, announces_end=True)
    with pytest.raises(StreamInterruptedError):
        await call.execute("q")


@pytest.mark.parametrize(("field", "value"), [("finish_reason", "stop"), ("stop_reason", "end_turn")])
@pytest.mark.parametrize("form", [AIMessage, AIMessageChunk, dict])
def test_what_is_read_of_a_message(form: Any, field: str, value: str) -> None:
    """Each provider has its own field; the tokens are LangChain's."""
    metadata = {field: value, "model_name": "m", "id": "c1"}
    usage = tokens(
        9, 5, input_token_details={"cache_read": 4, "cache_creation": 2}, output_token_details={"reasoning": 3}
    )
    if form is dict:
        message: Any = {"type": "ai", "content": "a", "response_metadata": metadata, "usage_metadata": usage}
    else:
        message = form("a", metadata, usage_metadata=usage)
    assert ((value,), "m", "c1") == (finish_reasons_of(message), model_of(message), id_of(message))
    assert (Usage(9, 5, 4, 2, 3), 14) == (usage_of(message), total_tokens_of(message))
    assert ("a", True) == (chunk_text(message), is_content(message))


@pytest.mark.parametrize("run_id", ["lc_run--1", "run-1", None, ""])
def test_the_id_of_a_run_is_none_of_the_providers(run_id: Any) -> None:
    """LangChain makes one up for each answer."""
    assert id_of(AIMessage("a", id=run_id)) is None
    assert "msg_1" == id_of(AIMessage("a", id="msg_1"))


def test_the_tokens_of_chunks_are_added_up() -> None:
    """LangChain's own sum: a chunk has what came since the one before it."""
    assert Usage(3, 9) == usage_of(AIMessageChunk("", usage_metadata=tokens(3, 4))).plus(Usage(0, 5))
    assert Usage(2**63 - 1) == Usage(2**63 - 1).plus(Usage(5))
    whole = Usage(3, 4)
    assert whole is whole.plus(usage_of(AIMessageChunk("")))


@pytest.mark.parametrize(
    ("chunk", "content"),
    [
        (AIMessageChunk(""), False),
        (AIMessageChunk([]), False),
        (LAST, False),
        (AIMessageChunk([{"type": "text", "text": "", "id": "i", "index": 0}]), False),
        (AIMessageChunk("", usage_metadata=tokens(3, 2)), False),
        (AIMessageChunk("", additional_kwargs={"refusal": None}), False),
        (AIMessageChunk(" "), True),
        (AIMessageChunk(["a"]), True),
        (AIMessageChunk([{"type": "thinking", "thinking": "hm", "index": 0}]), True),
        (AIMessageChunk("", tool_call_chunks=[{"name": "f", "args": "", "id": "t", "index": 0}]), True),
        (AIMessageChunk("", additional_kwargs={"reasoning_content": "hm"}), True),
    ],
)
def test_which_chunks_carry_content(chunk: Any, content: bool) -> None:
    """Only those restart the clocks."""
    assert content is is_content(chunk)


class Hostile(AIMessageChunk):
    """A message of which a field cannot be read."""

    @property
    def usage_metadata(self) -> Any:
        raise LookupError

    @usage_metadata.setter
    def usage_metadata(self, value: Any) -> None:
        pass


async def test_a_message_that_cannot_be_read_is_the_callers() -> None:
    """Whatever it holds; a reason that can be read still counts."""
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    chunks = [Hostile("a"), AIMessageChunk(cyclic), AIMessageChunk(7), AIMessageChunk("b", {"finish_reason": object()})]  # type: ignore[arg-type]
    chunks.append(Hostile("", {"finish_reason": "stop"}))
    assert chunks == await LLMCallPrimitive[Any, Any](lambda _: Source(*chunks), streaming=True).execute("q")


def cached(call: Any, **options: Any) -> CachePrimitive[Any, Any]:
    return pipeline([LLMTarget(call=call, **options)], cache=lambda inner: CachePrimitive(inner, lambda x: x))  # type: ignore[return-value]


@pytest.mark.promise("C12")
@pytest.mark.parametrize(("reason", "hits"), [("stop", 1), ("length", 0), ("content_filter", 0), ("MAX_TOKENS", 0)])
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_cut_answer_is_not_kept(reason: str, hits: int, streamed: bool) -> None:
    """Neither joined from chunks nor whole."""

    async def stream(_: str) -> Any:
        return Source(*openai(reason))

    async def whole(_: str) -> Any:
        return AIMessage("Hello", {"finish_reason": reason, "model_name": "m"})

    cache = cached(stream if streamed else whole, streaming=streamed)
    for _ in range(2):
        await cache.execute("q")
    assert hits == cache.get_stats()["hits"]


@pytest.mark.promise("C12", "C14")
@pytest.mark.parametrize(("reason", "hits"), [("stop", 1), ("length", 0)])
async def test_a_cut_answer_in_one_chunk_is_not_kept(reason: str, hits: int) -> None:
    """As LangChain streams a model that cannot stream."""

    async def whole(_: str) -> Any:
        return Source(AIMessage("Hello", {"finish_reason": reason, "model_name": "m"}))

    cache = cached(whole, streaming=True)
    for _ in range(2):
        async with cache.stream("q") as chunks:
            assert ["Hello"] == [chunk.content async for chunk in chunks]
    assert hits == cache.get_stats()["hits"]


@pytest.mark.promise("C12", "C14")
@pytest.mark.parametrize(("reason", "hits"), [("stop", 1), ("length", 0), (None, 0)])
async def test_a_cut_stream_is_not_kept(reason: str | None, hits: int) -> None:
    """A reader of chunks is given no half either, at the second time."""

    async def stream(_: str) -> Any:
        return Source(*openai(reason))

    cache = cached(stream, streaming=True)
    for _ in range(2):
        try:
            async with cache.stream("q") as chunks:
                assert "Hello" == "".join([chunk_text(chunk) async for chunk in chunks])
        except StreamInterruptedError:
            assert reason is None
    assert hits == cache.get_stats()["hits"]
