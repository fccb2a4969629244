"""Keys: canonical and hashed.

Two inputs share a key only if they are equal, type by type: each type is marked, mappings and sets are ordered,
operation and scope are part of the hash, and the hash is BLAKE2b with 256 bits. Memory and Redis hold the hash only, so
no prompt can be read from a key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from hashlib import blake2b
from typing import Any, Final

from observability_integration.errors import ConfigurationError

from .stores.shared import Place

WIRE_VERSION = "3"  # part of every key: two versions of the wire format never read each other's entries
_NO_BRACES = str.maketrans("{}", "()")  # Redis Cluster hashes the part in the first braces of a key


_NO_KEY = "a cache key must not be None: a key that is missing would be one key for all"


class GlobalScope(Enum):
    """The type of `GLOBAL`."""

    GLOBAL = "GLOBAL"

    def __repr__(self) -> str:
        return self.name

    __str__ = __repr__


GLOBAL: Final = GlobalScope.GLOBAL
"""The scope of entries that all callers may share. None is no scope: a forgotten one must not share."""


class KeySpace:
    """Makes the keys of one operation within one scope.

    Args:
        operation: name of the operation, readable in every key.
        scope: owner of the entries, such as a tenant; or `GLOBAL`.
        namespace: separates operations of one name, such as those of two applications on one Redis.

    Attributes:
        prefix: how the keys of this operation, in all scopes, begin in the shared store. The part in braces is the hash
            tag of Redis Cluster: all keys of an operation are in one slot.

    Raises:
        ConfigurationError: see `check_scope`; or the namespace is not text.
    """

    __slots__ = ("_bytes", "_scoped", "_structure", "_tags", "_text", "prefix")

    def __init__(self, operation: str, scope: str | GlobalScope, namespace: str = "") -> None:
        check_scope(scope)
        given: Any = namespace
        if not isinstance(given, str):
            raise ConfigurationError(f"namespace must be text, got {type(given).__name__}")
        identity = blake2b(
            canonical([WIRE_VERSION, operation, scope_in_key(scope), namespace]), digest_size=32
        ).digest()
        # Each hash begins with 33 bytes: the kind of the key and its owner. Copying such a hash is cheaper than
        # starting one, and by far cheaper than a keyed hash.
        self._text, self._bytes, self._structure, self._scoped = (
            blake2b(kind + identity, digest_size=32) for kind in (b"s", b"b", b"j", b"o")
        )
        # Invalidation by tag reaches all scopes of an operation, as clearing does.
        self._tags = blake2b(b"t" + canonical([operation, namespace]), digest_size=10)
        # The mark separates the keys of an operation "chat" from those of "chat:v1".
        mark = blake2b(canonical([operation, namespace]), digest_size=6).hexdigest()
        name = operation.encode("utf-8", "backslashreplace").decode().translate(_NO_BRACES)
        self.prefix = f"cache:{name}:v{WIRE_VERSION}:{{{mark}}}:"

    def digest(self, key: Any) -> bytes:
        """The hash of a key: text, bytes, or anything but None that `canonical` accepts.

        Raises:
            TypeError: the key is None, or see `canonical`.
        """
        if isinstance(key, str):
            hasher, data = self._text, key.encode("utf-8", "surrogatepass")
        elif isinstance(key, bytes):
            hasher, data = self._bytes, key
        elif key is None:
            raise TypeError(_NO_KEY)
        else:
            hasher, data = self._structure, canonical(key)
        hasher = hasher.copy()
        hasher.update(data)
        return hasher.digest()

    def digest_in(self, scope: str | GlobalScope, key: Any) -> bytes:
        """The hash of a key in a scope that is chosen for each call. No key outside of such a scope has the same hash.

        Raises:
            TypeError: the key is None, or see `canonical`.
        """
        if key is None:
            raise TypeError(_NO_KEY)
        hasher = self._scoped.copy()
        hasher.update(canonical([scope_in_key(scope), key]))
        return hasher.digest()

    def place(self, digest: bytes) -> Place:
        """The location of the entry in the shared store."""
        return Place(self.prefix, digest.hex())

    def tag(self, tag: str) -> str:
        """The hash of a tag: stores and notes hold it in place of the tag.

        Raises:
            TypeError: the tag is not text.
        """
        given: Any = tag
        if not isinstance(given, str):
            raise TypeError(f"a tag must be text, not {type(given).__name__}")
        hashed = self._tags.copy()
        hashed.update(tag.encode("utf-8", "surrogatepass"))
        return hashed.hexdigest()


def check_scope(scope: Any) -> None:
    """Refuses a scope that is neither `GLOBAL` nor text, such as a numeric id, and a text of white space only.

    Raises:
        ConfigurationError: see above.
    """
    if scope is GLOBAL or (isinstance(scope, str) and not is_blank(scope)):
        return
    got = "blank text" if isinstance(scope, str) else "None" if scope is None else type(scope).__name__
    raise ConfigurationError(
        f"scope must be text or GLOBAL, got {got}; give the name of what owns the entries, such as a tenant's id, or "
        "scope=GLOBAL to share them among all callers"
    )


def is_blank(scope: str) -> bool:
    """Whether a scope is empty or white space, as a missing header is: it names no owner."""
    return not scope or scope.isspace()


def scope_in_key(scope: str | GlobalScope) -> str | None:
    """The form in which a scope is part of a key: None for `GLOBAL`."""
    return None if scope is GLOBAL else scope


def canonical(value: Any) -> bytes:
    """Encodes a structure so that the order of mappings and sets does not matter, and everything else does.

    A tuple differs from a list, True from 1, 1 from 1.0, and 0.0 from -0.0. A set equals a frozenset, and all types of
    mappings are equal.

    Raises:
        TypeError: a type has no canonical form (such as an object whose text holds an address), or the structure is
            nested too deeply or contains itself.
    """
    try:
        # Not in ASCII: an emoji and its two surrogates look the same when escaped.
        text = json.dumps(_typed(value), separators=(",", ":"), ensure_ascii=False)
    except RecursionError:
        raise TypeError("a cache key must not be nested that deeply, nor contain itself") from None
    return text.encode("utf-8", "surrogatepass")


def _typed(value: Any) -> Any:
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
        pairs = [[_typed(key), _typed(item)] for key, item in value.items()]
        return {"m": sorted(pairs, key=lambda pair: _sort_key(pair[0]))}
    if issubclass(kind, list):
        return [_typed(item) for item in value]
    if issubclass(kind, tuple):
        return {"t": [_typed(item) for item in value]}
    if issubclass(kind, set | frozenset):
        return {"s": sorted(map(_typed, value), key=_sort_key)}
    raise TypeError(f"a cache key may hold text, bytes, numbers, None and structures of them, not {kind.__name__}")


def _sort_key(typed: Any) -> str:
    # JSON of other types never begins with a quote, so a text need not be encoded to differ from them.
    return '"' + typed if isinstance(typed, str) else json.dumps(typed, ensure_ascii=False)
