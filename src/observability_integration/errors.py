"""The errors that this library raises itself.

::

    Exception
    └── ObservabilityError                 base of everything below
        ├── ConfigurationError             a wrong argument; also a ValueError
        ├── MissingDependencyError         an optional package is missing; also an ImportError
        ├── SharedCallError                another process made the call for this one too, and it failed
        ├── CallRefusedError               a limit of this library refused the call, which was never made
        │   ├── CircuitOpenError           the circuit breaker is open: the target failed too often
        │   ├── ConcurrencyLimitError      too many calls are running or waiting
        │   └── RateLimitExceededError     the requests or tokens of this minute are used up
        ├── AllTargetsFailedError          no target of a fallback gave an answer
        ├── CompensationError              a step of a saga failed, and so did a compensation
        ├── ProviderStreamError            the provider reported an error inside its stream
        ├── PrimitiveTimeoutError          a timeout of a primitive; also a builtins.TimeoutError (hence an OSError)
        └── StreamInterruptedError         a stream ended before its answer was complete
            └── StreamStalledError         no content for too long; also a PrimitiveTimeoutError

An exception of the wrapped work passes through unchanged. No message contains a prompt or an answer.
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
    """An argument is wrong; the message names it."""


class MissingDependencyError(ObservabilityError, ImportError):
    """An optional package is not installed; the message says how to install it."""


class SharedCallError(ObservabilityError):
    """Another process made the call for this one too, and the call failed there.

    Attributes:
        operation: name of the operation.
        error_type: type of the exception in that process, such as ``openai.RateLimitError``. Its message is not sent.
    """

    def __init__(self, operation: str, error_type: str) -> None:
        self.operation = operation
        self.error_type = error_type
        super().__init__(f"The call of '{operation}' that another process made for all failed there: {error_type}")

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedCallError, (self.operation, self.error_type)


class CallRefusedError(ObservabilityError):
    """A limit of this library refused the call. It was never made, so another target may serve it at once.

    Attributes:
        operation: name of the operation, or of the target.
        retry_after_seconds: earliest time at which a retry can succeed, in seconds from now; None if unknown.
    """

    def __init__(self, operation: str, retry_after_seconds: float | None, message: str) -> None:
        self.operation = operation
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return CallRefusedError, (self.operation, self.retry_after_seconds, str(self))


class CircuitOpenError(CallRefusedError):
    """The circuit breaker is open: the target failed too often, and the next probe is not due yet."""

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
    """All permits are in use, and the call could not wait, or not long enough.

    Attributes:
        reason: ``queue_full``, ``queue_timeout``, ``deadline``, or ``shed`` to admit a call of higher priority.
        waited_seconds: time in the queue, in seconds.
        limit: number of calls that may run at once.
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
    """The requests or tokens of this minute are used up, and the wait would exceed `max_wait_seconds`.

    Attributes:
        limit: ``requests``, ``tokens``, or ``provider`` if the provider asked for a pause.
    """

    def __init__(self, operation: str, limit: str, retry_after_seconds: float | None) -> None:
        self.limit = limit
        when = "never" if retry_after_seconds is None else f"in {retry_after_seconds:.1f}s"
        if limit == "provider":
            text = f"The provider of '{operation}' asked for a pause, which ends {when}; raise max_wait_seconds to wait"
        else:
            text = (
                f"'{operation}' has used up its {limit} per minute; there is room for this call {when}; raise "
                f"{limit}_per_minute or max_wait_seconds to allow more"
            )
        super().__init__(operation, retry_after_seconds, text)

    def __reduce__(self) -> tuple[Any, ...]:
        return RateLimitExceededError, (self.operation, self.limit, self.retry_after_seconds)


class TargetFailure(NamedTuple):
    """The failure of one target of a fallback.

    Attributes:
        target: name of the target.
        fault: kind of the fault (see `resilience.faults`).
        error: the exception that the target raised.
    """

    target: str
    fault: str
    error: BaseException


class AllTargetsFailedError(ObservabilityError):
    """All targets of a fallback failed; the error of the last one is the ``__cause__``.

    Attributes:
        operation: name of the operation.
        failures: the failure of each target, in the order of the calls. Pickling replaces each error with an
            `ObservabilityError` that names its type.
    """

    def __init__(self, operation: str, failures: Sequence[TargetFailure]) -> None:
        self.operation = operation
        self.failures = tuple(failures)
        failed = ", ".join(
            f"{failure.target}: {failure.fault} ({type(failure.error).__name__})" for failure in self.failures
        )
        super().__init__(f"All targets of '{operation}' failed: {failed}")

    def __copy__(self) -> AllTargetsFailedError:
        return AllTargetsFailedError(self.operation, self.failures)

    def __reduce__(self) -> tuple[Any, ...]:
        # A provider's exception holds the request, with key and prompt, and often cannot be unpickled.
        failures = tuple(TargetFailure(target, fault, _type_only(error)) for target, fault, error in self.failures)
        return _rebuild_with_message, (AllTargetsFailedError, str(self), self.operation, failures)


class CompensationError(ObservabilityError):
    """A step of a saga failed, and so did at least one compensation: some steps are not undone.

    The error of the step is the ``__cause__``.

    Attributes:
        operation: name of the saga.
        failed_step: the step whose failure ended it.
        failures: pairs of a step that is not undone and the error of its compensation, in the order of the attempts.
            Pickling replaces each error with an `ObservabilityError` that names its type.
    """

    def __init__(self, operation: str, failed_step: str, failures: Sequence[tuple[str, BaseException]]) -> None:
        self.operation = operation
        self.failed_step = failed_step
        self.failures = tuple(failures)
        failed = ", ".join(f"{step} ({type(error).__name__})" for step, error in self.failures)
        super().__init__(f"Saga '{operation}' failed at '{failed_step}' and could not undo: {failed}")

    def __copy__(self) -> CompensationError:
        return CompensationError(self.operation, self.failed_step, self.failures)

    def __reduce__(self) -> tuple[Any, ...]:
        failures = tuple((step, _type_only(error)) for step, error in self.failures)
        return _rebuild_with_message, (CompensationError, str(self), self.operation, self.failed_step, failures)


def _type_only(error: BaseException) -> ObservabilityError:
    if type(error) is ObservabilityError:
        return error  # replaced by an earlier pickling
    kind = type(error)
    return ObservabilityError(f"{kind.__module__}.{kind.__qualname__}")


def _rebuild_with_message(
    kind: Callable[..., AllTargetsFailedError | CompensationError], message: str, *args: Any
) -> AllTargetsFailedError | CompensationError:
    rebuilt = kind(*args)
    rebuilt.args = (message,)  # names the original types of the errors
    return rebuilt


class ProviderStreamError(ObservabilityError):
    """The provider reported an error inside its stream, after it had sent the HTTP status.

    The provider's message is not kept, because it may quote the prompt.

    Args:
        operation: as the attribute; likewise `code` and `status_code`.
        kind: the attribute `type`.

    Attributes:
        operation: name of the operation that read the stream.
        code: the provider's code of the error, such as ``overloaded_error``; ``error`` if it sent none.
        type: the provider's type of the error, such as ``invalid_request_error``, or None.
        status_code: the HTTP status from 400 to 599 that the event holds in place of a code, or None.
    """

    def __init__(self, operation: str, code: str, status_code: int | None = None, *, kind: str | None = None) -> None:
        self.operation = operation
        self.code = code
        self.type = kind
        self.status_code = status_code
        detail = code if status_code is None else f"{code}, status {status_code}"
        super().__init__(f"The provider of '{operation}' reported an error inside its stream: {detail}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_stream_error, (self.operation, self.code, self.status_code, self.type)


def _rebuild_stream_error(operation: str, code: str, status_code: int | None, kind: str | None) -> ProviderStreamError:
    return ProviderStreamError(operation, code, status_code, kind=kind)


class PrimitiveTimeoutError(ObservabilityError, builtins.TimeoutError):
    """A timeout of a primitive expired.

    Raised only for a timeout of this library: a ``TimeoutError`` of the wrapped work passes through unchanged. As a
    ``builtins.TimeoutError`` it is an ``OSError`` too, so list it before ``except OSError``.

    Attributes:
        operation: name of the operation that timed out.
        timeout_seconds: the limit that was exceeded, in seconds.
        elapsed_seconds: time from the start of the work to this error, in seconds.
        kind: the limit that was exceeded: ``total``, ``attempt``, ``first_chunk``, ``idle``, ``hard`` or ``deadline``.
        cleanup: how the cancelled work ended: ``clean``, ``failed``, ``late_result``, ``abandoned``, or ``refused``
            if the deadline had passed before the work was started.
        deadline_source: ``own`` for a limit of this primitive, ``inherited`` for a deadline that an outer one set.
        deadline: the deadline that passed. The outer primitive that set it recognises it by identity.
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
        """Time from the start of the work to this error, in seconds."""
        return self.elapsed_seconds

    def __reduce__(self) -> tuple[Any, ...]:
        # A deadline is a moment on this process's clock, and means nothing in another process.
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
    """A stream ended before its answer was complete.

    Attributes:
        operation: name of the operation that read the stream.
        chunks: number of chunks delivered before.
        reason: ``no_finish_reason`` (the provider closed the stream early), ``cut`` (the connection broke, or the
            provider sent malformed data), ``stalled`` (see `StreamStalledError`), ``cancelled`` (the call that several
            readers share was cancelled) or ``unreadable`` (a cached stream could not be decoded).
    """

    def __init__(self, operation: str, chunks: int, reason: str) -> None:
        self.operation = operation
        self.chunks = chunks
        self.reason = reason
        super().__init__(f"Stream of '{operation}' was interrupted after {chunks} chunks ({reason})")

    def __reduce__(self) -> tuple[Any, ...]:
        return StreamInterruptedError, (self.operation, self.chunks, self.reason)


class StreamStalledError(StreamInterruptedError, PrimitiveTimeoutError):
    """The idle timeout expired in the middle of an answer: both an interrupted stream and a timeout."""

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
