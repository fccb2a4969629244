"""Computes the key, tags and meaning of an input with the user's functions."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from observability_integration.caching.entry_options import listed
from observability_integration.caching.keys import GLOBAL, KeySpace, check_scope
from observability_integration.caching.lookup import Meaning
from observability_integration.context import WorkflowContext
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.lifting import takes_context
from observability_integration.telemetry.guard import note_fault

if TYPE_CHECKING:
    from observability_integration.caching.semantic import SemanticLookup

KeyFunction = Callable[[Any, WorkflowContext], Any] | Callable[[Any], Any]
ScopeFunction = Callable[[Any, WorkflowContext], str] | Callable[[Any], str]


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
        scope: a fixed scope, which is already part of `keys`, or a synchronous function like `key_fn` that returns it.
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
        self.takes_context = self._key_takes_context or self._scope_takes_context

    def digest(self, input_data: Any, context: WorkflowContext | None) -> bytes | Coroutine[Any, Any, bytes]:
        """Returns the hash of an input's key, or a coroutine of it for an asynchronous `key_fn`.

        Raises:
            Exception: an error of the user's functions.
        """
        key = self._key_fn(input_data, context) if self._key_takes_context else self._key_fn(input_data)
        if not isinstance(key, str) and inspect.isawaitable(key):
            return self._digest_later(key, input_data, context)
        return self._keys.digest(key) if self._scope_fn is None else self._digest_of(key, input_data, context)

    async def _digest_later(self, key: Awaitable[Any], input_data: Any, context: WorkflowContext | None) -> bytes:
        return self._digest_of(await key, input_data, context)

    def _digest_of(self, key: Any, input_data: Any, context: WorkflowContext | None) -> bytes:
        if self._scope_fn is not None:
            key = (self._scope(input_data, context), key)
        return self._keys.digest(key)

    def _scope(self, input_data: Any, context: WorkflowContext | None) -> Any:
        if self._scope_fn is None:
            return GLOBAL
        scope: Any = self._scope_fn(input_data, context) if self._scope_takes_context else self._scope_fn(input_data)
        check_scope(scope)
        return scope

    def details(self, input_data: Any, context: WorkflowContext | None) -> tuple[Sequence[str], Meaning | None]:
        """Returns the tags of an input, and its meaning if there is a semantic lookup.

        Raises:
            ConfigurationError: the user's function returns one text instead of a sequence of tags.
            Exception: an error of that function.
        """
        tags = tuple(map(str, listed(self._tags(input_data)))) if callable(self._tags) else self._tags
        meaning = None if self._semantic is None else self._meaning(self._semantic, input_data, context)
        return tags, meaning

    async def identify(self, input_data: Any, context: WorkflowContext | None) -> Identity:
        """Returns the identity of an input.

        Raises:
            Exception: an error of the user's functions.
        """
        digest = self.digest(input_data, context)
        if not isinstance(digest, bytes):
            digest = await digest
        return Identity(digest, *self.details(input_data, context))

    def _meaning(self, semantic: SemanticLookup, input_data: Any, context: WorkflowContext | None) -> Meaning | None:
        try:
            pair = self._meaning_of(input_data)
            if pair is None:
                return None
            all_else, text = pair
            parts = ("meaning", self._scope(input_data, context), all_else)
            return Meaning(semantic, self._keys.digest(parts).hex(), str(text))
        except Exception as error:  # noqa: BLE001 - the exact lookup works without it
            note_fault("cache.meaning_of", error)
            return None
