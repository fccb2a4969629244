"""The W3C ``baggage`` header: small strings that travel with a request. See https://www.w3.org/TR/baggage/."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote, unquote

_KEY = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, section 5.6.2; never percent-decoded
_VALUE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")

# What every platform has to pass on; a longer header may lose members at any hop.
MOST_MEMBERS = 64
MOST_BYTES = 8192


class Member(NamedTuple):
    """What a key stands for.

    Attributes:
        value: its value, decoded.
        properties: what else was said of it, as it came (such as ``;hint=1``); opaque here, and passed on.
    """

    value: str
    properties: str = ""


def read(headers: Sequence[str]) -> tuple[dict[str, Member], bool]:
    """The members by key, the last where a key stands twice, and whether all of them were sound and found room.

    A value may hold a literal ``+``, which some senders write for a space; the standard reads it as it stands.
    """
    text = ",".join(headers)
    whole = len(text) <= MOST_BYTES
    if not whole:
        text = text[: MOST_BYTES + 1].rpartition(",")[0]  # never half a member
    members: dict[str, Member] = {}
    for part in filter(None, (part.strip(" \t") for part in text.split(","))):
        pair, *properties = (piece.strip(" \t") for piece in part.split(";"))
        key, equals, value = _halves(pair)
        full = len(members) == MOST_MEMBERS and key not in members
        if full or not equals or not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            whole = False
            continue
        sound = all(map(_is_property, properties))
        members[key] = Member(unquote(value), "".join(f";{each}" for each in properties) if sound else "")
        whole = whole and sound
    return members, whole


def write(members: Iterable[tuple[object, Member | None]]) -> tuple[str, bool]:
    """The header, and whether every member could be written; the first ones stay where there is no room for all.

    Args:
        members: pairs of key and member; what is no token or no text (None) is left out.
    """
    written: list[str] = []
    size = -1  # one comma less than members
    whole = True
    for key, member in members:
        if member is None or not isinstance(key, str) or not _KEY.fullmatch(key):
            whole = False
            continue
        # All but letters, digits and `_.-~` is encoded, the `+` too: there are readers that take it for a space.
        text = f"{key}={quote(member.value, safe='', errors='replace')}{member.properties}"
        if len(written) == MOST_MEMBERS or size + 1 + len(text) > MOST_BYTES:
            whole = False
            continue
        written.append(text)
        size += 1 + len(text)
    return ",".join(written), whole


def members_of(values: Mapping[str, object], known: Mapping[str, Member]) -> dict[str, Member | None]:
    """The members for plain values; one that is `known` and has not changed keeps its properties.

    Numbers are written as Python writes them; what is neither text nor number becomes None.
    """
    members: dict[str, Member | None] = {}
    for key, value in values.items():
        text = value if isinstance(value, str) else str(value) if isinstance(value, int | float) else None
        before = known.get(key)
        if text is None:
            members[key] = None
        else:
            members[key] = before if before is not None and before.value == text else Member(text)
    return members


def _halves(text: str) -> tuple[str, str, str]:
    key, equals, value = text.partition("=")
    return key.rstrip(" \t"), equals, value.lstrip(" \t")


def _is_property(text: str) -> bool:
    key, _, value = _halves(text)
    return _KEY.fullmatch(key) is not None and _VALUE.fullmatch(value) is not None
