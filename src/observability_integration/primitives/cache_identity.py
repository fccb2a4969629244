"""Under which key an input is cached, and with which tags, as the user's functions say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from observability_integration.caching.keys import GLOBAL, KeySpace, check_scope
from observability_integration.caching.lookup import Meaning
from observability_integration.context import WorkflowContext
from observability_integration.errors import ConfigurationError
from observability_integration.telemetry.guard import note_fault

from .lifting import takes_context

if TYPE_CHECKING:
    from observability_integration.caching.semantic import SemanticLookup

KeyFunction = Callable[[Any, WorkflowContext], Any] | Callable[[Any], Any]
ScopeFunction = Callable[[Any, WorkflowContext], str] | Callable[[Any], str]


class Identity(NamedTuple):
    """What tells one input from another.

    Attributes:
        digest: the hash of its key.
        tags: its tags.
        meaning: by which it may be found in other words, or None.
    """

    digest: bytes
    tags: Sequence[str]
    meaning: Meaning | None


class Identifier:
    """Identifies the inputs of one cache.

    Args:
        keys: the key space.
        key_fn: function of ``(input)`` or ``(input, context)``, synchronous or not, that returns the key.
        scope: a fixed scope, which is part of `keys` then, or a function like `key_fn`, synchronous, that returns it.
        tags: fixed tags, or a function of the input that returns them.
        semantic: finds what means the same, or None.
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
        self._tags = tags
        self._semantic = semantic
        self._meaning_of: Any = meaning_of
        self.takes_context = self._key_takes_context or self._scope_takes_context

    async def identify(self, input_data: Any, context: WorkflowContext | None) -> Identity:
        """The identity of an input. Raises whatever the user's functions raise."""
        key = self._key_fn(input_data, context) if self._key_takes_context else self._key_fn(input_data)
        if not isinstance(key, str) and inspect.isawaitable(key):
            key = await key
        scope: Any = GLOBAL
        if self._scope_fn is not None:
            scope = self._scope_fn(input_data, context) if self._scope_takes_context else self._scope_fn(input_data)
            check_scope(scope)
            key = (scope, key)
        tags = self._tags(input_data) if callable(self._tags) else self._tags
        meaning = None if self._semantic is None else self._meaning(self._semantic, input_data, scope)
        return Identity(self._keys.digest(key), tuple(map(str, tags)), meaning)

    def _meaning(self, semantic: SemanticLookup, input_data: Any, scope: Any) -> Meaning | None:
        try:
            pair = self._meaning_of(input_data)
            if pair is None:
                return None
            all_else, text = pair
            return Meaning(semantic, self._keys.digest(("meaning", scope, all_else)).hex(), str(text))
        except Exception as error:  # noqa: BLE001 - the exact match goes on without it
            note_fault("cache.meaning_of", error)
            return None
