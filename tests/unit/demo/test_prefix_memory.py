from __future__ import annotations

import pytest

from observability_integration.demo.prefix_memory import PrefixMemory
from observability_integration.testing.http.chat_request import Message

pytestmark = pytest.mark.once


def test_a_long_prefix_seen_before_is_cached_in_steps() -> None:
    """1,304 tokens of system prompt are shared: 1,280 of them, ten steps of 128, count as cached."""
    memory = PrefixMemory()
    system = Message("system", "x" * 5_200)

    assert 0 == memory.cached_tokens("m", (system, Message("user", "first")))
    assert 1280 == memory.cached_tokens("m", (system, Message("user", "second")))


def test_another_model_or_another_prefix_is_not_cached() -> None:
    """Caches of models are separate, and equal text under another role or split is another prompt."""
    memory = PrefixMemory()
    text = "x" * 5_200
    memory.cached_tokens("m", (Message("system", text),))

    assert 0 == memory.cached_tokens("other", (Message("system", text),))
    assert 0 == memory.cached_tokens("m", (Message("user", text),))
    assert 0 == memory.cached_tokens("m", (Message("system", text[:-1]), Message("system", "x")))


def test_short_prompts_are_never_cached() -> None:
    """Below 1,024 tokens the real service caches nothing."""
    memory = PrefixMemory()
    short = (Message("user", "x" * 4_000),)
    memory.cached_tokens("m", short)

    assert 0 == memory.cached_tokens("m", short)


def test_the_memory_is_bounded_and_forgets_the_oldest() -> None:
    """A provider that runs for long must not remember every prompt it ever saw."""
    memory = PrefixMemory(max_prefixes=2)
    prompts = [(Message("user", letter * 5_200),) for letter in "abc"]
    for prompt in prompts:
        memory.cached_tokens("m", prompt)

    assert 1280 == memory.cached_tokens("m", prompts[2])
    assert 0 == memory.cached_tokens("m", prompts[0])


def test_text_that_utf8_cannot_say_is_remembered_too() -> None:
    """JSON can carry a lone surrogate, and it must not crash the server."""
    memory = PrefixMemory()
    prompt = (Message("user", "\ud800" * 5_200),)
    memory.cached_tokens("m", prompt)

    assert 1280 == memory.cached_tokens("m", prompt)
