"""What kind of fault an exception is, and what may be done about it.

`classify` knows the exceptions of openai, anthropic, httpx, aiohttp, this library and Python by their shape: the names
of their classes, and what they say of the response (see `fault_shapes`). No SDK is imported, and a subclass or a
vendored copy is known as well. A function of the user's is asked first.

==================  ==========================================================  ==========  =========  ===========
kind                what it is                                                  same again  next       counts
==================  ==========================================================  ==========  =========  ===========
``cancelled``       somebody stopped the work                                   no          no         no
``content_filter``  the provider refused the content                            no          no         no
``auth``            401, 403, 407: the credentials are wrong                    no          no         no
``invalid_request`` 3xx, another 4xx, 501, 505, or a wrong argument of ours     no          no         no
``context_length``  the request is longer than the model's window               no          if larger  no
``refused``         a limit or deadline of ours: the call was never made        no          yes        no
``unknown``         nothing of the below                                        no          yes        yes
``malformed``       an answer that cannot be read                               no          yes        yes
``stream_cut``      an answer that ended before it was complete                 no          yes        yes
``timeout``         no answer in time; 504, 522, 524                            no          yes        yes
``rate_limited``    429: more than the provider allows                          yes         yes        no
``overloaded``      498, 503, 529: the provider has no room                     yes         yes        yes
``connection``      no connection, or a broken one; 499, 521, 523, 525, 526     yes         yes        yes
``transient``       408, 409, 425, any other 5xx                                yes         yes        yes
==================  ==========================================================  ==========  =========  ===========

Why some do not count against a target, as a circuit breaker counts: a wrong key (``auth``) would open the breaker, and
an open breaker is routed around, which hides what a person has to repair; a rate limit is a healthy target saying when
to come back, and an open breaker would waste what it still allows.

A used-up quota (OpenAI's 429 ``insufficient_quota``, a 402, a credit balance that is too low) is ``rate_limited`` with
`Fault.should_retry` False: to ask again is useless and the target counts as failing, but another one may serve. The
header ``x-should-retry`` sets `Fault.should_retry` too.

A saga that could not be undone (`CompensationError`) is an ``invalid_request``: whatever ended it, to do it again
would do all of it twice.

Of an exception group, the gravest member tells: the one that comes first in the table. Where a type says nothing, its
``__cause__`` or ``__context__`` is asked.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from observability_integration.checks import check_at_least, check_choice, check_count
from observability_integration.errors import ConfigurationError
from observability_integration.telemetry.guard import note_fault

from . import shapes as shapes

FaultKind = Literal[
    "cancelled",
    "content_filter",
    "auth",
    "invalid_request",
    "context_length",
    "refused",
    "unknown",
    "malformed",
    "stream_cut",
    "timeout",
    "rate_limited",
    "overloaded",
    "connection",
    "transient",
]


class _Policy(NamedTuple):
    same: bool
    next: bool
    larger: bool
    counts: bool


# The gravest first: what forbids most, then what only another target can serve, then what bears being asked again.
_POLICIES: dict[FaultKind, _Policy] = {
    # same again, next target, next with a larger window, counts against the target
    "cancelled": _Policy(False, False, False, False),
    "content_filter": _Policy(False, False, False, False),
    "auth": _Policy(False, False, False, False),
    "invalid_request": _Policy(False, False, False, False),
    "context_length": _Policy(False, False, True, False),
    "refused": _Policy(False, True, True, False),
    "unknown": _Policy(False, True, True, True),
    "malformed": _Policy(False, True, True, True),
    "stream_cut": _Policy(False, True, True, True),
    "timeout": _Policy(False, True, True, True),
    "rate_limited": _Policy(True, True, True, False),
    "overloaded": _Policy(True, True, True, True),
    "connection": _Policy(True, True, True, True),
    "transient": _Policy(True, True, True, True),
}
_GRAVITY = {kind: place for place, kind in enumerate(_POLICIES)}

FAULT_KINDS: tuple[FaultKind, ...] = tuple(_POLICIES)


@dataclass(frozen=True, slots=True)
class Fault:
    """What an exception comes to. It holds nothing of the exception's message.

    Attributes:
        kind: one of `FAULT_KINDS`.
        status: the HTTP status, 300 to 599; None if there was none.
        retry_after_seconds: how long the provider asks to wait, 0 or more; None if it did not say.
        should_retry: what is known about asking the same target again, over what the kind says: the provider's own word
            (``x-should-retry``), or False for a used-up quota and for a certificate that does not verify.

    Raises:
        ConfigurationError: a value is not one of these.
    """

    kind: FaultKind
    status: int | None = None
    retry_after_seconds: float | None = None
    should_retry: bool | None = None

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, FAULT_KINDS)
        check_count("status", self.status, 300, maximum=599, optional=True)
        check_at_least("retry_after_seconds", self.retry_after_seconds, 0, optional=True)
        if self.should_retry not in (None, True, False):
            raise ConfigurationError(f"should_retry must be True, False or None, got {self.should_retry!r}")

    @property
    def retries_same_target(self) -> bool:
        """Whether the same target may be asked again."""
        policy = _POLICIES[self.kind]
        # No header makes the same words pass the same filter, or fit into the same window.
        if self.should_retry is None or self.kind in ("cancelled", "content_filter", "context_length"):
            return policy.same
        return self.should_retry

    @property
    def turns_to_next(self) -> bool:
        """Whether a fallback may ask any other target."""
        return _POLICIES[self.kind].next

    @property
    def turns_to_larger_window(self) -> bool:
        """Whether a fallback may ask another target whose context window is larger."""
        return _POLICIES[self.kind].larger

    @property
    def counts_against_target(self) -> bool:
        """Whether a circuit breaker counts it as a failure of the target."""
        exhausted = self.kind == "rate_limited" and self.should_retry is False
        return exhausted or _POLICIES[self.kind].counts


Classifier: TypeAlias = Callable[[BaseException], "Fault | FaultKind | None"]

_UNKNOWN = Fault("unknown")
_MOST_LOOKS = 32  # exceptions looked at, in a chain and in groups


def classify(error: BaseException, extra: Classifier | None = None) -> Fault:
    """Says what kind of fault an exception is. Never raises.

    Args:
        error: what was raised.
        extra: asked first. A `Fault` is taken as it is; a kind is completed with the status and the wait that the
            exception tells; None leaves it to the rules here, and so does a function that fails, which is counted.
    """
    answer = None if extra is None else _asked(extra, error)
    if isinstance(answer, Fault):
        return answer
    try:
        fault = _look(error, {})
    except Exception:  # noqa: BLE001 - whatever somebody's exception does when it is looked at, its fault has a kind
        fault = _UNKNOWN
    return fault if answer is None else Fault(answer, fault.status, fault.retry_after_seconds)


def _asked(extra: Classifier, error: BaseException) -> Fault | FaultKind | None:
    try:
        answer: Any = extra(error)
        return answer if answer is None or isinstance(answer, Fault) else Fault(answer).kind
    except Exception as fault:  # noqa: BLE001 - the user's function must not fail the user's call
        note_fault("faults.classifier", fault)
        return None


def _look(error: object, known: dict[int, Fault]) -> Fault:
    """Looks at an exception once; `known` holds what was looked at, so that neither a cycle nor a crowd takes long."""
    if error is None or len(known) >= _MOST_LOOKS:
        return _UNKNOWN
    if id(error) in known:
        return known[id(error)]
    known[id(error)] = _UNKNOWN
    if issubclass(type(error), BaseExceptionGroup):
        members = islice(cast("BaseExceptionGroup[Any]", error).exceptions, _MOST_LOOKS - len(known))
        fault = min((_look(member, known) for member in members), key=_gravity, default=_UNKNOWN)
    else:
        fault = _named(error, known) or _told(error)
    if fault.kind == "unknown":
        cause = shapes.read(error, "__cause__")
        if cause is None and not shapes.read(error, "__suppress_context__"):
            cause = shapes.read(error, "__context__")
        fault = _look(cause, known)
    known[id(error)] = fault
    return fault


def _gravity(fault: Fault) -> tuple[int, bool, float]:
    return _GRAVITY[fault.kind], fault.should_retry is not False, -(fault.retry_after_seconds or 0.0)


def _by_name(names: dict[FaultKind, str]) -> dict[str, FaultKind]:
    return {name: kind for kind, listed in names.items() for name in listed.split()}


# Classes whose name says it all, whatever else the exception carries; the most derived one that is listed decides.
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
# Names that many libraries have: (package, name).
_DECODERS = frozenset(
    {("msgspec", "DecodeError"), ("pydantic", "ValidationError"), ("pydantic_core", "ValidationError")}
)
# Classes that are asked last, when neither a status nor a code has told.
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
_NO_WAY = frozenset({errno.EADDRNOTAVAIL, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH})


def _nearest(table: dict[str, FaultKind], names: Sequence[str]) -> FaultKind | None:
    return next((table[name] for name in names if name in table), None)


def _named(error: object, known: dict[int, Fault]) -> Fault | None:
    """The fault, where the names of the classes say it."""
    classes = type(error).__mro__
    names = [each.__name__ for each in classes]
    if "SharedCallError" in names:
        told = str(shapes.read(error, "error_type")).rpartition(".")[2]
        return Fault(_nearest(_NAMES, (told,)) or _nearest(_HINTS, (told,)) or "unknown")
    kind = _nearest(_NAMES, names)
    if kind is None and any((each.__module__.partition(".")[0], each.__name__) in _DECODERS for each in classes):
        kind = "malformed"
    if kind is None and "OSError" in names and shapes.read(error, "errno") in _NO_WAY:
        kind = "connection"
    if kind is None and "ClientResponseError" in names:
        # aiohttp gives a response that it cannot parse the status 400, as if the provider had said that.
        return None if _look(shapes.read(error, "__cause__"), known).kind != "malformed" else Fault("malformed")
    if kind == "timeout" and shapes.read(error, "cleanup") == "refused":
        kind = "refused"  # nothing was left of the deadline, so the work was never started
    if kind == "refused":
        wait: Any = shapes.read(error, "retry_after_seconds")
        return Fault("refused", retry_after_seconds=wait if isinstance(wait, float) and 0 <= wait < math.inf else None)
    if kind != "connection":
        return None if kind is None else Fault(kind)
    if not _UNVERIFIED.isdisjoint(names):
        return Fault("connection", should_retry=False)
    if "RemoteProtocolError" in names and "without sending complete" in shapes.words_of(error, None, ()):
        return Fault("stream_cut")
    # Only a cause that was named on purpose: the context may be an earlier attempt of the client's.
    cause = _look(shapes.read(error, "__cause__"), known)
    return cause if cause.kind in ("connection", "stream_cut", "timeout") else Fault("connection")


_BY_STATUS: dict[int, FaultKind] = {
    **dict.fromkeys((401, 403, 407), "auth"),
    429: "rate_limited",  # so is 402, as a used-up quota
    **dict.fromkeys((408, 409, 425), "transient"),  # the request came too slowly, or too early, or met a lock (OpenAI)
    **dict.fromkeys((498, 503, 529), "overloaded"),  # 498: Groq's flex tier; 529: Anthropic
    **dict.fromkeys((501, 505), "invalid_request"),
    **dict.fromkeys((504, 522, 524), "timeout"),  # a gateway has waited already: not here again
    **dict.fromkeys((499, 521, 523, 525, 526), "connection"),  # something between us and the provider; 52x: Cloudflare
}

# What the provider calls the fault. These say more than the status does; the first that fits decides.
_STRONG_CODES = _by_name(
    {
        "content_filter": """content_filter content_policy_violation responsibleaipolicyviolation moderation_blocked
            invalid_prompt data_inspection_failed""",
        "context_length": "context_length_exceeded model_context_window_exceeded",
        "rate_limited": "rate_limit_error rate_limit_exceeded resource_exhausted",
        "overloaded": "overloaded_error engine_overloaded_error slow_down",
    }
)
_SPENT_CODES = frozenset(
    {
        "billing_error",
        "billing_hard_limit_reached",
        "billing_not_active",
        "contract_spend_limit_reached",
        "enforced_spend_limit_reached",
        "exceeded_current_quota_error",
        "insufficient_balance",
        "insufficient_quota",
        "linked_organization_spend_limit_reached",
    }
)
# These are asked where there is no status: inside a stream.
_WEAK_CODES = _by_name(
    {
        "auth": "authentication_error invalid_api_key permission_denied permission_error unauthenticated",
        "invalid_request": "badrequesterror invalid_argument invalid_request_error model_not_found not_found_error",
        "timeout": "deadline_exceeded gateway_timeout request_timeout timeout_error",
        "overloaded": "service_unavailable unavailable",
        "transient": "api_error internal internal_error internal_server_error internalservererror server_error",
    }
)

# Words of providers that have no code for it. They are looked for only where such a fault is reported, because an error
# may quote the prompt.
_WORDY = (None, 400, 403, 413, 422, 500)
_WORDS: tuple[tuple[FaultKind, str], ...] = (
    ("content_filter", "content management policy"),  # Azure
    ("content_filter", "blocked by content filtering policy"),  # Anthropic
    ("content_filter", "violating our usage policy"),  # OpenAI
    ("content_filter", "your input was flagged"),  # OpenRouter
    ("rate_limited", "credit balance is too low"),  # Anthropic
    ("context_length", "maximum context length"),  # OpenAI, Azure, vLLM, Mistral, DeepSeek, OpenRouter
    ("context_length", "longer than the maximum model length"),  # vLLM
    ("context_length", "prompt is too long"),  # Anthropic
    ("context_length", "exceed context limit"),  # Anthropic, where prompt and max_tokens together are too many
    ("context_length", "exceeds the context window"),  # OpenAI
    ("context_length", "exceeds the maximum number of tokens allowed"),  # Gemini
    ("context_length", "input is too long for requested model"),  # Bedrock
    ("context_length", "too many input tokens"),  # Bedrock
    ("context_length", "reduce the length of the messages"),  # Groq
    ("context_length", "maximum prompt length is"),  # xAI
    ("context_length", "longer than the model's context length"),  # Together, SGLang
    ("context_length", "exceeds the available context size"),  # llama.cpp
    ("context_length", "exceeded max context length"),  # Ollama
)


def _first(table: dict[str, FaultKind], codes: frozenset[str]) -> FaultKind | None:
    return next((kind for code, kind in table.items() if code in codes), None)


def _told(error: object) -> Fault:
    """The fault, as the response tells it."""
    body = shapes.body_of(error)
    parts = shapes.parts_of(body)
    status = shapes.status_of(error, parts)
    codes = shapes.codes_of(error, parts)
    headers = shapes.headers_of(error)
    spent = status == 402 or not _SPENT_CODES.isdisjoint(codes)
    kind: FaultKind | None = "rate_limited" if spent else _first(_STRONG_CODES, codes)
    if kind is None and status in _WORDY and (status or parts):
        words = shapes.words_of(error, body, parts)
        kind = next((each for each, phrase in _WORDS if phrase in words), None)
        spent = kind == "rate_limited"
    if kind is None and status is not None:
        kind = _BY_STATUS.get(status) or ("transient" if status >= 500 else "invalid_request")
    if kind is None:
        kind = _first(_WEAK_CODES, codes) or _nearest(_HINTS, [each.__name__ for each in type(error).__mro__])
    wait = shapes.retry_after_seconds(headers, kind == "rate_limited", codes, parts)
    should_retry = {"true": True, "false": False}.get(headers.get("x-should-retry", "").lower())
    return Fault(kind or "unknown", status, wait, False if spent else should_retry)
