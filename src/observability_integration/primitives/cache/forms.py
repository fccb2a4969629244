"""Checks which form of `CachePrimitive` its arguments belong to: one that wraps a primitive, or the model form."""

from __future__ import annotations

from typing import Any

from observability_integration.caching.entry_options import listed
from observability_integration.caching.keys import check_scope
from observability_integration.checks import check_callable
from observability_integration.errors import ConfigurationError


def check_form(primitive: Any, cache_key_fn: Any, redis_url: Any, scope: Any, tags: Any) -> None:
    """Checks that the arguments belong to one form.

    Raises:
        ConfigurationError: they do not, or a fixed scope or fixed tags are invalid.
    """
    if (primitive is None) != (cache_key_fn is None):
        raise ConfigurationError("primitive and cache_key_fn belong together")
    check_callable("cache_key_fn", cache_key_fn, optional=True)
    if primitive is not None and redis_url is not None:
        raise ConfigurationError("redis_url belongs to the form without a primitive; pass redis_client instead")
    if primitive is None and (callable(scope) or callable(tags) or tags):
        raise ConfigurationError("a function for scope, and tags, belong to the forms with a primitive")
    if not callable(tags):
        listed(tags)
    if not callable(scope):
        check_scope(scope)
