"""Encodes values for the shared store and for memory, as msgpack (msgspec); never pickle.

A value is encoded only if it decodes to an equal one, type by type, so that a hit returns what a miss would have. A
tuple, a NaN, an enum or an integer beyond 64 bits does not survive msgpack: it is kept in memory only, as a copy. With
`value_type`, a pydantic model (encoded as JSON, by pydantic), a dataclass or a msgspec struct is rebuilt on decoding.
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

_IMMUTABLE = frozenset({str, bytes, int, float, bool, type(None)})  # and no subclass, which may have attributes
_NOT_MEASURED = (type, ModuleType, FunctionType)  # shared with the rest of the process

UnreadableReason = Literal["format", "version", "size", "compression", "encryption", "value"]


class Unreadable(Exception):  # noqa: N818 - never leaves the cache
    """The data is not an entry of this library, or this cache cannot decode it.

    Attributes:
        reason: ``format`` (garbage, or cut off), ``version`` (of another version of this library, or of another
            program), ``size``, ``compression``, ``encryption``, or ``value`` (the entry is sound, but its value is not
            of this cache's type).
    """

    def __init__(self, reason: UnreadableReason) -> None:
        super().__init__(reason)
        self.reason: UnreadableReason = reason


class Uncopyable(Exception):  # noqa: N818 - never leaves the cache
    """The value can be neither encoded nor copied, as a stream: only one caller can have it."""


class StoredValue(msgspec.Struct, frozen=True):
    """A value in the form in which memory keeps it, so that no two callers share a mutable one.

    Attributes:
        payload: the value itself, its encoded form, or a copy.
        form: ``value`` for an immutable value, ``encoded``, or ``copy`` for a value that cannot be encoded.
        size: bytes; an estimate unless encoded. Measuring a copy stops above the limit given.
    """

    payload: Any
    form: Literal["value", "encoded", "copy"]
    size: int


class Codec:
    """Encodes and decodes the values of one cache.

    Args:
        value_type: the type of the values, if msgpack alone cannot rebuild it.

    Raises:
        ConfigurationError: msgspec cannot decode `value_type`.
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
                decoder = msgspec.msgpack.Decoder(Any if value_type is None else value_type, ext_hook=_refuse_extension)
            except TypeError as error:
                raise ConfigurationError(f"value_type cannot be rebuilt from what is written: {error}") from None
            self._read = decoder.decode

    def encode(self, value: Any) -> bytes | None:
        """Encodes a value; None if it would not decode to an equal one."""
        try:
            if self._model is None:
                data = self._write(value)
            else:
                data = cast("bytes", value.model_dump_json(by_alias=True, round_trip=True).encode())
            return data if self._round_trips(value, data) else None
        except Exception:  # noqa: BLE001 - a foreign type may raise anything: it cannot be encoded
            return None

    def _round_trips(self, value: Any, data: bytes) -> bool:
        return (self._untyped and _survives_msgpack(value)) or _equal_by_type(value, self.decode(data))

    def decode(self, data: bytes) -> Any:
        """Decodes a value.

        Raises:
            Unreadable: `data` is not an encoded value of this type; the reason is ``value``.
        """
        try:
            return self._read(data)
        except Exception as error:
            raise Unreadable("value") from error

    def keep(self, value: Any, encoded: bytes | None, limit_bytes: int) -> StoredValue:
        """Returns the form in which memory keeps a value.

        Args:
            value: the value.
            encoded: the result of `encode`.
            limit_bytes: measuring the size of a copy may stop here.

        Raises:
            Uncopyable: the value can be neither encoded nor copied.
        """
        if type(value) in _IMMUTABLE:
            size = sys.getsizeof(value)
            return StoredValue(value, "value", size if encoded is None else max(size, len(encoded)))
        if encoded is not None:
            return StoredValue(encoded, "encoded", len(encoded))
        try:
            return StoredValue(copy.deepcopy(value), "copy", _deep_size(value, limit_bytes))
        except Exception as error:
            raise Uncopyable from error

    def restore(self, kept: StoredValue) -> Any:
        """Restores a value that memory keeps, as a copy for one caller.

        Raises:
            Unreadable: the user's type refuses data that it accepted before.
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
        """Whether memory should keep the value in its encoded form: it may be mutable."""
        return type(value) not in _IMMUTABLE


def _refuse_extension(code: int, data: memoryview) -> Any:
    raise ValueError("no value holds extension types")


def _survives_msgpack(value: Any) -> bool:
    # Values of msgpack's own types round-trip, so there is no need to decode them. Integers too large for msgpack and
    # texts that are not Unicode cannot be encoded in the first place; a NaN can, but equals nothing.
    kind: Any = value.__class__
    if kind is dict:
        for key in value:
            if key.__class__ is not str:
                return False
        parts = value.values()
    elif kind is list:
        parts = value
    else:
        return kind in _IMMUTABLE and value == value
    for part in parts:
        kind = part.__class__
        if kind not in _IMMUTABLE:
            if not _survives_msgpack(part):
                return False
        elif kind is float and part != part:
            return False
    return True


def _equal_by_type(first: Any, second: Any) -> bool:
    # Equality is not enough: True == 1, an enum may equal its value, and a datetime its moment in another time zone.
    kind: Any = first.__class__
    if kind is not second.__class__:
        return False
    if kind is dict:
        pairs = zip(first.items(), second.items(), strict=True)
        return all(_equal_by_type(one, other) for both in pairs for one, other in zip(*both, strict=True))
    if issubclass(kind, list | tuple):
        return all(_equal_by_type(one, other) for one, other in zip(first, second, strict=True))
    if issubclass(kind, set | frozenset):
        return {(item.__class__, item) for item in first} == {(item.__class__, item) for item in second}
    if issubclass(kind, datetime | time):
        return repr(first) == repr(second)
    return bool(first == second) and all(
        _equal_by_type(getattr(first, name), getattr(second, name)) for name in _field_names(kind)
    )


def _field_names(kind: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    return getattr(kind, "__struct_fields__", ())


def _deep_size(value: Any, limit_bytes: int) -> int:
    total = 0
    seen: set[int] = set()
    todo = [value]
    while todo and total <= limit_bytes:
        item = todo.pop()
        if id(item) in seen or isinstance(item, _NOT_MEASURED):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        todo += gc.get_referents(item)
    return total
