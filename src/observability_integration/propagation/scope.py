"""A ``with`` block that puts something in force: what it has to undo, and whether its end is the place for that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Block:
    """Undoes what a ``with`` block has put in force, if the block ends where it began.

    It does not where a generator that holds it is closed by another task, or by the garbage collector. There nothing
    that the block had put in force is in force, and to undo it would be an error.

    Blocks of one task may end in any order, as those of two generators do that it reads by turns. One that ends under
    another takes away its own part, and leaves what the other has put in force.
    """

    __slots__ = ("_below", "_layers", "_left_elsewhere", "_token", "_way_back")

    def __init__(self) -> None:
        self._left_elsewhere = False
        self._layers: dict[object, Layer[Any]] = {}
        self._way_back: Callable[[], object] | None = None
        while (top := _top.get()) is not None and top._left_elsewhere and top.ends_here():
            pass
        self._below = top
        self._token: Token[Block | None] | None = _top.set(self)

    def put(self, read: Callable[[], T], write: Callable[[T], object], change: Callable[[T], T]) -> None:
        """Puts in force what `change` makes of what is; `write` also names the variable."""
        self._layers[write] = Layer(read, write, change)

    def undo_by(self, way_back: Callable[[], object]) -> None:
        """For what cannot be worked out anew under another block: that one goes the way back when it ends."""
        self._way_back = way_back

    def ends_here(self) -> bool:
        """Ends the block, undoes it if this is the context in which it began, and says so."""
        block = _top.get()
        try:
            _top.reset(cast("Token[Block | None]", self._token))
        except ValueError:
            self._left_elsewhere = True
            return False
        above: list[Block] = []  # those that have not ended, the lowest first
        while block is not None and block is not self:
            below = block._below
            if block._left_elsewhere:
                block._lift(above)
            else:
                above.insert(0, block)
            block = below
        below = self._below
        self._lift(above)
        for block in above:
            block._below = below
            below = block
        _top.set(below)
        return True

    def _lift(self, above: Sequence[Block]) -> None:
        # One that was left elsewhere is noticed late: what is in force by now may be somebody else's.
        for variable, layer in self._layers.items():
            layers = [block._layers[variable] for block in above if variable in block._layers]
            layer.lift(layers, late=self._left_elsewhere)
        if self._way_back is not None:
            heir = next((block for block in above if block._way_back is not None), None)
            if heir is not None:
                heir._way_back = self._way_back
            elif not self._left_elsewhere:
                self._way_back()
        # A task that was begun within the block may know of it for as long as it lives.
        self._layers, self._way_back, self._below, self._token = {}, None, None, None
        self._left_elsewhere = False


class Layer(Generic[T]):
    """What a block has put in place of what one variable held."""

    __slots__ = ("_after", "_before", "_change", "_read", "_write")

    def __init__(self, read: Callable[[], T], write: Callable[[T], object], change: Callable[[T], T]) -> None:
        self._read = read
        self._write = write
        self._change = change
        self._before = read()
        self._after = change(self._before)
        write(self._after)

    def lift(self, above: Sequence[Layer[T]], *, late: bool) -> None:
        """Takes it away from under those `above`, which are worked out anew.

        Args:
            above: the lowest first.
            late: it should have been taken away before.
        """
        before, after = self._before, self._after
        for layer in above:
            if layer._before is not after:
                return  # something else lies between them, and what that brings back is its own affair
            after, layer._before = layer._after, before
            layer._after = before = layer._change(before)
        if self._read() is after or not (above or late):
            self._write(before)


_top: ContextVar[Block | None] = ContextVar("observability_integration_block", default=None)
