"""Wording: prompts made of the same words in another order, or differing in little but a word that matters.

The vectors of two such prompts are near each other whatever the words mean, so the embedder is no witness there.
"""

from __future__ import annotations

from collections import Counter

from .english import GRAMMAR, Prompt, listed, stem
from .gate import Trace
from .numbers import QUANTITIES

# Says nothing about what is asked, other than what another gate looks at. Prepositions and negators are not here.
_EMPTY = listed(
    "a an the this that these those and i me my mine we us our you your it its is are am was were be been being do "
    "does did have has had can could will would shall should may might must please kindly just also there here so then "
    "tell give show explain describe let get want need like know help way some of as what which hello hi hey thanks"
)
_BEFORE_TO = frozenset({"how", "way", "want", "need", "like"})  # "how to" is how people type "how do I"
# One spelling for words that may stand for each other in what people ask.
_SAME = {
    stem(form): stem(base)
    for base, forms in {
        "delete": "remove erase",
        "fix": "repair solve resolve",
        "create": "make build generate construct",
        "begin": "start commence",
        "buy": "purchase",
        "big": "large huge",
        "fast": "quick rapid quickly rapidly",
        "fastest": "quickest",
        "biggest": "largest",
        "use": "utilise utilize employ",
        "find": "locate",
        "choose": "pick select",
        "happen": "occur",
        "error": "exception",
        "picture": "image photo photograph",
        "film": "movie",
        "car": "automobile",
        "phone": "telephone smartphone",
        "doctor": "physician",
        "summarise": "summarize",
        "optimise": "optimize",
        "colour": "color",
        "folder": "directory",
        "mean": "meaning",
        "main": "primary major principal",
        "difference": "distinction",
        "example": "instance",
        "aim": "goal purpose objective",
        "best": "top",
        "advantage": "benefit",
        "drawback": "disadvantage downside",
        "cheap": "inexpensive",
        "study": "learn",
        "answer": "reply respond",
        "job": "work",
        "provide": "supply furnish offer",
        "allow": "enable permit",
        "obtain": "retrieve fetch acquire",
        "display": "show",
        "specify": "indicate",
        "check": "verify",
        "include": "contain",
        "execute": "run",
        "change": "modify alter edit",
        "convert": "transform",
        "ensure": "guarantee",
        "require": "need",
        "various": "different several multiple",
        "additional": "extra further",
        "information": "details detail",
        "guidance": "advice",
    }.items()
    for form in forms.split()
}
_SMALL_SHARE = 0.2  # of the words of the longer prompt: what a vector over all of them hardly shows
_LARGE_SHARE = 0.7  # of the words of the shorter prompt: from here on they are the same words in another order


def wording(prompt: Prompt) -> list[str] | None:
    """The stems of the words that carry meaning, in order, numbers and units left out; None if it cannot be judged."""
    if prompt.words is None:
        return None
    found: list[str] = []
    previous = ""
    for word in prompt.words:
        empty = word in _EMPTY or word in QUANTITIES or word[0].isdigit() or (word == "to" and previous in _BEFORE_TO)
        if not empty:
            key = stem(word)
            found.append(_SAME.get(key, key))
        previous = word
    return found


def subjects(prompt: Prompt) -> list[str] | None:
    """As `wording`, without prepositions, question words and the like; None for text that cannot be judged."""
    stems = wording(prompt)
    return None if stems is None else [found for found in stems if found not in GRAMMAR]


def same_order(first: Trace, second: Trace) -> bool:
    """Whether prompts of mostly the same words have them in the same order: "A beats B" is not "B beats A"."""
    one, other = set(first), set(second)
    shared = one & other
    if len(shared) < _LARGE_SHARE * min(len(one), len(other)):
        return True
    return _mentions(first, shared) == _mentions(second, shared)


def _mentions(trace: Trace, shared: set[int]) -> list[int]:
    return list(dict.fromkeys(token for token in trace if token in shared))


def no_lone_difference(first: Trace, second: Trace) -> bool:
    """Whether the texts have the same words, or differ in more than a word or a fifth of them."""
    one, other = Counter(first), Counter(second)
    difference = max((one - other).total(), (other - one).total())
    return not 0 < difference <= max(1, _SMALL_SHARE * max(len(first), len(second)))
