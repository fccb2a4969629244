"""Each gate must refuse what it is for, and nothing else: a refusal too many is a hit lost at every call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability_integration.caching.semantic import DEFAULT_GATES, Gate, Prompt

pytestmark = pytest.mark.once

_SECRET = b"key of the hashes"
_BY_NAME = {gate.name: gate for gate in DEFAULT_GATES}


def agrees(name: str, first: str, second: str) -> bool:
    gate = _BY_NAME[name]
    one, other = gate.trace(Prompt(first), _SECRET), gate.trace(Prompt(second), _SECRET)
    return one is not None and other is not None and gate.agree(one, other)


def refusing(first: str, second: str) -> list[str]:
    return [name for name in _BY_NAME if not agrees(name, first, second)]


# What each gate alone would let through without it, and what it must not take for a difference.
_REFUSED = {
    "negation": [
        ("Can I eat it?", "Can't I eat it?"),
        ("Can I eat it?", "cant I eat it?"),
        ("with milk", "without milk"),
        ("sugar in it", "sugar-free in it"),
        ("a profit organisation", "a non-profit organisation"),
        ("not guilty but charged", "guilty but not charged"),
        ("all unless told", "all if told"),
        ("orders that have shipped", "orders that have yet to ship"),
        ("only cats", "cats"),
        ("use a list", "use a tuple instead of a list"),
    ],
    "names": [
        ("Is it in Paris?", "Is it in Prague?"),
        ("Paris is where?", "Prague is where?"),
        ("the USA", "the UK"),
        ("What is C?", "What is C++?"),
        ("call getUser now", "call getName now"),
        ("set `x` to it", "set `y` to it"),
        ('say "so be it"', 'say "as it is"'),
        ("say 'so be it'", "say 'as it is'"),
        ("run it with --soft", "run it with --hard"),
        ("open a/b.txt", "open a/c.txt"),
        ("the A100 card", "the H100 card"),
        ("is it 👍?", "is it 👎?"),
        ("Explain how Rome beat Greece", "Explain how Greece beat Rome"),
    ],
    "contrasts": [
        ("before the meal", "after the meal"),
        ("is it possible", "is it impossible"),
        ("happy people", "unhappy people"),
        ("How do I encrypt it?", "How can one decrypt it?"),
        ("Who is the king?", "Who was the king?"),
        ("Did he win?", "Will he win?"),
        ("Can I leave?", "Must I leave?"),
        ("all of them", "some of them"),
    ],
    "asking": [
        ("When was it?", "Where was it?"),
        ("Did he eat?", "What did he eat?"),
        ("How many are there?", "Why are there any?"),
        ("Who did it?", "How did it happen?"),
    ],
    "order": [
        ("Did Germany beat Brazil?", "Did Brazil beat Germany?"),
        ("do cats chase dogs", "do dogs chase cats"),
        ("describe how the buyer pays the seller in cash", "explain how the seller pays the buyer in cash"),
        ("from the client to the server", "to the client from the server"),
    ],
    "difference": [
        ("flights from there", "flights to there"),
        ("the capital of georgia", "the capital of germany"),
        ("the fastest animal", "the fastest land animal"),
    ],
    "subject": [
        ("reverse a list in haskell", "reverse a list using rust"),
    ],
}
_PASSED = {
    "negation": [
        ("Why doesn't it work?", "Why does it not work?"),
        ("I cannot log in", "I can't log in"),
        ("don't stop", "dont stop"),
        ("How do I do it?", "What is the way to do it?"),
    ],
    "names": [
        ("How do I install Docker?", "What is the way to install Docker?"),
        ("Use Python’s list", "use Python's list"),
        ("Buy GPUs.", "How do I buy a GPU?"),
        ("Tell me it. Please answer.", "tell me it, please answer"),
        ("in 5km or 16GB or 2nd", "or not"),
        ("open it: now", "open it"),
    ],
    "contrasts": [
        ("How can I do it?", "How should I do it?"),
        ("a large one", "a huge one"),
        ("before or after", "after or before"),
        ("anything", "nothing of the kind"),
    ],
    "asking": [
        ("How do I reset it?", "Reset it"),
        ("When was it released?", "What is the release date of it?"),
        ("How come it fails?", "Why does it fail?"),
        ("Can you tell me what it is?", "What is it?"),
        ("What is the number of cats?", "How many cats are there?"),
    ],
    "order": [
        ("cats chase dogs", "cats chase dogs"),
        ("reset my password", "I forgot what I type to log in: help with my password"),
    ],
    "difference": [
        ("How do I delete my account?", "How can I remove my account?"),
        ("delete my account", "close the profile that belongs to me"),
        ("The boxes", "a box"),
    ],
    "subject": [
        ("How do I delete my account?", "How can I remove my account?"),
        ("fixing errors", "fix an error"),
        ("sunny cities", "a sunny city"),
    ],
}


@pytest.mark.parametrize(
    ("gate", "first", "second"), [(gate, *pair) for gate, pairs in _REFUSED.items() for pair in pairs]
)
def test_refused(gate: str, first: str, second: str) -> None:
    """The two need different answers, and this gate is the one that says so, whichever was asked first."""
    assert agrees(gate, first, second) is False
    assert agrees(gate, second, first) is False


@pytest.mark.parametrize(
    ("gate", "first", "second"), [(gate, *pair) for gate, pairs in _PASSED.items() for pair in pairs]
)
def test_passed(gate: str, first: str, second: str) -> None:
    """What differs here is no business of this gate."""
    assert agrees(gate, first, second) is True
    assert agrees(gate, second, first) is True


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("How do I reset my password?", "How can I reset my password?"),
        ("How do I reset my password?", "how to reset password"),
        ("What is the capital of France?", "Tell me the capital of France"),
        ("What's the capital of France?", "What is the capital of France, please?"),
        ("Who wrote Hamlet?", "who wrote Hamlet"),
        ("How do I delete a file in Python?", "How can I remove a file in Python?"),
        ("Convert 5 km to miles.", "Please convert 5 kilometers to miles"),
        ("What is twenty-five percent of 80?", "What is 25% of 80?"),
        ("Explain the three laws of motion.", "Describe the 3 laws of motion"),
        ("Show me the fastest way to fix this error", "Give me the quickest way to solve this error"),
        ("How much is $1,000 in euros?", "how much is 1000 dollars in euros?"),
        ("How do I buy a used car?", "How do I purchase a used car?"),
        ("How large is the moon?", "How big is the moon?"),
        ("I forgot my login details, how can I sign in?", "How do I get back in after losing my credentials?"),
    ],
)
def test_all_gates_pass_the_same_question(first: str, second: str) -> None:
    """Gates that refuse everything would be safe and useless."""
    assert [] == refusing(first, second)


@pytest.mark.parametrize(
    ("first", "second", "gate"),
    [
        ("What does HTTP status 404 mean?", "What is the meaning of HTTP status 404?", "order"),
        ("Why doesn't my code run?", "Why does my code not run?", "negation"),
        ("How do I get to Rome from Oslo?", "How do I get from Oslo to Rome?", "order"),
    ],
)
def test_the_price_of_caution(first: str, second: str, gate: str) -> None:
    """Known hits that are lost, each to the gate that could not tell it from a false one."""
    assert gate in refusing(first, second)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "?!",
        "как сбросить пароль",
        "パスワードを忘れました",
        "Wie kann ich mein Passwort zurücksetzen?",
        "Cómo puedo cambiar mi contraseña",
        "Je ne peux pas dormir",
        "zurücksetzen passwort konto sofort bitte danke",
        "what is 10² here",
        "is α larger than β",
    ],
)
def test_language_refuses_what_is_not_english(text: str) -> None:
    """The gates know no other language, and a gate that cannot judge must not let pass."""
    assert _BY_NAME["language"].trace(Prompt(text), _SECRET) is None


def test_every_gate_refuses_characters_it_does_not_know() -> None:
    """Each may be used without the others."""
    assert [None] * len(DEFAULT_GATES) == [gate.trace(Prompt("是 α?"), _SECRET) for gate in DEFAULT_GATES]


@pytest.mark.parametrize("text", ["postgres backup", "Crème brûlée: how is it made?", "Is it 5 €?", "Yes – it’s “so”…"])
def test_language_knows_english(text: str) -> None:
    """Accents, typography and telegram style are English enough."""
    assert () == _BY_NAME["language"].trace(Prompt(text), _SECRET)


def test_shouting_hides_the_names() -> None:
    """In capitals every word looks like a name."""
    assert _BY_NAME["names"].read(Prompt("WHERE IS PARIS")) is None
    assert ["nasa"] == _BY_NAME["names"].read(Prompt("NASA"))


def test_traces_hide_the_prompt() -> None:
    """What is kept must not be readable without the key, not even by trying words."""
    gate = Gate("all", lambda prompt: prompt.text.split())
    trace = gate.trace(Prompt("secret secret words"), _SECRET)
    assert trace is not None
    assert trace[0] == trace[1] != trace[2]
    assert trace != gate.trace(Prompt("secret secret words"), b"another key")


@given(st.text(max_size=200))
def test_gates_never_raise_and_always_agree_with_themselves(text: str) -> None:
    """They see whatever users type; the same prompt asked twice is the same question."""
    for gate in DEFAULT_GATES:
        trace = gate.trace(Prompt(text), _SECRET)
        assert trace == gate.trace(Prompt(text), _SECRET)
        assert trace is None or gate.agree(trace, trace)


_SNIPPETS = (
    "how do I not delete 5 five hundred and twenty one million dozen km of Paris before `x` a-b 3.10 $5k 50% pm + = -7 "
    "2024-03-05 the first second C++ don't half - 1/2 5-10 20 - 3 a - b and May may march v2 non-stop"
)
_english = st.lists(st.sampled_from(_SNIPPETS.split()), max_size=12).map(" ".join)


@given(_english, _english)
def test_gates_agree_both_ways(first: str, second: str) -> None:
    """Which of the two was asked first is chance."""
    for gate in DEFAULT_GATES:
        one, other = gate.trace(Prompt(first), _SECRET), gate.trace(Prompt(second), _SECRET)
        if one is not None and other is not None:
            assert gate.agree(one, other) == gate.agree(other, one)
