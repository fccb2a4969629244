"""What the call that makes an entry may decide about it."""

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
        ConfigurationError: it is one text, or nothing that holds several.
    """
    if isinstance(tags, str | bytes):
        raise ConfigurationError("tags must be a list of texts; got one text")
    if not hasattr(tags, "__iter__"):
        raise ConfigurationError(f"tags must be a list of texts, got {type(tags).__name__}")
    given: Iterable[Any] = tags
    return given


def check_tags(tags: Any) -> tuple[str, ...]:
    """The tags that a caller gives, refused before the call is made and not when its answer is there.

    Raises:
        ConfigurationError: see `listed`.
        TypeError: a tag is no text.
    """
    given = tuple(listed(tags))
    for tag in given:
        if not isinstance(tag, str):
            raise TypeError(f"a tag must be text, not {type(tag).__name__}")
    return given


class EntryOptions:
    """Decisions about the entry that is being made, by whatever makes it.

    Attributes:
        stale: the value that this one is to replace, or `NOTHING`: for a conditional request (``If-None-Match``), say.
    """

    __slots__ = ("stale", "store", "tags", "ttl_seconds")

    def __init__(self, stale: Any = NOTHING) -> None:
        self.stale = stale
        self.store = True
        self.tags: list[str] = []
        self.ttl_seconds: float | None = None

    def set_ttl(self, ttl_seconds: float) -> None:
        """Keeps this entry for so long, instead of the cache's TTL.

        Raises:
            ConfigurationError: not a finite number > 0.
        """
        check_positive("ttl_seconds", ttl_seconds)
        self.ttl_seconds = ttl_seconds

    def add_tags(self, *tags: str) -> None:
        """The entry can be invalidated by these tags too.

        Raises:
            TypeError: a tag is no text.
        """
        self.tags += check_tags(tags)

    def do_not_store(self) -> None:
        """The value goes to those who wait for it, and is not kept."""
        self.store = False

    def not_modified(self) -> Any:
        """Returns the value that this one was to replace, which then lives for another TTL.

        Raises:
            LookupError: there is none.
        """
        if self.stale is NOTHING:
            raise LookupError("there is no stale value to use again")
        return self.stale


_current: ContextVar[EntryOptions | None] = ContextVar("observability_integration_entry_options", default=None)


def entry_options() -> EntryOptions:
    """The decisions about the entry that is being made here; inside of no cached call, decisions about nothing."""
    return _current.get() or EntryOptions()


def begin_entry(tags: Sequence[str], stale: Any) -> EntryOptions:
    """In the task that makes the entry: what is decided from now on is decided about it."""
    options = EntryOptions(stale)
    if tags:
        options.add_tags(*tags)
    _current.set(options)
    return options


@contextmanager
def no_entry() -> Generator[None]:
    """Inside, no entry is being made: what is decided there is not decided about the one further out."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)
