"""The engine under CachePrimitive, and what is set or used with it.

`CachePolicy` and `AdaptiveTtl` hold the knobs, `Keyring` encrypts what Redis holds, `entry_options` lets a call decide
about its entry, `GLOBAL` is the scope of everybody, and a `CacheBackend` stands in place of Redis.
"""

from .entry_options import EntryOptions, entry_options
from .keys import GLOBAL
from .policy import AdaptiveTtl, CachePolicy
from .stores.shared import CacheBackend
from .wire.encryption import Keyring

__all__ = [
    "GLOBAL",
    "AdaptiveTtl",
    "CacheBackend",
    "CachePolicy",
    "EntryOptions",
    "Keyring",
    "entry_options",
]
