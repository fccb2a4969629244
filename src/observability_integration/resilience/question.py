"""One caller's question to a target, at which several attempts may be made: its failure counts once.

An open circuit in front of a lone target is closed to all callers, who have no other target. So it takes the failed
questions of several callers, and not the three attempts of one. A retry sets the question around its further attempts,
a hedge around its two calls; a circuit breaker inside asks `counts`.

The breaker that has counted the first attempt notes that on the error. A retry could set the question around the first
attempt too, but that would cost time in each call, and most calls have one attempt.
"""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar, Token

from observability_integration.context import reset_variable

from .faults.shapes import chain_of, read

_COUNTED = "_observability_integration_counted_by"


class Question:
    """A question, for a ``with`` block around each further attempt at it.

    Attributes:
        counted_by: the ids of the breakers that have counted its failure.
        active: whether it is still being asked. Work that outlives it counts for itself.
    """

    __slots__ = ("_token", "active", "counted_by")

    def __init__(self) -> None:
        self.counted_by: frozenset[int] = frozenset()
        self.active = True
        self._token: Token[Question | None] | None = None

    def __enter__(self) -> None:
        self._token = _question.set(self)

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        if token is not None:
            reset_variable(_question, token)

    def end(self) -> None:
        """Ends the question, and leaves the block in which it is."""
        if self._token is not None:
            self.__exit__()
        self.active = False


_question: ContextVar[Question | None] = ContextVar("observability_integration_question", default=None)


def open_question() -> Question | None:
    """Returns a new question; None inside of another one, of which the attempts to come are a part."""
    around = _question.get()
    return None if around is not None and around.active else Question()


def asked_again(error: Exception, handled: BaseException | None = None) -> Question | None:
    """Returns the question for the attempts that follow a failed one; None inside of another question.

    Args:
        error: of the first attempt.
        handled: an exception of an earlier call, which Python has chained to it (see `chain_of`).
    """
    question = open_question()
    if question is not None:
        for each in chain_of(error, handled):
            counted_by = read(each, _COUNTED)
            if isinstance(counted_by, frozenset):
                question.counted_by |= counted_by
    return question


def counts(breaker: object, error: BaseException) -> bool:
    """Whether a failure is the first of its question that this breaker counts; notes that it has counted it.

    Args:
        breaker: of a lone target.
        error: the failure.
    """
    key = id(breaker)
    question = _question.get()
    counted = question is not None and question.active and key in question.counted_by
    if question is not None:
        question.counted_by |= {key}
    with suppress(Exception):  # an exception of a foreign class may hide its attributes
        error.__dict__[_COUNTED] = error.__dict__.get(_COUNTED, frozenset()) | {key}
    return not counted
