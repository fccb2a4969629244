"""Turns plain async callables into primitives.

Accepted are async functions and async generator functions of ``(x)`` or ``(x, context)``, and objects with an async
``execute(x, context)``. The context is passed if the second parameter is required, or is called ``context`` or ``ctx``.
A second parameter with a default (``temperature=0.2``) keeps it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Literal, cast, overload

from observability_integration.context import WorkflowContext, deadline_var
from observability_integration.errors import ConfigurationError
from observability_integration.threads import DaemonThreads

from .base import ChunkStream, In, Out, Step, WorkflowPrimitive, check_time_left
from .streams import GeneratorStream, collect

Call = Callable[[Any, WorkflowContext | None], Awaitable[Any]]

_threads = DaemonThreads(max_threads=32, name="observability-sync-step")


def _unwrapped(func: Any) -> Any:
    while isinstance(cast("object", func), functools.partial):
        func = func.func
    return func


def _callable_name(func: Any) -> str:
    func = _unwrapped(func)
    return getattr(func, "__name__", None) or type(func).__name__


def takes_context(func: Callable[..., Any]) -> bool:
    """Whether `func` takes the context as its second argument.

    Raises:
        ConfigurationError: `func` requires more than two arguments, or accepts none.
    """
    try:
        parameters = list(inspect.signature(func).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    required_keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if len(required) > 2 or required_keywords:
        wanted = [p.name for p in required] + required_keywords
        raise ConfigurationError(f"{_callable_name(func)} must take (x) or (x, context), but requires {wanted}")
    if not positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise ConfigurationError(f"{_callable_name(func)} must take (x) or (x, context), but takes no argument")
    return len(required) == 2 or (len(positional) > 1 and positional[1].name in ("context", "ctx"))


# Looks at `__call__` of the type, as a call does. So a class, whose call makes an instance, is never async.
def _is_async(func: Any) -> bool:
    func = _unwrapped(func)
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(type(func).__call__)


def _is_async_generator(func: Any) -> bool:
    func = _unwrapped(func)
    return inspect.isasyncgenfunction(func) or inspect.isasyncgenfunction(type(func).__call__)


class LambdaPrimitive(WorkflowPrimitive[In, Out]):
    """A plain callable as a primitive.

    Args:
        func: async function of ``(x)`` or ``(x, context)``; a synchronous one only with `run_in_thread`.
        name: shown by `describe`; by default the function's own name.
        run_in_thread: calls a synchronous function in a daemon thread. The thread cannot be stopped: a timeout around
            it frees the caller, and the thread runs on to its end.

    Raises:
        ConfigurationError: `func` is synchronous and `run_in_thread` is not set, or its parameters do not fit.
    """

    @overload
    def __init__(
        self,
        func: Callable[[In], Awaitable[Out]] | Callable[[In, WorkflowContext], Awaitable[Out]],
        *,
        name: str | None = None,
        run_in_thread: Literal[False] = False,
    ) -> None: ...

    @overload
    def __init__(
        self,
        func: Callable[[In], Out] | Callable[[In, WorkflowContext], Out],
        *,
        name: str | None = None,
        run_in_thread: Literal[True],
    ) -> None: ...

    def __init__(self, func: Any, *, name: str | None = None, run_in_thread: bool = False) -> None:
        self._name = name or _callable_name(func)
        if not callable(func):
            raise ConfigurationError(f"expected a primitive or an async callable, got {type(func).__name__}")
        with_context = takes_context(func)
        self.call: Call = _direct(func, with_context)
        if _is_async(func):
            return
        if _is_async_generator(func):
            raise ConfigurationError(f"{self._name} is an async generator function: pass StreamingPrimitive(func)")
        if not run_in_thread:
            raise ConfigurationError(
                f"{self._name} is synchronous and would block the event loop: "
                "make it `async def`, or pass LambdaPrimitive(func, run_in_thread=True)"
            )
        self.call = _threaded(func, with_context)

    @property
    def name(self) -> str:
        """The given name, or the function's."""
        return self._name

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Calls the function.

        Raises:
            PrimitiveTimeoutError: the deadline has passed.
        """
        if deadline_var.get() is not None or context is not None:
            check_time_left(self, context)
        return cast("Out", await self.call(input_data, context))


def _direct(func: Callable[..., Any], with_context: bool) -> Call:
    if with_context:
        return lambda x, context: func(x, WorkflowContext() if context is None else context)
    return lambda x, context: func(x)


def _threaded(func: Callable[..., Any], with_context: bool) -> Call:
    if with_context:
        return lambda x, context: _threads.run(func, x, WorkflowContext() if context is None else context)
    return lambda x, context: _threads.run(func, x)


class StreamingPrimitive(WorkflowPrimitive[In, Any]):
    """An async generator function as a primitive. `execute` reads it to its end: text is joined, other chunks listed.

    Args:
        func: async generator function of ``(x)`` or ``(x, context)``.
        name: shown by `describe`; by default the function's own name.

    Raises:
        ConfigurationError: `func` is no async generator function, or its parameters do not fit.
    """

    def __init__(
        self,
        func: Callable[[In], AsyncIterator[Any]] | Callable[[In, WorkflowContext], AsyncIterator[Any]],
        *,
        name: str | None = None,
    ) -> None:
        if not _is_async_generator(func):
            raise ConfigurationError(f"{_callable_name(func)} is no async generator function")
        self._name = name or _callable_name(func)
        self._func = cast("Callable[..., AsyncGenerator[Any, None]]", func)
        self._with_context = takes_context(func)

    @property
    def name(self) -> str:
        """The given name, or the function's."""
        return self._name

    @property
    def execute_reads_stream(self) -> bool:
        """True."""
        return True

    def _generator(self, input_data: In, context: WorkflowContext | None) -> AsyncGenerator[Any, None]:
        if self._with_context:
            return self._func(input_data, WorkflowContext() if context is None else context)
        return self._func(input_data)

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Any:
        """Reads the stream to its end and joins the chunks."""
        return self.join_chunks(await collect(self.stream(input_data, context)))

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Opens the stream."""
        return GeneratorStream(lambda: self._generator(input_data, context), self._name, context)


class _ExecutableAdapter(WorkflowPrimitive[In, Out]):
    """An object that is no `WorkflowPrimitive`, but has an async ``execute``."""

    def __init__(self, target: Any) -> None:
        if not _is_async(target.execute):
            raise ConfigurationError(f"{type(target).__name__}.execute is not async")
        self._target = target

    @property
    def name(self) -> str:
        """The class of the adapted object."""
        return type(self._target).__name__

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Calls the object's ``execute``.

        Raises:
            PrimitiveTimeoutError: the deadline has passed.
        """
        check_time_left(self, context)
        return cast("Out", await self._target.execute(input_data, WorkflowContext() if context is None else context))


def lift(target: Step[In, Out]) -> WorkflowPrimitive[In, Out]:
    """Returns a primitive as it is, and makes one of any other `Step`.

    Raises:
        ConfigurationError: `target` is neither a primitive nor an async callable.
    """
    if isinstance(target, WorkflowPrimitive):
        return cast("WorkflowPrimitive[In, Out]", target)
    if isinstance(target, type):
        raise ConfigurationError(f"expected a primitive or an async callable, got the class {target.__name__}")
    # Looked up statically: a mock has any attribute.
    if inspect.getattr_static(target, "execute", None) is not None:
        return _ExecutableAdapter(target)
    if _is_async_generator(target):
        return cast("WorkflowPrimitive[In, Out]", StreamingPrimitive(cast("Any", target)))
    return LambdaPrimitive(cast("Any", target))


def call_of(primitive: WorkflowPrimitive[In, Out]) -> Call:
    """Returns the cheapest callable that runs a primitive: the plain function behind it, else ``execute``."""
    # An exact type: a subclass may override `execute`.
    return primitive.call if type(primitive) is LambdaPrimitive else primitive.execute
