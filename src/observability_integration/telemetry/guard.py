"""Counts and logs errors of telemetry and of users' hooks, which must not reach the caller."""

from __future__ import annotations

import logging

from .catalogue.own import TELEMETRY_FAULTS

logger = logging.getLogger("observability_integration")

_MAX_REMEMBERED = 256
_logged: set[tuple[str, ...]] = set()
_MAX_WARNINGS = 1024
_warned: set[tuple[str, str]] = set()


def note_fault(site: str, error: BaseException, *, operation: str | None = None) -> None:
    """Counts an error that the caller does not see, and logs it the first time.

    The log line has its type and origin but not its message, which may quote a prompt.

    Args:
        site: the place, from a closed set because it becomes a label, e.g. ``cache.key_fn``.
        error: the exception.
        operation: name of the primitive whose hook it is; the error is then logged once for each operation.
    """
    TELEMETRY_FAULTS.series(site).add()
    kind = type(error).__name__
    fault = (site, kind) if operation is None else (site, kind, operation)
    if fault in _logged or len(_logged) >= _MAX_REMEMBERED:
        return
    _logged.add(fault)
    where = site if operation is None else f"{site} of '{operation}'"
    logger.warning("%s raised %s%s; the call went on without it (logged once)", where, kind, _origin_of(error))


def warn_once(site: str, operation: str, message: str) -> None:
    """Logs a warning about how an operation is used, once for each site and operation.

    Args:
        site: the place.
        operation: name of the primitive.
        message: what is wrong and what to write instead; never an input.
    """
    warning = site, operation
    if warning in _warned or len(_warned) >= _MAX_WARNINGS:
        return
    _warned.add(warning)
    logger.warning("%s (logged once)", message)


def _origin_of(error: BaseException) -> str:
    # Without `traceback`, which reads source files: this may run in the event loop's thread.
    place = error.__traceback__
    if place is None:
        return ""
    while place.tb_next is not None:
        place = place.tb_next
    return f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
