"""How values are written for the shared store, and kept in memory.

JSON by msgspec, in an envelope with a version and the moment of expiry; never pickle. A value is written only if
reading it back gives an equal one, type by type, so that a hit returns what a miss would have: a tuple, a NaN, an enum
or a dict with integer keys does not survive JSON and is kept in memory only, as a copy. `value_type` opens the way for
models: a pydantic model, a dataclass or a msgspec struct is then rebuilt on reading.
"""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, Literal, NamedTuple, cast

import msgspec

from observability_integration.errors import ConfigurationError

_VERSION = 1
_IMMUTABLE = (str, bytes, int, float, bool, type(None))
_PLAIN = frozenset({str, int, float, bool, type(None)})
_SHARED_BY_ALL = (type, ModuleType, FunctionType)


class _Envelope(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    version: int
    expires_ms: int
    value: msgspec.Raw


class Unreadable(Exception):  # noqa: N818 - never leaves the cache
    """What was read is not one of our entries."""


class Uncopyable(Exception):  # noqa: N818 - never leaves the cache
    """A value that can be neither encoded nor copied, such as a stream; it belongs to one caller alone."""


class Kept(NamedTuple):
    """A value as memory keeps it, so that no two callers share one that can change.

    Attributes:
        payload: the value itself, its encoded form, or a copy.
        form: ``value`` for an immutable one, ``encoded``, or ``copy`` for what cannot be encoded.
        size: bytes; an estimate unless encoded, and for a copy at least the limit given, if it is larger than that.
    """

    payload: Any
    form: Literal["value", "encoded", "copy"]
    size: int


class Codec:
    """Encodes and decodes the values of one cache.

    Args:
        value_type: the type of the values, when JSON alone cannot rebuild it.

    Raises:
        ConfigurationError: `value_type` cannot be rebuilt from JSON.
    """

    def __init__(self, value_type: type[Any] | None = None) -> None:
        self._encoder = msgspec.json.Encoder()
        self._envelopes = msgspec.json.Decoder(_Envelope)
        self._model = value_type if hasattr(value_type, "model_validate_json") else None  # pydantic, unimported
        self._untyped = value_type is None
        self._read: Callable[[bytes], Any]
        if self._model is not None:
            self._read = self._model.model_validate_json
        else:
            try:
                self._read = msgspec.json.Decoder(Any if value_type is None else value_type).decode
            except TypeError as error:
                raise ConfigurationError(f"value_type cannot be rebuilt from JSON: {error}") from None

    def encode(self, value: Any) -> bytes | None:
        """The value as JSON, or None when it would not come back equal."""
        try:
            if self._model is not None and isinstance(value, self._model):
                data = cast("bytes", value.model_dump_json(by_alias=True, round_trip=True).encode())
            else:
                data = self._encoder.encode(value)
            return data if self._same(value, self.decode(data)) else None
        except Exception:  # noqa: BLE001 - whatever a foreign type raises: it cannot be written
            return None

    def _same(self, value: Any, back: Any) -> bool:
        return bool(value == back) if self._untyped and _is_plain(value) else _same(value, back)

    def decode(self, data: bytes) -> Any:
        """The value that was encoded.

        Raises:
            Unreadable: `data` is not what `encode` made of a value of this type.
        """
        try:
            return self._read(data)
        except Exception as error:
            raise Unreadable from error

    @staticmethod
    def wrap(encoded: bytes, expires_ms: int) -> bytes:
        """An encoded value as it stands in the shared store, with the Unix time in ms at which it expires."""
        return b"[%d,%d,%b]" % (_VERSION, expires_ms, encoded)

    def unwrap(self, data: Any) -> tuple[bytes, int]:
        """The encoded value and its expiry, from what the shared store holds (bytes or text, if it is one of ours).

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

    def keep(self, value: Any, encoded: bytes | None, limit_bytes: int) -> Kept:
        """How memory keeps a value, given its encoded form if it has one.

        Args:
            value: the value.
            encoded: what `encode` made of it.
            limit_bytes: a value that is larger need not be measured to its end.

        Raises:
            Uncopyable: the value can be neither encoded nor copied.
        """
        if isinstance(value, _IMMUTABLE):
            return Kept(value, "value", max(sys.getsizeof(value), len(encoded or b"")))
        if encoded is not None:
            return Kept(encoded, "encoded", len(encoded))
        try:
            return Kept(copy.deepcopy(value), "copy", _size(value, limit_bytes))
        except Exception as error:
            raise Uncopyable from error

    def restore(self, kept: Kept) -> Any:
        """The value that memory kept, for one caller to have.

        Raises:
            Unreadable: a type of the user's refuses what it has accepted before.
        """
        if kept.form == "value":
            return kept.payload
        if kept.form == "encoded":
            return self.decode(kept.payload)
        try:
            return copy.deepcopy(kept.payload)
        except Exception as error:
            raise Unreadable from error

    @staticmethod
    def needs_encoding(value: Any) -> bool:
        """Whether memory keeps the value better in its encoded form."""
        return not isinstance(value, _IMMUTABLE)


def _is_plain(value: Any) -> bool:
    # Only what JSON itself has: whatever comes back equal is then of the same types, and `==` is all there is to ask.
    kind: Any = value.__class__
    if kind is dict:
        for key in value:
            if key.__class__ is not str:
                return False
        parts = value.values()
    elif kind is list:
        parts = value
    else:
        return kind in _PLAIN
    for part in parts:  # noqa: SIM110 - a generator would cost half as much again as all of this
        if part.__class__ not in _PLAIN and not _is_plain(part):
            return False
    return True


def _same(first: Any, second: Any) -> bool:
    # Equality is not enough: True == 1, and an enum may equal its value.
    kind: Any = first.__class__
    if kind is not second.__class__:
        return False
    if kind is dict:
        pairs = zip(first.items(), second.items(), strict=True)
        return all(_same(one, other) for both in pairs for one, other in zip(*both, strict=True))
    if kind is list:
        return all(_same(one, other) for one, other in zip(first, second, strict=True))
    return bool(first == second)


def _size(value: Any, limit_bytes: int) -> int:
    total = 0
    seen: set[int] = set()
    todo = [value]
    while todo and total <= limit_bytes:
        item = todo.pop()
        if id(item) in seen or isinstance(item, _SHARED_BY_ALL):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        todo += gc.get_referents(item)
    return total
