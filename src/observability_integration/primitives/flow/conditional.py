"""`ConditionalPrimitive` and `SwitchPrimitive`: run one of several steps, chosen by the input."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, cast

from observability_integration.context import WorkflowContext
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.base import ChunkStream, In, Out, Step, WorkflowPrimitive, check_time_left
from observability_integration.primitives.lifting import lift, takes_context
from observability_integration.primitives.streams import OneChunk, PassingStream
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

Selector = Callable[[Any, WorkflowContext], Any | Awaitable[Any]] | Callable[[Any], Any | Awaitable[Any]]


class SwitchPrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Runs the case whose key the selector returns.

    Args:
        selector: function of ``(input)`` or ``(input, context)``, synchronous or not, that returns a key of `cases`.
        cases: key → primitive or async callable, at least one.
        default: runs for any other key; without it, the input is returned unchanged.

    Raises:
        ConfigurationError: no cases.
    """

    def __init__(
        self,
        selector: Selector,
        cases: Mapping[Any, Step[In, Out]],
        default: Step[In, Out] | None = None,
    ) -> None:
        if not cases:
            raise ConfigurationError("a switch needs at least one case")
        self._selector: Callable[..., Any] = selector
        self._with_context = takes_context(selector)
        self._cases = {key: lift(case) for key, case in cases.items()}
        self._default = None if default is None else lift(default)

    @property
    def name(self) -> str:
        """``switch``."""
        return "switch"

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The cases and the default."""
        steps: list[tuple[str, WorkflowPrimitive[Any, Any]]] = [(str(key), case) for key, case in self._cases.items()]
        return steps if self._default is None else [*steps, ("default", self._default)]

    def _begin(self) -> OperationSpan:
        return spans.tracing.begin(self.name, {})

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Runs the case; an error of the selector passes through.

        Raises:
            PrimitiveTimeoutError: the deadline has passed.
        """
        check_time_left(self, context)
        context = WorkflowContext() if context is None else context
        span = self._begin()
        token = spans.tracing.activate(span)
        try:
            case = await self._choose(span, input_data, context)
            return cast("Out", input_data) if case is None else await case.execute(input_data, context)
        except Exception as error:
            spans.tracing.mark_failed(span, error)
            raise
        finally:
            spans.tracing.deactivate(token)
            span.end()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Streams from the case."""
        context = WorkflowContext() if context is None else context

        async def unchanged_input() -> In:
            return input_data

        async def source(span: OperationSpan) -> ChunkStream:
            case = await self._choose(span, input_data, context)
            return OneChunk(unchanged_input) if case is None else case.stream(input_data, context)

        return PassingStream(self.name, context, self._begin, source)

    async def _choose(
        self, span: OperationSpan, input_data: In, context: WorkflowContext
    ) -> WorkflowPrimitive[In, Out] | None:
        key = self._selector(input_data, context) if self._with_context else self._selector(input_data)
        if inspect.isawaitable(key):
            key = await key
        key = self._normalized(key)
        try:
            known = key in self._cases
        except TypeError:  # an unhashable key matches no case
            known = False
        # The key may hold user data, so the span shows known keys only.
        span.set_attribute(f"{self.name}.branch", str(key) if known else "default")
        return self._cases[key] if known else self._default

    def _normalized(self, key: Any) -> Any:
        return key


class ConditionalPrimitive(SwitchPrimitive[In, Out]):
    """Runs one step if a condition is true, else another one or none.

    Args:
        condition: function of ``(input)`` or ``(input, context)``, synchronous or not.
        then_primitive: runs if it is true.
        else_primitive: runs if it is false; without it, the input is returned unchanged.
    """

    def __init__(
        self, condition: Selector, then_primitive: Step[In, Out], else_primitive: Step[In, Out] | None = None
    ) -> None:
        cases: dict[bool, Step[In, Out]] = {True: then_primitive}
        if else_primitive is not None:
            cases[False] = else_primitive
        super().__init__(condition, cases)

    @property
    def name(self) -> str:
        """``conditional``."""
        return "conditional"

    def _normalized(self, key: Any) -> Any:
        return bool(key)
