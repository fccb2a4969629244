"""The errors this library raises of its own accord.

::

    Exception
    └── ObservabilityError                 base of everything below
        ├── ConfigurationError             a wrong argument; also a ValueError
        ├── MissingDependencyError         an optional package is needed; also an ImportError
        ├── SharedCallError                the call was made by another process, on behalf of this one too, and failed
        ├── PrimitiveTimeoutError          our own clock ran out; also a builtins.TimeoutError (hence an OSError)
        └── StreamInterruptedError         a stream ended before its answer was complete
            └── StreamStalledError         no content came for too long; also a PrimitiveTimeoutError

An exception raised by the wrapped work is never converted: it passes through unchanged.
No message contains a prompt or an answer.
"""

from __future__ import annotations

import builtins
from typing import Any, Literal

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
        reason: ``no_finish_reason`` (the provider closed the stream early), ``stalled`` (see `StreamStalledError`),
            ``cancelled`` (the call that others read too) or ``unreadable`` (a kept stream that could not be rebuilt).
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
