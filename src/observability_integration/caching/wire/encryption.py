"""Encryption of entries at rest with AES-256-GCM; keys can be rotated while processes run."""

from __future__ import annotations

from collections.abc import Mapping
from os import urandom
from typing import Any

from observability_integration.caching.codec import Unreadable
from observability_integration.errors import ConfigurationError, MissingDependencyError

_KEY_BYTES = 32
_NONCE_BYTES = 12  # NIST SP 800-38D, section 8.2.2: a random nonce of 96 bits
_MAX_NAME_BYTES = 255  # the length is one byte


class Keyring:
    """Keys that encrypt entries of the shared store.

    New entries are encrypted with the current key; entries of the other keys can still be read. To rotate keys without
    a miss: give the new key to every process, make it current everywhere, and drop the old key when the longest
    lifetime of an entry has passed.

    One key must not encrypt more than 2**32 entries (NIST SP 800-38D, section 8.3, for random nonces), that is 497 days
    at a hundred entries written a second, over all processes: rotate keys well before.

    Every entry holds the name of its key in clear text.

    Args:
        keys: 32 random bytes each (``os.urandom(32)``), by a name of at most 255 bytes in UTF-8.
        current: name of the key for new entries.

    Raises:
        ConfigurationError: a key or a name has a wrong length, or `current` names no key.
        MissingDependencyError: the cryptography package is not installed.
    """

    __slots__ = ("_ciphers", "_current", "_encrypt", "_header", "_names")

    def __init__(self, keys: Mapping[str, bytes], *, current: str) -> None:
        self._ciphers = {_header(name): _cipher(name, key) for name, key in keys.items()}
        if current not in keys:
            raise ConfigurationError("current must be the name of one of keys")
        self._names = sorted(keys)
        self._current = current
        self._header = _header(current)
        self._encrypt = self._ciphers[self._header].encrypt

    def __repr__(self) -> str:
        return f"{type(self).__name__}(names={self._names}, current={self._current!r})"

    def encrypt(self, data: bytes, context: bytes) -> bytes:
        """Encrypts data with the current key; the result begins with the key's name and a random nonce.

        Args:
            data: the data.
            context: further data that is authenticated and not contained in the result; decryption needs it too.
        """
        nonce = urandom(_NONCE_BYTES)
        encrypted: bytes = self._encrypt(nonce, data, self._header + context)
        return self._header + nonce + encrypted

    def decrypt(self, data: bytes, context: bytes) -> bytes:
        """Decrypts data that was encrypted with any of the keys and the same context.

        Raises:
            Unreadable: the key is unknown, or the data or the context was changed.
        """
        body = 1 + data[0] if data else 0
        header = data[:body]
        nonce, encrypted = data[body : body + _NONCE_BYTES], data[body + _NONCE_BYTES :]
        try:
            decrypted: bytes = self._ciphers[header].decrypt(nonce, encrypted, header + context)
        except Exception as error:
            raise Unreadable("encryption") from error
        return decrypted


def _header(name: Any) -> bytes:
    # The first bytes of all data that a key encrypts: the length of the key's name, and the name.
    data = name.encode("utf-8", "surrogatepass") if isinstance(name, str) else b""
    if not 0 < len(data) <= _MAX_NAME_BYTES:
        raise ConfigurationError(f"the names of keys must be text of 1 to {_MAX_NAME_BYTES} bytes in UTF-8")
    return bytes([len(data)]) + data


def _cipher(name: str, key: Any) -> Any:
    if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
        has = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
        raise ConfigurationError(f"keys[{name!r}] must be {_KEY_BYTES} bytes, got {has}")
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise MissingDependencyError("cryptography is not installed. Install with: pip install cryptography") from error
    return AESGCM(key)
