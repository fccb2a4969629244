"""The errors this library raises of its own accord.

::

    Exception
    └── ObservabilityError                 base of everything below
        ├── ConfigurationError             a wrong argument; also a ValueError
        ├── MissingDependencyError         an optional package is needed; also an ImportError
        ├── SharedCallError                the call was made by another process, on behalf of this one too, and failed
        ├── CallRefusedError               a limit of ours refused the call, which was never made
        │   ├── CircuitOpenError           its target failed too often lately
        │   ├── ConcurrencyLimitError      too many calls run or wait already
        │   └── RateLimitExceededError     too many requests or tokens for this minute
        ├── AllTargetsFailedError          no target of a fallback gave an answer
        ├── CompensationError              a saga failed, and could not be undone altogether
        ├── ProviderStreamError            the provider reported an error inside its stream
        ├── PrimitiveTimeoutError          our own clock ran out; also a builtins.TimeoutError (hence an OSError)
        └── StreamInterruptedError         a stream ended before its answer was complete
            └── StreamStalledError         no content came for too long; also a PrimitiveTimeoutError

An exception raised by the wrapped work is never converted: it passes through unchanged.
No message contains a prompt or an answer.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

TimeoutKind = Literal["total", "attempt", "first_chunk", "idle", "hard", "deadline"]
Cleanup = Literal["clean", "failed", "late_result", "abandoned", "refused"]
DeadlineSource = Literal["own", "inherited"]

_KNOBS: dict[str, str] = {
    "total": "timeout_seconds",
    "attempt": "timeout_seconds",
    "first_chunk": "first_chunk_seconds",
    "idle": "idle_seconds",
    "hard": "hard_timeout_seconds",
    "deadline": "the deadline set further out",
}


class ObservabilityError(Exception):
    """Base of all errors raised by this library."""


class ConfigurationError(ObservabilityError, ValueError):
    """A caller's argument is wrong; the message names it."""


class MissingDependencyError(ObservabilityError, ImportError):
    """An optional package is needed for what was asked; the message says how to install it."""


class SharedCallError(ObservabilityError):
    """The call was made by another process, on behalf of this one too, and failed there.

    Attributes:
        operation: name of the operation.
        error_type: the type of the exception over there, such as ``openai.RateLimitError``; its message stays there.
    """

    def __init__(self, operation: str, error_type: str) -> None:
        self.operation = operation
        self.error_type = error_type
        super().__init__(f"The call of '{operation}' that another process made for all failed there: {error_type}")

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedCallError, (self.operation, self.error_type)


class CallRefusedError(ObservabilityError):
    """A limit of ours refused the call: it was never made, so another target may serve it at once.

    Attributes:
        operation: name of the operation, or of the target.
        retry_after_seconds: before which it is no use to ask again, in seconds; None when nobody knows.
    """

    def __init__(self, operation: str, retry_after_seconds: float | None, message: str) -> None:
        self.operation = operation
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return CallRefusedError, (self.operation, self.retry_after_seconds, str(self))


class CircuitOpenError(CallRefusedError):
    """The circuit breaker is open: the target failed too often lately, and it is not yet time to try again."""

    def __init__(self, operation: str, retry_after_seconds: float) -> None:
        super().__init__(
            operation,
            retry_after_seconds,
            f"The circuit of '{operation}' is open: it failed too often lately; it is tried again in "
            f"{retry_after_seconds:.1f}s at the earliest (see BreakerPolicy)",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return CircuitOpenError, (self.operation, self.retry_after_seconds)


class ConcurrencyLimitError(CallRefusedError):
    """As many calls as are allowed run already, and there was no time or no place to wait.

    Attributes:
        reason: ``queue_full``, ``queue_timeout``, ``deadline``, or ``shed`` when it made room for a higher priority.
        waited_seconds: how long it waited, in seconds.
        limit: how many calls may run at once.
    """

    _KNOBS: ClassVar[dict[str, str]] = {
        "queue_full": "max_queued",
        "queue_timeout": "max_wait_seconds",
        "deadline": "the deadline set further out",
        "shed": "its priority, or max_queued",
    }

    def __init__(self, operation: str, reason: str, waited_seconds: float, limit: int) -> None:
        self.reason = reason
        self.waited_seconds = waited_seconds
        self.limit = limit
        super().__init__(
            operation,
            None,
            f"'{operation}' runs {limit} calls at once already, and this one was refused after {waited_seconds:.2f}s "
            f"({reason}); raise the limit or {self._KNOBS.get(reason, 'max_wait_seconds')} to allow more",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ConcurrencyLimitError, (self.operation, self.reason, self.waited_seconds, self.limit)


class RateLimitExceededError(CallRefusedError):
    """The requests or tokens of this minute are used up, and the wait would be longer than allowed.

    Attributes:
        limit: ``requests``, ``tokens``, or ``provider`` when that has asked for a pause.
    """

    def __init__(self, operation: str, limit: str, retry_after_seconds: float | None) -> None:
        self.limit = limit
        when = "never" if retry_after_seconds is None else f"in {retry_after_seconds:.1f}s"
        if limit == "provider":
            told = f"The provider of '{operation}' asked for a pause, which ends {when}; raise max_wait_seconds to wait"
        else:
            told = (
                f"'{operation}' has used up its {limit} per minute; there is room for this call {when}; raise "
                f"{limit}_per_minute or max_wait_seconds to allow more"
            )
        super().__init__(operation, retry_after_seconds, told)

    def __reduce__(self) -> tuple[Any, ...]:
        return RateLimitExceededError, (self.operation, self.limit, self.retry_after_seconds)


class TargetFailure(NamedTuple):
    """Why one target of a fallback gave no answer.

    Attributes:
        target: its name.
        fault: what kind of fault it was (see `resilience.faults`).
        error: what it raised.
    """

    target: str
    fault: str
    error: BaseException


class AllTargetsFailedError(ObservabilityError):
    """No target of a fallback gave an answer; the last one's error is the ``__cause__``.

    Attributes:
        operation: name of the operation.
        failures: what happened at each target, in the order in which they were asked. Pickling leaves of each error
            an `ObservabilityError` with the name of its type.
    """

    def __init__(self, operation: str, failures: Sequence[TargetFailure]) -> None:
        self.operation = operation
        self.failures = tuple(failures)
        told = ", ".join(
            f"{failure.target}: {failure.fault} ({type(failure.error).__name__})" for failure in self.failures
        )
        super().__init__(f"All targets of '{operation}' failed: {told}")

    def __copy__(self) -> AllTargetsFailedError:
        return AllTargetsFailedError(self.operation, self.failures)

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception of a provider's holds the request, with its key and prompt, and many cannot be loaded again.
        failures = tuple(TargetFailure(target, fault, _type_only(error)) for target, fault, error in self.failures)
        return _rebuild_failed, (AllTargetsFailedError, str(self), self.operation, failures)


class CompensationError(ObservabilityError):
    """A step of a saga failed, and so did compensations: what the saga did is not wholly undone.

    The step's own error is the ``__cause__``.

    Attributes:
        operation: name of the saga.
        failed_step: the step whose failure ended it.
        failures: pairs of the step that could not be undone and the error of its compensation, in the order in which
            they were tried. Pickling leaves of each error an `ObservabilityError` with the name of its type.
    """

    def __init__(self, operation: str, failed_step: str, failures: Sequence[tuple[str, BaseException]]) -> None:
        self.operation = operation
        self.failed_step = failed_step
        self.failures = tuple(failures)
        told = ", ".join(f"{step} ({type(error).__name__})" for step, error in self.failures)
        super().__init__(f"Saga '{operation}' failed at '{failed_step}' and could not undo: {told}")

    def __copy__(self) -> CompensationError:
        return CompensationError(self.operation, self.failed_step, self.failures)

    def __reduce__(self) -> tuple[Any, ...]:
        failures = tuple((step, _type_only(error)) for step, error in self.failures)
        return _rebuild_failed, (CompensationError, str(self), self.operation, self.failed_step, failures)


def _type_only(error: BaseException) -> ObservabilityError:
    if type(error) is ObservabilityError:
        return error  # it was pickled before
    kind = type(error)
    return ObservabilityError(f"{kind.__module__}.{kind.__qualname__}")


def _rebuild_failed(
    kind: Callable[..., AllTargetsFailedError | CompensationError], message: str, *args: Any
) -> AllTargetsFailedError | CompensationError:
    rebuilt = kind(*args)
    rebuilt.args = (message,)  # which names the types that the errors had
    return rebuilt


class ProviderStreamError(ObservabilityError):
    """The provider reported an error inside its stream, where it has no status any more to say so.

    The provider's message is not kept, because it may quote the prompt.

    Args:
        operation: see the attributes, as for `code` and `status_code`.
        kind: the attribute `type`.

    Attributes:
        operation: name of the operation whose stream it was.
        code: the provider's name for the error, such as ``overloaded_error``; ``error`` if it has none.
        type: what else the provider calls it, such as ``invalid_request_error``; None if nothing.
        status_code: the HTTP status from 400 to 599 that it told in place of a code, or None.
    """

    def __init__(self, operation: str, code: str, status_code: int | None = None, *, kind: str | None = None) -> None:
        self.operation = operation
        self.code = code
        self.type = kind
        self.status_code = status_code
        told = code if status_code is None else f"{code}, status {status_code}"
        super().__init__(f"The provider of '{operation}' reported an error inside its stream: {told}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_streamed, (self.operation, self.code, self.status_code, self.type)


def _rebuild_streamed(operation: str, code: str, status_code: int | None, kind: str | None) -> ProviderStreamError:
    return ProviderStreamError(operation, code, status_code, kind=kind)


class PrimitiveTimeoutError(ObservabilityError, builtins.TimeoutError):
    """The time allowed by a primitive ran out.

    Raised only when our own clock fired: a ``TimeoutError`` of the wrapped work stays its own. Being a
    ``builtins.TimeoutError`` makes it an ``OSError`` too, so list it before ``except OSError``.

    Attributes:
        operation: name of the operation that ran out of time.
        timeout_seconds: the limit that was exceeded, in seconds.
        elapsed_seconds: time between the start of the work and this error, in seconds.
        kind: which clock fired: ``total``, ``attempt``, ``first_chunk``, ``idle``, ``hard`` or ``deadline``.
        cleanup: how the cancelled work ended: ``clean``, ``failed``, ``late_result``, ``abandoned``, or ``refused``
            when nothing was left of the deadline and the work was never started.
        deadline_source: ``own`` when this primitive's limit fired, ``inherited`` when one set further out did.
        deadline: the deadline that passed, for a primitive further out to recognise as its own.
    """

    def __init__(
        self,
        operation: str,
        timeout_seconds: float,
        elapsed_seconds: float,
        *,
        kind: TimeoutKind = "total",
        cleanup: Cleanup = "clean",
        deadline_source: DeadlineSource = "own",
        deadline: Any = None,
    ) -> None:
        self.operation = operation
        self.timeout_seconds = timeout_seconds
        self.elapsed_seconds = elapsed_seconds
        self.kind: TimeoutKind = kind
        self.cleanup: Cleanup = cleanup
        self.deadline_source: DeadlineSource = deadline_source
        self.deadline = deadline
        knob = _KNOBS[kind] if deadline_source == "own" else _KNOBS["deadline"]
        super().__init__(
            f"Operation '{operation}' exceeded timeout of {timeout_seconds:g}s (kind: {kind}, elapsed: "
            f"{elapsed_seconds:.2f}s, cleanup: {cleanup}); raise {knob} to allow more"
        )

    @property
    def timeout(self) -> float:
        """The limit that was exceeded, in seconds."""
        return self.timeout_seconds

    @property
    def elapsed(self) -> float:
        """Time between the start of the work and this error, in seconds."""
        return self.elapsed_seconds

    def __reduce__(self) -> tuple[Any, ...]:
        # A deadline is a moment on this process's clock; it means nothing elsewhere, so it stays behind.
        return _rebuild_timeout, (
            self.operation,
            self.timeout_seconds,
            self.elapsed_seconds,
            self.kind,
            self.cleanup,
            self.deadline_source,
        )


def _rebuild_timeout(
    operation: str,
    timeout_seconds: float,
    elapsed_seconds: float,
    kind: TimeoutKind,
    cleanup: Cleanup,
    deadline_source: DeadlineSource,
) -> PrimitiveTimeoutError:
    return PrimitiveTimeoutError(
        operation, timeout_seconds, elapsed_seconds, kind=kind, cleanup=cleanup, deadline_source=deadline_source
    )


class StreamInterruptedError(ObservabilityError):
    """A stream stopped before its answer was complete.

    Attributes:
        operation: name of the operation whose stream stopped.
        chunks: number of chunks that had been delivered.
        reason: ``no_finish_reason`` (the provider closed the stream early), ``cut`` (the connection broke, or what came
            could not be read), ``stalled`` (see `StreamStalledError`), ``cancelled`` (the call that others read too) or
            ``unreadable`` (a kept stream that could not be rebuilt).
    """

    def __init__(self, operation: str, chunks: int, reason: str) -> None:
        self.operation = operation
        self.chunks = chunks
        self.reason = reason
        super().__init__(f"Stream of '{operation}' was interrupted after {chunks} chunks ({reason})")

    def __reduce__(self) -> tuple[Any, ...]:
        return StreamInterruptedError, (self.operation, self.chunks, self.reason)


class StreamStalledError(StreamInterruptedError, PrimitiveTimeoutError):
    """The idle clock ran out in the middle of an answer: at once an interrupted stream and a timeout of ours."""

    def __init__(
        self,
        operation: str,
        timeout_seconds: float,
        elapsed_seconds: float,
        *,
        chunks: int,
        cleanup: Cleanup = "clean",
    ) -> None:
        PrimitiveTimeoutError.__init__(self, operation, timeout_seconds, elapsed_seconds, kind="idle", cleanup=cleanup)
        self.chunks = chunks
        self.reason = "stalled"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_stalled, (
            self.operation,
            self.timeout_seconds,
            self.elapsed_seconds,
            self.chunks,
            self.cleanup,
        )


def _rebuild_stalled(
    operation: str, timeout_seconds: float, elapsed_seconds: float, chunks: int, cleanup: Cleanup
) -> StreamStalledError:
    return StreamStalledError(operation, timeout_seconds, elapsed_seconds, chunks=chunks, cleanup=cleanup)
