"""Reads answers and chunks by shape: their fields, their choices, and the chunk inside an event of an SDK's helper.

Imports no SDK: attributes and mapping keys are read alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, cast

# Events of OpenAI's chat helper, each of which repeats a part of the provider's chunk before it; and Anthropic's, whose
# names are no more than words: in a dict they may mean anything.
_REPEATING = frozenset(
    {
        "content.delta",
        "content.done",
        "refusal.delta",
        "refusal.done",
        "tool_calls.function.arguments.delta",
        "tool_calls.function.arguments.done",
        "logprobs.content.delta",
        "logprobs.content.done",
        "logprobs.refusal.delta",
        "logprobs.refusal.done",
    }
)
_REPEATING_OBJECTS = frozenset({"text", "thinking", "signature", "citation", "input_json", "compaction"})
_MESSAGE_TYPES = ("AIMessageChunk", "ai")  # LangChain's names of a chunk and of a whole answer
# Words of servers that fill the field of the finish reason before the end, in lower case.
_NO_REASONS = frozenset({"", "finish_reason_unspecified", "none", "null"})
_REASON_FIELDS = ("finish_reason", "stop_reason", "done_reason", "finishReason", "stopReason")


@lru_cache(maxsize=256)
def _access_of(kind: type[Any]) -> Literal["items", "fields", "attributes"]:
    # Cached: `isinstance` with an abstract class costs four times as much, and an answer has about twenty fields.
    if issubclass(kind, Mapping):
        return "items"
    plain = getattr(kind, "__getattribute__", None) is object.__getattribute__ and hasattr(kind, "__pydantic_extra__")
    getattr_hook = getattr(kind, "__getattr__", None)
    return "fields" if plain and getattr(getattr_hook, "__module__", "") == "pydantic.main" else "attributes"


@lru_cache(maxsize=2_048)
def _class_has(kind: type[Any], name: str) -> bool:
    return hasattr(kind, name)


def _read_undeclared(model: Any, kind: Any, name: str) -> Any:
    # Faster than pydantic's own lookup, which takes 2.5 µs to raise AttributeError for a missing attribute.
    extra = getattr(model, "__pydantic_extra__", None)
    if extra and name in extra:
        return extra[name]
    return getattr(model, name, None) if _class_has(kind, name) else None


def read(value: Any, name: str, *path: str) -> Any:
    """Returns the value at a path of attribute names or mapping keys, or None if one is missing."""
    kind = value.__class__
    if kind is dict:
        value = value.get(name)
    elif value is None:
        return None
    else:
        access = _access_of(kind)
        if access == "items":
            value = value.get(name)
        elif access == "fields" and type(value) is kind:  # a mock has the `__class__` of another class
            fields = value.__dict__
            value = fields[name] if name in fields else _read_undeclared(value, kind, name)
        else:
            value = getattr(value, name, None)
    return read(value, *path) if path and value is not None else value


def text_or_none(value: Any) -> str | None:
    """Returns a text that is not empty; None for anything else."""
    return value if isinstance(value, str) and value else None


def reason_or_none(value: Any) -> str | None:
    """Returns a finish reason; None for anything else, and for a word that says that there is none yet."""
    return value if isinstance(value, str) and value.lower() not in _NO_REASONS else None


def chunk_inside(event: Any) -> Any:
    """Returns the provider's chunk inside an event of an SDK's helper; None if `event` is no such event.

    OpenAI's ``client.chat.completions.stream`` wraps each chunk in an event of the type ``chunk``, Mistral's streams in
    one without a type and with a field ``data``.
    """
    kind = read(event, "type")
    if kind is None:
        chunk = read(event, "data")
    else:
        chunk = read(event, "chunk") if kind.__class__ is str and kind == "chunk" else None
    return None if chunk is None or _choices(chunk) is None else chunk


def repeats(event: Any, kind: Any) -> bool:
    """Whether an event of an SDK's helper repeats a part of the provider's chunk before it.

    Args:
        event: any chunk.
        kind: its type.
    """
    if kind.__class__ is not str:
        return False
    return kind in _REPEATING or (kind in _REPEATING_OBJECTS and not isinstance(event, Mapping))


def choices_of(answer: Any) -> Sequence[Any] | None:
    """Returns the choices of an OpenAI chat completion, or of a chunk of one; None for any other shape."""
    choices = read(answer, "choices")
    if choices.__class__ is list:
        return choices
    if choices is not None:
        return _choices(answer)
    inner = chunk_inside(answer)
    return None if inner is None else _choices(inner)


def _choices(answer: Any) -> Sequence[Any] | None:
    choices = read(answer, "choices")
    if choices.__class__ is list:
        return choices
    listed = isinstance(choices, Sequence) and not isinstance(choices, str | bytes)
    return list(cast("Any", choices)) if listed else None


def metadata_of(message: Any) -> Mapping[str, Any] | None:
    """Returns the metadata of an answer in LangChain's shape, whole or a chunk; None for any other shape."""
    kind = read(message, "type")
    if kind.__class__ is not str or kind not in _MESSAGE_TYPES:
        return None
    metadata = read(message, "response_metadata")
    return cast("Mapping[str, Any]", metadata) if isinstance(metadata, Mapping) else None


def reason_in_metadata(metadata: Mapping[str, Any]) -> str | None:
    """Returns the finish reason in the metadata of one of LangChain's answers; each provider has its own field."""
    for name in _REASON_FIELDS:
        reason = reason_or_none(metadata.get(name))
        if reason is not None:
            return reason
    return None


def is_provider_chunk(chunk: Any) -> bool:
    """Whether a chunk has the shape of a provider's stream, which announces its end with a finish reason.

    One of LangChain's has if its metadata name a model or its provider: chunks of fake models have no metadata.
    """
    if isinstance(chunk, str | bytes) or chunk is None:
        return False
    if choices_of(chunk) is not None:
        return True
    kind = read(chunk, "type")
    if not isinstance(kind, str):
        return False
    if kind == "AIMessageChunk":
        metadata = metadata_of(chunk) or {}
        return bool(metadata.get("model_provider") or metadata.get("model_name") or reason_in_metadata(metadata))
    return kind.startswith(("message_", "content_block_", "response."))


def is_whole_answer(chunk: Any) -> bool:
    """Whether `chunk` is a whole answer: an OpenAI chat completion or response, an Anthropic or a LangChain message."""
    choices = choices_of(chunk)
    if choices is not None:
        return bool(choices) and read(choices[0], "message") is not None
    if read(chunk, "object") == "response":
        return isinstance(read(chunk, "output"), list)
    kind = read(chunk, "type")
    if kind == "message":
        return isinstance(read(chunk, "content"), list)
    return kind == "ai" and metadata_of(chunk) is not None
