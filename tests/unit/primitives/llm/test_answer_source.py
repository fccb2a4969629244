"""What a call returns is read whatever it is, and closed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from observability_integration.errors import ConfigurationError, StreamInterruptedError
from observability_integration.primitives import LLMCallPrimitive

pytestmark = pytest.mark.once

CHAT = {
    "id": "c",
    "model": "answered",
    "choices": [{"index": 0, "message": {"content": "the answer"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}


def part(content: str | None, reason: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": content}, "finish_reason": reason}]}


def returning(made: Any, **options: Any) -> LLMCallPrimitive[Any, Any]:
    async def call(_: Any) -> Any:
        return made

    return LLMCallPrimitive(call, model="m", **options)


async def read(primitive: LLMCallPrimitive[Any, Any]) -> list[Any]:
    async with primitive.stream("q") as chunks:
        return [chunk async for chunk in chunks]


@pytest.mark.parametrize("answer", ["whole", CHAT, None, 7, b"", [1], {"error": {"message": "x"}}], ids=repr)
async def test_an_answer_in_one_piece_is_the_only_chunk(answer: Any, tracing: Any) -> None:
    """The provider was paid; a target that does not stream may stand behind one that does."""
    assert [answer] == await read(returning(answer))
    assert "success" == tracing.named("chat m").attributes["outcome"]
    assert [] == tracing.unended()


@pytest.mark.promise("L1")
async def test_an_answer_in_one_piece_is_on_the_span(tracing: Any) -> None:
    """As if it had not been asked for in chunks."""
    tracing.captures_content = True
    await read(returning(CHAT))
    attributes = tracing.named("chat m").attributes
    assert ("answered", "c", ("stop",)) == (
        attributes["gen_ai.response.model"],
        attributes["gen_ai.response.id"],
        attributes["gen_ai.response.finish_reasons"],
    )
    assert (3, 2) == (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"])
    assert CHAT["choices"] == json.loads(attributes["gen_ai.output.messages"])
    assert "gen_ai.response.time_to_first_chunk" in attributes


async def test_what_is_not_async_is_refused() -> None:
    """A client that blocks would hold up the loop with every chunk."""
    for call in (lambda _: "whole", lambda _: iter(["a"])):
        with pytest.raises(ConfigurationError, match="async"):
            await read(LLMCallPrimitive(call))
    with pytest.raises(ConfigurationError, match="async"):
        await read(returning(iter(["a"])))


class Manager:
    """What ``client.messages.stream()`` of Anthropic's returns: entered, it is a stream."""

    def __init__(self, chunks: Any, failing: BaseException | None = None) -> None:
        self.made = chunks
        self.failing = failing
        self.log: list[str] = []

    async def _generate(self) -> AsyncIterator[Any]:
        try:
            for chunk in self.made:
                yield chunk
        finally:
            self.log.append("closed")

    async def __aenter__(self) -> Any:
        self.log.append("entered")
        if self.failing is not None:
            raise self.failing
        return self._generate() if isinstance(self.made, list) else self.made

    async def __aexit__(self, *_: object) -> None:
        self.log.append("left")


@pytest.mark.parametrize("wrap", [lambda made: returning(made), lambda made: LLMCallPrimitive(lambda _: made)])
async def test_a_context_manager_is_entered_and_left(wrap: Callable[[Any], LLMCallPrimitive[Any, Any]]) -> None:
    """Whether the call has to be awaited or not; the connection is given back, also by a reader who leaves."""
    manager = Manager(["a", "b"])
    assert ["a", "b"] == await read(wrap(manager))
    assert ["entered", "closed", "left"] == manager.log
    manager = Manager(["a", "b"])
    async with wrap(manager).stream("q") as chunks:
        await anext(chunks)
    assert ["entered", "closed", "left"] == manager.log
    assert [CHAT] == await read(wrap(Manager(CHAT)))


async def test_a_context_manager_that_cannot_be_entered_is_not_left(tracing: Any) -> None:
    """As ``async with`` has it."""
    manager = Manager([], ConnectionError())
    with pytest.raises(ConnectionError):
        await read(returning(manager))
    assert ["entered"] == manager.log
    assert [] == tracing.unended()


@pytest.mark.promise("L2")
@pytest.mark.parametrize("chunks", [[], ["", "<html>log in</html>"], [{"choices": []}], [None, {}]], ids=repr)
async def test_who_announces_the_end_has_not_answered_without_it(chunks: list[Any]) -> None:
    """An empty body, a page of a proxy's, or keep-alives with a status of 200: the shape of the chunks says nothing."""
    with pytest.raises(StreamInterruptedError) as caught:
        await read(LLMCallPrimitive(lambda _: Manager(chunks), announces_end=True))
    assert ("no_finish_reason", len(chunks)) == (caught.value.reason, caught.value.chunks)


async def test_whether_the_end_is_announced_may_be_said() -> None:
    """Either way; else the shape of the chunks decides, but not for an answer in one piece."""
    assert [part("a", "stop")] == await read(
        LLMCallPrimitive(lambda _: Manager([part("a", "stop")]), announces_end=True)
    )
    assert [part("a")] == await read(LLMCallPrimitive(lambda _: Manager([part("a")]), announces_end=False))
    assert [part("a")] == await read(returning(part("a")))
    with pytest.raises(StreamInterruptedError):
        await read(returning(part("a"), announces_end=True))


TWO = [part("Hel"), part("Hi", index=1), part(None, "stop", 1)]


@pytest.mark.promise("L2")
async def test_of_several_choices_each_must_have_its_end() -> None:
    """With n = 2, that the second has ended says nothing about the first."""
    with pytest.raises(StreamInterruptedError):
        await read(LLMCallPrimitive(lambda _: Manager(TWO)))

    async def breaks(_: Any) -> AsyncIterator[Any]:
        for chunk in TWO:
            yield chunk
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await read(LLMCallPrimitive(breaks))
    whole = [*TWO, part("lo", "length")]
    assert whole == await read(LLMCallPrimitive(lambda _: Manager(whole)))


async def test_the_reasons_of_several_choices_are_on_the_span_in_their_order(tracing: Any) -> None:
    """They come as they end, not as they are numbered."""
    await read(LLMCallPrimitive(lambda _: Manager([*TWO, part("lo", "length")])))
    assert ("length", "stop") == tracing.named("chat").attributes["gen_ai.response.finish_reasons"]
