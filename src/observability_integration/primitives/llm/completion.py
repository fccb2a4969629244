"""A streamed answer put together again: what a caller who did not ask for chunks wants to have."""

from __future__ import annotations

from typing import Any

import msgspec

from observability_integration.costs.usage import Usage, is_provider_chunk, is_whole_answer
from observability_integration.telemetry.guard import note_fault

from .completion_parts import CompletionParts


class ToolCall(msgspec.Struct, frozen=True):
    """One call of a tool that the model asks for.

    Attributes:
        id: the provider's id of the call.
        name: of the tool.
        arguments: JSON, as the model wrote it: not necessarily valid.
    """

    id: str
    name: str
    arguments: str


class Completion(msgspec.Struct, frozen=True):
    """One answer of a model.

    Attributes:
        text: what it says.
        model: the model that answered, as the provider names it; None if it did not say.
        finish_reason: why it ended, as the provider says it: ``stop``, ``length``, ``end_turn``, ...
        usage: its tokens, in the form of OpenAI's chat completions: ``prompt_tokens``, ``completion_tokens``,
            ``total_tokens``; None if the provider did not say.
        tool_calls: the tools that the model wants called.
        refusal: what the model says instead of an answer, where the provider tells the two apart.
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
    """Puts the chunks of one answer together: text, OpenAI chat or responses, or Anthropic messages.

    Of several choices it is the first; an answer in one piece is taken as it is.

    Args:
        chunks: all of them, in order.
    """
    parts = CompletionParts()
    for chunk in chunks:
        parts.add(chunk)
    facts = parts.facts
    return Completion(
        "".join(parts.texts),
        facts.model,
        facts.first_reason,
        _spelled(facts.usage),
        tuple(ToolCall(tool.id, tool.name, "".join(tool.arguments)) for _, tool in sorted(parts.tools.items())),
        "".join(parts.refusals) or None,
        facts.id,
    )


def answer_from_chunks(chunks: list[Any]) -> Any:
    """What a caller expects of these chunks: of text the text, of a provider's a `Completion`, else the list.

    Args:
        chunks: all of them, in order.
    """
    try:
        if any(is_provider_chunk(chunk) or is_whole_answer(chunk) for chunk in chunks):
            return completion_of(chunks)
    except Exception as error:  # noqa: BLE001 - an odd answer is still the provider's
        note_fault("completion", error)
    return "".join(chunks) if all(isinstance(chunk, str) for chunk in chunks) else chunks


def _spelled(usage: Usage) -> dict[str, int] | None:
    if usage.input_tokens is None and usage.output_tokens is None:
        return None
    prompt, output = usage.input_tokens or 0, usage.output_tokens or 0
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
