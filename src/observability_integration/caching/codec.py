"""How values are written, for the shared store and for memory.

As msgpack, by msgspec; never pickle. A value is written only if reading it back gives an equal one, type by type, so
that a hit returns what a miss would have: a tuple, a NaN, an enum or an integer beyond 64 bits does not survive msgpack
and is kept in memory only, as a copy. `value_type` opens the way for models: a pydantic model (as JSON, which is what
pydantic writes), a dataclass or a msgspec struct is then rebuilt on reading.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import sys
from collections.abc import Callable
from datetime import datetime, time
from types import FunctionType, ModuleType
from typing import Any, Literal, cast

import msgspec

from observability_integration.errors import ConfigurationError

_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})  # and no subclass, which may have attributes
_SHARED_BY_ALL = (type, ModuleType, FunctionType)

Reason = Literal["format", "version", "size", "compression", "encryption", "value"]


class Unreadable(Exception):  # noqa: N818 - never leaves the cache
    """What was read is not one of our entries, or not for us to read.

    Attributes:
        reason: ``format`` (garbage, or cut off), ``version`` (of another version of this library, or none of it),
            ``size``, ``compression``, ``encryption``, or ``value`` (the entry is sound, but its value is none of this
            cache).
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class Uncopyable(Exception):  # noqa: N818 - never leaves the cache
    """A value that can be neither encoded nor copied, such as a stream; it belongs to one caller alone."""


class Kept(msgspec.Struct, frozen=True):
    """A value as memory keeps it, so that no two callers share one that can change.

    Attributes:
        payload: the value itself, its encoded form, or a copy.
        form: ``value`` for a plain immutable one, ``encoded``, or ``copy`` for what cannot be encoded.
        size: bytes; an estimate unless encoded, and for a copy at least the limit given, if it is larger than that.
    """

    payload: Any
    form: Literal["value", "encoded", "copy"]
    size: int


class Codec:
    """Encodes and decodes the values of one cache.

    Args:
        value_type: the type of the values, when msgpack alone cannot rebuild it.

    Raises:
        ConfigurationError: `value_type` cannot be rebuilt from what is written.
    """

    def __init__(self, value_type: type[Any] | None = None) -> None:
        self._write = msgspec.msgpack.Encoder().encode
        self._model = value_type if hasattr(value_type, "model_validate_json") else None  # pydantic, unimported
        self._untyped = value_type is None
        self._read: Callable[[bytes], Any]
        if self._model is not None:
            self._read = self._model.model_validate_json
        else:
            try:
                decoder = msgspec.msgpack.Decoder(Any if value_type is None else value_type, ext_hook=_refuse)
            except TypeError as error:
                raise ConfigurationError(f"value_type cannot be rebuilt from what is written: {error}") from None
            self._read = decoder.decode

    def encode(self, value: Any) -> bytes | None:
        """The value as bytes, or None when it would not come back equal."""
        try:
            if self._model is None:
                data = self._write(value)
            else:
                data = cast("bytes", value.model_dump_json(by_alias=True, round_trip=True).encode())
            return data if self._comes_back(value, data) else None
        except Exception:  # noqa: BLE001 - whatever a foreign type raises: it cannot be written
            return None

    def _comes_back(self, value: Any, data: bytes) -> bool:
        return (self._untyped and _is_plain(value)) or _same(value, self.decode(data))

    def decode(self, data: bytes) -> Any:
        """The value that was encoded.

        Raises:
            Unreadable: `data` is not what `encode` makes of a value of this type; the reason is ``value``.
        """
        try:
            return self._read(data)
        except Exception as error:
            raise Unreadable("value") from error

    def keep(self, value: Any, encoded: bytes | None, limit_bytes: int) -> Kept:
        """How memory keeps a value, given its encoded form if it has one.

        Args:
            value: the value.
            encoded: what `encode` made of it.
            limit_bytes: a value that is larger need not be measured to its end.

        Raises:
            Uncopyable: the value can be neither encoded nor copied.
        """
        if type(value) in _PLAIN:
            size = sys.getsizeof(value)
            return Kept(value, "value", size if encoded is None else max(size, len(encoded)))
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
            raise Unreadable("value") from error

    @staticmethod
    def needs_encoding(value: Any) -> bool:
        """Whether memory keeps the value better in its encoded form."""
        return type(value) not in _PLAIN


def _refuse(code: int, data: memoryview) -> Any:
    raise ValueError("no value holds extension types")


def _is_plain(value: Any) -> bool:
    # Only what msgpack itself has: all of it comes back as it was, and there is no need to try. Numbers too large for
    # msgpack and texts that are no Unicode cannot be written in the first place; a NaN can, but equals nothing.
    kind: Any = value.__class__
    if kind is dict:
        for key in value:
            if key.__class__ is not str:
                return False
        parts = value.values()
    elif kind is list:
        parts = value
    else:
        return kind in _PLAIN and value == value
    for part in parts:
        kind = part.__class__
        if kind not in _PLAIN:
            if not _is_plain(part):
                return False
        elif kind is float and part != part:
            return False
    return True


def _same(first: Any, second: Any) -> bool:
    # Equality is not enough: True == 1, an enum may equal its value, and a moment is equal in all time zones.
    kind: Any = first.__class__
    if kind is not second.__class__:
        return False
    if kind is dict:
        pairs = zip(first.items(), second.items(), strict=True)
        return all(_same(one, other) for both in pairs for one, other in zip(*both, strict=True))
    if issubclass(kind, list | tuple):
        return all(_same(one, other) for one, other in zip(first, second, strict=True))
    if issubclass(kind, set | frozenset):
        return {(item.__class__, item) for item in first} == {(item.__class__, item) for item in second}
    if issubclass(kind, datetime | time):
        return repr(first) == repr(second)
    return bool(first == second) and all(_same(getattr(first, name), getattr(second, name)) for name in _fields(kind))


def _fields(kind: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    return getattr(kind, "__struct_fields__", ())


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
