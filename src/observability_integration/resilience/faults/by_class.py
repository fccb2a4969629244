"""Classifies exceptions by the names of their classes, before anything is read of a response."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from .caller import CALLER_NAMES
from .kinds import PLAIN_FAULTS, Fault, FaultKind
from .shapes import read, words_of


def _by_name(names: dict[FaultKind, str]) -> dict[str, FaultKind]:
    return {name: kind for kind, listed in names.items() for name in listed.split()}


# Classes whose name decides, whatever else the exception carries; of several, the most derived one.
# Those whose base is listed too are there for `SharedCallError`, which knows no bases.
_NAMES = _by_name(
    {
        "cancelled": "CancelledError GeneratorExit KeyboardInterrupt SystemExit",
        "refused": "CallRefusedError CircuitOpenError ConcurrencyLimitError RateLimitExceededError",
        "timeout": """PrimitiveTimeoutError TimeoutError Timeout TimeoutException ConnectTimeout ReadTimeout
            WriteTimeout PoolTimeout APITimeoutError ServerTimeoutError ConnectionTimeoutError SocketTimeoutError""",
        "stream_cut": """StreamInterruptedError StreamStalledError IncompleteRead IncompleteReadError ClientPayloadError
            ChunkedEncodingError""",
        "connection": """ConnectionError BrokenPipeError ConnectionAbortedError ConnectionRefusedError
            ConnectionResetError gaierror herror SSLError SSLCertVerificationError RemoteDisconnected APIConnectionError
            WebSocketConnectionClosedError TransportError NetworkError ConnectError ReadError WriteError CloseError
            ProtocolError RemoteProtocolError ProxyError ClientConnectionError ClientConnectionResetError ClientOSError
            ClientConnectorError ClientConnectorDNSError ClientConnectorSSLError ClientConnectorCertificateError
            ClientProxyConnectionError ServerConnectionError ServerDisconnectedError UploadAbortedError EndOfStream
            BrokenResourceError ClosedResourceError""",
        "malformed": """JSONDecodeError UnicodeDecodeError DecodingError ContentDecodingError SSEError BadStatusLine
            HttpProcessingError""",
        "content_filter": "ContentFilterFinishReasonError ContentPolicyViolationError",
        "context_length": "ContextWindowExceededError",
        "invalid_request": """ConfigurationError CompensationError MissingDependencyError InvalidURL UnsupportedProtocol
            TooManyRedirects LocalProtocolError NonHttpUrlClientError LengthFinishReasonError""",
    }
)
# Names that many libraries use, with the packages that are meant.
_DECODERS = {"DecodeError": ("msgspec",), "ValidationError": ("pydantic", "pydantic_core")}
# Classes that decide last, where neither a status nor a code does.
_HINTS = _by_name(
    {
        "auth": """AuthenticationError PermissionDeniedError CredentialsError SubjectTokenProviderError
            WorkloadIdentityError""",
        "invalid_request": "BadRequestError NotFoundError UnprocessableEntityError ContentTooLargeError",
        "malformed": "APIResponseValidationError APIWebhookValidationError ContentTypeError",
        "timeout": "GatewayTimeoutError",
        "rate_limited": "RateLimitError",
        "overloaded": "OverloadedError ServiceUnavailableError",
        "transient": "APIError ConflictError InternalServerError ProviderStreamError RetryableError",
    }
)
_UNVERIFIED = frozenset({"SSLCertVerificationError", "ServerFingerprintMismatch"})
_UNREACHABLE = frozenset({errno.EADDRNOTAVAIL, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH})


class _Classes:
    """An exception, the names of its classes from the most derived one on, and the kind that they are listed under."""

    __slots__ = ("_fault_of", "error", "kind", "names")

    def __init__(self, error: object, fault_of: Callable[[object], Fault]) -> None:
        self.error = error
        self.names = [each.__name__ for each in type(error).__mro__]
        self.kind: FaultKind | None = _nearest(_NAMES, self.names)
        self._fault_of = fault_of

    def is_connection(self) -> bool:
        return self.kind == "connection"

    def is_decoder(self) -> bool:
        return not _DECODERS.keys().isdisjoint(self.names) and any(
            each.__module__.partition(".")[0] in _DECODERS.get(each.__name__, ()) for each in type(self.error).__mro__
        )

    def cause(self) -> Fault:
        """The fault of the cause that was given with ``raise ... from``."""
        return self._fault_of(read(self.error, "__cause__"))


def _nearest(table: dict[str, FaultKind], names: Sequence[str]) -> FaultKind | None:
    return next((table[name] for name in names if name in table), None)


def _shared(it: _Classes) -> Fault:
    error_type = str(read(it.error, "error_type"))
    name = (error_type.rpartition(".")[2],)
    unlisted: FaultKind = "caller" if error_type in CALLER_NAMES else "unknown"
    return PLAIN_FAULTS[_nearest(_NAMES, name) or _nearest(_HINTS, name) or unlisted]


def _refused(it: _Classes) -> Fault:
    wait: Any = read(it.error, "retry_after_seconds")
    return Fault("refused", retry_after_seconds=wait if isinstance(wait, float) and 0 <= wait < math.inf else None)


def _connection(it: _Classes) -> Fault:
    cause = it.cause()
    return cause if cause.kind in ("connection", "stream_cut", "timeout") else PLAIN_FAULTS["connection"]


def _listed(it: _Classes) -> Fault:
    return PLAIN_FAULTS[it.kind or "unknown"]


_Rule: TypeAlias = tuple[Callable[[_Classes], object], Fault | Callable[[_Classes], Fault]]

# Tried in order: the first whose condition holds decides.
_RULES: tuple[_Rule, ...] = (
    # The error of another caller's attempt at the same call: of that one, only the name of its class is known.
    (lambda it: "SharedCallError" in it.names, _shared),
    # Nothing was left of the deadline, so the work was never started.
    (lambda it: it.kind == "timeout" and read(it.error, "cleanup") == "refused", _refused),
    (lambda it: it.kind == "refused", _refused),
    # A certificate that does not verify now will not verify at the next attempt.
    (
        lambda it: it.is_connection() and not _UNVERIFIED.isdisjoint(it.names),
        Fault("connection", should_retry=False),
    ),
    # httpx uses one class for a cut answer and for other breaches of the protocol.
    (
        lambda it: (
            it.is_connection()
            and "RemoteProtocolError" in it.names
            and "without sending complete" in words_of(it.error, None, ())
        ),
        PLAIN_FAULTS["stream_cut"],
    ),
    # A cause that was given on purpose is more exact; not the context, which may be an earlier attempt of the client.
    (_Classes.is_connection, _connection),
    # All other names that are listed.
    (lambda it: it.kind is not None, _listed),
    (_Classes.is_decoder, PLAIN_FAULTS["malformed"]),
    # Python has no class of its own for a network that cannot be reached.
    (lambda it: "OSError" in it.names and read(it.error, "errno") in _UNREACHABLE, _connection),
    # aiohttp gives a response that it cannot parse the status 400, as if the provider had said that.
    (lambda it: "ClientResponseError" in it.names and it.cause().kind == "malformed", PLAIN_FAULTS["malformed"]),
)


def fault_from_class(error: object, fault_of: Callable[[object], Fault]) -> Fault | None:
    """Classifies an exception by its classes; None if they do not decide.

    Args:
        error: the exception.
        fault_of: classifies its cause, where a rule asks for it.
    """
    it = _Classes(error, fault_of)
    for applies, fault in _RULES:
        if applies(it):
            return fault if isinstance(fault, Fault) else fault(it)
    return None


def hint_from_class(error: object) -> FaultKind | None:
    """The kind that the classes of an exception suggest, where its response says nothing."""
    return _nearest(_HINTS, [each.__name__ for each in type(error).__mro__])
