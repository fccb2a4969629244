from __future__ import annotations

import pytest

from observability_integration.testing.http.chat_request import Message
from observability_integration.testing.http.tokens import message_tokens, split_tokens

pytestmark = pytest.mark.once


def test_tokens_are_four_characters_and_join_to_the_text() -> None:
    """A streamed answer is sent token by token; nothing may be lost at the seams, in any script."""
    text = "Zażółć 富士山 👩‍🚀 end"

    assert ["abcd", "e"] == split_tokens("abcde")
    assert [] == split_tokens("")
    assert text == "".join(split_tokens(text))


def test_a_message_costs_its_text_rounded_up_and_a_fixed_overhead() -> None:
    """The rule that the documentation states."""
    assert 4 == message_tokens(Message("user", ""))
    assert 5 == message_tokens(Message("user", "2+2?"))
    assert 6 == message_tokens(Message("user", "2+22?"))
