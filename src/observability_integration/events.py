"""Events: rare, important changes of state inside the process, such as a degraded cache or an opened breaker.

Metrics say how much. An event tells the subscribers in this process that a state has just changed. Nothing that happens
on every call is an event.
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
    """One change of state.

    Attributes:
        name: dotted name of the change, such as ``cache.backend.degraded``.
        attributes: facts about the change; never a prompt, an answer or a key.
        time_seconds: Unix time, in seconds.
    """

    name: str
    attributes: Mapping[str, AttributeValue]
    time_seconds: float = field(default_factory=time.time)


Subscriber = Callable[[Event], None]
_subscribers: tuple[tuple[str, Subscriber], ...] = ()


def subscribe(subscriber: Subscriber, prefix: str = "") -> Callable[[], None]:
    """Calls `subscriber` at every event whose name starts with `prefix`; returns a function that unsubscribes.

    A subscriber runs in the thread that emits the event and must return at once. If it raises, the error is logged and
    the subscriber stays subscribed.
    """
    global _subscribers
    entry = (prefix, subscriber)
    _subscribers = (*_subscribers, entry)

    def unsubscribe() -> None:
        global _subscribers
        _subscribers = tuple(other for other in _subscribers if other is not entry)

    return unsubscribe


def emit(name: str, **attributes: AttributeValue) -> None:
    """Calls the subscribers; never raises."""
    subscribers = _subscribers
    if not subscribers:
        return
    event = Event(name, MappingProxyType(attributes))
    for prefix, subscriber in subscribers:
        if name.startswith(prefix):
            try:
                subscriber(event)
            except Exception as error:  # noqa: BLE001 - an error of a subscriber must not reach the emitting call
                logger.warning("A subscriber to event %s raised %s", name, type(error).__name__)
