from __future__ import annotations

import json
from typing import Any

import pytest

from observability_integration.testing.http.chat_request import ChatRequestError, Message, parse_chat_request

pytestmark = pytest.mark.once

USER = {"role": "user", "content": "hello"}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER]} | fields).encode()


def test_a_full_request_is_read() -> None:
    """Each of these fields changes the reply, so each must arrive."""
    chat = parse_chat_request(body(stream=True, stream_options={"include_usage": True}, max_completion_tokens=7))

    assert "m" == chat.model
    assert (Message("user", "hello"),) == chat.messages
    assert chat.stream
    assert chat.include_usage
    assert 7 == chat.max_tokens


def test_fields_left_out_or_null_have_their_defaults() -> None:
    """Clients send null for what they do not set."""
    for chat in (
        parse_chat_request(body()),
        parse_chat_request(body(stream=None, stream_options=None, max_tokens=None, n=None)),
    ):
        assert not chat.stream
        assert not chat.include_usage
        assert chat.max_tokens is None


def test_the_older_name_of_the_token_limit_still_counts() -> None:
    """Many clients still send max_tokens."""
    assert 5 == parse_chat_request(body(max_tokens=5)).max_tokens


def test_the_question_is_the_last_thing_the_user_said() -> None:
    """A conversation goes on: the first question and the assistant's words are not what is asked now."""
    messages = [USER, {"role": "assistant", "content": None}, {"role": "user", "content": "and now?"}]
    messages += [{"role": "assistant", "content": "wait"}]

    assert "and now?" == parse_chat_request(body(messages=messages)).question
    assert "wait" == parse_chat_request(body(messages=messages[-1:])).question


def test_text_parts_are_joined_and_other_parts_left_out() -> None:
    """Content may come in parts, some of which are pictures."""
    parts = [{"type": "text", "text": "2+"}, {"type": "image_url", "image_url": {}}, "stray", {"text": "2?"}]

    assert "2+2?" == parse_chat_request(body(messages=[{"role": "user", "content": parts}])).question


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"\xff\xfe", None),
        (b"[" * 200_000, None),
        (b"[]", None),
        (body(model=None), "model"),
        (body(model=""), "model"),
        (body(messages=None), "messages"),
        (body(messages=[]), "messages"),
        (body(messages="hello"), "messages"),
        (body(messages=["hello"]), "messages[0]"),
        (body(messages=[USER, {"content": "x"}]), "messages[1].role"),
        (body(messages=[{"role": "user", "content": 5}]), "messages[0].content"),
        (body(stream="yes"), "stream"),
        (body(n=2), "n"),
        (body(stream=True, stream_options=[]), "stream_options"),
        (body(stream_options={"include_usage": True}), "stream_options"),
        (body(stream=True, stream_options={"include_usage": 1}), "stream_options.include_usage"),
        (body(max_tokens=0), "max_tokens"),
        (body(max_tokens=True), "max_tokens"),
        (body(max_completion_tokens="9"), "max_completion_tokens"),
    ],
)
def test_a_wrong_request_is_refused_and_the_field_named(raw: bytes, param: str | None) -> None:
    """A client must be told what is wrong; none of these may crash the server or be guessed at."""
    with pytest.raises(ChatRequestError) as caught:
        parse_chat_request(raw)

    assert param == caught.value.param
