"""Decides which answers a cache may store: no cut, filtered or empty answer, and no error, may reach the next caller.

The rules apply to the shapes of a model's answer: OpenAI chat completions and responses, Anthropic and LangChain
messages, as objects of an SDK or as dicts, and this library's `Completion`. Any other value may be stored, an empty
text or None included.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from observability_integration.costs.finish_reasons import BY_FINISH_REASON, finish_kind, finish_reasons_of
from observability_integration.costs.shapes import metadata_of, read
from observability_integration.errors import ConfigurationError
from observability_integration.telemetry.guard import note_fault

# Why an answer is not stored, the most severe reason first. The user's own function gives "declined", and the cache,
# which knows the size, "too_large".
RefusalReason = Literal[
    "temperature", "error", "content_filter", "length", "tool_call", "empty", "declined", "too_large"
]

_BY_FINISH_REASON = BY_FINISH_REASON
# Statuses of an OpenAI response whose answer is incomplete.
_BY_STATUS: dict[str, RefusalReason] = {
    "failed": "error",
    "incomplete": "length",
    "cancelled": "length",
    "in_progress": "length",
    "queued": "length",
}
_BY_SEVERITY: tuple[RefusalReason, ...] = ("error", "content_filter", "length", "tool_call", "empty")
_CHAT = ("chat.completion", "text_completion")
# Tool calls that OpenAI runs itself: their results are part of the answer. The caller runs all others.
_RUN_BY_PROVIDER = ("code_interpreter_call", "file_search_call", "image_generation_call", "mcp_call", "web_search_call")
_PLAIN = (str, bytes, int, float, type(None))
_NOT_SENT = ("NotGiven", "Omit")  # types by which OpenAI's and Anthropic's SDKs leave a field out
# Blocks that are no answer, of Anthropic and LangChain.
_SILENT_BLOCKS = ("thinking", "redacted_thinking", "server_tool_use", "reasoning", "reasoning_content")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The rules of which answers a cache may store.

    Attributes:
        tool_calls: stores answers that ask the caller to run a tool.
        any_temperature: stores answers to requests with a temperature above 0.
        admit: the user's function, called last; returns whether an answer may be stored. An error of it is noted, and
            the answer is not stored.

    Raises:
        ConfigurationError: `admit` is no function, or an asynchronous one.
    """

    tool_calls: bool = False
    any_temperature: bool = False
    admit: Callable[[Any], bool] | None = None

    def __post_init__(self) -> None:
        admit: Any = self.admit
        if admit is not None and (not callable(admit) or inspect.iscoroutinefunction(admit)):
            raise ConfigurationError("admit must be a function, and not an asynchronous one")

    def refuses_request(self, request: Any) -> RefusalReason | None:
        """Returns why no answer to a request may be stored or shared with an equal request; None if it may.

        A temperature above 0 asks for varying answers. It may be any number or numeric text, also in `extra_body`,
        which the SDKs send with the request. A request without a temperature counts as 0, though most providers then
        take 1: some models accept none, and a caller that uses a cache wants equal answers. A temperature that cannot
        be read, NaN included, counts as above 0: an unneeded call costs its price, an answer that should vary and does
        not is wrong.
        """
        if self.any_temperature:
            return None
        try:
            varies = _varies(read(request, "temperature")) or _varies(read(request, "extra_body", "temperature"))
        except Exception as error:  # noqa: BLE001 - to read a user's object may raise any error
            note_fault("cache.admit", error)
            varies = True
        return "temperature" if varies else None

    def refuses(self, answer: Any) -> RefusalReason | None:
        """Returns why an answer may not be stored, of several reasons the most severe; None if it may."""
        found: list[RefusalReason] = []
        try:
            if not isinstance(answer, _PLAIN):
                found.extend(_reasons_against(answer))
        except Exception as error:  # noqa: BLE001 - to read a user's object may raise any error
            note_fault("cache.admit", error)
        if found:
            for reason in _BY_SEVERITY:
                if reason in found and not (reason == "tool_call" and self.tool_calls):
                    return reason
        return None if self.admit is None or self._is_admitted(answer) else "declined"

    def _is_admitted(self, answer: Any) -> bool:
        try:
            return bool(cast("Any", self.admit)(answer))
        except Exception as error:  # noqa: BLE001 - the user's function must not fail the user's call
            note_fault("cache.admit", error)
            return False


def _varies(temperature: Any) -> bool:
    if temperature is None or type(temperature).__name__ in _NOT_SENT:
        return False
    return not float(temperature) <= 0.0  # `not <=`, because NaN compares as false


def _reasons_against(answer: Any) -> Iterable[RefusalReason]:
    kind, error = read(answer, "object"), read(answer, "error")
    choices = _as_list(read(answer, "choices"))
    found: Iterable[RefusalReason]
    if choices is not None and (kind in _CHAT or any(map(_is_choice, choices))):
        found = _reasons_in_choices(choices)
    elif kind == "response" and (output := _as_list(read(answer, "output"))) is not None:
        found = _reasons_in_response(answer, output)
    elif read(answer, "type") == "message" and (content := _as_list(read(answer, "content"))) is not None:
        found = _reasons_in_message(answer, content)
    elif (metadata := metadata_of(answer)) is not None:
        found = _reasons_in_langchain(answer, metadata)
    elif _is_completion(answer):
        found = _reasons_in_completion(answer)
    else:
        return ("error",) if _is_error(answer, error) else ()
    return found if error is None else (*found, "error")


def _is_choice(choice: Any) -> bool:
    return read(choice, "message") is not None or read(choice, "finish_reason") is not None


def _is_error(answer: Any, error: Any) -> bool:
    # {"error": {"message", "type", "code", ...}} of OpenAI's shape, {"type": "error", "error": {...}} of Anthropic's.
    described = isinstance(read(error, "message"), str)
    return described and (read(error, "type") is not None or read(error, "code") is not None)


def _reasons_in_choices(choices: Sequence[Any]) -> Iterator[RefusalReason]:
    if not choices:
        yield "empty"
    for choice in choices:
        message, refusal = read(choice, "message"), finish_kind(read(choice, "finish_reason"))
        if refusal is not None:
            yield refusal
        if read(choice, "error") is not None:
            yield "error"
        if _has_content(read(message, "refusal")):
            yield "content_filter"
        if (
            refusal == "tool_call"
            or _has_content(read(message, "tool_calls"))
            or _has_content(read(message, "function_call"))
        ):
            yield "tool_call"
        elif not (_has_content(read(message, "content")) or _has_content(read(choice, "text"))) and not (
            _has_content(read(message, "audio")) or _has_content(read(message, "images"))
        ):
            yield "empty"


def _reasons_in_response(response: Any, output: Sequence[Any]) -> Iterator[RefusalReason]:
    unfinished = _BY_STATUS.get(read(response, "status"))
    if unfinished is not None:
        yield finish_kind(read(response, "incomplete_details", "reason")) or unfinished
    has_content = False
    for item in output:
        kind = read(item, "type")
        if kind == "message":
            parts = _as_list(read(item, "content")) or []
            has_content = has_content or any(map(_has_content, parts))
            if any(read(part, "type") == "refusal" for part in parts):
                yield "content_filter"
        elif kind == "image_generation_call":
            has_content = has_content or _has_content(read(item, "result"))
        elif isinstance(kind, str) and kind.endswith(("_call", "_approval_request")) and kind not in _RUN_BY_PROVIDER:
            has_content = True
            yield "tool_call"
    if not has_content:
        yield "empty"


def _reasons_in_message(message: Any, content: Sequence[Any]) -> Iterator[RefusalReason]:
    refusal = finish_kind(read(message, "stop_reason"))
    if refusal is not None:
        yield refusal
    kinds = [read(block, "type") for block in content]
    if "tool_use" in kinds:
        yield "tool_call"
    if not any(kind not in _SILENT_BLOCKS and _has_content(block) for kind, block in zip(kinds, content, strict=True)):
        yield "empty"


def _reasons_in_langchain(message: Any, metadata: Mapping[str, Any]) -> Iterator[RefusalReason]:
    unfinished = _BY_STATUS.get(str(metadata.get("status")))
    if unfinished is not None:
        yield unfinished
    content, refusal = read(message, "content"), read(message, "additional_kwargs", "refusal")
    blocks = _as_list(content)
    if blocks is not None:
        content = [block for block in blocks if isinstance(block, str) or read(block, "type") not in _SILENT_BLOCKS]
    tool_calls = [read(message, name) for name in ("tool_calls", "invalid_tool_calls")]
    yield from _reasons_in_parts(finish_reasons_of(message), content, refusal, tool_calls)


def _is_completion(answer: Any) -> bool:
    # By shape, as the rest: the class belongs to another primitive.
    return (
        isinstance(read(answer, "text"), str)
        and isinstance(read(answer, "finish_reason"), str)
        and isinstance(read(answer, "tool_calls"), tuple)
        and not isinstance(answer, Mapping)
    )


def _reasons_in_completion(answer: Any) -> Iterator[RefusalReason]:
    refusal, tools = read(answer, "refusal"), read(answer, "tool_calls")
    yield from _reasons_in_parts((read(answer, "finish_reason"),), read(answer, "text"), refusal, tools)


def _reasons_in_parts(
    reasons: Iterable[str], content: Any, refusal: Any, tool_calls: Sequence[Any]
) -> Iterator[RefusalReason]:
    kinds: list[RefusalReason] = [kind for kind in map(finish_kind, reasons) if kind is not None]
    yield from kinds
    if _has_content(refusal):
        yield "content_filter"
    if "tool_call" in kinds or any(map(_has_content, tool_calls)):
        yield "tool_call"
    elif not _has_content(content):
        yield "empty"


def _as_list(value: Any) -> Sequence[Any] | None:
    return cast("Any", value) if isinstance(value, list | tuple) else None


def _has_content(value: Any) -> bool:
    # Text with more than white space, or any other kind of part: an image, a call.
    if value is None:
        return False
    if isinstance(value, str):
        return bool(value) and not value.isspace()
    parts = _as_list(value)
    if parts is not None:
        return any(map(_has_content, parts))
    text = read(value, "text")
    return _has_content(text) if isinstance(text, str) else True
