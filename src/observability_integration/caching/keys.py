"""Keys: canonical, hashed, and never readable.

Two inputs share a key only if they are equal, type by type: each type is tagged, mappings and sets are ordered,
operation and scope are part of the hash, and the hash is BLAKE2b with 256 bits. What stands in memory and in Redis is
the hash, so no prompt can be read from a key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from observability_integration.errors import ConfigurationError

from .stores.shared import Place

WIRE_VERSION = "2"  # part of every key: two versions of the wire format never read each other's entries
_NO_BRACES = str.maketrans("{}", "()")  # the first braces in a key are those that Redis Cluster goes by
GLOBAL = None  # the scope of entries that everybody may share


class KeySpace:
    """Makes the keys of one operation within one scope.

    Args:
        operation: the operation's name, readable in every key.
        scope: whose entries they are.
        namespace: keeps apart what would share a name, such as two applications on one Redis.

    Attributes:
        prefix: how every key of the operation begins in the shared store, in all scopes, and no other operation's. The
            part in braces is what Redis Cluster places keys by: all of an operation's are in one slot.

    Raises:
        ConfigurationError: the scope is neither text nor ``GLOBAL``, or the namespace no text.
    """

    __slots__ = ("_bytes", "_structure", "_tags", "_text", "prefix")

    def __init__(self, operation: str, scope: str | None, namespace: str = "") -> None:
        check_scope(scope)
        given: Any = namespace
        if not isinstance(given, str):
            raise ConfigurationError(f"namespace must be text, got {type(given).__name__}")
        identity = blake2b(canonical([WIRE_VERSION, operation, scope, namespace]), digest_size=32).digest()
        # Each hash begins with 33 bytes that say whose key it is and of which kind. Copying a hash that has begun is
        # cheaper than beginning one, and than a keyed hash by far.
        self._text, self._bytes, self._structure = (
            blake2b(kind + identity, digest_size=32) for kind in (b"s", b"b", b"j")
        )
        # A tag reaches an operation in all of its scopes, as clearing does.
        self._tags = blake2b(b"t" + canonical([operation, namespace]), digest_size=10)
        # The mark keeps the keys of an operation called "chat" apart from those of one called "chat:v1".
        mark = blake2b(canonical([operation, namespace]), digest_size=6).hexdigest()
        name = operation.encode("utf-8", "backslashreplace").decode().translate(_NO_BRACES)
        self.prefix = f"cache:{name}:v{WIRE_VERSION}:{{{mark}}}:"

    def digest(self, key: Any) -> bytes:
        """The hash of a key: text, bytes, or anything that `canonical` accepts.

        Raises:
            TypeError: see `canonical`.
        """
        if isinstance(key, str):
            begun, data = self._text, key.encode("utf-8", "surrogatepass")
        elif isinstance(key, bytes):
            begun, data = self._bytes, key
        else:
            begun, data = self._structure, canonical(key)
        hashed = begun.copy()
        hashed.update(data)
        return hashed.digest()

    def place(self, digest: bytes) -> Place:
        """Where the entry stands in the shared store."""
        return Place(self.prefix, digest.hex())

    def tag(self, tag: str) -> str:
        """The hash that stands for a tag, wherever it is kept or sent.

        Raises:
            TypeError: the tag is no text.
        """
        given: Any = tag
        if not isinstance(given, str):
            raise TypeError(f"a tag must be text, not {type(given).__name__}")
        hashed = self._tags.copy()
        hashed.update(tag.encode("utf-8", "surrogatepass"))
        return hashed.hexdigest()


def check_scope(scope: Any) -> None:
    """Refuses what is neither text nor ``GLOBAL``: annotations stop nobody from passing an id that is no text."""
    if scope is not None and not isinstance(scope, str):
        raise ConfigurationError(f"scope must be text or GLOBAL, got {type(scope).__name__}")


def canonical(value: Any) -> bytes:
    """Encodes a structure so that the order of mappings and sets does not matter, and everything else does.

    A tuple is not a list here, nor True 1, 1 1.0, 0.0 -0.0; a set is a frozenset, and one mapping type like another.

    Raises:
        TypeError: for a type that has no canonical form here (an object whose text would hold an address, say), and for
            a structure that is nested too deeply or contains itself.
    """
    try:
        # ASCII would not do: an emoji and its two surrogates, escaped, look the same.
        text = json.dumps(_tagged(value), separators=(",", ":"), ensure_ascii=False)
    except RecursionError:
        raise TypeError("a cache key must not be nested that deeply, nor contain itself") from None
    return text.encode("utf-8", "surrogatepass")


def _tagged(value: Any) -> Any:
    kind: Any = value.__class__
    if value is None or issubclass(kind, bool | str):
        return value
    if issubclass(kind, int):
        return {"i": f"{int(value):x}"}  # Python refuses to write very long integers in base 10
    if issubclass(kind, float):
        return {"f": value.hex()}
    if issubclass(kind, bytes):
        return {"b": value.hex()}
    if issubclass(kind, Mapping):
        pairs = [[_tagged(key), _tagged(item)] for key, item in value.items()]
        return {"m": sorted(pairs, key=lambda pair: _order(pair[0]))}
    if issubclass(kind, list):
        return [_tagged(item) for item in value]
    if issubclass(kind, tuple):
        return {"t": [_tagged(item) for item in value]}
    if issubclass(kind, set | frozenset):
        return {"s": sorted(map(_tagged, value), key=_order)}
    raise TypeError(f"a cache key may hold text, bytes, numbers, None and structures of them, not {kind.__name__}")


def _order(tagged: Any) -> str:
    # JSON of anything but text never begins with a quote, so text needs no encoding to be told apart.
    return '"' + tagged if isinstance(tagged, str) else json.dumps(tagged, ensure_ascii=False)
