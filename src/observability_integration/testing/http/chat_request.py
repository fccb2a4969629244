"""Parses the body of a chat completion request, and rejects what the real API would reject."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast


class ChatRequestError(Exception):
    """The body is not a valid chat request.

    Attributes:
        message: description of the error, without any content of the request.
        param: the invalid field, or None for the body as a whole.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation; `text` holds its text parts only."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """The fields of a request that the local providers use. Other fields are accepted and ignored.

    Attributes:
        model: requested model.
        messages: the conversation, at least one message.
        stream: whether the client requested a stream.
        include_usage: whether a stream ends with an event of token counts.
        max_tokens: maximum number of completion tokens, or None.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool
    include_usage: bool
    max_tokens: int | None

    @property
    def question(self) -> str:
        """The text of the last user message, or of the last message if no message is a user's."""
        from_user = [message for message in self.messages if message.role == "user"] or self.messages
        return from_user[-1].text


def parse_chat_request(body: bytes) -> ChatRequest:
    """Parses a request.

    Raises:
        ChatRequestError: the body is not JSON, or a field has the wrong type or an invalid value.
    """
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError):
        raise ChatRequestError("The body of the request is not valid JSON.") from None
    if not isinstance(document, dict):
        raise ChatRequestError("The body of the request must be a JSON object.")
    fields = cast("dict[str, object]", document)
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise ChatRequestError("A model must be named.", "model")
    stream = _flag(fields, "stream", "stream")
    if fields.get("n", 1) not in (1, None):
        raise ChatRequestError("Only one choice can be asked for: n must be 1.", "n")
    return ChatRequest(
        model=model,
        messages=_messages(fields.get("messages")),
        stream=stream,
        include_usage=_include_usage(fields.get("stream_options"), stream=stream),
        max_tokens=_max_tokens(fields),
    )


def _flag(fields: dict[str, object], name: str, param: str) -> bool:
    value = fields.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ChatRequestError(f"{param} must be true or false.", param)
    return value


def _include_usage(options: object, *, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise ChatRequestError("stream_options must be an object.", "stream_options")
    if not stream:
        raise ChatRequestError("stream_options is only allowed when stream is true.", "stream_options")
    return _flag(cast("dict[str, object]", options), "include_usage", "stream_options.include_usage")


def _max_tokens(fields: dict[str, object]) -> int | None:
    # max_tokens is the older name of the same limit.
    for param in ("max_completion_tokens", "max_tokens"):
        value = fields.get(param)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ChatRequestError(f"{param} must be a whole number of at least 1.", param)
        return value
    return None


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ChatRequestError("messages must be a list of at least one message.", "messages")
    messages: list[Message] = []
    for index, item in enumerate(cast("list[object]", value)):
        param = f"messages[{index}]"
        if not isinstance(item, dict):
            raise ChatRequestError(f"{param} must be an object.", param)
        message = cast("dict[str, object]", item)
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise ChatRequestError(f"{param}.role must be a string.", f"{param}.role")
        messages.append(Message(role, _text(message.get("content"), f"{param}.content")))
    return tuple(messages)


def _text(content: object, param: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ChatRequestError(f"{param} must be a string or a list of parts.", param)
    texts: list[str] = []
    for part in cast("list[object]", content):
        text = cast("dict[str, object]", part).get("text") if isinstance(part, dict) else None
        if isinstance(text, str):
            texts.append(text)
    return "".join(texts)
