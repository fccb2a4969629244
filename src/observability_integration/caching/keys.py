"""Keys: canonical, hashed, and never readable.

Two inputs share a key only if they are equal: each type is tagged, structures are encoded as JSON with sorted keys,
operation and scope are part of the hash, and the hash is BLAKE2b with 256 bits. What stands in memory and in Redis is
the hash, so no prompt can be read from a key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, cast

WIRE_VERSION = "1"  # part of every key: two versions of the wire format never read each other's entries


GLOBAL = None  # the scope of entries that everybody may share


class KeySpace:
    """Makes the keys of one operation within one scope."""

    __slots__ = ("_salt", "prefix")

    def __init__(self, operation: str, scope: str | None) -> None:
        identity = json.dumps([WIRE_VERSION, operation, scope]).encode()
        self._salt = blake2b(identity, digest_size=32).digest()
        self.prefix = f"cache:{operation.encode('utf-8', 'backslashreplace').decode()}:"

    def digest(self, key: Any) -> bytes:
        """The hash of a key: text, bytes, or anything that `canonical` accepts."""
        if isinstance(key, str):
            data = b"s" + key.encode("utf-8", "surrogatepass")
        elif isinstance(key, bytes):
            data = b"b" + key
        else:
            data = b"j" + canonical(key)
        return blake2b(data, digest_size=32, key=self._salt).digest()

    def wire(self, digest: bytes) -> str:
        """The key in the shared store."""
        return f"{self.prefix}v{WIRE_VERSION}:{digest.hex()}"


def canonical(value: Any) -> bytes:
    """Encodes a structure so that equal ones, and only those, are encoded alike; the order of keys does not matter.

    Raises:
        TypeError: for a type that has no canonical form here (an object whose text would hold an address, say).
    """
    return json.dumps(_tagged(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _tagged(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return {"i": str(int(value))}
    if isinstance(value, float):
        return {"f": value.hex()}
    if isinstance(value, bytes):
        return {"b": value.hex()}
    if isinstance(value, Mapping):
        pairs = [[_tagged(key), _tagged(item)] for key, item in cast("Mapping[Any, Any]", value).items()]
        return {"m": sorted(pairs, key=lambda pair: json.dumps(pair[0], sort_keys=True))}
    if isinstance(value, list | tuple):
        return [_tagged(item) for item in cast("list[Any]", value)]
    if isinstance(value, set | frozenset):
        return {"s": sorted((_tagged(item) for item in cast("set[Any]", value)), key=lambda item: json.dumps(item))}
    raise TypeError(
        f"a cache key may hold text, bytes, numbers, None and structures of them, not {type(value).__name__}"
    )
