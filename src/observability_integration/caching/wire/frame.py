"""The frame of an entry in the shared store: a head, the tags, and the body with the encoded value.

::

    format 1 | created 8 | random 7                                                    these three are the version
    flags 1 | generation 16 + 8 | fresh 8 | usable 8 | compute 8 | tokens 8 | length of the tags 4
    tags
    body

All numbers are big endian. The body is the payload, optionally compressed, then optionally encrypted. The head is in
clear text, so that age and tags can be checked first. With encryption it is authenticated together with the key of the
entry: a changed head, or an entry moved to another key, is unreadable.
"""

from __future__ import annotations

import struct
from os import urandom
from typing import Any

import msgspec

from observability_integration.caching.codec import Unreadable
from observability_integration.caching.stores.shared import Generation

from . import compression
from .encryption import Keyring

FORMAT = 3  # the first byte of an entry; entries of earlier versions begin with other bytes
VERSION_BYTES = 16  # format, creation time and random bytes: they differ for all entries under one key
_RANDOM_BYTES = 7
_HEAD = struct.Struct(f">BQ{_RANDOM_BYTES}sB16sQQQQQI")
_HEAD_BYTES = _HEAD.size
_COMPRESSED = 1
_ENCRYPTED = 2
_MAX_NUMBER = 2**64 - 1
_NUMBERS = ("created_us", "fresh_ms", "usable_ms", "compute_ms", "tokens")
_OVERHEAD_BYTES = 64 * 1024  # for everything but the payload; only the tags can grow


_NO_GENERATION = Generation(b"0" * 16, 0)


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """The metadata of an entry. Numbers are unsigned, of 64 bits.

    Attributes:
        created_us: Unix time in microseconds, by the store's clock, at which the call that computed the value began.
        fresh_ms: time from creation in which the entry is fresh.
        usable_ms: time from creation in which the entry may be served stale.
        compute_ms: duration of the call.
        tags: hashes of the tags.
        tokens: tokens that a hit saves.
        generation: the one that was read before the call began.
    """

    created_us: int
    fresh_ms: int
    usable_ms: int
    compute_ms: int
    tags: tuple[str, ...] = ()
    tokens: int = 0
    generation: Generation = _NO_GENERATION


class Wire:
    """Encodes entries for the shared store and decodes them.

    Args:
        compress_above_bytes: payloads larger than this are compressed, if that makes them smaller and zstandard is
            installed; None never compresses. Compressed entries of other processes are read either way.
        keyring: encrypts entries. With a keyring, entries that are not encrypted are unreadable; otherwise a program
            without the key could plant entries. Compressing before encrypting lets the length of an entry reveal
            something of its content: where that matters, do not compress.
        max_bytes: a larger payload is unreadable, and no payload is decompressed to more than this.
    """

    __slots__ = ("_compress_above", "_keyring", "_max_bytes", "_max_entry_bytes", "_tags", "_write_tags")

    def __init__(self, *, compress_above_bytes: int | None, keyring: Keyring | None, max_bytes: int) -> None:
        compresses = compress_above_bytes is not None and compression.available()
        self._compress_above = compress_above_bytes if compresses else None
        self._keyring = keyring
        self._max_bytes = max_bytes
        self._max_entry_bytes = max_bytes + _OVERHEAD_BYTES
        self._tags = msgspec.msgpack.Decoder(tuple[str, ...])
        self._write_tags = msgspec.msgpack.Encoder().encode

    def seal(self, key: str, stamp: Stamp, payload: bytes) -> bytes:
        """Encodes the entry to store under `key`, with version bytes of its own.

        The caller must not pass a payload above `max_bytes`, or tags above 64 KiB: the entry would be unreadable.
        """
        flags = 0
        if self._compress_above is not None and len(payload) > self._compress_above:
            smaller = compression.compress(payload)
            if smaller is not None:
                payload, flags = smaller, _COMPRESSED
        if self._keyring is not None:
            flags |= _ENCRYPTED
        tags = self._write_tags(stamp.tags) if stamp.tags else b""
        try:
            head = _head(stamp, flags, len(tags)) + tags
        except struct.error:
            head = _head(_bounded(stamp), flags, len(tags)) + tags
        if self._keyring is not None:
            return head + self._keyring.encrypt(payload, head + _raw(key))
        return head + payload

    def open(self, key: str, data: Any) -> tuple[Stamp, bytes, bytes]:
        """Decodes an entry.

        Args:
            key: the key of the entry.
            data: the entry; a backend of the user's may return any type.

        Returns:
            The metadata, the payload, and the version, which differs for all entries under the key.

        Raises:
            Unreadable: the data is not an entry, or not for this cache; the reason is ``format``, ``version``,
                ``size``, ``compression`` or ``encryption``.
        """
        if data.__class__ is not bytes:
            data = _as_bytes(data)
        if len(data) > self._max_entry_bytes:
            raise Unreadable("size")
        try:
            form, created, _, flags, generation, number, fresh, usable, compute, tokens, tags_bytes = _HEAD.unpack_from(
                data
            )
        except struct.error:
            raise Unreadable("version" if data and data[0] != FORMAT else "format") from None
        if form != FORMAT:
            raise Unreadable("version")
        body = _HEAD_BYTES + tags_bytes
        tags = self._read_tags(data[_HEAD_BYTES:body]) if tags_bytes else ()
        payload = data[body:]
        if flags or self._keyring is not None:
            payload = self._decode_body(key, flags, data[:body], payload)
        if len(payload) > self._max_bytes:
            raise Unreadable("size")
        stamp = Stamp(created, fresh, usable, compute, tags, tokens, Generation(generation, number))
        return stamp, payload, data[:VERSION_BYTES]

    def _read_tags(self, data: bytes) -> tuple[str, ...]:
        try:
            return self._tags.decode(data)
        except Exception as error:
            raise Unreadable("format") from error

    def _decode_body(self, key: str, flags: int, head: bytes, body: bytes) -> bytes:
        if flags & ~(_COMPRESSED | _ENCRYPTED):
            raise Unreadable("format")
        if bool(flags & _ENCRYPTED) != (self._keyring is not None):
            raise Unreadable("encryption")
        if self._keyring is not None:
            body = self._keyring.decrypt(body, head + _raw(key))
        return compression.decompress(body, self._max_bytes) if flags & _COMPRESSED else body


def _head(stamp: Stamp, flags: int, tags_bytes: int) -> bytes:
    created, *others = stamp.created_us, stamp.fresh_ms, stamp.usable_ms, stamp.compute_ms, stamp.tokens
    return _HEAD.pack(FORMAT, created, urandom(_RANDOM_BYTES), flags, *stamp.generation, *others, tags_bytes)


def _bounded(stamp: Stamp) -> Stamp:
    # A clock may be set before 1970, and a provider may report any number of tokens.
    bounded = {name: min(max(getattr(stamp, name), 0), _MAX_NUMBER) for name in _NUMBERS}
    return Stamp(tags=stamp.tags, generation=stamp.generation, **bounded)


def _raw(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _as_bytes(data: Any) -> bytes:
    # A backend of the user's own may return anything.
    try:
        return bytes(memoryview(data))
    except TypeError as error:
        raise Unreadable("format") from error
