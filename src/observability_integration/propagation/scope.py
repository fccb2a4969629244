"""The scope of a ``with`` block that changes context variables: at its end it removes its own changes.

The open scopes of one context form a stack, the oldest first. The changes of one variable form a chain: the value after
one change is the value before the next. Scopes may end in any order, as when a task reads two generators in turn. Here
the older of two scopes ends first::

    a begins    none ──(a: 3 s)──▶ 3 s
    b begins    none ──(a: 3 s)──▶ 3 s ──(b: 5 s)──▶ 3 s    the earlier deadline holds
    a ends      none ──(b: 5 s)──▶ 5 s                      b's change is applied again, to the value before a
    b ends      none
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from typing import Any, Generic, Literal, TypeVar, cast

T = TypeVar("T")


class ContextScope:
    """Removes the changes of a ``with`` block, if the block ends in the context in which it began.

    ===================  ===========================================================================================
    state                meaning
    ===================  ===========================================================================================
    ``open``             The block runs, and its changes hold.
    ``ended elsewhere``  Another task, or the garbage collector, closed the generator around the block. In that
                         context the changes do not hold. In the context of the scope they hold until the next scope
                         there begins or ends.
    ``ended``            The changes are removed. A task that was started in the block may still hold the scope.
    ===================  ===========================================================================================
    """

    __slots__ = ("_changes", "_state", "_token", "_undo")

    def __init__(self) -> None:
        self._state: Literal["open", "ended elsewhere", "ended"] = "open"
        self._changes: dict[object, _Change[Any]] = {}
        self._undo: Callable[[], object] | None = None
        while (stack := _stack.get()) and stack[-1]._state == "ended elsewhere" and stack[-1].end():
            pass
        if stack:  # inherited from the task that started this one: its scopes may have ended since
            stack = tuple([scope for scope in stack if scope._state != "ended"])
        self._token: Token[tuple[ContextScope, ...]] | None = _stack.set((*stack, self))

    def change(self, variable: ContextVar[T], apply: Callable[[T], T]) -> None:
        """Sets `variable` to ``apply(value)`` until the scope ends.

        Args:
            variable: a scope changes each variable once at most.
            apply: called again when an older scope ends before this one, with the value from before that scope.
        """
        self._changes[variable] = _Change(variable, apply)

    def undo_with(self, undo: Callable[[], object]) -> None:
        """Registers `undo`, which restores what cannot be computed again; the scope calls it at its end.

        If a younger scope with an `undo` is still open then, that scope takes over this `undo` in place of its own.
        """
        self._undo = undo

    def end(self) -> bool:
        """Ends the scope; removes its changes and returns True only in the context in which the scope began."""
        stack = _stack.get()
        try:
            _stack.reset(cast("Token[tuple[ContextScope, ...]]", self._token))
        except ValueError:
            self._state = "ended elsewhere"
            return False
        position = stack.index(self)
        younger: list[ContextScope] = []  # those that stay open, the oldest first
        for scope in reversed(stack[position:]):
            if scope is self or scope._state == "ended elsewhere":
                scope._remove_from_under(younger)
            else:
                younger.insert(0, scope)
        _stack.set((*stack[:position], *younger))
        return True

    def _remove_from_under(self, younger: Sequence[ContextScope]) -> None:
        # Since a scope ended elsewhere, other code may have set the variables to values that have to stay.
        late = self._state == "ended elsewhere"
        for variable, change in self._changes.items():
            changes = [scope._changes[variable] for scope in younger if variable in scope._changes]
            change.remove_from_under(changes, late=late)
        if self._undo is not None:
            heir = next((scope for scope in younger if scope._undo is not None), None)
            if heir is not None:
                heir._undo = self._undo
            elif not late:
                self._undo()
        # A task that was started in the block may hold the scope for as long as the task runs.
        self._state, self._changes, self._undo, self._token = "ended", {}, None, None


class _Change(Generic[T]):
    """One change of one variable: the value before it, and the value after it."""

    __slots__ = ("_after", "_apply", "_before", "_variable")

    def __init__(self, variable: ContextVar[T], apply: Callable[[T], T]) -> None:
        self._variable = variable
        self._apply = apply
        self._before = variable.get()
        self._after = apply(self._before)
        variable.set(self._after)

    def remove_from_under(self, younger: Sequence[_Change[T]], *, late: bool) -> None:
        """Removes this change and applies the `younger` ones again, the oldest first."""
        before, after = self._before, self._after
        for change in younger:
            if change._before is not after:
                return  # other code set the variable in between, and restores it itself
            after, change._before = change._after, before
            change._after = before = change._apply(before)
        if self._variable.get() is after or not (younger or late):
            self._variable.set(before)


_stack: ContextVar[tuple[ContextScope, ...]] = ContextVar("observability_integration_scopes", default=())
