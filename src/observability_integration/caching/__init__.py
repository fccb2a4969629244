"""The engine of CachePrimitive, with the types that its users need.

`CachePolicy` and `AdaptiveTtl` hold the knobs, `Keyring` encrypts entries in Redis, `entry_options` lets a call set the
TTL and the tags of its entry, `GLOBAL` (of the type `GlobalScope`) is the scope that all callers share, and a
`CacheBackend` replaces Redis.
"""

from .entry_options import EntryOptions, entry_options
from .keys import GLOBAL, GlobalScope
from .policy import AdaptiveTtl, CachePolicy
from .stores.shared import CacheBackend
from .wire.encryption import Keyring

__all__ = [
    "GLOBAL",
    "AdaptiveTtl",
    "CacheBackend",
    "CachePolicy",
    "EntryOptions",
    "GlobalScope",
    "Keyring",
    "entry_options",
]
