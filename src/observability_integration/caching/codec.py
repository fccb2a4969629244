"""How values are written for the shared store, and kept in memory.

JSON by msgspec, in an envelope with a version and the moment of expiry; never pickle. A value is written only if reading it back gives an equal
one, so that a hit returns what a miss would have: a tuple, a NaN or a dict with integer keys does not survive JSON and
is kept in memory only. `value_type` opens the way for models: a pydantic model, a dataclass or a msgspec struct is then
rebuilt on reading.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, cast

import msgspec

_VERSION = 1
_IMMUTABLE = (str, bytes, int, float, bool, type(None))


class _Envelope(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    version: int
    expires_ms: int
    value: msgspec.Raw


class Unreadable(Exception):  # noqa: N818 - never leaves the cache
    """What was read is not one of our entries."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A value as memory keeps it: an immutable one as it is, a structure as its bytes, so that no two callers share it.

    Attributes:
        payload: the value, or its encoded form.
        encoded: whether `payload` has to be decoded.
        size: bytes, estimated for values kept as they are.
    """

    payload: Any
    encoded: bool
    size: int


class Codec:
    """Encodes and decodes the values of one cache.

    Args:
        value_type: the type of the values, when JSON alone cannot rebuild it.
    """

    def __init__(self, value_type: type[Any] | None = None) -> None:
        self._type = value_type
        self._encoder = msgspec.json.Encoder()
        self._envelopes = msgspec.json.Decoder(_Envelope)
        self._validate = getattr(value_type, "model_validate", None)

    def encode(self, value: Any) -> bytes | None:
        """The value as JSON, or None when it would not come back equal."""
        try:
            dump = getattr(value, "model_dump", None) if self._validate is not None else None
            data = self._encoder.encode(dump(mode="json") if callable(dump) else value)
            back = self.decode(data)
            # Compared by type too: True == 1 and "a" == StrEnum("a").
            return data if type(back) is type(value) and back == value else None
        except Exception:  # noqa: BLE001 - whatever a foreign type raises: it cannot be written
            return None

    def decode(self, data: bytes | msgspec.Raw) -> Any:
        """The value that was encoded.

        Raises:
            Unreadable: `data` is not what `encode` made of a value of this type.
        """
        try:
            if self._validate is not None:
                return self._validate(msgspec.json.decode(data))
            return msgspec.json.decode(data) if self._type is None else msgspec.json.decode(data, type=self._type)
        except Exception as error:
            raise Unreadable from error

    @staticmethod
    def wrap(encoded: bytes, expires_ms: int) -> bytes:
        """An encoded value as it stands in the shared store, with the Unix time in ms at which it expires."""
        return b"[%d,%d,%b]" % (_VERSION, expires_ms, encoded)

    def unwrap(self, data: bytes | str) -> tuple[bytes, int]:
        """The encoded value and its expiry, from what the shared store holds.

        Raises:
            Unreadable: `data` is not one of our entries.
        """
        try:
            envelope = self._envelopes.decode(data)
        except Exception as error:
            raise Unreadable from error
        if envelope.version != _VERSION:
            raise Unreadable
        return bytes(envelope.value), envelope.expires_ms

    def keep(self, value: Any, encoded: bytes | None) -> Kept:
        """How memory keeps a value, given its encoded form if it has one."""
        if isinstance(value, _IMMUTABLE):
            return Kept(value, False, sys.getsizeof(value))
        if encoded is not None:
            return Kept(encoded, True, len(encoded))
        return Kept(value, False, _deep_size(value))

    def restore(self, kept: Kept) -> Any:
        """The value that memory kept."""
        return self.decode(kept.payload) if kept.encoded else kept.payload


def _deep_size(value: Any) -> int:
    # One level down is enough of an estimate for a bound; objects are not walked, for they may be anything.
    size = sys.getsizeof(value, 64)
    attributes = getattr(value, "__dict__", None)
    if attributes:
        size += sum(sys.getsizeof(item, 64) for item in cast("dict[str, Any]", attributes).values())
    if isinstance(value, list | tuple | set | frozenset):
        size += sum(sys.getsizeof(item, 64) for item in cast("list[Any]", value))
    if isinstance(value, dict):
        size += sum(sys.getsizeof(item, 64) for pair in cast("dict[Any, Any]", value).items() for item in pair)
    return size
