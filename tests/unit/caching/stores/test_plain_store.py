"""A user's own backend in place of Redis: entries are kept, and nothing is promised that it cannot do."""

from __future__ import annotations

from typing import cast
from unittest.mock import Mock

import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.stores.choice import choose_store
from observability_integration.caching.stores.plain import UNCHANGING, PlainStore
from observability_integration.caching.stores.redis import RedisStore
from observability_integration.caching.stores.shared import CacheBackend, Place, Reading, Write
from observability_integration.errors import ConfigurationError

_PREFIX = "cache:{a}:"
_PLACE = Place(_PREFIX, "n")


class Backend:
    """As users write one."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[bytes, int]] = {}
        self.closed = False

    async def get(self, key: str) -> bytes | None:
        return self.entries.get(key, (None, 0))[0]

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        self.entries[key] = value, ttl_milliseconds

    async def delete(self, *keys: str) -> None:
        assert keys
        for key in keys:
            self.entries.pop(key, None)

    async def clear(self, prefix: str) -> None:
        self.entries = {key: kept for key, kept in self.entries.items() if not key.startswith(prefix)}

    async def aclose(self) -> None:
        self.closed = True


async def test_what_is_written_is_read_and_forgotten() -> None:
    """Under the entry's key, with its life in milliseconds."""
    backend = Backend()
    store = PlainStore(backend)
    assert Reading(None, UNCHANGING) == await store.read(_PLACE)
    assert "written" == await store.commit(_PLACE, "token", Write(b"data", 1500, UNCHANGING), "note")
    assert {"cache:{a}:n": (b"data", 1500)} == backend.entries
    assert Reading(b"data", UNCHANGING) == await store.read(_PLACE)
    await store.delete(_PREFIX, ["m", "n"], ["note", "note"], "me")
    assert {} == backend.entries
    await store.delete(_PREFIX, [], [], "me")


async def test_an_empty_entry_is_none() -> None:
    """No cache writes one, and nothing could be told from it."""
    backend = Backend()
    backend.entries["cache:{a}:n"] = b"", 1
    assert Reading(None, UNCHANGING) == await PlainStore(backend).read(_PLACE)


async def test_everybody_leads() -> None:
    """There are no leases to be had: each process makes its own call, and nobody waits for another."""
    store = PlainStore(Backend())
    for token in ("one", "two"):
        acquired = await store.acquire(_PLACE, token, 1000, b"")
        assert acquired.leading
        assert acquired.data is None
        assert acquired.now_us > 1_700_000_000_000_000
        assert await store.renew(_PLACE, token, 1000)
        await store.release(_PLACE, token, "note")


async def test_what_is_late_does_not_replace_what_is_there() -> None:
    """It may be newer."""
    backend = Backend()
    store = PlainStore(backend)
    assert await store.put_late(_PLACE, Write(b"late", 1000, UNCHANGING), "note", "me")
    assert not await store.put_late(_PLACE, Write(b"later", 1000, UNCHANGING), "note", "me")
    assert b"late" == (await store.read(_PLACE)).data


async def test_clearing_deletes_and_tags_are_refused() -> None:
    """A tag that voids nothing would be worse than an error."""
    backend = Backend()
    store = PlainStore(backend)
    backend.entries = {"cache:{a}:n": (b"x", 1), "other": (b"y", 1)}
    await store.void(_PREFIX, None, "note", "me")
    assert {"other": (b"y", 1)} == backend.entries
    with pytest.raises(ConfigurationError, match="backend"):
        await store.void(_PREFIX, "tag", "note", "me")
    assert await store.vouches(_PREFIX, ["tag"], UNCHANGING)


async def test_nothing_is_heard() -> None:
    """And nothing has to be stopped."""
    heard: list[str] = []
    subscription = await PlainStore(Backend()).listen(_PREFIX, heard.append, lambda: None)
    await subscription.aclose()
    assert [] == heard


async def test_the_probe_writes_and_reads() -> None:
    """A backend that only does one of the two is not back."""
    backend = Mock(wraps=Backend())
    await PlainStore(cast(CacheBackend, backend)).probe(_PREFIX)
    backend.set.assert_called_once_with("cache:{a}:probe", b"1", 1000)
    backend.get.assert_called_once_with("cache:{a}:probe")


async def test_closing_closes_the_backend() -> None:
    """It is the cache's to close, as it always was."""
    backend = Backend()
    await PlainStore(backend).aclose()
    assert backend.closed


def test_at_most_one_store_can_be_chosen() -> None:
    """Of two, one would silently be ignored."""
    client, policy = Mock(), CachePolicy()
    assert choose_store("a", policy, url=None, client=None, backend=None) is None
    assert isinstance(choose_store("a", policy, url=None, client=client, backend=None), RedisStore)
    with pytest.raises(ConfigurationError, match="one of redis_url, redis_client and backend"):
        choose_store("a", policy, url=None, client=client, backend=Backend())
    with pytest.raises(ConfigurationError, match="one of"):
        choose_store("a", policy, url="redis://localhost", client=client, backend=None)


def test_a_backend_that_can_coordinate_is_taken_as_it_is() -> None:
    """Any other is made to look like one."""
    policy, able = CachePolicy(), Mock()
    assert able is choose_store("a", policy, url=None, client=None, backend=able)
    assert isinstance(choose_store("a", policy, url=None, client=None, backend=Backend()), PlainStore)
