"""Classifies an exception, its causes and the members of its group."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, TypeAlias, cast

from observability_integration.telemetry.guard import note_fault

from .by_class import fault_from_class
from .by_response import fault_from_response
from .caller import has_begun, is_callers
from .kinds import PLAIN_FAULTS, Fault, FaultKind, gravity
from .shapes import MOST_EXCEPTIONS, cause_of, read

Classifier: TypeAlias = Callable[[BaseException], "Fault | FaultKind | None"]

_UNKNOWN, _CALLER = PLAIN_FAULTS["unknown"], PLAIN_FAULTS["caller"]
_BEGUN = PLAIN_FAULTS["malformed"]  # a mistake met while the answer is read: the answer is not what it should be
_SILENT: tuple[FaultKind, ...] = ("unknown", "caller")  # kinds that say nothing of the provider


def classify(error: BaseException, extra: Classifier | None = None) -> Fault:
    """Classifies an exception. Never raises.

    Args:
        error: the exception.
        extra: asked first. A `Fault` is returned as it is. A kind is completed with the status and the wait that the
            exception tells. None leaves the decision to the rules here. An error of the function is counted, and the
            rules here decide.
    """
    answer = None if extra is None else _ask(extra, error)
    if isinstance(answer, Fault):
        return answer
    try:
        fault = _Classification().fault_of(error)
    except Exception:  # noqa: BLE001 - an exception that raises when it is read is still some kind of fault
        fault = _UNKNOWN
    return fault if answer is None else Fault(answer, fault.status, fault.retry_after_seconds)


def _ask(extra: Classifier, error: BaseException) -> Fault | FaultKind | None:
    try:
        answer: Any = extra(error)
        return answer if answer is None or isinstance(answer, Fault) else Fault(answer).kind
    except Exception as fault:  # noqa: BLE001 - the user's function must not fail the user's call
        note_fault("faults.classifier", fault)
        return None


class _Classification:
    """Classifies each exception once, so that neither a cycle of causes nor a large group takes long."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, Fault] = {}

    def fault_of(self, error: object) -> Fault:
        known = self._known
        if error is None or len(known) >= MOST_EXCEPTIONS:
            return _UNKNOWN
        if id(error) in known:
            return known[id(error)]
        known[id(error)] = _UNKNOWN
        if issubclass(type(error), BaseExceptionGroup):
            members = islice(cast("BaseExceptionGroup[Any]", error).exceptions, MOST_EXCEPTIONS - len(known))
            fault = min((self.fault_of(member) for member in members), key=gravity, default=_UNKNOWN)
        else:
            fault = fault_from_class(error, self.fault_of) or fault_from_response(error)
        if fault.kind in _SILENT:
            callers = fault.kind == "caller" or is_callers(error)
            fault = self.fault_of(cause_of(error))
            # A mistake further in was handled there, as where a field of a reply is missing.
            if fault.kind in _SILENT:
                fault = self._mistake(error) if callers else _UNKNOWN
        known[id(error)] = fault
        return fault

    def _mistake(self, error: object) -> Fault:
        if has_begun(error):
            return _BEGUN
        # Behind ``raise ValueError from None`` there may be an error of the provider.
        return _CALLER if self.fault_of(read(error, "__context__")).kind in _SILENT else _UNKNOWN
