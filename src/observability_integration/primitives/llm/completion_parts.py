"""The parts of one answer, gathered from chunks in the forms of OpenAI's and Anthropic's streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from observability_integration.costs.usage import choices_of, read
from observability_integration.primitives.chunks import blocks_text, choice_text, chunk_text

from .facts import AnswerFacts

# Tools of OpenAI's responses that the caller runs, and where what they are called with stands.
_INPUTS = {"function_call": "arguments", "custom_tool_call": "input"}
_INPUT_EVENTS = ("response.function_call_arguments.", "response.custom_tool_call_input.")


@dataclass(slots=True)
class ToolParts:
    """One call of a tool, as far as it has come."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list[str])

    def note(self, call_id: Any, name: Any) -> None:
        """Id and name, which come once."""
        self.id = self.id or _text(call_id)
        self.name = self.name or _text(name)


class CompletionParts:
    """Takes the chunks of one answer, in order.

    Attributes:
        facts: what they say besides.
        texts: the pieces of the text.
        refusals: those of what is said in place of an answer.
        tools: the calls of tools, by their numbers.
    """

    def __init__(self) -> None:
        self.facts = AnswerFacts()
        self.texts: list[str] = []
        self.refusals: list[str] = []
        self.tools: dict[int, ToolParts] = {}

    def add(self, chunk: Any) -> None:
        """One more chunk, or an answer in one piece."""
        if isinstance(chunk, str):
            self.texts.append(chunk)
            return
        self.facts.note(chunk)
        choices = choices_of(chunk)
        if choices is not None:
            first = next((choice for choice in choices if not read(choice, "index")), None)
            self._add_choice(first)
            return
        kind = read(chunk, "type")
        if isinstance(kind, str) and kind.startswith("response."):
            self._add_event(kind, chunk)
        elif read(chunk, "object") == "response":
            self._add_response(chunk)
        elif kind == "message":
            self._add_message(chunk)
        else:
            self.texts.append(chunk_text(chunk))
            self._add_block(kind, chunk)

    def _tool(self, number: Any) -> ToolParts:
        return self.tools.setdefault(number if isinstance(number, int) else 0, ToolParts())

    # OpenAI, chat and legacy completions -----------------------------------------------------------------------------

    def _add_choice(self, choice: Any) -> None:
        self.texts.append(choice_text(choice))
        part = read(choice, "delta")
        if part is None:
            part = read(choice, "message")
        self.refusals.append(_text(read(part, "refusal")))
        for call in read(part, "tool_calls") or ():
            number, call_id = read(call, "index"), _text(read(call, "id"))
            tool = self._tool(number if isinstance(number, int) else self._number_of(call_id))
            tool.note(call_id, read(call, "function", "name"))
            tool.arguments.append(_text(read(call, "function", "arguments")))

    def _number_of(self, call_id: str) -> int:
        """The number of a call that has none: in one piece, and with some servers that send each call at once."""
        last = max(self.tools, default=-1)
        if not call_id:
            return max(last, 0)
        return next((number for number, tool in self.tools.items() if tool.id == call_id), last + 1)

    # OpenAI, responses -----------------------------------------------------------------------------------------------

    def _add_event(self, kind: str, event: Any) -> None:
        index = read(event, "output_index")
        if kind == "response.output_text.delta":
            self.texts.append(_text(read(event, "delta")))
        elif kind == "response.refusal.delta":
            self.refusals.append(_text(read(event, "delta")))
        elif kind.startswith(_INPUT_EVENTS) and kind.endswith(".delta"):
            self._tool(index).arguments.append(_text(read(event, "delta")))
        elif kind in ("response.output_item.added", "response.output_item.done"):
            self._add_item(index, read(event, "item"))
        elif not (any(self.texts) or any(self.refusals) or self.tools):
            self._add_response(read(event, "response"))  # of which the last is whole, if the parts did not come

    def _add_response(self, response: Any) -> None:
        output = read(response, "output")
        for index, item in enumerate(output if isinstance(cast("object", output), list) else ()):
            if read(item, "type") == "message":
                content = read(item, "content")
                self.texts.append(blocks_text(content))
                refusals = [_text(read(block, "refusal")) for block in content or ()]
                self.refusals.extend(refusals)
            self._add_item(index, item)

    def _add_item(self, index: Any, item: Any) -> None:
        field_ = _INPUTS.get(_text(read(item, "type")))
        if field_ is None:
            return
        tool = self._tool(index)
        tool.note(read(item, "call_id") or read(item, "id"), read(item, "name"))
        if not any(tool.arguments):
            tool.arguments.append(_text(read(item, field_)))

    # Anthropic -------------------------------------------------------------------------------------------------------

    def _add_block(self, kind: Any, event: Any) -> None:
        index = read(event, "index")
        if kind == "content_block_start":
            self._begin_tool(index, read(event, "content_block"))
        partial = read(event, "delta", "partial_json")
        if isinstance(partial, str) and index in self.tools:
            self.tools[index].arguments.append(partial)

    def _add_message(self, message: Any) -> None:
        content = read(message, "content")
        self.texts.append(blocks_text(content))
        for index, block in enumerate(content if isinstance(cast("object", content), list) else ()):
            self._begin_tool(index, block)

    def _begin_tool(self, index: Any, block: Any) -> None:
        if read(block, "type") != "tool_use" or not isinstance(index, int):
            return
        tool = self.tools[index] = ToolParts(_text(read(block, "id")), _text(read(block, "name")))
        given = read(block, "input")
        if isinstance(given, Mapping) and given:  # at once; as a rule it is empty here, and comes in pieces
            tool.arguments.append(json.dumps(given, default=str, ensure_ascii=False))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
