"""The W3C ``baggage`` header: small strings that travel with a request. See https://www.w3.org/TR/baggage/."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote, unquote

_KEY = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, section 5.6.2; never percent-decoded
_VALUE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")

# The limits up to which every platform must propagate; a longer header may lose members at any hop (section 3.3.2).
MAX_MEMBERS = 64
MAX_BYTES = 8192


class Member(NamedTuple):
    """The value and the properties of one baggage key.

    Attributes:
        value: the value, percent-decoded.
        properties: the properties as received, such as ``;hint=1``; not interpreted, but passed on.
    """

    value: str
    properties: str = ""


def parse_header(headers: Sequence[str]) -> tuple[dict[str, Member], bool]:
    """Parses members by key; of a repeated key, the last.

    A literal ``+`` in a value stays a ``+``, as the standard requires, although some senders write it for a space.

    Returns:
        The members, and whether all members were valid and within the limits.
    """
    text = ",".join(headers)
    complete = len(text) <= MAX_BYTES
    if not complete:
        text = text[: MAX_BYTES + 1].rpartition(",")[0]  # drops the member that the limit cuts
    members: dict[str, Member] = {}
    for part in filter(None, (part.strip(" \t") for part in text.split(","))):
        pair, *properties = (piece.strip(" \t") for piece in part.split(";"))
        key, equals, value = _split_pair(pair)
        full = len(members) == MAX_MEMBERS and key not in members
        if full or not equals or not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            complete = False
            continue
        valid = all(map(_is_property, properties))
        members[key] = Member(unquote(value), "".join(f";{each}" for each in properties) if valid else "")
        complete = complete and valid
    return members, complete


def format_header(members: Iterable[tuple[object, Member | None]]) -> tuple[str, bool]:
    """Formats members, the first ones only where the limits do not allow all.

    Args:
        members: pairs of key and member. A key that is no token is left out, and so is a member of None.

    Returns:
        The header, and whether it holds every member.
    """
    written: list[str] = []
    size = -1  # there is one comma less than members
    complete = True
    for key, member in members:
        if member is None or not isinstance(key, str) or not _KEY.fullmatch(key):
            complete = False
            continue
        # Encodes all but letters, digits and `_.-~`. Some readers take a bare `+` for a space.
        text = f"{key}={quote(member.value, safe='', errors='replace')}{member.properties}"
        if len(written) == MAX_MEMBERS or size + 1 + len(text) > MAX_BYTES:
            complete = False
            continue
        written.append(text)
        size += 1 + len(text)
    return ",".join(written), complete


def members_from_values(values: Mapping[str, object], received: Mapping[str, Member]) -> dict[str, Member | None]:
    """Members of plain values; a `received` member with the same value keeps its properties.

    A number becomes its Python text. A value that is neither text nor number becomes None.
    """
    members: dict[str, Member | None] = {}
    for key, value in values.items():
        text = value if isinstance(value, str) else str(value) if isinstance(value, int | float) else None
        before = received.get(key)
        if text is None:
            members[key] = None
        else:
            members[key] = before if before is not None and before.value == text else Member(text)
    return members


def _split_pair(text: str) -> tuple[str, str, str]:
    key, equals, value = text.partition("=")
    return key.rstrip(" \t"), equals, value.lstrip(" \t")


def _is_property(text: str) -> bool:
    key, _, value = _split_pair(text)
    return _KEY.fullmatch(key) is not None and _VALUE.fullmatch(value) is not None
