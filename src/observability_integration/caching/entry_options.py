"""Entry options: the TTL and tags of an entry, and whether it is stored, set by the call that computes it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from observability_integration.checks import check_positive
from observability_integration.errors import ConfigurationError

NOTHING: Final[Any] = object()  # None is a value


def listed(tags: Any) -> Iterable[Any]:
    """Refuses one text in place of several tags: each of its letters would be a tag.

    Raises:
        ConfigurationError: `tags` is one text, or is not iterable.
    """
    if isinstance(tags, str | bytes):
        raise ConfigurationError("tags must be a list of texts; got one text")
    if not hasattr(tags, "__iter__"):
        raise ConfigurationError(f"tags must be a list of texts, got {type(tags).__name__}")
    given: Iterable[Any] = tags
    return given


def check_tags(tags: Any) -> tuple[str, ...]:
    """Checks the tags of a caller: wrong tags are refused before the call and not after it.

    Raises:
        ConfigurationError: see `listed`.
        TypeError: a tag is not text.
    """
    given = tuple(listed(tags))
    for tag in given:
        if not isinstance(tag, str):
            raise TypeError(f"a tag must be text, not {type(tag).__name__}")
    return given


class EntryOptions:
    """Options of the entry that the current call computes.

    Attributes:
        stale: the value that the new one replaces, or `NOTHING`; for a conditional request (``If-None-Match``).
        store: whether the value is stored.
        tags: tags of the entry.
        ttl_seconds: TTL of the entry in seconds; None for the TTL of the cache.
    """

    __slots__ = ("stale", "store", "tags", "ttl_seconds")

    def __init__(self, stale: Any = NOTHING) -> None:
        self.stale = stale
        self.store = True
        self.tags: list[str] = []
        self.ttl_seconds: float | None = None

    def set_ttl(self, ttl_seconds: float) -> None:
        """Sets the TTL of this entry, in place of the cache's.

        Raises:
            ConfigurationError: not a finite number > 0.
        """
        check_positive("ttl_seconds", ttl_seconds)
        self.ttl_seconds = ttl_seconds

    def add_tags(self, *tags: str) -> None:
        """Adds tags by which the entry can be invalidated.

        Raises:
            TypeError: a tag is not text.
        """
        self.tags += check_tags(tags)

    def do_not_store(self) -> None:
        """Returns the value to its callers without storing it."""
        self.store = False

    def not_modified(self) -> Any:
        """Returns the stale value; a call that returns it keeps it for another TTL.

        Raises:
            LookupError: there is no stale value.
        """
        if self.stale is NOTHING:
            raise LookupError("there is no stale value to use again")
        return self.stale


_current: ContextVar[EntryOptions | None] = ContextVar("observability_integration_entry_options", default=None)


def entry_options() -> EntryOptions:
    """The options of the entry that the current call computes; outside of a cached call, options without effect."""
    return _current.get() or EntryOptions()


def begin_entry(tags: Sequence[str], stale: Any) -> EntryOptions:
    """Makes a new entry's options current in the task that computes it."""
    options = EntryOptions(stale)
    if tags:
        options.add_tags(*tags)
    _current.set(options)
    return options


@contextmanager
def no_entry() -> Generator[None]:
    """Suspends the current options: a call inside cannot change the entry of an outer cache."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)
