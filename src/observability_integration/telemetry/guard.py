"""Keeps the faults of telemetry, and of users' hooks, away from the user's call."""

from __future__ import annotations

import logging

from .catalogue.own import TELEMETRY_FAULTS

logger = logging.getLogger("observability_integration")

_MAX_REMEMBERED = 256
_logged: set[tuple[str, str]] = set()


def note_fault(site: str, error: BaseException) -> None:
    """Counts a fault that was kept away from the caller, and logs it the first time it is seen.

    The message of the error is not logged, because a prompt may stand in it; its type and origin are.

    Args:
        site: where it happened, from a closed list (it becomes a label), e.g. ``cache.key_fn``.
        error: what was raised.
    """
    TELEMETRY_FAULTS.series(site).add()
    kind = type(error).__name__
    if (site, kind) in _logged or len(_logged) >= _MAX_REMEMBERED:
        return
    _logged.add((site, kind))
    logger.warning("%s raised %s%s; the call went on without it (logged once)", site, kind, _origin_of(error))


def _origin_of(error: BaseException) -> str:
    # By hand, because `traceback` reads the source files, and this may be the event loop's thread.
    place = error.__traceback__
    if place is None:
        return ""
    while place.tb_next is not None:
        place = place.tb_next
    return f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
