"""Which answers a cache may keep: one that is cut, filtered, empty or an error must not be given to the next caller.

Judged is what has the shape of a model's answer: OpenAI chat completions and responses, Anthropic messages, as objects
of an SDK or as dicts. Everything else, an empty text or None included, is a value like any other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from observability_integration.costs.usage import read
from observability_integration.errors import ConfigurationError
from observability_integration.telemetry.guard import note_fault

# Why an answer is not kept, the gravest reason first. "declined" is what the user's own function said, and "too_large"
# what the cache finds, which alone knows the size.
Refusal = Literal["temperature", "error", "content_filter", "length", "tool_call", "empty", "declined", "too_large"]

# Why an answer ended, as providers and the gateways before them say it, in small letters. What is not here is an end
# like any other. OpenAI (finish_reason, incomplete_details), Anthropic (stop_reason), Gemini, OpenRouter and vLLM where
# they answer in OpenAI's shape.
_ENDINGS: dict[str, Refusal] = {
    "error": "error",
    "content_filter": "content_filter",
    "refusal": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "abort": "length",
    "tool_calls": "tool_call",
    "tool_use": "tool_call",
    "function_call": "tool_call",
}
# The status of a response of OpenAI's, where the answer is not whole, or not yet.
_STATUSES: dict[str, Refusal] = {
    "failed": "error",
    "incomplete": "length",
    "cancelled": "length",
    "in_progress": "length",
    "queued": "length",
}
_BY_WEIGHT: tuple[Refusal, ...] = ("error", "content_filter", "length", "tool_call", "empty")
_CHAT = ("chat.completion", "text_completion")
# Calls of tools that OpenAI runs itself: what they brought is part of the answer. Every other is for the caller to run.
_RUN_BY_PROVIDER = ("code_interpreter_call", "file_search_call", "image_generation_call", "mcp_call", "web_search_call")
_PLAIN = (str, bytes, int, float, type(None))
_NOT_SENT = ("NotGiven", "Omit")  # how OpenAI's and Anthropic's SDKs say that a field is not sent
_SILENT_BLOCKS = ("thinking", "redacted_thinking", "server_tool_use")  # of Anthropic's: no part of what is answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Which answers a cache may keep; by default none that a later caller should not be given.

    Attributes:
        tool_calls: keep answers that ask the caller to run a tool.
        any_temperature: keep answers to requests with a temperature above 0.
        admit: a function of your own that is asked last, and says whether an answer may be kept. If it raises, that is
            noted, and the answer is not kept.

    Raises:
        ConfigurationError: `admit` is no function, or an asynchronous one.
    """

    tool_calls: bool = False
    any_temperature: bool = False
    admit: Callable[[Any], bool] | None = None

    def __post_init__(self) -> None:
        given: Any = self.admit
        if given is not None and (not callable(given) or inspect.iscoroutinefunction(given)):
            raise ConfigurationError("admit must be a function, and not an asynchronous one")

    def refuses_request(self, request: Any) -> Refusal | None:
        """Why no answer to a request may be kept, nor be shared with an equal request; None if it may.

        A temperature above 0 asks for an answer that varies, be it a number of any type or a text that is one, and be
        it in `extra_body`, which the SDKs send with the rest. A request that names none asks for nothing, though most
        providers then take 1: some models accept no temperature at all, and who caches wants the same answer again.
        What is named and cannot be read, NaN included, counts as above 0: a call too many costs its price, an answer
        that was to vary and did not is wrong.
        """
        if self.any_temperature:
            return None
        try:
            varies = _varies(read(request, "temperature")) or _varies(read(request, "extra_body", "temperature"))
        except Exception as error:  # noqa: BLE001 - an object of the user's may do anything when it is read
            note_fault("cache.admit", error)
            varies = True
        return "temperature" if varies else None

    def refuses(self, answer: Any) -> Refusal | None:
        """Why an answer may not be kept; None if it may. Of several reasons, the gravest."""
        found: list[Refusal] = []
        try:
            if not isinstance(answer, _PLAIN):
                found.extend(_judge(answer))
        except Exception as error:  # noqa: BLE001 - an object of the user's may do anything when it is read
            note_fault("cache.admit", error)
        if found:
            for reason in _BY_WEIGHT:
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
    return not float(temperature) <= 0.0  # NaN is not


def _judge(answer: Any) -> Iterable[Refusal]:
    kind, error = read(answer, "object"), read(answer, "error")
    choices = _listed(read(answer, "choices"))
    found: Iterable[Refusal]
    if choices is not None and (kind in _CHAT or any(map(_is_choice, choices))):
        found = _judge_choices(choices)
    elif kind == "response" and (output := _listed(read(answer, "output"))) is not None:
        found = _judge_response(answer, output)
    elif read(answer, "type") == "message" and (content := _listed(read(answer, "content"))) is not None:
        found = _judge_message(answer, content)
    else:
        return ("error",) if _is_error(answer, error) else ()
    return found if error is None else (*found, "error")


def _is_choice(choice: Any) -> bool:
    return read(choice, "message") is not None or read(choice, "finish_reason") is not None


def _is_error(answer: Any, error: Any) -> bool:
    # {"error": {"message", "type", "code", ...}} of OpenAI's shape, {"type": "error", "error": {...}} of Anthropic's.
    described = isinstance(read(error, "message"), str)
    return described and (read(error, "type") is not None or read(error, "code") is not None)


def _judge_choices(choices: Sequence[Any]) -> Iterator[Refusal]:
    if not choices:
        yield "empty"
    for choice in choices:
        message, ending = read(choice, "message"), _ending(read(choice, "finish_reason"))
        if ending is not None:
            yield ending
        if read(choice, "error") is not None:
            yield "error"
        if _says(read(message, "refusal")):
            yield "content_filter"
        if ending == "tool_call" or _says(read(message, "tool_calls")) or _says(read(message, "function_call")):
            yield "tool_call"
        elif not (_says(read(message, "content")) or _says(read(choice, "text"))) and not (
            _says(read(message, "audio")) or _says(read(message, "images"))
        ):
            yield "empty"


def _judge_response(response: Any, output: Sequence[Any]) -> Iterator[Refusal]:
    unfinished = _STATUSES.get(read(response, "status"))
    if unfinished is not None:
        yield _ending(read(response, "incomplete_details", "reason")) or unfinished
    says = False
    for item in output:
        kind = read(item, "type")
        if kind == "message":
            parts = _listed(read(item, "content")) or []
            says = says or any(map(_says, parts))
            if any(read(part, "type") == "refusal" for part in parts):
                yield "content_filter"
        elif kind == "image_generation_call":
            says = says or _says(read(item, "result"))
        elif isinstance(kind, str) and kind.endswith(("_call", "_approval_request")) and kind not in _RUN_BY_PROVIDER:
            says = True
            yield "tool_call"
    if not says:
        yield "empty"


def _judge_message(message: Any, content: Sequence[Any]) -> Iterator[Refusal]:
    ending = _ending(read(message, "stop_reason"))
    if ending is not None:
        yield ending
    kinds = [read(block, "type") for block in content]
    if "tool_use" in kinds:
        yield "tool_call"
    if not any(kind not in _SILENT_BLOCKS and _says(block) for kind, block in zip(kinds, content, strict=True)):
        yield "empty"


def _ending(reason: Any) -> Refusal | None:
    return _ENDINGS.get(reason.lower()) if isinstance(reason, str) else None


def _listed(value: Any) -> Sequence[Any] | None:
    return cast("Any", value) if isinstance(value, list | tuple) else None


def _says(value: Any) -> bool:
    # Text that is more than space, or anything that is no text: a picture, a call.
    if value is None:
        return False
    if isinstance(value, str):
        return bool(value) and not value.isspace()
    parts = _listed(value)
    if parts is not None:
        return any(map(_says, parts))
    text = read(value, "text")
    return _says(text) if isinstance(text, str) else True
