"""Chooses the shared store of a cache."""

from __future__ import annotations

import logging
from typing import Any, cast

from observability_integration.caching.policy import CachePolicy
from observability_integration.errors import ConfigurationError, MissingDependencyError

from .plain import PlainStore
from .redis import RedisStore
from .shared import CacheBackend, SharedStore

logger = logging.getLogger("observability_integration")

# The methods that a store which coordinates processes has, and a mere backend does not.
_COORDINATES = ("read", "vouches", "acquire", "renew", "commit", "release", "put_late", "void", "probe", "listen")


def choose_store(
    operation: str, policy: CachePolicy, *, url: str | None, client: Any, backend: CacheBackend | SharedStore | None
) -> SharedStore | None:
    """Returns the store behind a URL, a client or a backend; None when none is given, or redis is not installed.

    Raises:
        ConfigurationError: more than one is given, or what is given is no URL or no client.
    """
    if sum(given is not None for given in (url, client, backend)) > 1:
        raise ConfigurationError("give one of redis_url, redis_client and backend")
    if backend is not None:
        if all(callable(getattr(backend, method, None)) for method in _COORDINATES):
            return cast("SharedStore", backend)
        return PlainStore(cast("CacheBackend", backend))
    # Twice the budget: the guard decides, and this limit is for what the guard does not time.
    patience_seconds = 2 * policy.backend_budget_seconds
    if url is None:
        return None if client is None else RedisStore(client, patience_seconds)
    try:
        return RedisStore(patience_seconds=patience_seconds, url=url)
    except MissingDependencyError as error:
        logger.warning("Cache '%s': %s; working from memory", operation, error)
        return None
