"""Counts and logs errors of telemetry and of users' hooks, which must not reach the caller."""

from __future__ import annotations

import logging

from .catalogue.own import TELEMETRY_FAULTS

logger = logging.getLogger("observability_integration")

_MAX_REMEMBERED = 256
_logged: set[tuple[str, str]] = set()


def note_fault(site: str, error: BaseException) -> None:
    """Counts an error that the caller does not see, and logs it the first time.

    The log line has its type and origin but not its message, which may quote a prompt.

    Args:
        site: the place, from a closed set because it becomes a label, e.g. ``cache.key_fn``.
        error: the exception.
    """
    TELEMETRY_FAULTS.series(site).add()
    kind = type(error).__name__
    if (site, kind) in _logged or len(_logged) >= _MAX_REMEMBERED:
        return
    _logged.add((site, kind))
    logger.warning("%s raised %s%s; the call went on without it (logged once)", site, kind, _origin_of(error))


def _origin_of(error: BaseException) -> str:
    # Without `traceback`, which reads source files: this may run in the event loop's thread.
    place = error.__traceback__
    if place is None:
        return ""
    while place.tb_next is not None:
        place = place.tb_next
    return f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
