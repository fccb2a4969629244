"""Contrasts: words of one family that exclude each other, such as before and after, all and some, is and was."""

from __future__ import annotations

from .english import GRAMMAR, Prompt, stem
from .gate import Trace

# One family a line, its members parted by bars; the words of one member mean the same here.
_FAMILIES = """
increase raise grow gain rise | decrease reduce lower drop fall shrink lose
before prior | after afterwards following
minimum min smallest least lowest minimise minimize fewest | maximum max largest most highest maximise maximize biggest
enable activate | disable deactivate
import | export
buy purchase | sell
upload | download
encode | decode
encrypt | decrypt
compress | decompress extract
serialize serialise | deserialize deserialise parse
lock | unlock
open | close shut
start begin launch | stop end finish quit
include with | exclude without
accept approve allow permit | reject decline refuse deny forbid block
true correct right | false wrong incorrect
hot warm heat | cold cool freeze
high tall | low short
big large huge | small little tiny
fast quick rapid | slow
old ancient | new recent modern latest
young | elderly
early | late
cheap inexpensive | expensive costly
easy simple | hard difficult complex complicated
safe | dangerous unsafe risky harmful
good better best benefit advantage pro | bad worse worst harm disadvantage drawback con
strong | weak
heavy | light
public | private
client | server
input | output
read | write
push | pull
add append insert | remove delete drop
connect | disconnect
install | uninstall
subscribe | unsubscribe
left | right
up upper above | down below
north | south
east | west
inside indoor indoors | outside outdoor outdoors
male man boy father husband son brother | female woman girl mother wife daughter sister
above over exceed | below under
first | last final
next | previous
today now currently | yesterday | tomorrow
morning | evening | night | noon afternoon
summer | winter | spring | autumn
all every each | some few several | half
always | sometimes | rarely seldom
positive | negative
plus | minus
multiply times | divide
rich | poor
win | lose
love like | hate dislike
parent | child
teacher | student
employer | employee
acid | base
gain | loss
lend | borrow
arrive arrival | depart departure leave
ascending | descending
vertical | horizontal
front | back
full | empty
wet | dry
alive life | dead death
peace | war
synchronous sync | asynchronous async
local | remote
static | dynamic
mutable | immutable
guilty | innocent
is are am | was were | will
do does | did
has have | had
"""
_MODALS = {"can": "can", "could": "can", "should": "should", "ought": "should", "must": "must", "may": "may"}
_PREFIXES = ("un", "in", "im", "il", "ir", "dis", "non", "de", "mis", "anti")
_MIN_BASE = 4  # letters left behind a prefix; fewer are mostly another word ("under", "inter")


def _members() -> dict[str, list[tuple[str, str]]]:
    members: dict[str, list[tuple[str, str]]] = {}
    for number, family in enumerate(_FAMILIES.strip().splitlines()):
        for side, member in enumerate(family.split("|")):
            for word in member.split():
                key = word if word in GRAMMAR else stem(word)
                members.setdefault(key, []).append((f"family {number}", f"side {side}"))
    return members


_MEMBERS = _members()


def contrasts(prompt: Prompt) -> list[str] | None:
    """Pairs of a family and the side the text takes in it; None for text that cannot be judged."""
    if prompt.words is None:
        return None
    seen: list[str] = []
    previous = ""
    for word in prompt.words:
        key = word if word in GRAMMAR else stem(word)
        for pair in _MEMBERS.get(key, ()):
            seen += pair
        if word in _MODALS and previous != "how":  # "how can I" and "how should I" ask the same
            seen += ["modal", _MODALS[word]]
        if word not in GRAMMAR:
            seen += [key, "as it is"]
            for prefix in _PREFIXES:
                if key.startswith(prefix) and len(key) >= len(prefix) + _MIN_BASE:
                    seen += [key.removeprefix(prefix), "prefixed"]
        previous = word
    return seen


def no_contrast(first: Trace, second: Trace) -> bool:
    """Whether the two texts take the same sides in every family that both have a word of."""
    one, other = _sides(first), _sides(second)
    return all(one[family] == other[family] for family in one.keys() & other.keys())


def _sides(trace: Trace) -> dict[int, set[int]]:
    sides: dict[int, set[int]] = {}
    for family, side in zip(trace[::2], trace[1::2], strict=True):
        sides.setdefault(family, set()).add(side)
    return sides
