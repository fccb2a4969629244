"""A streamed answer put together again: what a caller who did not ask for chunks wants to have."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from observability_integration.costs.usage import (
    Usage,
    finish_reasons_of,
    id_of,
    is_provider_chunk,
    model_of,
    read,
    usage_of,
)
from observability_integration.telemetry.guard import note_fault

from .llm_content import chunk_text


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
    """Puts the chunks of one answer together: text, OpenAI chat, or Anthropic messages; of several choices the first.

    Args:
        chunks: all of them, in order.
    """
    texts: list[str] = []
    refusals: list[str] = []
    tools: dict[int, list[str]] = {}
    usage = Usage()
    model = answer_id = reason = None
    for chunk in chunks:
        if isinstance(chunk, str):
            texts.append(chunk)
            continue
        part = _first_choice(chunk)
        texts.append(chunk_text(part))
        delta = read(part, "choices")[0] if read(part, "choices") else None
        if isinstance(refusal := read(delta, "delta", "refusal"), str):
            refusals.append(refusal)
        _add_tools(tools, part, delta)
        usage = usage.merged(usage_of(chunk))
        model, answer_id = model or model_of(chunk), answer_id or id_of(chunk)
        reason = next(iter(finish_reasons_of(part)), reason)
    return Completion(
        "".join(texts),
        model,
        reason,
        _spelled(usage),
        tuple(ToolCall(*parts) for _, parts in sorted(tools.items())),
        "".join(refusals) or None,
        answer_id,
    )


def answer_of(chunks: list[Any]) -> Any:
    """What a caller expects of these chunks: of text the text, of a provider's a `Completion`, else the list.

    Args:
        chunks: all of them, in order.
    """
    try:
        if any(is_provider_chunk(chunk) for chunk in chunks):
            return completion_of(chunks)
    except Exception as error:  # noqa: BLE001 - an odd answer is still the provider's
        note_fault("completion", error)
    return "".join(chunks) if all(isinstance(chunk, str) for chunk in chunks) else chunks


def _first_choice(chunk: Any) -> Any:
    choices = read(chunk, "choices")
    if not isinstance(choices, list | tuple):
        return chunk
    first = [choice for choice in cast("list[Any]", choices) if not read(choice, "index")]
    return {"choices": first[:1]}


def _add_tools(tools: dict[int, list[str]], chunk: Any, choice: Any) -> None:
    for call in read(choice, "delta", "tool_calls") or ():
        number = read(call, "index")
        parts = tools.setdefault(number if isinstance(number, int) else 0, ["", "", ""])
        for place, value in enumerate(
            (read(call, "id"), read(call, "function", "name"), read(call, "function", "arguments"))
        ):
            if isinstance(value, str):
                # Id and name come once, the arguments in pieces.
                parts[place] = parts[place] + value if place == 2 else parts[place] or value
    index = read(chunk, "index")
    block = read(chunk, "content_block")
    if read(block, "type") == "tool_use" and isinstance(index, int):
        tools[index] = [read(block, "id") or "", read(block, "name") or "", ""]
    partial = read(chunk, "delta", "partial_json")
    if isinstance(partial, str) and index in tools:
        tools[index][2] += partial


def _spelled(usage: Usage) -> dict[str, int] | None:
    if usage.input_tokens is None and usage.output_tokens is None:
        return None
    prompt, output = usage.input_tokens or 0, usage.output_tokens or 0
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
