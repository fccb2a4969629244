"""The one way to Redis: cache, rate limit and circuit breaker use it, and nothing else talks to a server.

`RedisBackend` runs commands and Lua scripts on the caller's client or on clients of its own. `Guard` keeps a server
that is slow, silent or broken from holding up or failing a call. What to do without the server is the caller's choice::

    answer = await guard.ask(lambda: backend.run(SCRIPT, keys, *arguments))
    if answer is None:
        ...  # out of use, late or failed: allow, refuse, or work without it
"""

from .backend import RedisBackend, Script
from .guard import Guard, Notice, backoff_seconds

__all__ = ["Guard", "Notice", "RedisBackend", "Script", "backoff_seconds"]
