"""Collects the parts of one answer from the chunks of OpenAI's, Anthropic's and LangChain's streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from observability_integration.costs.shapes import choices_of, metadata_of, read
from observability_integration.primitives.chunks import blocks_text, choice_text, chunk_text

from .facts import AnswerFacts

# Tool calls of OpenAI's responses that the caller runs, and the field of their arguments.
_ARGUMENT_FIELDS = {"function_call": "arguments", "custom_tool_call": "input"}
_ARGUMENT_EVENTS = ("response.function_call_arguments.", "response.custom_tool_call_input.")


@dataclass(slots=True)
class ToolParts:
    """One tool call, as far as it has arrived."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list[str])

    def note(self, call_id: Any, name: Any) -> None:
        """Sets id and name, which arrive once."""
        self.id = self.id or _text(call_id)
        self.name = self.name or _text(name)


class CompletionParts:
    """Collects the chunks of one answer, in order.

    Attributes:
        facts: model, id, usage and finish reasons.
        texts: the pieces of the text.
        refusals: the pieces of a refusal.
        tools: the tool calls by index.
    """

    def __init__(self) -> None:
        self.facts = AnswerFacts()
        self.texts: list[str] = []
        self.refusals: list[str] = []
        self.tools: dict[int, ToolParts] = {}

    def add(self, chunk: Any) -> None:
        """Adds the next chunk, or a whole answer."""
        if isinstance(chunk, str):
            self.texts.append(chunk)
            return
        if self.facts.note(chunk) is None:
            return
        choices = choices_of(chunk)
        if choices is not None:
            first = next((choice for choice in choices if not read(choice, "index")), None)
            self._add_choice(first)
            return
        kind = read(chunk, "type")
        if kind == "content.delta":  # of OpenAI's helper; its events without the chunks between them
            self.texts.append(_text(read(chunk, "delta")))
        elif isinstance(kind, str) and kind.startswith("response."):
            self._add_event(kind, chunk)
        elif read(chunk, "object") == "response":
            self._add_response(chunk)
        elif kind == "message":
            self._add_message(chunk)
        elif metadata_of(chunk) is not None:
            self._add_langchain(chunk)
        else:
            self.texts.append(chunk_text(chunk))
            self._add_block(kind, chunk)

    def _tool(self, index: Any) -> ToolParts:
        return self.tools.setdefault(index if isinstance(index, int) else 0, ToolParts())

    # OpenAI, chat and legacy completions -----------------------------------------------------------------------------

    def _add_choice(self, choice: Any) -> None:
        self.texts.append(choice_text(choice))
        part = read(choice, "delta")
        if part is None:
            part = read(choice, "message")
        self.refusals.append(_text(read(part, "refusal")))
        for call in read(part, "tool_calls") or ():
            index, call_id = read(call, "index"), _text(read(call, "id"))
            tool = self._tool(index if isinstance(index, int) else self._missing_index(call_id))
            tool.note(call_id, read(call, "function", "name"))
            tool.arguments.append(_text(read(call, "function", "arguments")))

    def _missing_index(self, call_id: str) -> int:
        """Returns an index for a call without one: from a whole answer, or from a server that sends calls unsplit."""
        last = max(self.tools, default=-1)
        if not call_id:
            return max(last, 0)
        return next((index for index, tool in self.tools.items() if tool.id == call_id), last + 1)

    # OpenAI, responses -----------------------------------------------------------------------------------------------

    def _add_event(self, kind: str, event: Any) -> None:
        index = read(event, "output_index")
        if kind == "response.output_text.delta":
            self.texts.append(_text(read(event, "delta")))
        elif kind == "response.refusal.delta":
            self.refusals.append(_text(read(event, "delta")))
        elif kind.startswith(_ARGUMENT_EVENTS) and kind.endswith(".delta"):
            self._tool(index).arguments.append(_text(read(event, "delta")))
        elif kind in ("response.output_item.added", "response.output_item.done"):
            self._add_item(index, read(event, "item"))
        elif not (any(self.texts) or any(self.refusals) or self.tools):
            self._add_response(
                read(event, "response")
            )  # the last event has the whole response, for streams without parts

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
        field_ = _ARGUMENT_FIELDS.get(_text(read(item, "type")))
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
        arguments = read(block, "input")
        if isinstance(arguments, Mapping) and arguments:  # usually empty here: the arguments follow in pieces
            tool.arguments.append(_as_json(arguments))

    # LangChain -------------------------------------------------------------------------------------------------------

    def _add_langchain(self, message: Any) -> None:
        self.texts.append(chunk_text(message))
        self.refusals.append(_text(read(message, "additional_kwargs", "refusal")))
        # A chunk repeats its pieces of tool calls as calls, as far as they can be parsed.
        for call in read(message, "tool_call_chunks") or read(message, "tool_calls") or ():
            index, call_id, arguments = read(call, "index"), _text(read(call, "id")), read(call, "args")
            tool = self._tool(index if isinstance(index, int) else self._missing_index(call_id))
            tool.note(call_id, read(call, "name"))
            tool.arguments.append(_as_json(arguments) if isinstance(arguments, Mapping) else _text(arguments))


def _as_json(arguments: Any) -> str:
    return json.dumps(arguments, default=str, ensure_ascii=False)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
