"""Events: rare, important turns inside the process (a cache degraded, a breaker opened).

Metrics tell how much; an event tells that something just changed, to whoever subscribed in this process. Nothing that
happens on every call is an event.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

logger = logging.getLogger(__name__)

AttributeValue = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Event:
    """One turn of events.

    Attributes:
        name: what happened, dotted, e.g. ``cache.backend.degraded``.
        attributes: facts about it; never a prompt, an answer or a key.
        time_seconds: Unix time, in seconds.
    """

    name: str
    attributes: Mapping[str, AttributeValue]
    time_seconds: float = field(default_factory=time.time)


Subscriber = Callable[[Event], None]
_subscribers: tuple[tuple[str, Subscriber], ...] = ()


def subscribe(subscriber: Subscriber, prefix: str = "") -> Callable[[], None]:
    """Calls `subscriber` at every event whose name starts with `prefix`; returns a function that ends it.

    A subscriber runs in the thread of whoever emitted and must return at once. One that raises is logged and kept.
    """
    global _subscribers
    entry = (prefix, subscriber)
    _subscribers = (*_subscribers, entry)

    def unsubscribe() -> None:
        global _subscribers
        _subscribers = tuple(kept for kept in _subscribers if kept is not entry)

    return unsubscribe


def emit(name: str, **attributes: AttributeValue) -> None:
    """Tells the subscribers; never raises."""
    subscribers = _subscribers
    if not subscribers:
        return
    event = Event(name, MappingProxyType(attributes))
    for prefix, subscriber in subscribers:
        if name.startswith(prefix):
            try:
                subscriber(event)
            except Exception as error:  # noqa: BLE001 - a subscriber's fault is not the caller's
                logger.warning("A subscriber to event %s raised %s", name, type(error).__name__)
