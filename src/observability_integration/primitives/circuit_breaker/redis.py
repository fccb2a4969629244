"""Verdicts in Redis: two keys for each target, both of which expire, and the server's time alone.

``breaker:{<hash of the target>}:verdict`` holds the last verdict and lives as long as its pause, and a tail. How much
of the pause is left is the key's time to live less the tail: so no clock is compared with another.
``breaker:{<hash of the target>}:probe`` holds the lease on the probe: its claim, then the token of its holder.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any, cast

from observability_integration.redis_backend import RedisBackend

from .verdict import Answer, Link, Verdict

_MAX_SECONDS = 3e9  # about a century; Redis refuses a time whose end does not fit its number

# Keys: verdict, lease. Arguments: token, life of the lease in ms, claim.
# MGET stands where GET would do, because it answers nil for a key of another type, which is as good as none.
_FETCH = """
local found = redis.call('MGET', KEYS[1], KEYS[2])
local claim, holder = string.match(found[2] or '', '^(%d):(.*)$')
if ARGV[3] > '0' and (not holder or holder == ARGV[1] or ARGV[3] > claim) then
  redis.call('SET', KEYS[2], ARGV[3] .. ':' .. ARGV[1], 'PX', ARGV[2])
  holder = ARGV[1]
end
return {found[1], redis.call('PTTL', KEYS[1]), holder or false}
"""

# Keys: verdict, lease. Arguments: token, verdict, its life in ms, what it gives way to ('running', 'by hand' or
# 'none'), id of the last verdict that was seen.
_PUBLISH = """
local found, left = redis.call('MGET', KEYS[1], KEYS[2]), redis.call('PTTL', KEYS[1])
local last, holder = found[1], string.match(found[2] or '', '^%d:(.*)$') or false
if holder == ARGV[1] then
  redis.call('DEL', KEYS[2])
  holder = false
end
local id, state, hand, tail = string.match(last or '', '^(%w+):(%l+)(!?):%d+:(%d+)$')
if id and left > tonumber(tail) then
  local unseen = hand == '!' and id ~= ARGV[5]
  if ARGV[4] == 'running' and state == 'open' or ARGV[4] == 'by hand' and unseen then return {last, left, holder} end
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return {ARGV[2], tonumber(ARGV[3]), holder}
"""


class RedisBreakerStore:
    """A `VerdictStore` in Redis 6 or later: a single server, a Sentinel's master or a cluster.

    Args:
        url: e.g. ``redis://localhost:6379/0``; each link then has a client of its own, and closes it.
        client: a redis-py client of the caller's, asynchronous or not, with decoded answers or not.

    Raises:
        MissingDependencyError: the redis package is not installed.
        ConfigurationError: both or neither are given, or what is given is no URL or no client.
    """

    def __init__(self, url: str | None = None, client: Any = None) -> None:
        self._given = client, url
        RedisBackend(client, url)  # raises now, and not in the background

    @asynccontextmanager
    async def link(self, target: str) -> AsyncGenerator[Link, None]:
        """Opens a link to the verdicts on one target."""
        backend = RedisBackend(*self._given)
        try:
            yield _RedisLink(target, backend)
        except GeneratorExit:  # the event loop was closed in the middle: nothing can be awaited any more
            backend.drop()
            raise
        except BaseException:
            await backend.aclose()
            raise
        await backend.aclose()


class _RedisLink:
    def __init__(self, target: str, backend: RedisBackend) -> None:
        name = blake2b(target.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        self._keys = f"breaker:{{{name}}}:verdict", f"breaker:{{{name}}}:probe"
        self._backend = backend

    async def fetch(self, token: str, lease_seconds: float, claim: int) -> Answer:
        """See `Link.fetch`."""
        return _answer(token, await self._run(_FETCH, token, _ms(lease_seconds), claim))

    async def publish(self, token: str, verdict: Verdict, tail_seconds: float, *, keep: bool) -> Answer:
        """See `Link.publish`."""
        state = ("open" if verdict.open else "closed") + ("!" if verdict.by_hand else "")
        text = f"{verdict.id}:{state}:{_ms(verdict.longest_seconds)}:{_ms(tail_seconds)}"
        life = max(1, _ms(verdict.left_seconds) + _ms(tail_seconds))
        gives_way_to = "none" if verdict.by_hand else "running" if keep else "by hand"
        return _answer(token, await self._run(_PUBLISH, token, text, life, gives_way_to, verdict.after))

    async def _run(self, script: str, *args: Any) -> Any:
        # By its text: once a second does not repay a script cache, and the user of Redis needs no right to EVALSHA.
        return await self._backend.execute("EVAL", script, len(self._keys), *self._keys, *args)


def _ms(seconds: float) -> int:
    return round(min(seconds, _MAX_SECONDS) * 1000)


def _answer(token: str, found: Any) -> Answer:
    if not isinstance(cast("object", found), list):
        return Answer(None, "free")  # a stand-in for a client
    text, life_ms, holder = map(_text, found)
    lease: Any = "free" if not holder else "mine" if holder == token else "other"
    return Answer(_verdict(text, life_ms), lease)


def _text(part: Any) -> Any:
    return part.decode("ascii", "replace") if isinstance(part, bytes) else part


def _verdict(text: Any, life_ms: int) -> Verdict | None:
    parts = text.split(":") if isinstance(text, str) else []
    # Only the scripts should write verdicts; any other value counts as none.
    if len(parts) != 4 or not all(part.isdecimal() for part in parts[2:]):
        return None
    state = parts[1].removesuffix("!")
    if state not in ("open", "closed"):
        return None
    left_seconds, longest_seconds = (life_ms - int(parts[3])) / 1000, int(parts[2]) / 1000
    return Verdict(parts[0], state == "open", left_seconds, longest_seconds, by_hand=state != parts[1])
