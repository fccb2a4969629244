"""Entries at rest are secret, cannot be changed unnoticed, and keys can be changed without a miss."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability_integration.caching.codec import Unreadable
from observability_integration.caching.wire.encryption import Keyring
from observability_integration.errors import ConfigurationError, MissingDependencyError

pytestmark = [pytest.mark.once, pytest.mark.promise("C15")]

_OLD = bytes(range(32))
_NEW = bytes(range(32, 64))
_CONTEXT = b"context"


def _refuses(ring: Keyring, data: bytes, context: bytes = _CONTEXT) -> bool:
    with pytest.raises(Unreadable) as caught:
        ring.decrypt(data, context)
    return caught.value.reason == "encryption"


@given(st.binary(), st.binary(), st.text(min_size=1, max_size=60))
def test_what_is_encrypted_can_be_decrypted(data: bytes, context: bytes, name: str) -> None:
    """The empty value, and names in any script, are no exceptions."""
    ring = Keyring({name: _OLD}, current=name)
    assert data == ring.decrypt(ring.encrypt(data, context), context)


def test_nothing_of_the_data_or_the_key_is_to_be_seen() -> None:
    """What lies in the store, in its dumps and its replicas, tells only how long the data is and which key it needs."""
    ring = Keyring({"2026": _OLD}, current="2026")
    data = b"a prompt that is nobody's business"
    entry = ring.encrypt(data, _CONTEXT)
    assert data[:8] not in entry
    assert _CONTEXT not in entry
    assert _OLD[:8] not in entry
    assert entry.startswith(b"\x042026")
    assert len(data) + 5 + 12 + 16 == len(entry)  # name, nonce, tag


def test_no_nonce_is_used_twice() -> None:
    """Two entries with one nonce give away both, and the power to forge more."""
    ring = Keyring({"a": _OLD}, current="a")
    assert 1000 == len({ring.encrypt(b"", b"")[2:14] for _ in range(1000)})


def test_the_cipher_is_the_standard_one() -> None:
    """An operator may have to read an entry without this library, and a later version has to."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    entry = Keyring({"a": _OLD}, current="a").encrypt(b"data", _CONTEXT)
    assert b"data" == AESGCM(_OLD).decrypt(entry[2:14], entry[14:], b"\x01a" + _CONTEXT)


def test_every_changed_bit_is_noticed() -> None:
    """GCM is malleable without its tag: a flipped bit of the entry would be a flipped bit of the answer."""
    ring = Keyring({"a": _OLD, "b": _OLD}, current="a")  # even a name changed to another of the same key
    entry = ring.encrypt(b"data", _CONTEXT)
    for bit in range(len(entry) * 8):
        changed = bytearray(entry)
        changed[bit // 8] ^= 1 << bit % 8
        assert _refuses(ring, bytes(changed))
    assert _refuses(ring, b"\x01b" + entry[2:])
    assert _refuses(ring, entry, b"another context")


def test_what_is_cut_off_or_appended_is_noticed() -> None:
    """Half an entry is what a store leaves behind that ran out of space."""
    ring = Keyring({"a": _OLD}, current="a")
    entry = ring.encrypt(b"data", _CONTEXT)
    assert all(_refuses(ring, entry[:end]) for end in range(len(entry)))
    assert _refuses(ring, entry + b"\x00")


@given(st.binary())
def test_garbage_never_raises_anything_else(data: bytes) -> None:
    """`Unreadable` is what the cache expects; anything else would reach the caller."""
    ring = Keyring({"a": _OLD}, current="a")
    assert all(_refuses(ring, start + data) for start in (b"", b"\x01a"))


def test_keys_can_be_changed_without_a_miss() -> None:
    """First all processes know the new key, then they use it, then the old one goes."""
    before = Keyring({"old": _OLD}, current="old")
    knows = Keyring({"old": _OLD, "new": _NEW}, current="old")
    uses = Keyring({"old": _OLD, "new": _NEW}, current="new")
    after = Keyring({"new": _NEW}, current="new")
    written_before, written_after = before.encrypt(b"1", b""), uses.encrypt(b"2", b"")
    for ring in (before, knows, uses):
        assert b"1" == ring.decrypt(written_before, b"")
    for ring in (knows, uses, after):
        assert b"2" == ring.decrypt(written_after, b"")
    assert _refuses(before, written_after, b"")
    assert _refuses(after, written_before, b"")
    assert b"\x03old" == knows.encrypt(b"", b"")[:4]
    assert b"\x03new" == uses.encrypt(b"", b"")[:4]


def test_another_key_of_the_same_name_reads_nothing() -> None:
    """Two deployments that share a store and a habit of naming must not share answers."""
    entry = Keyring({"a": _OLD}, current="a").encrypt(b"data", _CONTEXT)
    assert _refuses(Keyring({"a": _NEW}, current="a"), entry)


def test_a_later_change_of_the_mapping_changes_nothing() -> None:
    """The keyring is shared by caches; what it was checked for must stay true."""
    keys = {"a": _OLD}
    ring = Keyring(keys, current="a")
    keys["a"] = b"short"
    assert b"data" == ring.decrypt(ring.encrypt(b"data", b""), b"")


def test_keys_are_never_shown() -> None:
    """Options are logged and printed; a key that is seen once has to be replaced everywhere."""
    ring = Keyring({"old": _OLD, "new": _NEW}, current="new")
    assert "Keyring(names=['new', 'old'], current='new')" == repr(ring) == str(ring)
    held = [getattr(ring, name) for name in Keyring.__slots__]
    assert not any(repr(key)[2:20] in repr(held) for key in (_OLD, _NEW))


@pytest.mark.parametrize(
    ("keys", "current", "knob"),
    [
        ({"a": b"short"}, "a", r"keys\['a'\] must be 32 bytes, got 5 bytes"),
        ({"a": _OLD, "b": os.urandom(16)}, "a", r"keys\['b'\] must be 32 bytes, got 16 bytes"),
        ({"a": _OLD + b"\x00"}, "a", r"keys\['a'\] must be 32 bytes, got 33 bytes"),
        ({"a": _OLD.hex()}, "a", r"keys\['a'\] must be 32 bytes, got str"),
        ({"a": None}, "a", r"keys\['a'\] must be 32 bytes, got NoneType"),
        ({"a": _OLD}, "b", "current must be the name of one of keys"),
        ({}, "a", "current must be the name of one of keys"),
        ({"": _OLD}, "", "names of keys must be text of 1 to 255 bytes"),
        ({"ä" * 128: _OLD}, "a", "names of keys must be text of 1 to 255 bytes"),
        ({_OLD: "a"}, "a", "names of keys must be text of 1 to 255 bytes"),
    ],
)
def test_wrong_keys_are_refused_by_name(keys: Any, current: str, knob: str) -> None:
    """A weak or mistyped key must be found at the start, and the message must not show it."""
    with pytest.raises(ConfigurationError, match=knob) as caught:
        Keyring(keys, current=current)
    assert repr(_OLD)[2:20] not in str(caught.value)
    assert _OLD.hex() not in str(caught.value)


def test_names_may_be_as_long_as_a_byte_can_count() -> None:
    """The limit is part of the format."""
    ring = Keyring({"ä" * 127: _OLD}, current="ä" * 127)
    assert b"data" == ring.decrypt(ring.encrypt(b"data", b""), b"")


def test_names_that_look_alike_are_not_mixed_up() -> None:
    """A name that is no UTF-8 must not be taken for the one that a careless encoder makes of it."""
    ring = Keyring({"\ud800": _OLD, "?": _NEW}, current="\ud800")
    assert _refuses(Keyring({"?": _NEW}, current="?"), ring.encrypt(b"data", _CONTEXT))
    assert b"data" == ring.decrypt(ring.encrypt(b"data", b""), b"")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encryption was asked for; going on without it is not an option."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingDependencyError, match="pip install cryptography"):
        Keyring({"a": _OLD}, current="a")
