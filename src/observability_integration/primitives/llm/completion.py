"""Joins the chunks of a streamed answer into a `Completion`."""

from __future__ import annotations

from typing import Any

import msgspec

from observability_integration.costs.shapes import is_provider_chunk, is_whole_answer, metadata_of
from observability_integration.costs.usage import Usage
from observability_integration.telemetry.guard import note_fault

from .completion_parts import CompletionParts


class ToolCall(msgspec.Struct, frozen=True):
    """A tool call that the model asks for.

    Attributes:
        id: the provider's id of the call.
        name: name of the tool.
        arguments: JSON as the model wrote it, possibly invalid.
    """

    id: str
    name: str
    arguments: str


class Completion(msgspec.Struct, frozen=True):
    """One answer of a model.

    Attributes:
        text: the text of the answer.
        model: the model that answered, by the provider's name; None if the provider reports none.
        finish_reason: the provider's finish reason: ``stop``, ``length``, ``end_turn``, ...
        usage: the tokens, in the form of OpenAI's chat completions: ``prompt_tokens``, ``completion_tokens``,
            ``total_tokens``; None if the provider reports none.
        tool_calls: the tool calls that the model asks for.
        refusal: the text of a refusal, if the provider marks it as one.
        id: the provider's id of the answer.
    """

    text: str
    model: str | None = None
    finish_reason: str | None = None
    usage: dict[str, int] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: str | None = None
    id: str | None = None

    def __str__(self) -> str:
        return self.text


def completion_of(chunks: list[Any]) -> Completion:
    """Joins the chunks of one answer: text, OpenAI chat or responses, Anthropic or LangChain messages.

    Also takes the events of the stream helpers of OpenAI's, Anthropic's and Mistral's SDKs.

    Takes the first of several choices. A whole answer counts as a chunk.

    Args:
        chunks: all chunks, in order.
    """
    parts = CompletionParts()
    for chunk in chunks:
        parts.add(chunk)
    facts = parts.facts
    return Completion(
        "".join(parts.texts),
        facts.model,
        facts.first_reason,
        _usage_fields(facts.usage),
        tuple(ToolCall(tool.id, tool.name, "".join(tool.arguments)) for _, tool in sorted(parts.tools.items())),
        "".join(parts.refusals) or None,
        facts.id,
    )


def answer_from_chunks(chunks: list[Any]) -> Any:
    """Joins chunks of text into a text and a provider's chunks into a `Completion`; returns others as the list.

    Args:
        chunks: all chunks, in order.
    """
    try:
        if any(map(_has_parts, chunks)):
            return completion_of(chunks)
    except Exception as error:  # noqa: BLE001 - an answer that cannot be read is returned as it came
        note_fault("completion", error)
    return "".join(chunks) if all(isinstance(chunk, str) for chunk in chunks) else chunks


def _has_parts(chunk: Any) -> bool:
    # Chunks of LangChain's fake models have no provider, and are joined like those of its real ones.
    if isinstance(chunk, str):
        return False
    return is_provider_chunk(chunk) or is_whole_answer(chunk) or metadata_of(chunk) is not None


def _usage_fields(usage: Usage) -> dict[str, int] | None:
    if usage.input_tokens is None and usage.output_tokens is None:
        return None
    prompt, output = usage.input_tokens or 0, usage.output_tokens or 0
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
