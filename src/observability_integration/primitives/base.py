"""`WorkflowPrimitive`, the base class of all primitives, and the operators that combine them.

Data flow has operators: ``a >> b`` feeds the result of `a` to `b`, ``a | b`` gives the same input to both. Wrapping
has none: a primitive that guards another takes it as its first argument, so the outermost is written first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from asyncio import get_running_loop
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, cast

from observability_integration.context import WorkflowContext, deadline_of, deadline_var, earliest
from observability_integration.errors import PrimitiveTimeoutError

if TYPE_CHECKING:
    from .flow.parallel import ParallelPrimitive
    from .flow.sequential import SequentialPrimitive

In = TypeVar("In")
Out = TypeVar("Out")
In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)
Next = TypeVar("Next")
Before = TypeVar("Before")


class Executable(Protocol[In_contra, Out_co]):
    """An object with the ``execute`` of a primitive."""

    async def execute(self, input_data: In_contra, context: Any = None, /) -> Out_co:
        """Runs the step."""
        ...


# Accepted wherever a primitive is: an executable object, or an async function of (x) or (x, context).
Step = Executable[In, Out] | Callable[[In], Awaitable[Out]] | Callable[[In, WorkflowContext], Awaitable[Out]]


def check_time_left(operation: str | WorkflowPrimitive[Any, Any], context: object) -> None:
    """Refuses to start work that has no time left. Each primitive asks before it starts work.

    Args:
        operation: the primitive, or the name of the operation, for the error.
        context: of the call, of any type.

    Raises:
        PrimitiveTimeoutError: the deadline of the task or of the context has passed.
    """
    deadline = deadline_var.get()
    # The exact type first: the functions are for contexts of other types, and cost more than the rest of this.
    if context is not None and (type(context) is not WorkflowContext or context.deadline is not None):
        deadline = earliest(deadline, deadline_of(context))
    if deadline is not None and deadline.when <= get_running_loop().time():
        raise PrimitiveTimeoutError(
            operation if isinstance(operation, str) else operation.name,
            0.0,
            0.0,
            kind="deadline",
            cleanup="refused",
            deadline_source="inherited",
            deadline=deadline,
        )


def as_error(stop: StopAsyncIteration) -> RuntimeError:
    """The error in place of a call's StopAsyncIteration, which in a stream would pass for the end (see PEP 479)."""
    error = RuntimeError("the call raised StopAsyncIteration")
    error.__cause__ = stop
    return error


_MISUSES = {
    "new": "the stream is not open: write `async with primitive.stream(x) as chunks:` and read `chunks`",
    "open": "the stream is open already, and one stream is one call: call `stream` again for another one",
    "closed": "the stream is closed: read it inside the `async with` block, or call `stream` again",
    "read": "the stream is being read by another task: a stream has one reader at a time",
    "cut": "the stream was closed while another task read it: its end is not the end of the answer",
}


class ChunkStream(ABC):
    """A stream: an async context manager that yields an async iterator over the chunks.

    The end of the ``async with`` block closes the stream, whether or not the reader has reached its end. Without the
    block, ``async for`` opens the stream itself and closes it at its end; if the reader leaves early, the stream stays
    open until the event loop has collected it.

    A stream has one reader at a time. A second task that asks for a chunk meanwhile gets a RuntimeError, and the first
    one loses nothing. If another task closes the stream during a read, the reader gets a RuntimeError, at the latest
    at its next chunk.
    """

    _phase: Literal["new", "open", "closed"] = "new"
    _reading = False
    _cut = False  # closed by one task while another read it

    def __aiter__(self) -> AsyncIterator[Any]:
        """The chunks, also outside of an ``async with`` block.

        Raises:
            RuntimeError: the stream is closed.
        """
        if self._phase == "open":
            return self._iterator()
        if self._phase == "closed":
            raise RuntimeError(_MISUSES["closed"])
        return self._read()

    def _iterator(self) -> AsyncIterator[Any]:
        """What `__aenter__` returned: the stream itself, unless a subclass says otherwise."""
        return cast("AsyncIterator[Any]", self)

    async def _read(self) -> AsyncIterator[Any]:
        async with self as chunks:
            async for chunk in chunks:
                yield chunk

    def _begin_reading(self) -> None:
        """Called by `__aenter__`: a stream is opened once.

        Raises:
            RuntimeError: the stream was opened before.
        """
        if self._phase != "new":
            raise RuntimeError(_MISUSES[self._phase])
        self._phase = "open"

    def _check_open(self) -> None:
        """Called by `__anext__`. A stream that is closed has no more chunks, as a generator has not.

        Raises:
            RuntimeError: the stream was not opened, or another task closed it during a read.
        """
        if self._phase == "new":
            raise RuntimeError(_MISUSES["new"])
        if self._cut:
            raise self._misuse("cut")

    @staticmethod
    def _misuse(kind: Literal["read", "cut"]) -> RuntimeError:
        """The error for two tasks that use the stream at the same time."""
        return RuntimeError(_MISUSES[kind])

    def _closing(self) -> None:
        """Called first by `__aexit__`."""
        self._phase = "closed"
        self._cut = self._reading

    @abstractmethod
    async def __aenter__(self) -> AsyncIterator[Any]: ...

    @abstractmethod
    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None: ...


class WorkflowPrimitive(ABC, Generic[In, Out]):
    """One step of a workflow.

    `execute` never changes its input. Exceptions of the wrapped work pass through it unchanged.
    """

    @property
    def name(self) -> str:
        """A short name for descriptions and spans."""
        return type(self).__name__

    @abstractmethod
    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Runs the step.

        Args:
            input_data: the input of the step.
            context: identity and scratch space of the run; None makes a fresh one.
        """

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Runs the step and returns its result in chunks: ``async with step.stream(x) as chunks``.

        A step that does not stream yields its whole result as the only chunk.
        """
        from .streams import OneChunk

        return OneChunk(lambda: self.execute(input_data, context))

    @property
    def execute_reads_stream(self) -> bool:
        """Whether `execute` only reads `stream` to its end and joins the chunks with `join_chunks`.

        If so, a primitive around this one may read the stream itself, and time the chunks.
        """
        return bool(getattr(self, "collects", False))  # the name in earlier versions, which a subclass may still have

    def join_chunks(self, chunks: list[Any]) -> Any:
        """Joins the chunks of a stream into the result of `execute`: one text if all are text, else the list."""
        earlier = getattr(self, "gather", None)  # as above
        if earlier is not None:
            return earlier(chunks)
        return "".join(chunks) if all(isinstance(chunk, str) for chunk in chunks) else chunks

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The primitives inside this one, each with its role, for `describe`."""
        return ()

    def describe(self) -> str:
        """Returns the chain as an indented tree, outermost first."""
        return "\n".join(_describe(self, "", 0))

    def _label(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._label()}>"

    def __rshift__(self, other: Step[Out, Next]) -> SequentialPrimitive[In, Next]:
        from .flow.sequential import SequentialPrimitive
        from .lifting import lift

        return SequentialPrimitive([self, lift(other)])

    def __rrshift__(self, other: Step[Before, In]) -> SequentialPrimitive[Before, Out]:
        from .flow.sequential import SequentialPrimitive
        from .lifting import lift

        return SequentialPrimitive([lift(other), self])

    def __or__(self, other: Step[In, Next]) -> ParallelPrimitive[In, Out | Next]:
        from .flow.parallel import ParallelPrimitive
        from .lifting import lift

        return ParallelPrimitive([self, lift(other)])

    def __ror__(self, other: Step[In, Next]) -> ParallelPrimitive[In, Next | Out]:
        from .flow.parallel import ParallelPrimitive
        from .lifting import lift

        return ParallelPrimitive([lift(other), self])


def _describe(primitive: WorkflowPrimitive[Any, Any], role: str, depth: int) -> list[str]:
    lines = [f"{'  ' * depth}{role + ': ' if role else ''}{primitive._label()}"]  # pyright: ignore[reportPrivateUsage]
    for inner_role, inner in primitive.steps():
        lines += _describe(inner, inner_role, depth + 1)
    return lines
