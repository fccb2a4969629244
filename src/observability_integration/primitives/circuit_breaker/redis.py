"""Verdicts in Redis: two keys for each target, both of which end by themselves, and the server's time alone.

``breaker:{<hash of the target>}:verdict`` holds the last verdict and lives as long as its pause, and a tail. How much
of the pause is left is how long the key has to live yet, less the tail: so no clock is compared with another.
``breaker:{<hash of the target>}:probe`` holds the token of whoever may probe, after its claim.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any, cast

from observability_integration.errors import ConfigurationError
from observability_integration.redis_client import clients_of, cut_all, is_async
from observability_integration.threads import DaemonThreads

from .verdict import Answer, Link, Verdict

_CONNECT_SECONDS = 1.0  # for what the courier has given up waiting for
_MOST_SECONDS = 3e9  # about a century; Redis takes no time whose end it could not write as a number

_threads = DaemonThreads(max_threads=4, name="observability-breaker")

# Keys: verdict, lease. Arguments: token, life of the lease in ms, claim.
# MGET stands where GET would do, because it answers nil for a key of another type, which is as good as none.
_LOOK = """
local found = redis.call('MGET', KEYS[1], KEYS[2])
local claim, holder = string.match(found[2] or '', '^(%d):(.*)$')
if ARGV[3] > '0' and (not holder or holder == ARGV[1] or ARGV[3] > claim) then
  redis.call('SET', KEYS[2], ARGV[3] .. ':' .. ARGV[1], 'PX', ARGV[2])
  holder = ARGV[1]
end
return {found[1], redis.call('PTTL', KEYS[1]), holder or false}
"""

# Keys: verdict, lease. Arguments: token, verdict, its life in ms, what it gives way to ('running', 'by hand' or
# 'none'), id of the last verdict that was heard of.
_SAY = """
local found, left = redis.call('MGET', KEYS[1], KEYS[2]), redis.call('PTTL', KEYS[1])
local said, holder = found[1], string.match(found[2] or '', '^%d:(.*)$') or false
if holder == ARGV[1] then
  redis.call('DEL', KEYS[2])
  holder = false
end
local id, state, hand, tail = string.match(said or '', '^(%w+):(%l+)(!?):%d+:(%d+)$')
if id and left > tonumber(tail) then
  local unheard = hand == '!' and id ~= ARGV[5]
  if ARGV[4] == 'running' and state == 'open' or ARGV[4] == 'by hand' and unheard then return {said, left, holder} end
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return {ARGV[2], tonumber(ARGV[3]), holder}
"""


class RedisBreakerStore:
    """A `VerdictStore` in Redis 6 or later: a single server, a Sentinel's master or a cluster.

    Args:
        url: e.g. ``redis://localhost:6379/0``; each courier has a client of its own then, and closes it.
        client: a redis-py client of the caller's, asynchronous or not, with decoded answers or not.

    Raises:
        MissingDependencyError: the redis package is not installed.
        ConfigurationError: both or neither are given, or what is given is no URL or no client.
    """

    def __init__(self, url: str | None = None, client: Any = None) -> None:
        if (url is None) == (client is None):
            raise ConfigurationError("give one of redis_url and redis_client")
        self._make = None if url is None else clients_of(url, _CONNECT_SECONDS)
        self._given = client
        self._awaits = True if client is None else is_async(client)

    @asynccontextmanager
    async def link(self, target: str) -> AsyncGenerator[Link, None]:
        """A way to the verdicts on one target."""
        if self._make is None:
            yield _RedisLink(target, self._given, self._awaits)
            return
        client = self._make()
        try:
            yield _RedisLink(target, client, True)
        except GeneratorExit:  # the event loop was closed in the middle: nothing can be awaited any more
            cut_all(client)
            raise
        except BaseException:
            await client.aclose()
            raise
        await client.aclose()


class _RedisLink:
    def __init__(self, target: str, client: Any, awaits: bool) -> None:
        name = blake2b(target.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        self._keys = f"breaker:{{{name}}}:verdict", f"breaker:{{{name}}}:probe"
        self._client = client
        self._awaits = awaits

    async def look(self, token: str, lease_seconds: float, claim: int) -> Answer:
        """See `Link.look`."""
        return _answer(token, await self._run(_LOOK, token, _ms(lease_seconds), claim))

    async def say(self, token: str, verdict: Verdict, tail_seconds: float, *, keep: bool) -> Answer:
        """See `Link.say`."""
        state = ("open" if verdict.open else "closed") + ("!" if verdict.by_hand else "")
        said = f"{verdict.id}:{state}:{_ms(verdict.longest_seconds)}:{_ms(tail_seconds)}"
        life = max(1, _ms(verdict.left_seconds) + _ms(tail_seconds))
        gives_way_to = "none" if verdict.by_hand else "running" if keep else "by hand"
        return _answer(token, await self._run(_SAY, token, said, life, gives_way_to, verdict.after))

    async def _run(self, script: str, *args: Any) -> Any:
        # By its text each time: once a second does not repay the bookkeeping of its hash.
        command = "EVAL", script, len(self._keys), *self._keys, *args
        if self._awaits:
            return await self._client.execute_command(*command)
        answer = await _threads.run(self._client.execute_command, *command)
        return await answer if inspect.isawaitable(answer) else answer


def _ms(seconds: float) -> int:
    return round(min(seconds, _MOST_SECONDS) * 1000)


def _answer(token: str, said: Any) -> Answer:
    if not isinstance(cast("object", said), list):
        return Answer(None, "free")  # a stand-in for a client
    text, life_ms, holder = map(_text, said)
    lease: Any = "free" if not holder else "mine" if holder == token else "other"
    return Answer(_verdict(text, life_ms), lease)


def _text(part: Any) -> Any:
    return part.decode("ascii", "replace") if isinstance(part, bytes) else part


def _verdict(text: Any, life_ms: int) -> Verdict | None:
    parts = text.split(":") if isinstance(text, str) else []
    # Nobody but the scripts should write verdicts; what anybody else wrote is none.
    if len(parts) != 4 or not all(part.isdecimal() for part in parts[2:]):
        return None
    state = parts[1].removesuffix("!")
    if state not in ("open", "closed"):
        return None
    left_seconds, longest_seconds = (life_ms - int(parts[3])) / 1000, int(parts[2]) / 1000
    return Verdict(parts[0], state == "open", left_seconds, longest_seconds, by_hand=state != parts[1])
