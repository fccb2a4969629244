"""Computes the key, tags and meaning of an input with the user's functions."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from observability_integration.caching.entry_options import listed
from observability_integration.caching.keys import GLOBAL, GlobalScope, KeySpace, check_scope, is_blank, scope_in_key
from observability_integration.caching.lookup import Meaning
from observability_integration.context import WorkflowContext
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.lifting import takes_context
from observability_integration.telemetry.guard import note_fault, warn_once

if TYPE_CHECKING:
    from observability_integration.caching.semantic import SemanticLookup

ScopeResult = str | GlobalScope | None
KeyFunction = Callable[[Any, WorkflowContext], Any] | Callable[[Any], Any]
ScopeFunction = (
    Callable[[Any, WorkflowContext], ScopeResult | Awaitable[ScopeResult]]
    | Callable[[Any], ScopeResult | Awaitable[ScopeResult]]
)

_MISSING = {
    "no_key": "the key function returned None, which would be one key for all inputs. Return text, bytes, numbers or a "
    "structure of them",
    "no_scope": "the scope function returned None or blank text, which names no owner of the entry. Return the owner's "
    "name, or GLOBAL to share with all callers",
}


class Unidentified(Exception):  # noqa: N818 - never leaves the cache
    """An input has no key or no scope, so that no entry may be shared for it.

    Args:
        reason: ``no_key`` or ``no_scope``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def bypass_reason(error: Exception, operation: str) -> str:
    """Returns why an input without an identity bypasses the cache: ``no_key``, ``no_scope`` or ``key_error``.

    Logs it, once for each operation, with what to write instead.

    Args:
        error: the error that `Identifier` raised.
        operation: name of the cache.
    """
    if not isinstance(error, Unidentified):
        note_fault("cache.key_fn", error, operation=operation)
        return "key_error"
    warn_once(
        f"cache.{error.reason}", operation,
        f"Cache '{operation}': {_MISSING[error.reason]}. Such calls are made without the cache",
    )  # fmt: skip
    return error.reason


class _ScopedDigest(bytes):
    """The hash of a key, with its scope for a lookup by meaning: a second call may return another scope."""

    scope: str | GlobalScope


class Identity(NamedTuple):
    """The identity of an input.

    Attributes:
        digest: the hash of its key.
        tags: its tags.
        meaning: its meaning for a semantic lookup, or None.
    """

    digest: bytes
    tags: Sequence[str]
    meaning: Meaning | None


class Identifier:
    """Computes the identities of the inputs of one cache.

    Args:
        keys: the key space.
        key_fn: function of ``(input)`` or ``(input, context)``, synchronous or not, that returns the key.
        scope: a fixed scope, which is already part of `keys`, or a function like `key_fn` that returns it.
        tags: fixed tags, or a function of the input that returns them.
        semantic: the semantic lookup, or None.
        meaning_of: function of the input that returns ``(all_else, text)``, or None.

    Raises:
        ConfigurationError: only one of `semantic` and `meaning_of` is given.
    """

    def __init__(
        self,
        keys: KeySpace,
        key_fn: Any,
        scope: Any,
        tags: Sequence[str] | Callable[[Any], Iterable[str]],
        semantic: SemanticLookup | None,
        meaning_of: Callable[[Any], tuple[Any, str] | None] | None,
    ) -> None:
        if (semantic is None) != (meaning_of is None):
            raise ConfigurationError("semantic and meaning_of belong together")
        self._keys = keys
        self._key_fn = key_fn
        self._key_takes_context = key_fn is not None and takes_context(key_fn)
        self._scope_fn = scope if callable(scope) else None
        self._scope_takes_context = self._scope_fn is not None and takes_context(self._scope_fn)
        self._tags: Any = tags if callable(tags) else tuple(map(str, tags))
        self._semantic = semantic
        self._meaning_of: Any = meaning_of
        self.varies_scope = self._scope_fn is not None
        self.takes_context = self._key_takes_context or self._scope_takes_context

    def digest(self, input_data: Any, context: WorkflowContext | None) -> bytes | Coroutine[Any, Any, bytes]:
        """Returns the hash of an input's key, or a coroutine of it if a function of the user's is asynchronous.

        Raises:
            Unidentified: the key or the scope is missing.
            Exception: an error of the user's functions.
        """
        key = self._key_fn(input_data, context) if self._key_takes_context else self._key_fn(input_data)
        if not isinstance(key, str):
            if key is None:
                raise Unidentified("no_key")
            if inspect.isawaitable(key):
                return self._digest_later(key, input_data, context)
        return self._keys.digest(key) if self._scope_fn is None else self._digest_in_scope(key, input_data, context)

    async def _digest_later(self, later: Awaitable[Any], input_data: Any, context: WorkflowContext | None) -> bytes:
        key = await later
        if key is None:
            raise Unidentified("no_key")
        if self._scope_fn is None:
            return self._keys.digest(key)
        digest = self._digest_in_scope(key, input_data, context)
        return digest if isinstance(digest, bytes) else await digest

    def _digest_in_scope(
        self, key: Any, input_data: Any, context: WorkflowContext | None
    ) -> bytes | Coroutine[Any, Any, bytes]:
        find: Any = self._scope_fn
        scope = find(input_data, context) if self._scope_takes_context else find(input_data)
        if not isinstance(scope, str) and inspect.isawaitable(scope):
            return self._digest_in_later_scope(key, scope)
        return self._scoped_digest(key, scope)

    async def _digest_in_later_scope(self, key: Any, scope: Awaitable[Any]) -> bytes:
        return self._scoped_digest(key, await scope)

    def _scoped_digest(self, key: Any, scope: Any) -> bytes:
        if scope is None or (isinstance(scope, str) and is_blank(scope)):
            raise Unidentified("no_scope")
        check_scope(scope)
        digest = self._keys.digest_in(scope, key)
        if self._semantic is not None:
            digest = _ScopedDigest(digest)
            digest.scope = scope
        return digest

    def digest_of_key(self, key: Any, scope: Any) -> bytes:
        """Returns the hash of a key that is given outright, as `digest` returns it for its input.

        Args:
            key: the key.
            scope: its scope if that is a function of the input; else None.

        Raises:
            TypeError: the key has no canonical form.
            ConfigurationError: the scope is missing, blank, or given although it is fixed.
        """
        if self._scope_fn is None:
            if scope is not None:
                raise ConfigurationError("this cache has one fixed scope: give the key alone")
            return self._keys.digest(key)
        if scope is None:
            raise ConfigurationError(
                "the scope of this cache is a function of the input, and a key alone has none: give scope=, too"
            )
        check_scope(scope)
        return self._scoped_digest(key, scope)

    def details(self, input_data: Any, digest: bytes) -> tuple[Sequence[str], Meaning | None]:
        """Returns the tags of an input, and its meaning if there is a semantic lookup.

        Args:
            input_data: the input.
            digest: the hash of its key, as `digest` returned it.

        Raises:
            ConfigurationError: the user's function returns one text instead of a sequence of tags.
            Exception: an error of that function.
        """
        tags = tuple(map(str, listed(self._tags(input_data)))) if callable(self._tags) else self._tags
        meaning = None if self._semantic is None else self._meaning(self._semantic, input_data, digest)
        return tags, meaning

    async def identify(self, input_data: Any, context: WorkflowContext | None) -> Identity:
        """Returns the identity of an input.

        Raises:
            Exception: an error of the user's functions.
        """
        digest = self.digest(input_data, context)
        if not isinstance(digest, bytes):
            digest = await digest
        return Identity(digest, *self.details(input_data, digest))

    def _meaning(self, semantic: SemanticLookup, input_data: Any, digest: bytes) -> Meaning | None:
        try:
            pair = self._meaning_of(input_data)
            if pair is None:
                return None
            all_else, text = pair
            if text is None or not str(text).strip():  # all inputs without a text would mean the same
                return None
            scope = digest.scope if isinstance(digest, _ScopedDigest) else GLOBAL  # a fixed one is part of the keys
            parts = ("meaning", scope_in_key(scope), all_else)
            return Meaning(semantic, self._keys.digest(parts).hex(), str(text))
        except Exception as error:  # noqa: BLE001 - the exact lookup works without it
            note_fault("cache.meaning_of", error)
            return None
