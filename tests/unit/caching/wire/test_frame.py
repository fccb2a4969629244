"""What stands in the shared store: it comes back as it was written, or is no entry at all."""

from __future__ import annotations

import contextlib
import pickle
import struct
import subprocess
import sys
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from observability_integration.caching.codec import Unreadable
from observability_integration.caching.stores.shared import Generation
from observability_integration.caching.wire import compression
from observability_integration.caching.wire.encryption import Keyring
from observability_integration.caching.wire.frame import FORMAT, VERSION_BYTES, Stamp, Wire

pytestmark = [pytest.mark.once, pytest.mark.promise("C15")]

_LIMIT = 64 * 1024
_KEY = "cache:chat:v3:0123456789ab:" + "c0" * 32
_STAMP = Stamp(1_790_000_000_000_000, 60_000, 3_600_000, 1500, ("a" * 32, "b" * 32), 343)
_TEXT = b"What is the capital of France? " * 100
_RING = Keyring({"old": bytes(32), "new": bytes(range(32))}, current="new")
_FLAGS = VERSION_BYTES  # where the byte of flags stands


def _wire(above: int | None = None, ring: Keyring | None = None, max_bytes: int = _LIMIT) -> Wire:
    return Wire(compress_above_bytes=above, keyring=ring, max_bytes=max_bytes)


_WIRES = [_wire(), _wire(above=0), _wire(ring=_RING), _wire(above=0, ring=_RING)]
_every_wire = pytest.mark.parametrize("wire", _WIRES, ids=["plain", "compressed", "encrypted", "both"])


def _reason(wire: Wire, data: Any, key: str = _KEY) -> str:
    with pytest.raises(Unreadable) as caught:
        wire.open(key, data)
    return caught.value.reason


def _flipped(entry: bytes, bit: int) -> bytes:
    changed = bytearray(entry)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


_numbers = st.integers(0, 2**64 - 1)
_stamps = st.builds(
    Stamp,
    created_us=_numbers,
    fresh_ms=_numbers,
    usable_ms=_numbers,
    compute_ms=_numbers,
    tags=st.lists(st.text(max_size=40), max_size=4).map(tuple),
    tokens=_numbers,
    generation=st.builds(Generation, st.binary(min_size=16, max_size=16), _numbers),
)


@_every_wire
@given(
    stamp=_stamps,
    payload=st.binary() | st.binary(min_size=1, max_size=9).map(lambda part: part * 500),
    key=st.text(st.characters(exclude_categories=())),
)
def test_an_entry_comes_back_as_it_was(wire: Wire, stamp: Stamp, payload: bytes, key: str) -> None:
    """Every process must judge an entry alike, whoever wrote it."""
    entry = wire.seal(key, stamp, payload)
    assert (stamp, payload, entry[:VERSION_BYTES]) == wire.open(key, entry)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_will_do(make: Any) -> None:
    """A backend of the user's own may return what its client returned."""
    entry = _wire().seal(_KEY, _STAMP, b"payload")
    opened = _wire().open(_KEY, make(entry))
    assert (_STAMP, b"payload", entry[:VERSION_BYTES]) == opened
    assert {bytes} == {type(opened[1]), type(opened[2])}


def test_the_layout_is_what_other_processes_expect() -> None:
    """A change to the layout needs a new format byte; without this, a deployment would misread what is there."""
    stamp = Stamp(0x0102030405060708, 1, 2, 3, ("a",), 4, Generation(b"0123456789abcdef", 9))
    entry = _wire().seal(_KEY, stamp, b"payload")
    version = b"\x03\x01\x02\x03\x04\x05\x06\x07\x08" + entry[9:16]
    assert (
        version + struct.pack(">B16sQQQQQI", 0, b"0123456789abcdef", 9, 1, 2, 3, 4, 3) + b"\x91\xa1a" + b"payload"
        == entry
    )


def test_no_two_entries_begin_alike() -> None:
    """Processes tell by the first bytes whether the entry they know is still the one that is stored."""
    begins = {_wire().seal(_KEY, _STAMP, b"")[:VERSION_BYTES] for _ in range(1000)}
    assert 1000 == len(begins)
    assert {FORMAT} == {begin[0] for begin in begins}


def test_numbers_that_do_not_fit_are_bounded() -> None:
    """A clock may stand before 1970, and a provider may report any number of tokens: neither may fail the call."""
    strange = Stamp(-1, 2**70, -(2**70), 5, ("a",), 2**64)
    stamp, _, _ = _wire().open(_KEY, _wire().seal(_KEY, strange, b""))
    assert Stamp(0, 2**64 - 1, 0, 5, ("a",), 2**64 - 1) == stamp


@pytest.mark.parametrize("data", ["", "text", None, 5, object(), [1]], ids=str)
def test_what_is_no_bytes_is_no_entry(data: Any) -> None:
    """A client that decodes its answers gives text."""
    assert "format" == _reason(_wire(), data)


@_every_wire
def test_foreign_and_older_entries_are_told_apart(wire: Wire) -> None:
    """In the counters, a deployment under way must not look like an attack."""
    entry = wire.seal(_KEY, _STAMP, _TEXT)
    for data in (b"[1,1790000000000,{}]", b"\x02" + entry[1:], b"\x01", pickle.dumps({"a": 1}), b"garbage" * 20):
        assert "version" == _reason(wire, data)
    for data in (b"", entry[:1], entry[:76]):
        assert "format" == _reason(wire, data)


@pytest.mark.parametrize(
    "tags", [b"\x91", b"\x91\x01", b"\xc0", b"\x80", b"\xa1a", b"\x91\xa1\xff", b"\x91\xa1ab", b"\xc1"]
)
def test_tags_that_are_none_are_no_tags(tags: bytes) -> None:
    """An entry whose tags cannot be read might have been invalidated."""
    entry = bytearray(_wire().seal(_KEY, Stamp(1, 1, 1, 1), b""))
    entry[73:77] = len(tags).to_bytes(4, "big")
    assert "format" == _reason(_wire(), bytes(entry) + tags)
    entry[73:77] = b"\xff" * 4
    assert "format" == _reason(_wire(), bytes(entry) + tags)


@pytest.mark.parametrize("flags", [4, 8, 128, 255, 5])
def test_flags_of_a_later_time_are_not_ignored(flags: int) -> None:
    """What they mean is unknown, so what the payload means is, too."""
    entry = bytearray(_wire().seal(_KEY, _STAMP, _TEXT))
    entry[_FLAGS] = flags
    assert "format" == _reason(_wire(), bytes(entry))
    assert "format" == _reason(_wire(ring=_RING), bytes(entry))


@_every_wire
@given(data=st.binary(), start=st.integers(0, 60))
def test_garbage_never_raises_anything_else(wire: Wire, data: bytes, start: int) -> None:
    """`Unreadable` is what the cache expects; anything else would reach the caller."""
    for entry in (data, bytes([FORMAT]) + data, wire.seal(_KEY, _STAMP, _TEXT)[:start] + data):
        with contextlib.suppress(Unreadable):
            stamp, payload, version = wire.open(_KEY, entry)
            assert (Stamp, bytes, VERSION_BYTES) == (type(stamp), type(payload), len(version))


# Sizes


@_every_wire
def test_a_payload_may_be_as_large_as_allowed(wire: Wire) -> None:
    """To the byte, whatever the tags take, and however it is written."""
    entry = wire.seal(_KEY, _STAMP, bytes(_LIMIT))
    assert bytes(_LIMIT) == wire.open(_KEY, entry)[1]
    entry = wire.seal(_KEY, _STAMP, bytes(_LIMIT + 1))
    assert "size" == _reason(wire, entry)


def test_nothing_is_looked_at_that_is_too_large_by_far() -> None:
    """Taking apart what somebody else put there costs time on the loop; tags of megabytes are no tags."""
    many = Stamp(1, 1, 1, 1, tuple(f"{number:032x}" for number in range(10_000)))
    assert "size" == _reason(_wire(), _wire().seal(_KEY, many, b""))
    assert "size" == _reason(_wire(), bytes(10 * _LIMIT))


def test_a_bomb_is_not_set_off() -> None:
    """A gigabyte of zeros fits into 33 kB."""
    entry = _wire(above=0, max_bytes=64 * 1024 * 1024).seal(_KEY, _STAMP, bytes(16 * 1024 * 1024))
    assert len(entry) < _LIMIT
    assert "size" == _reason(_wire(), entry)


# Compression


def test_only_what_is_large_is_compressed_and_only_if_it_shrinks() -> None:
    """Compressing a short answer costs more than it saves, and an image does not shrink."""
    wire = _wire(above=len(_TEXT))
    assert wire.seal(_KEY, _STAMP, _TEXT).endswith(_TEXT)
    assert len(wire.seal(_KEY, _STAMP, _TEXT + b"!")) < len(_TEXT) / 4
    noise = zstandard.ZstdCompressor().compress(_TEXT)
    assert _wire(above=0).seal(_KEY, _STAMP, noise).endswith(noise)
    assert _wire(above=None).seal(_KEY, _STAMP, _TEXT * 10).endswith(_TEXT * 10)


def test_processes_need_not_agree_on_compression() -> None:
    """Options are changed one process after the other."""
    compressed, plain = _wire(above=0).seal(_KEY, _STAMP, _TEXT), _wire().seal(_KEY, _STAMP, _TEXT)
    for wire in (_wire(above=0), _wire()):
        assert _TEXT == wire.open(_KEY, compressed)[1] == wire.open(_KEY, plain)[1]


def test_without_the_package_entries_are_written_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compression saves memory, and is not worth failing a call for; the compressed entries of others are misses."""
    compressed = _wire(above=0).seal(_KEY, _STAMP, _TEXT)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    compression._load.cache_clear()
    try:
        wire = _wire(above=0)
        assert wire.seal(_KEY, _STAMP, _TEXT).endswith(_TEXT)
        assert "compression" == _reason(wire, compressed)
    finally:
        compression._load.cache_clear()


def test_packages_are_imported_only_by_who_uses_them() -> None:
    """Most caches need neither, and whoever compresses must not import in the middle of a call."""
    script = """
import sys
from observability_integration.caching.stores.shared import Generation
from observability_integration.caching.wire.frame import Wire

wire = Wire(compress_above_bytes=None, keyring=None, max_bytes=100)
assert not {"zstandard", "cryptography"} & set(sys.modules)
Wire(compress_above_bytes=0, keyring=None, max_bytes=100)
assert "zstandard" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


def test_a_damaged_frame_is_no_payload() -> None:
    """The flag alone makes nothing compressed."""
    entry = bytearray(_wire().seal(_KEY, _STAMP, _TEXT))
    entry[_FLAGS] = 1
    assert "compression" == _reason(_wire(), bytes(entry))


# Encryption


@pytest.mark.parametrize("above", [None, 0])
def test_every_flipped_bit_of_an_encrypted_entry_is_noticed(above: int | None) -> None:
    """Not only in the payload: a changed age or tag would bring back what was invalidated."""
    wire = _wire(above, _RING)
    entry = wire.seal(_KEY, _STAMP, b"What is the capital of France? " * 2)
    reasons = {_reason(wire, _flipped(entry, bit)) for bit in range(len(entry) * 8)}
    assert {"format", "version", "encryption"} == reasons
    payload_bits = range(len(entry) * 8 - 40 * 8, len(entry) * 8)
    assert {"encryption"} == {_reason(wire, _flipped(entry, bit)) for bit in payload_bits}


def test_a_cut_off_entry_is_noticed() -> None:
    """Half an entry is what a store leaves behind that ran out of space."""
    wire = _wire(ring=_RING)
    entry = wire.seal(_KEY, _STAMP, b"payload")
    assert all(_reason(wire, entry[:end]) in {"format", "encryption"} for end in range(len(entry)))
    assert "encryption" == _reason(wire, entry + b"\x00")


@_every_wire
def test_the_stamp_stands_in_clear(wire: Wire) -> None:
    """The store compares the first bytes, and an operator may have to find the entries of a tag."""
    entry = wire.seal(_KEY, _STAMP, _TEXT)
    assert struct.pack(">BQ", FORMAT, _STAMP.created_us) == entry[:9]
    assert all(tag.encode() in entry for tag in _STAMP.tags)


def test_an_encrypted_payload_is_not_to_be_seen() -> None:
    """It is what the encryption is for."""
    assert _TEXT[:8] in _wire().seal(_KEY, _STAMP, _TEXT)
    assert _TEXT[:8] not in _wire(ring=_RING).seal(_KEY, _STAMP, _TEXT)


def test_an_entry_moved_to_another_key_is_noticed() -> None:
    """Whoever may write to the store could otherwise hand one tenant's answer to another without knowing the key."""
    wire = _wire(ring=_RING)
    entry = wire.seal(_KEY, _STAMP, _TEXT)
    for key in (_KEY + "0", _KEY[:-1], _KEY.upper(), ""):
        assert "encryption" == _reason(wire, entry, key)
    assert _TEXT == wire.open(_KEY, entry)[1]
    assert "encryption" == _reason(wire, wire.seal("?", _STAMP, _TEXT), "\ud800")  # no UTF-8, but a key


def test_with_a_keyring_only_encrypted_entries_are_read() -> None:
    """Otherwise taking the flag away, or writing an entry without it, would do to pass any answer for ours."""
    plain, encrypted = _wire().seal(_KEY, _STAMP, _TEXT), _wire(ring=_RING).seal(_KEY, _STAMP, _TEXT)
    assert "encryption" == _reason(_wire(ring=_RING), plain)
    assert "encryption" == _reason(_wire(ring=_RING), _wire(above=0).seal(_KEY, _STAMP, _TEXT))
    assert "encryption" == _reason(_wire(), encrypted)
    assert "encryption" == _reason(_wire(ring=_RING), _flipped(encrypted, _FLAGS * 8 + 1))


def test_keys_can_be_changed_while_entries_live() -> None:
    """A change of keys that empties the cache would send all callers to the provider at once."""
    old = Keyring({"old": bytes(32)}, current="old")
    entry = _wire(ring=old).seal(_KEY, _STAMP, _TEXT)
    assert (_STAMP, _TEXT) == _wire(ring=_RING).open(_KEY, entry)[:2]
    newer = _wire(ring=_RING).seal(_KEY, _STAMP, _TEXT)
    assert "encryption" == _reason(_wire(ring=old), newer)


def test_what_is_read_from_a_tampered_frame_is_never_unpacked() -> None:
    """A decompressor is a large attack surface; it must see only what a holder of the key has written."""
    wire = _wire(above=0, ring=_RING)
    entry = wire.seal(_KEY, _STAMP, _TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "decompress", lambda *_: pytest.fail("unpacked"))
        assert "encryption" == _reason(wire, _flipped(entry, len(entry) * 8 - 1))
