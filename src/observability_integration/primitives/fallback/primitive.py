"""FallbackPrimitive: fails over to the next target when another target may serve the call."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Generic, cast, get_args

from observability_integration.checks import check_callable, check_choice, check_count
from observability_integration.context import WorkflowContext, deadline_var
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.base import (
    ChunkStream,
    In,
    Out,
    Step,
    WorkflowPrimitive,
    check_time_left,
)
from observability_integration.primitives.lifting import lift
from observability_integration.resilience.faults import FAULT_KINDS, Classifier, FaultKind
from observability_integration.resilience.last_resort import last_resort
from observability_integration.telemetry.metrics.instruments import switch
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import NO_SPAN

from .record import FallbackRecord
from .search import Action, Failover, Search, Target
from .stream import FallbackStream


class FallbackPrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Asks the targets in order until one answers.

    ===================================================  ===============================================================
    fault of a target                                    what happens
    ===================================================  ===============================================================
    content filter, wrong credentials, wrong request,    the error is raised unchanged: no other target may get the call
    a mistake of the calling program (`caller`)
    longer than the context window                       the next target whose window is larger, or of unknown size
    any other: timeout, overloaded, cut stream, refused  the next target, at once
    the deadline has passed                              the error is raised unchanged
    ===================================================  ===============================================================

    The last target that is left is asked even if its circuit is open: the breaker admits one probe (see
    `CircuitBreakerPrimitive`).

    `execute` returns whole answers only, so a stream that is cut in the middle leads to the next target. The reader of
    `stream` gets a `StreamInterruptedError` in that case. With `restart_streams`, the reader gets a `StreamRestart`,
    after which the next target's answer starts from the beginning.

    Args:
        targets: primitives or async callables in order of preference; a mapping gives them names, which are labels.
        policy: overrides the table by kind of fault: ``next``, ``larger_window`` or ``raise``.
        context_windows: in tokens, by target name; the window of a target that is not named has an unknown size.
        restart_streams: whether readers of a cut stream get a restart instead of an error.
        classifier: classifies an exception before the rules do (see `resilience.faults.classify`).
        operation_name: label of the metrics.

    Raises:
        ConfigurationError: no targets, names that occur twice, an unknown kind, action or name, or a window below 1.
    """

    def __init__(
        self,
        targets: Sequence[Step[In, Out]] | Mapping[str, Step[In, Out]],
        *,
        policy: Mapping[FaultKind, Action] | None = None,
        context_windows: Mapping[str, int] | None = None,
        restart_streams: bool = False,
        classifier: Classifier | None = None,
        operation_name: str = "fallback",
    ) -> None:
        windows = dict(context_windows or {})
        self._targets = [
            Target(name, step, windows.pop(name, None)) for name, step in _steps_by_name(cast("Any", targets)).items()
        ]
        if not self._targets:
            raise ConfigurationError("a fallback needs at least one target")
        if windows:
            raise ConfigurationError(f"context_windows names no target: {', '.join(map(repr, windows))}")
        for target in self._targets:
            check_count("context_windows", target.context_window, optional=True)
        self._has_one_target = len(self._targets) == 1
        check_callable("classifier", classifier, optional=True)
        self._operation = operation_name
        actions: dict[FaultKind, Action] = {kind: _checked(kind, action) for kind, action in (policy or {}).items()}
        self._record = FallbackRecord(self, operation_name, [target.name for target in self._targets])
        self._failover = Failover(self._targets, actions, classifier, self._record, restart_streams=restart_streams)

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    @property
    def restart_streams(self) -> bool:
        """Whether live readers get a `StreamRestart` instead of an error; a change holds for the next fault."""
        return self._failover.restart_streams

    @restart_streams.setter
    def restart_streams(self, restart: bool) -> None:
        self._failover.restart_streams = restart

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The targets, by name."""
        return [(target.name, target.step) for target in self._targets]

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Asks the targets in order.

        Raises:
            PrimitiveTimeoutError: the deadline has passed.
            AllTargetsFailedError: two or more targets failed; the error of the last target is its cause.
            Exception: the error of the only target that was asked, unchanged.
        """
        if deadline_var.get() is not None or context is not None:
            check_time_left(self, context)
        tracing = spans.tracing
        span, token = NO_SPAN, None
        if tracing.enabled:
            span = spans.begin(self._record.span_name, context)
            token = tracing.activate(span)
        # Most calls are served by the first target, and need no search.
        search, target = None, self._targets[0]
        is_last = last_resort.get() if self._has_one_target else False
        try:
            while True:
                previous = last_resort.set(is_last)
                try:
                    result = await target.call(input_data, context)
                except Exception as error:  # noqa: BLE001 - raised again unless another target is asked
                    search = search or Search(self._targets)
                    self._failover.advance(span, search, error, context)
                    target = search.target
                else:
                    if switch.on or span is not NO_SPAN or search is not None or self._record.tracks_primary:
                        self._record.served(span, *((0, None) if search is None else (search.index, search.fault)))
                    return cast("Out", result)
                finally:
                    last_resort.reset(previous)
                is_last = search.is_last_resort(last_resort.get())
        except asyncio.CancelledError:
            self._record.cancelled(span)
            raise
        except Exception as error:
            tracing.mark_failed(span, error)
            raise
        finally:
            if span is not NO_SPAN:
                tracing.deactivate(token)
                span.end()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Streams from the first target that produces content."""
        return FallbackStream(self._failover, lambda target: target.step.stream(input_data, context), context)


def _steps_by_name(targets: Any) -> dict[str, WorkflowPrimitive[Any, Any]]:
    if isinstance(targets, Mapping):
        return {str(name): lift(step) for name, step in cast("Mapping[str, Any]", targets).items()}
    steps: list[WorkflowPrimitive[Any, Any]] = [lift(step) for step in targets]
    named: dict[str, WorkflowPrimitive[Any, Any]] = {}
    for step in steps:
        name, number = step.name, 1
        while name in named:  # two clients of the same model have the same name
            number += 1
            name = f"{step.name} {number}"
        named[name] = step
    return named


def _checked(kind: object, action: object) -> Action:
    check_choice("policy: a kind of fault", kind, FAULT_KINDS)
    check_choice(f"policy[{kind!r}]", action, get_args(Action))
    return cast("Action", action)
