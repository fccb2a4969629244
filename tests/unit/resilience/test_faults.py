"""Exceptions of the SDKs and HTTP clients come to the right kind of fault, with the wait that their provider asks for.

The exceptions are the real ones, raised by openai 3.52, anthropic 2.11, httpx 0.28 (and httpx2 2.16, on which both SDKs
stand) and aiohttp 3.14, most of them from a response as the provider sends it.
"""

from __future__ import annotations

import asyncio
import errno
import http.client
import io
import json
import socket
import ssl
import threading
import time
import urllib.error
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from email.message import Message
from email.utils import formatdate
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.absent import ABSENT

if ABSENT:  # marked `once`, and to import the SDKs takes two seconds
    pytest.skip("says nothing about absent packages", allow_module_level=True)

aiohttp = pytest.importorskip("aiohttp")
anthropic = pytest.importorskip("anthropic")
httpx = pytest.importorskip("httpx")
httpx2 = pytest.importorskip("httpx2")
multidict = pytest.importorskip("multidict")
anyio = pytest.importorskip("anyio")
httpcore = pytest.importorskip("httpcore")
openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")
pydantic_v1 = pytest.importorskip("pydantic.v1")
requests = pytest.importorskip("requests")

import msgspec
import yarl

from observability_integration.errors import (
    CircuitOpenError,
    CompensationError,
    ConcurrencyLimitError,
    ConfigurationError,
    MissingDependencyError,
    PrimitiveTimeoutError,
    RateLimitExceededError,
    SharedCallError,
    StreamInterruptedError,
    StreamStalledError,
)
from observability_integration.resilience import faults
from observability_integration.resilience.faults import FAULT_KINDS, Fault, FaultKind, classify
from observability_integration.telemetry.catalogue import Profile
from observability_integration.telemetry.catalogue.own import TELEMETRY_FAULTS
from observability_integration.telemetry.metrics import instruments

pytestmark = pytest.mark.once


# --- The real exceptions, made as their libraries make them. ---


class _Provider:
    """What the SDKs under test talk to: one answer, or one exception, at a time."""

    answer: Any = None

    def __call__(self, request: Any) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


_provider = _Provider()
_http = httpx2.Client(transport=httpx2.MockTransport(_provider), trust_env=False)
_openai = openai.OpenAI(api_key="key", base_url="http://127.0.0.1/v1", max_retries=0, http_client=_http)
_anthropic = anthropic.Anthropic(api_key="key", base_url="http://127.0.0.1", max_retries=0, http_client=_http)


def _raised(call: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        call()
    return caught.value


def _ask_openai(answer: Any, stream: bool = False) -> BaseException:
    _provider.answer = answer
    return _raised(lambda: list(_openai.chat.completions.create(model="m", messages=[], stream=stream)))


def _ask_anthropic(answer: Any, stream: bool = False) -> BaseException:
    _provider.answer = answer
    ask = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Q"}], "stream": stream}
    return _raised(lambda: list(cast("Any", _anthropic).messages.create(**ask)))


def of_openai(status: int, headers: Any = None, **error: Any) -> BaseException:
    """As openai raises it from a response with an error in it."""
    return _ask_openai(httpx2.Response(status, headers=headers, json={"error": error}))


def of_anthropic(status: int, headers: Any = None, **error: Any) -> BaseException:
    """As anthropic raises it from a response with an error in it."""
    return _ask_anthropic(httpx2.Response(status, headers=headers, json={"type": "error", "error": error}))


def in_openai_stream(**error: Any) -> BaseException:
    """As openai raises it from an error between the chunks."""
    return _ask_openai(httpx2.Response(200, text=f"data: {json.dumps({'error': error})}\n\n"), stream=True)


def in_anthropic_stream(**error: Any) -> BaseException:
    """As anthropic raises it from an event of the type error: with the status 200 that the stream began with."""
    event = json.dumps({"type": "error", "error": error})
    return _ask_anthropic(httpx2.Response(200, text=f"event: error\ndata: {event}\n\n"), stream=True)


def of_httpx(status: int, headers: Any = None, **response: Any) -> BaseException:
    """As httpx raises it from `raise_for_status`."""
    answer = httpx.Response(status, headers=headers, request=httpx.Request("POST", "http://127.0.0.1/"), **response)
    return _raised(answer.raise_for_status)


def of_aiohttp(status: int, headers: Any = None, message: str = "Reason") -> BaseException:
    """As aiohttp raises it from `raise_for_status`."""
    url = yarl.URL("http://127.0.0.1/")
    request = aiohttp.RequestInfo(url, "POST", multidict.CIMultiDictProxy(multidict.CIMultiDict()), url)
    held = multidict.CIMultiDictProxy(multidict.CIMultiDict(headers or {}))
    return cast("BaseException", aiohttp.ClientResponseError(request, (), status=status, message=message, headers=held))


def chained(error: BaseException, cause: BaseException) -> BaseException:
    """`raise error from cause`."""
    error.__cause__ = cause
    return error


def met_during(error: BaseException, context: BaseException) -> BaseException:
    """`raise error` while `context` was handled."""
    error.__context__ = context
    return error


def _from_json(text: str) -> BaseException:
    return _raised(lambda: json.loads(text))


class _Answer(pydantic.BaseModel):
    text: str


def _unread() -> BaseException:
    """A response of httpx whose body has not been read, and cannot be: it belongs to an async stream."""

    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    return of_httpx(503, content=nothing())


_QUOTA = {"code": "insufficient_quota", "type": "insufficient_quota", "message": "You exceeded your current quota"}
_AZURE_FILTER = {
    "code": "invalid_request",
    "message": "The response was filtered",
    "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}},
}
_REQUEST = httpx2.Request("POST", "http://127.0.0.1")
_UNVERIFIED = ssl.SSLCertVerificationError(1, "certificate verify failed")
_KEY = aiohttp.client_reqrep.ConnectionKey("127.0.0.1", 1, True, True, None, None, None)


_SDK: list[tuple[str, Callable[[], BaseException], Fault]] = [
    ("openai 400", lambda: of_openai(400, code="unsupported_value", message="no"), Fault("invalid_request", 400)),
    ("openai 401", lambda: of_openai(401, code="invalid_api_key"), Fault("auth", 401)),
    ("openai 402", lambda: of_openai(402), Fault("rate_limited", 402, should_retry=False)),
    ("openai 403", lambda: of_openai(403), Fault("auth", 403)),
    ("openai 404", lambda: of_openai(404, code="model_not_found"), Fault("invalid_request", 404)),
    ("openai 408", lambda: of_openai(408), Fault("transient", 408)),
    ("openai 409 lock", lambda: of_openai(409), Fault("transient", 409)),
    ("openai 422", lambda: of_openai(422), Fault("invalid_request", 422)),
    ("openai 425", lambda: of_openai(425), Fault("transient", 425)),
    ("openai 429", lambda: of_openai(429, {"Retry-After": "2"}), Fault("rate_limited", 429, 2.0)),
    ("openai 429 quota", lambda: of_openai(429, **_QUOTA), Fault("rate_limited", 429, None, should_retry=False)),
    ("openai 500", lambda: of_openai(500, type="server_error"), Fault("transient", 500)),
    ("openai 501", lambda: of_openai(501), Fault("invalid_request", 501)),
    ("openai 502", lambda: _ask_openai(httpx2.Response(502, text="<html>Bad Gateway</html>")), Fault("transient", 502)),
    ("openai 503", lambda: of_openai(503, {"retry-after": "30"}), Fault("overloaded", 503, 30.0)),
    ("openai 504", lambda: of_openai(504), Fault("timeout", 504)),
    ("groq 498", lambda: of_openai(498), Fault("overloaded", 498)),
    ("cloudflare 520", lambda: of_openai(520), Fault("transient", 520)),
    ("cloudflare 521", lambda: of_openai(521), Fault("connection", 521)),
    ("cloudflare 524", lambda: of_openai(524), Fault("timeout", 524)),
    ("openai filter", lambda: of_openai(400, code="content_filter"), Fault("content_filter", 400)),
    ("azure filter", lambda: of_openai(400, **_AZURE_FILTER), Fault("content_filter", 400)),
    ("openai length", lambda: of_openai(400, code="context_length_exceeded"), Fault("context_length", 400)),
    ("proxied limit", lambda: of_openai(500, code="rate_limit_exceeded"), Fault("rate_limited", 500)),
    ("told to retry", lambda: of_openai(400, {"x-should-retry": "true"}), Fault("invalid_request", 400, None, True)),
    ("told not to", lambda: of_openai(500, {"X-Should-Retry": "False"}), Fault("transient", 500, None, False)),
    ("told nonsense", lambda: of_openai(500, {"x-should-retry": "maybe"}), Fault("transient", 500)),
    ("anthropic 400", lambda: of_anthropic(400, type="invalid_request_error"), Fault("invalid_request", 400)),
    ("anthropic 401", lambda: of_anthropic(401, type="authentication_error"), Fault("auth", 401)),
    ("anthropic 413", lambda: of_anthropic(413, type="request_too_large"), Fault("invalid_request", 413)),
    ("anthropic 429", lambda: of_anthropic(429, {"retry-after": "7"}, type="rate_limit_error"),
     Fault("rate_limited", 429, 7.0)),
    ("anthropic 499", lambda: of_anthropic(499), Fault("connection", 499)),
    ("anthropic 504", lambda: of_anthropic(504, type="timeout_error"), Fault("timeout", 504)),
    ("anthropic 529", lambda: of_anthropic(529, {"x-should-retry": "true"}, type="overloaded_error"),
     Fault("overloaded", 529, None, True)),
    ("anthropic credit", lambda: of_anthropic(400, message="Your credit balance is too low to access the API"),
     Fault("rate_limited", 400, None, False)),
    ("anthropic spend limit", lambda: of_anthropic(400, details={"error_code": "enforced_spend_limit_reached"}),
     Fault("rate_limited", 400, None, False)),
    ("anthropic length", lambda: of_anthropic(400, message="prompt is too long: 210000 tokens > 200000 maximum"),
     Fault("context_length", 400)),
    ("anthropic filter", lambda: of_anthropic(400, message="Output blocked by content filtering policy"),
     Fault("content_filter", 400)),
    ("openai stream", lambda: in_openai_stream(type="server_error", code=None, message="m"), Fault("transient")),
    ("openai stream length", lambda: in_openai_stream(type="invalid_request_error", code="context_length_exceeded"),
     Fault("context_length")),
    ("openai stream words", lambda: in_openai_stream(message="the request exceeds the available context size"),
     Fault("context_length")),
    ("openai stream request", lambda: in_openai_stream(type="invalid_request_error"), Fault("invalid_request")),
    ("openai stream limit", lambda: in_openai_stream(code="rate_limit_exceeded"), Fault("rate_limited")),
    ("openai stream without a word", lambda: in_openai_stream(message=None, param="x"), Fault("transient")),
    ("vllm stream", lambda: in_openai_stream(type="InternalServerError", code=500), Fault("transient", 500)),
    ("openrouter stream", lambda: in_openai_stream(code="503", message="no provider"), Fault("overloaded", 503)),
    ("anthropic stream", lambda: in_anthropic_stream(type="overloaded_error", message="m"), Fault("overloaded")),
    ("anthropic stream api", lambda: in_anthropic_stream(type="api_error", message="m"), Fault("transient")),
    ("anthropic stream limit", lambda: in_anthropic_stream(type="rate_limit_error"), Fault("rate_limited")),
    ("a chunk that is no JSON", lambda: _ask_openai(httpx2.Response(200, text="data: {oops\n\n"), stream=True),
     Fault("malformed")),
    ("openai timeout", lambda: _ask_openai(httpx2.ReadTimeout("slow")), Fault("timeout")),
    ("openai unreachable", lambda: _ask_openai(httpx2.ConnectError("refused")), Fault("connection")),
    ("openai cut", lambda: _ask_openai(httpx2.RemoteProtocolError(
        "peer closed connection without sending complete message body")), Fault("stream_cut")),
    ("openai certificate", lambda: _ask_openai(chained(httpx2.ConnectError("no"), _UNVERIFIED)),
     Fault("connection", should_retry=False)),
    ("openai connection from a timeout", lambda: chained(openai.APIConnectionError(request=_REQUEST), TimeoutError()),
     Fault("timeout")),
    ("anthropic timeout", lambda: _ask_anthropic(httpx2.ConnectTimeout("slow")), Fault("timeout")),
    ("anthropic unreachable", lambda: _ask_anthropic(httpx2.ReadError("reset")), Fault("connection")),
    ("anthropic retryable", lambda: anthropic.RetryableError(), Fault("transient")),
    ("openai parse filter", lambda: openai.ContentFilterFinishReasonError(), Fault("content_filter")),
    ("openai invalid answer", lambda: openai.APIResponseValidationError(
        httpx2.Response(200, request=_REQUEST), None), Fault("malformed")),
]  # fmt: skip

_WORDS: list[tuple[str, str, FaultKind]] = [
    ("openai", "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
     "context_length"),
    ("openai responses", "Your input exceeds the context window of this model.", "context_length"),
    ("vllm", "'max_tokens' is too large: 2000. This model's maximum context length is 4096 tokens (2000 > 4096 - 2104)",
     "context_length"),
    ("vllm engine", "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
     "context_length"),
    ("gemini", "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
     "context_length"),
    ("mistral", "Prompt contains 300000 tokens, too large for model with 131072 maximum context length",
     "context_length"),
    ("bedrock", "Input is too long for requested model.", "context_length"),
    ("bedrock titan", "400 Bad Request: Too many input tokens. Max input tokens: 8192", "context_length"),
    ("anthropic", "input length and `max_tokens` exceed context limit: 199000 + 8000 > 200000", "context_length"),
    ("groq", "Please reduce the length of the messages or completion.", "context_length"),
    ("xai", "This model's maximum prompt length is 131072 but the request contains 140000 tokens.", "context_length"),
    ("together", "The input (9000 tokens) is longer than the model's context length (8192 tokens).", "context_length"),
    ("ollama", "prompt too long; exceeded max context length by 4096 tokens", "context_length"),
    ("azure", "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
     "content_filter"),
    ("openai flagged", "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
     "content_filter"),
    ("another 400", "max_tokens is too large: 5000. This model supports at most 4096 completion tokens.",
     "invalid_request"),
]  # fmt: skip


def _case(table: list[tuple[Any, ...]]) -> Any:
    return [pytest.param(*row[1:], id=row[0]) for row in table]


@pytest.mark.parametrize(("make", "expected"), _case(_SDK))
def test_exceptions_of_the_sdks(make: Callable[[], BaseException], expected: Fault) -> None:
    """As openai and anthropic raise them: from a response, out of a stream, from their transport."""
    assert expected == classify(make())


@pytest.mark.parametrize(("words", "expected"), _case(_WORDS))
def test_words_of_providers_that_have_no_code(words: str, expected: FaultKind) -> None:
    """Most providers in OpenAI's shape say in words only that a prompt is too long, or that it was filtered."""
    assert Fault(expected, 400) == classify(of_openai(400, message=words, type="BadRequestError", code=400))
    assert Fault(expected, 400) == classify(of_aiohttp(400, message=json.dumps({"error": {"message": words}})))


def test_words_are_looked_for_only_where_such_a_fault_is_reported() -> None:
    """Otherwise a prompt that an error quotes would decide what is done with the call."""
    assert classify(of_openai(429, message="maximum context length")).kind == "rate_limited"
    assert classify(of_openai(401, message="maximum context length")).kind == "auth"
    assert classify(LookupError("maximum context length")).kind == "unknown"
    assert classify(of_openai(403, message="requires moderation and your input was flagged")).kind == "content_filter"


def test_gemini_answers_with_a_list() -> None:
    """Its endpoint in OpenAI's shape puts the error into a list, and the wait into the details."""
    length = {"code": 400, "status": "INVALID_ARGUMENT", "message": "exceeds the maximum number of tokens allowed (9)"}
    details = [{"@type": "google.rpc.Help"}, {"@type": "google.rpc.RetryInfo", "retryDelay": "37s"}]
    limit = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "m", "details": details}
    assert Fault("context_length", 400) == classify(_ask_openai(httpx2.Response(400, json=[{"error": length}])))
    assert Fault("rate_limited", 429, 37.0) == classify(_ask_openai(httpx2.Response(429, json=[{"error": limit}])))


_CLIENTS: list[tuple[str, Callable[[], BaseException], Fault]] = [
    ("httpx 429", lambda: of_httpx(429, {"retry-after": "1.5"}), Fault("rate_limited", 429, 1.5)),
    ("httpx 307", lambda: of_httpx(307, {"location": "/"}), Fault("invalid_request", 307)),
    ("httpx 400 json", lambda: of_httpx(400, json={"error": {"code": "context_length_exceeded"}}),
     Fault("context_length", 400)),
    ("httpx 400 plain error", lambda: of_httpx(400, json={"error": "prompt too long; exceeded max context length"}),
     Fault("context_length", 400)),
    ("httpx 400 text", lambda: of_httpx(400, text="Prompt is too long"), Fault("context_length", 400)),
    ("httpx 400 cut JSON", lambda: of_httpx(400, text='{"error": {"message": "prompt is too long' + "x" * 70_000),
     Fault("context_length", 400)),
    ("httpx 400 deep JSON", lambda: of_httpx(400, text="[" * 60_000), Fault("invalid_request", 400)),
    ("httpx not read", _unread, Fault("overloaded", 503)),
    ("httpx connect timeout", lambda: httpx.ConnectTimeout("slow"), Fault("timeout")),
    ("httpx pool timeout", lambda: httpx.PoolTimeout("full"), Fault("timeout")),
    ("httpx connect", lambda: httpx.ConnectError("refused"), Fault("connection")),
    ("httpx proxy", lambda: httpx.ProxyError("no"), Fault("connection")),
    ("httpx hung up", lambda: httpx.RemoteProtocolError("Server disconnected without sending a response."),
     Fault("connection")),
    ("httpx scheme", lambda: httpx.UnsupportedProtocol("ftp"), Fault("invalid_request")),
    ("httpx our mistake", lambda: httpx.LocalProtocolError("illegal header"), Fault("invalid_request")),
    ("httpx decoding", lambda: httpx.DecodingError("gzip"), Fault("malformed")),
    ("aiohttp 429", lambda: of_aiohttp(429, {"Retry-After": "3"}), Fault("rate_limited", 429, 3.0)),
    ("aiohttp 503", lambda: of_aiohttp(503), Fault("overloaded", 503)),
    ("aiohttp without a status", lambda: of_aiohttp(0), Fault("unknown")),
    ("aiohttp HTML instead of JSON", lambda: aiohttp.ContentTypeError(None, (), status=200, message="html"),
     Fault("malformed")),
    ("aiohttp HTML with a status", lambda: aiohttp.ContentTypeError(None, (), status=502, message="html"),
     Fault("transient", 502)),
    ("aiohttp connector", lambda: aiohttp.ClientConnectorError(_KEY, OSError(errno.ECONNREFUSED, "refused")),
     Fault("connection")),
    ("aiohttp certificate", lambda: aiohttp.ClientConnectorCertificateError(_KEY, _UNVERIFIED),
     Fault("connection", should_retry=False)),
    ("aiohttp fingerprint", lambda: aiohttp.ServerFingerprintMismatch(b"a", b"b", "127.0.0.1", 1),
     Fault("connection", should_retry=False)),
    ("aiohttp timeout", lambda: aiohttp.ServerTimeoutError(), Fault("timeout")),
    ("aiohttp address", lambda: aiohttp.InvalidURL("x"), Fault("invalid_request")),
    ("urllib 429", lambda: urllib.error.HTTPError("http://127.0.0.1", 429, "no", _message("Retry-After", "4"), None),
     Fault("rate_limited", 429, 4.0)),
    ("incomplete read", lambda: http.client.IncompleteRead(b"", 9), Fault("stream_cut")),
    ("asyncio incomplete read", lambda: asyncio.IncompleteReadError(b"", 9), Fault("stream_cut")),
    ("hung up", lambda: http.client.RemoteDisconnected("no"), Fault("connection")),
    ("status line", lambda: http.client.BadStatusLine("x"), Fault("malformed")),
    ("refused", lambda: ConnectionRefusedError(errno.ECONNREFUSED, "no"), Fault("connection")),
    ("pipe", lambda: BrokenPipeError(), Fault("connection")),
    ("timeout", lambda: TimeoutError(), Fault("timeout")),
    ("name", lambda: socket.gaierror(socket.EAI_AGAIN, "no"), Fault("connection")),
    ("no network", lambda: OSError(errno.ENETUNREACH, "no"), Fault("connection")),
    ("network down", lambda: OSError(errno.ENETDOWN, "no"), Fault("connection")),
    ("no host", lambda: OSError(errno.EHOSTUNREACH, "no"), Fault("connection")),
    ("host down", lambda: OSError(errno.EHOSTDOWN, "no"), Fault("connection")),
    ("no address", lambda: OSError(errno.EADDRNOTAVAIL, "no"), Fault("connection")),
    ("no file", lambda: FileNotFoundError(errno.ENOENT, "no"), Fault("unknown")),
    ("tls", lambda: ssl.SSLEOFError(8, "no"), Fault("connection")),
    ("certificate", lambda: _UNVERIFIED, Fault("connection", should_retry=False)),
    ("json", lambda: _from_json("{"), Fault("malformed")),
    ("unicode", lambda: _raised(lambda: b"\xff".decode()), Fault("malformed")),
    ("pydantic", lambda: _raised(lambda: _Answer.model_validate({})), Fault("malformed")),
    ("pydantic 1", lambda: pydantic_v1.ValidationError([], pydantic_v1.BaseModel), Fault("malformed")),
    ("msgspec", lambda: _raised(lambda: msgspec.json.decode(b"{")), Fault("malformed")),
    ("msgspec type", lambda: _raised(lambda: msgspec.json.decode(b"1", type=str)), Fault("malformed")),
    ("cancelled", lambda: asyncio.CancelledError(), Fault("cancelled")),
    ("interrupted", lambda: KeyboardInterrupt(), Fault("cancelled")),
    ("leaving", lambda: SystemExit(1), Fault("cancelled")),
    ("closed", lambda: GeneratorExit(), Fault("cancelled")),
    ("ours timeout", lambda: PrimitiveTimeoutError("op", 1.0, 1.0), Fault("timeout")),
    ("ours cut", lambda: StreamInterruptedError("op", 3, "no_finish_reason"), Fault("stream_cut")),
    ("ours stalled", lambda: StreamStalledError("op", 1.0, 2.0, chunks=3), Fault("stream_cut")),
    ("ours argument", lambda: ConfigurationError("no"), Fault("invalid_request")),
    ("ours dependency", lambda: MissingDependencyError("no"), Fault("invalid_request")),
    ("shared limit", lambda: SharedCallError("op", "openai.RateLimitError"), Fault("rate_limited")),
    ("shared timeout", lambda: SharedCallError("op", "httpx.ReadTimeout"), Fault("timeout")),
    ("shared other", lambda: SharedCallError("op", "app.ValueError"), Fault("unknown")),
    ("shared mistake", lambda: SharedCallError("op", "ValueError"), Fault("caller")),
    ("anything", lambda: LookupError("no"), Fault("unknown")),
]  # fmt: skip


def _message(name: str, value: str) -> Message:
    message = Message()
    message[name] = value
    return message


@pytest.mark.parametrize(("make", "expected"), _case(_CLIENTS))
def test_exceptions_of_http_clients_of_this_library_and_of_python(
    make: Callable[[], BaseException], expected: Fault
) -> None:
    """Who calls a provider without an SDK meets these."""
    error = make()
    assert expected == classify(error)
    if isinstance(error, urllib.error.HTTPError):
        error.close()


# --- Each class of each library. ---

_MODULES = (
    openai,
    openai._exceptions,
    anthropic,
    httpx,
    httpx2,
    httpcore,
    aiohttp,
    anyio,
    requests.exceptions,
    http.client,
    socket,
)

_CLASSES: dict[FaultKind, str] = {
    "auth": """AuthenticationError PermissionDeniedError OAuthError CredentialsError IdentityTokenFileError
        SandboxEgressRestrictedError SubjectTokenProviderError WorkloadIdentityError""",
    "connection": """APIConnectionError ClientClosedRequestError CloseError ConnectError NetworkError ProtocolError
        ProxyError ReadError RemoteProtocolError WriteError ClientConnectionError ClientConnectionResetError
        ClientConnectorCertificateError ClientConnectorDNSError ClientConnectorError ClientConnectorSSLError
        ClientOSError ClientProxyConnectionError ClientSSLError ServerConnectionError ServerDisconnectedError
        ServerFingerprintMismatch TransportError UploadAbortedError WebSocketConnectionClosedError BrokenResourceError
        ClosedResourceError EndOfStream ConnectionError SSLError RemoteDisconnected gaierror herror""",
    "content_filter": "ContentFilterFinishReasonError",
    "invalid_request": """BadRequestError NotFoundError UnprocessableEntityError ContentTooLargeError
        LengthFinishReasonError InvalidURL LocalProtocolError TooManyRedirects UnsupportedProtocol
        InvalidUrlClientError InvalidUrlRedirectClientError NonHttpUrlClientError NonHttpUrlRedirectClientError
        HTTPNotImplementedError PreconditionFailedError RequestTooLargeError RequestHeaderFieldsTooLargeError""",
    "malformed": """APIResponseValidationError APIWebhookValidationError ContentTypeError DecodingError SSEError
        ContentDecodingError JSONDecodeError BadStatusLine""",
    "overloaded": "OverloadedError ServiceUnavailableError",
    "rate_limited": "RateLimitError PaymentRequiredError",
    "stream_cut": "ClientPayloadError ChunkedEncodingError IncompleteRead",
    "timeout": """APITimeoutError GatewayTimeoutError ConnectTimeout PoolTimeout ReadTimeout WriteTimeout Timeout
        TimeoutException ConnectionTimeoutError ServerTimeoutError SocketTimeoutError timeout""",
    "transient": """APIError APIStatusError ConflictError InternalServerError RequestTimeoutError RetryableError""",
}

# Those say nothing by themselves, or are mistakes of the program that has them.
_SILENT = """AnthropicError OpenAIError InvalidWebhookSignatureError WebSocketQueueFullError HTTPError HTTPStatusError
    RequestError CookieConflict RequestNotRead ResponseNotRead StreamClosed StreamConsumed StreamError ClientError
    ConnectionNotAvailable ClientHttpProxyError ClientResponseError EofStream RedirectClientError WSMessageTypeError
    WSServerHandshakeError WebSocketError"""


def _is_error(each: Any) -> bool:
    # By `type`, because openai has objects that import half of it when they are asked for their class.
    return issubclass(type(each), type) and issubclass(each, BaseException) and not issubclass(each, Warning)


def _called(name: str) -> list[type[BaseException]]:
    found = [each for each in (getattr(module, name, None) for module in _MODULES) if _is_error(each)]
    assert found, name
    return found


@pytest.mark.parametrize("kind", _CLASSES)
def test_each_class_without_anything_in_it(kind: FaultKind) -> None:
    """In every library that has one of that name; the status classes of the SDKs carry their status themselves."""
    for name in _CLASSES[kind].split():
        for each in _called(name):
            assert kind == classify(each.__new__(each)).kind, each


def test_no_class_of_the_sdks_is_forgotten() -> None:
    """A new release brings new ones, and somebody has to say what they are."""
    known = set(" ".join([*_CLASSES.values(), _SILENT]).split())
    for module in (openai, anthropic, httpx, httpx2, httpcore, aiohttp):
        for name, each in vars(module).items():
            if _is_error(each) and name not in known and not name.startswith("_"):
                assert issubclass(each, anthropic.APIStatusError), f"{each} is new"
                assert classify(each.__new__(each)).status is not None, f"{each} is new, and has no status"
    for name in _SILENT.split():
        for each in _called(name):
            assert classify(each.__new__(each)).kind == "unknown", each


def test_the_name_alone_tells_what_failed_in_another_process() -> None:
    """The exception itself stays there, and with it what its class derives from."""
    for kind in ("connection", "timeout", "stream_cut", "content_filter", "overloaded"):
        for name in _CLASSES[kind].split():
            if name not in ("ClientClosedRequestError", "ClientSSLError", "ServerFingerprintMismatch", "timeout"):
                assert kind == classify(SharedCallError("op", f"package.{name}")).kind, name
    for each in (BrokenPipeError, ConnectionAbortedError, ConnectionRefusedError, ConnectionResetError, ssl.SSLError):
        assert classify(SharedCallError("op", each.__qualname__)).kind == "connection"
    for status in ("Authentication", "PermissionDenied", "BadRequest", "NotFound", "UnprocessableEntity", "Conflict"):
        named, carried = SharedCallError("op", f"{status}Error"), getattr(anthropic, f"{status}Error")
        assert classify(named).kind == classify(carried.__new__(carried)).kind
    assert classify(SharedCallError("op", "anthropic.ContentTooLargeError")).kind == "invalid_request"
    assert classify(SharedCallError("op", "openai.InternalServerError")).kind == "transient"
    for told in ("PrimitiveTimeoutError", "StreamStalledError", "ssl.SSLCertVerificationError"):
        assert classify(SharedCallError("op", told)).kind != "unknown"


_STATUSES: dict[FaultKind, tuple[int, ...]] = {
    "auth": (401, 403, 407),
    "rate_limited": (402, 429),
    "transient": (408, 409, 425, 500, 502, 506, 507, 508, 510, 511, 520, 527, 530, 599),
    "overloaded": (498, 503, 529),
    "connection": (499, 521, 523, 525, 526),
    "timeout": (504, 522, 524),
    "invalid_request": (301, 400, 404, 405, 410, 413, 418, 422, 451, 501, 505),
}


@pytest.mark.parametrize("kind", _STATUSES)
def test_each_status_where_nothing_else_is_said(kind: FaultKind) -> None:
    """Whatever gateway stands before the provider, it has at least a status."""
    for status in _STATUSES[kind]:
        assert (kind, status) == (classify(of_aiohttp(status)).kind, classify(of_aiohttp(status)).status)


_CODES: dict[FaultKind, str] = {
    "auth": "authentication_error invalid_api_key PERMISSION_DENIED permission_error UNAUTHENTICATED",
    "content_filter": """content_filter content_policy_violation ResponsibleAIPolicyViolation moderation_blocked
        invalid_prompt data_inspection_failed""",
    "context_length": "context_length_exceeded model_context_window_exceeded",
    "invalid_request": "BadRequestError INVALID_ARGUMENT invalid_request_error model_not_found not_found_error",
    "overloaded": "overloaded_error engine_overloaded_error slow_down service_unavailable UNAVAILABLE",
    "rate_limited": """rate_limit_error rate_limit_exceeded RESOURCE_EXHAUSTED billing_error
        billing_hard_limit_reached billing_not_active contract_spend_limit_reached enforced_spend_limit_reached
        exceeded_current_quota_error insufficient_balance insufficient_quota linked_organization_spend_limit_reached""",
    "timeout": "DEADLINE_EXCEEDED gateway_timeout request_timeout timeout_error",
    "transient": """api_error INTERNAL internal_error internal_server_error InternalServerError server_error""",
}


@pytest.mark.parametrize("kind", _CODES)
def test_each_code_where_there_is_no_status(kind: FaultKind) -> None:
    """An error in the middle of a stream has nothing but that."""

    class InStream(Exception):
        body: Any = None

    for code in _CODES[kind].split():
        error = InStream()
        error.body = {"error": {"code": code}}
        assert kind == classify(error).kind, code
        spent = "billing" in code or "insufficient" in code or "spend" in code or "quota" in code
        assert classify(error).should_retry is (False if spent else None), code


# --- Over real sockets. ---

_CUT = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel"
_LIMITED = b"HTTP/1.1 429 Too Many\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n"


@asynccontextmanager
async def _serving(answer: bytes | None) -> AsyncIterator[str]:
    """A server that gives these bytes and hangs up; with None it keeps silent."""
    leave = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await leave.wait()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        leave.set()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(_LIMITED, Fault("rate_limited", 429, 2.0), id="limited"),
        pytest.param(_CUT, Fault("stream_cut"), id="cut"),
        pytest.param(b"", Fault("connection"), id="hung up"),
        pytest.param(b"no HTTP at all\r\n\r\n", Fault("malformed"), id="not HTTP"),
        pytest.param(None, Fault("timeout"), id="silent"),
    ],
)
async def test_faults_of_a_real_server(answer: bytes | None, expected: Fault) -> None:
    """What the clients make of bytes is theirs to say; aiohttp calls an answer that is not HTTP a 400."""
    async with _serving(answer) as url:
        patience = 0.02 if answer is None else 10.0
        limits = aiohttp.ClientTimeout(total=None, sock_read=patience)
        async with aiohttp.ClientSession(timeout=limits) as session:
            with pytest.raises(aiohttp.ClientError) as of_aiohttp:
                async with session.get(url, raise_for_status=True) as response:
                    await response.read()
        async with httpx.AsyncClient(trust_env=False, timeout=patience, verify=False) as client:
            with pytest.raises(httpx.HTTPError) as of_httpx:
                (await client.get(url)).raise_for_status()
    assert expected == classify(of_aiohttp.value)
    if expected.kind != "malformed":  # to httpx that is one more broken connection
        assert expected == classify(of_httpx.value)


# --- How long to wait. ---

_DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
_WAITS: list[tuple[dict[str, str], float | None]] = [
    ({"retry-after": "0"}, 0.0),
    ({"retry-after": " 12 "}, 12.0),
    ({"retry-after": "0.25"}, 0.25),
    ({"retry-after": "86400"}, 86_400.0),
    ({"retry-after-ms": "150", "retry-after": "9"}, 0.15),
    ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
    ({"retry-after": "Wed, 21 Oct 2026 07:28:10 GMT", "date": _DATE}, 10.0),
    ({"retry-after": "Wed, 21 Oct 2026 07:28:10 -0000", "date": _DATE}, 10.0),
    ({"retry-after": "Wed, 21 Oct 2026 07:27:10 GMT", "date": _DATE}, None),
    ({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}, None),
    ({"retry-after": "Wed, 99 Oct 99999 07:28:00 GMT"}, None),
    ({"retry-after": "-1"}, None),
    ({"retry-after": "nan"}, None),
    ({"retry-after": "inf"}, None),
    ({"retry-after": "1e3"}, None),
    ({"retry-after": "1_000"}, None),
    ({"retry-after": "86401"}, None),
    ({"retry-after": "9" * 400}, None),
    ({"retry-after": ""}, None),
    ({"retry-after": "١"}, None),
    ({"retry-after": "later"}, None),
    ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 1.0),
    ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "0"},
     360.0),
    ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "0",
      "x-ratelimit-remaining-requests": "0"}, 360.0),
    ({"x-ratelimit-reset-requests": "1h2m3.5s"}, 3_723.5),
    ({"x-ratelimit-reset-tokens": "120ms"}, 0.12),
    ({"x-ratelimit-reset-tokens": "30"}, 30.0),
    ({"x-ratelimit-reset-tokens": "2d"}, None),
    ({"x-ratelimit-reset-tokens": "soon"}, None),
    ({"x-ratelimit-reset-tokens": "5s", "retry-after": "2"}, 2.0),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "expected"), _WAITS)
def test_how_long_the_provider_asks_to_wait(headers: dict[str, str], expected: float | None) -> None:
    """In every form that providers use; what makes no sense is as good as not said."""
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert expected == classify(of_openai(429, encoded)).retry_after_seconds


def test_a_date_counts_from_our_clock_if_the_response_has_no_date() -> None:
    """Most responses have one, and it is the better of the two."""
    wait = classify(of_openai(503, {"retry-after": formatdate(time.time() + 100, usegmt=True)})).retry_after_seconds
    assert wait is not None
    assert 90 < wait <= 100


def test_openai_names_the_limit_that_was_met() -> None:
    """The other limit's reset would be too short, or minutes too long."""
    resets = {"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}
    assert classify(of_openai(429, resets, type="tokens")).retry_after_seconds == 360.0
    assert classify(of_openai(429, resets, type="requests")).retry_after_seconds == 1.0


def test_resets_say_nothing_about_other_faults() -> None:
    """OpenAI sends them with every response; they would turn each retry of a 500 into a wait."""
    assert classify(of_openai(500, {"x-ratelimit-reset-tokens": "6m0s"})).retry_after_seconds is None


class _Limited(Exception):
    status_code = 429

    def __init__(self, headers: Any) -> None:
        self.headers = headers


@pytest.mark.parametrize(
    "headers",
    [
        {"RETRY-AFTER": "2"},
        {b"Retry-After": b"2"},
        [("Retry-After", "2")],
        [None, ("a",), ["retry-after", b"2"]],
        httpx.Headers({"Retry-After": "2"}),
        httpx.Headers({"Retry-After": "2"}).raw,
        multidict.CIMultiDict({"rEtry-aFter": "2"}),
        _message("Retry-After", "2"),
        iter([("retry-after", "2")]),
    ],
    ids=["dict", "bytes", "pairs", "holes", "httpx", "raw", "multidict", "email", "iterator"],
)
def test_headers_of_every_kind(headers: Any) -> None:
    """Each client has its own."""
    assert Fault("rate_limited", 429, 2.0) == classify(_Limited(headers))


# --- Classes nobody has listed. ---


def test_subclasses_are_what_their_bases_are() -> None:
    """Applications derive from the SDKs' exceptions, and give them names of their own."""

    class Ours(openai.APITimeoutError):  # type: ignore[misc, name-defined]
        pass

    class Broken(httpx.ReadError):  # type: ignore[misc, name-defined]
        pass

    assert classify(Ours(request=_REQUEST)).kind == "timeout"
    assert classify(Broken("no")).kind == "connection"


def test_a_class_of_any_name_is_known_by_what_it_carries() -> None:
    """Other SDKs have the same attributes, or the same names without any attribute."""

    class Whatever(Exception):
        status_code: Any = None
        code: Any = None
        body: Any = None

    class RateLimitError(Exception):
        pass

    class ContextWindowExceededError(Whatever):  # LiteLLM's
        status_code = 400

    class ContentPolicyViolationError(Whatever):  # LiteLLM's
        status_code = 400

    class ValidationError(ValueError):
        pass

    error = Whatever()
    error.status_code = 503
    assert Fault("overloaded", 503) == classify(error)
    error.status_code, error.code = None, "context_length_exceeded"
    assert Fault("context_length") == classify(error)
    error.code, error.body = 429, b'{"error": {"code": "insufficient_quota"}}'
    assert Fault("rate_limited", 429, None, False) == classify(error)
    error.code, error.body = True, None
    assert Fault("unknown") == classify(error)
    assert Fault("rate_limited") == classify(RateLimitError())
    assert Fault("context_length") == classify(ContextWindowExceededError())
    assert Fault("content_filter") == classify(ContentPolicyViolationError())
    assert Fault("unknown") == classify(ValidationError()), "half the world has a ValidationError"


# --- Chains and groups. ---


def test_the_cause_tells_where_the_type_says_nothing() -> None:
    """Applications wrap what they call; a named cause goes before what was being handled."""
    limited = of_openai(429, {"retry-after": "2"})
    expected = Fault("rate_limited", 429, 2.0)
    assert expected == classify(chained(RuntimeError("ours"), limited))
    assert expected == classify(met_during(RuntimeError("ours"), limited))
    assert expected == classify(chained(met_during(RuntimeError("ours"), TimeoutError()), limited))
    assert expected == classify(chained(RuntimeError("outer"), chained(RuntimeError("inner"), limited)))
    assert Fault("timeout") == classify(chained(TimeoutError(), limited)), "the outer type says enough"
    silenced = met_during(RuntimeError("ours"), limited)
    silenced.__suppress_context__ = True
    assert Fault("unknown") == classify(silenced), "raised from None"


def test_only_a_named_cause_refines_a_broken_connection() -> None:
    """What was being handled may be the attempt before this one."""
    assert Fault("connection") == classify(met_during(httpx.ConnectError("refused"), TimeoutError()))
    assert Fault("connection") == classify(chained(httpx.ConnectError("refused"), ValueError()))


def test_a_chain_may_be_a_circle_or_without_end() -> None:
    """It is followed no further than makes sense."""
    first, second = RuntimeError("a"), RuntimeError("b")
    chained(first, second)
    chained(second, first)
    assert Fault("unknown") == classify(first)
    broken = httpx.ConnectError("refused")
    assert Fault("connection") == classify(chained(broken, broken))
    far: BaseException = TimeoutError()
    for _ in range(5_000):
        far = chained(RuntimeError(), far)
    assert Fault("unknown") == classify(far)
    far = TimeoutError()
    for _ in range(5_000):
        far = chained(httpx.ConnectError("refused"), far)
    assert Fault("connection") == classify(far)


def test_the_gravest_member_of_a_group_tells() -> None:
    """What forbids to ask again goes before what allows it, whatever the order of the members."""
    limited, slow, wrong = of_openai(429, {"retry-after": "2"}), TimeoutError(), of_openai(401)
    longer, spent = of_openai(429, {"retry-after": "9"}), of_openai(429, **_QUOTA)
    assert Fault("auth", 401) == classify(ExceptionGroup("g", [limited, wrong, slow]))
    assert Fault("timeout") == classify(ExceptionGroup("g", [limited, slow]))
    assert Fault("rate_limited", 429, 9.0) == classify(ExceptionGroup("g", [limited, longer]))
    assert Fault("rate_limited", 429, None, False) == classify(ExceptionGroup("g", [longer, spent]))
    assert Fault("cancelled") == classify(BaseExceptionGroup("g", [wrong, asyncio.CancelledError()]))
    assert Fault("timeout") == classify(ExceptionGroup("g", [ExceptionGroup("h", [slow]), limited]))
    assert Fault("timeout") == classify(chained(ExceptionGroup("g", [ValueError()]), slow))
    shared = chained(RuntimeError(), limited)
    assert Fault("rate_limited", 429, 2.0) == classify(ExceptionGroup("g", [shared, chained(RuntimeError(), limited)]))
    assert Fault("timeout") == classify(ExceptionGroup("g", [slow] * 5_000))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CircuitOpenError("op", 1.5), Fault("refused", retry_after_seconds=1.5)),
        (RateLimitExceededError("op", "tokens", None), Fault("refused")),
        (ConcurrencyLimitError("op", "shed", 0.1, 8), Fault("refused")),
        (PrimitiveTimeoutError("op", 0.0, 0.0, kind="deadline", cleanup="refused"), Fault("refused")),
        (PrimitiveTimeoutError("op", 1.0, 1.0), Fault("timeout")),
        (SharedCallError("op", "observability_integration.errors.CircuitOpenError"), Fault("refused")),
        (chained(CompensationError("trip", "pay", []), of_openai(503)), Fault("invalid_request")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_was_never_made_says_nothing_about_the_target(error: Exception, expected: Fault) -> None:
    """A call that we refused ourselves may go elsewhere at once, and must not open the circuit of who was not asked."""
    fault = classify(error)
    assert expected == fault
    if fault.kind == "refused":
        assert (False, True, False) == (fault.retries_same_target, fault.turns_to_next, fault.counts_against_target)


def test_the_order_of_gravity_is_the_order_of_the_kinds() -> None:
    """It is stated in one place, and each pair obeys it."""

    class Told(Exception):
        pass

    made = {
        "cancelled": KeyboardInterrupt(),
        "content_filter": openai.ContentFilterFinishReasonError(),
        "auth": of_openai(401),
        "invalid_request": of_openai(400),
        "caller": TypeError(),
        "context_length": of_openai(400, code="context_length_exceeded"),
        "refused": CircuitOpenError("op", 1.5),
        "unknown": Told(),
        "malformed": _from_json("{"),
        "stream_cut": StreamInterruptedError("op", 1, "no_finish_reason"),
        "timeout": TimeoutError(),
        "rate_limited": of_openai(429),
        "overloaded": of_openai(503),
        "connection": ConnectionResetError(),
        "transient": of_openai(500),
    }
    assert list(FAULT_KINDS) == list(made)
    for place, (kind, error) in enumerate(made.items()):
        for milder in list(made.values())[place:]:
            assert kind == classify(BaseExceptionGroup("g", [milder, error])).kind


# --- The policy. ---


def _documented() -> dict[str, tuple[bool, bool, bool, bool]]:
    lines = (faults.__doc__ or "").splitlines()
    rule = next(line for line in lines if line.startswith("=="))
    starts = [0] + [place + 1 for place, mark in enumerate(rule) if mark == " " and rule[place - 1] == " "]
    rows: dict[str, tuple[bool, bool, bool, bool]] = {}
    for line in lines:
        if line.startswith("``") and len(line) > starts[4]:
            same, following, counts = (line[start:].split("  ")[0] for start in starts[2:])
            rows[line.split("``")[1]] = (same == "yes", following == "yes", following != "no", counts == "yes")
    return rows


def test_the_policy_is_the_one_of_the_table() -> None:
    """The table in the module's docstring is what people read."""
    documented = _documented()
    assert list(FAULT_KINDS) == list(documented)
    for kind, row in documented.items():
        fault = Fault(cast("FaultKind", kind))
        actual = (
            fault.retries_same_target,
            fault.turns_to_next,
            fault.turns_to_larger_window,
            fault.counts_against_target,
        )
        assert row == actual, kind


def test_what_must_never_be_routed_around() -> None:
    """A refused content, a wrong key, request or program are the caller's to know of; so is a cancellation."""
    for kind in ("content_filter", "auth", "invalid_request", "caller", "cancelled"):
        fault = Fault(cast("FaultKind", kind))
        assert not fault.retries_same_target
        assert not fault.turns_to_next
        assert not fault.turns_to_larger_window
        assert not fault.counts_against_target


def test_the_providers_word_on_asking_again_goes_before_the_kind() -> None:
    """Except where the same words would meet the same refusal."""
    assert not Fault("transient", 500, should_retry=False).retries_same_target
    assert Fault("transient", 500, should_retry=False).turns_to_next
    assert Fault("invalid_request", 400, should_retry=True).retries_same_target
    for kind in ("cancelled", "content_filter", "context_length"):
        assert not Fault(cast("FaultKind", kind), should_retry=True).retries_same_target


def test_a_used_up_quota_counts_against_its_target_and_another_may_serve() -> None:
    """Unlike a rate limit it does not go away by waiting."""
    fault = classify(of_openai(429, {"x-should-retry": "true"}, **_QUOTA))
    assert (fault.retries_same_target, fault.turns_to_next, fault.counts_against_target) == (False, True, True)
    assert not classify(of_openai(429)).counts_against_target


# --- The user's own rules. ---


@pytest.fixture
def counted() -> Iterator[Callable[[], float]]:
    """How often the user's function has failed."""
    instruments.start(exemplars=False, profiles=frozenset({Profile.V1_41}))
    yield lambda: TELEMETRY_FAULTS.series("faults.classifier").value
    instruments.stop()


def test_the_users_function_is_asked_first() -> None:
    """It knows exceptions that nobody else does."""
    own = Fault("overloaded", retry_after_seconds=4.0)
    assert own == classify(TimeoutError(), lambda error: own)
    assert Fault("timeout") == classify(TimeoutError(), lambda error: None)
    limited = of_openai(503, {"retry-after": "2", "x-should-retry": "false"})
    assert Fault("rate_limited", 503, 2.0) == classify(limited, lambda error: "rate_limited")


@pytest.mark.parametrize("answer", ["broken", 7, [], True, "", ("timeout",), _from_json("{")])
def test_nonsense_of_the_users_function_is_counted_and_ignored(answer: Any, counted: Callable[[], float]) -> None:
    """The user's call must not fail because of it."""
    assert Fault("timeout") == classify(TimeoutError(), lambda error: answer)
    assert counted() == 1


def test_a_users_function_that_fails_is_counted_and_ignored(counted: Callable[[], float]) -> None:
    """As above."""

    def broken(error: BaseException) -> Any:
        raise KeyError(error)

    assert Fault("timeout") == classify(TimeoutError(), broken)
    assert counted() == 1


# --- Ugly things. ---


def test_a_message_is_looked_at_and_never_kept() -> None:
    """A prompt may stand in it, and it may be of any length."""
    secret = "My secret is Rumpelstiltskin. "
    assert "secret" not in repr(classify(of_openai(400, message=secret, code=secret)))
    words = "prompt is too long"
    within, beyond = "x" * (2_000 - len(words)) + words, "x" * (2_001 - len(words)) + words
    assert classify(of_openai(400, message=within)).kind == "context_length"
    assert classify(of_openai(400, message=beyond)).kind == "invalid_request"
    assert classify(of_aiohttp(400, message=within)).kind == "context_length"
    assert classify(of_aiohttp(400, message=beyond)).kind == "invalid_request"


def test_the_text_of_an_exception_is_the_last_place_to_look() -> None:
    """Some clients have nothing but that."""

    class Bare(Exception):
        status = 400

    class Mute(Bare):
        def __str__(self) -> str:
            raise RuntimeError

    assert Fault("context_length", 400) == classify(Bare("prompt is too long"))
    assert Fault("invalid_request", 400) == classify(Bare("x" * 2_000 + "prompt is too long"))
    assert Fault("invalid_request", 400) == classify(Mute())


class _Refusing:
    """Raises whatever is done with it, but for the repr that a failing test shows."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        return "<refusing>"


class _RefusingError(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise RuntimeError


class _RefusingMapping(dict[str, Any]):
    def get(self, *args: Any) -> Any:
        raise RuntimeError

    def items(self) -> Any:
        raise RuntimeError


class _RefusingName(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError


class _NamelessError(Exception, metaclass=_RefusingName):
    pass


def test_what_raises_when_it_is_read_counts_as_not_said() -> None:
    """And what can be read still tells."""

    class Half(Exception):
        status_code = 529
        body = _RefusingMapping(error=1)
        headers = _RefusingMapping()

        @property
        def response(self) -> Any:
            raise RuntimeError("not now")

    assert Fault("overloaded", 529) == classify(Half())
    assert Fault("unknown") == classify(_RefusingError())
    assert Fault("unknown") == classify(_NamelessError())
    assert Fault("unknown") == classify(cast("Any", _Refusing()))
    assert Fault("unknown") == classify(cast("Any", None))


def test_bodies_and_headers_without_end() -> None:
    """A body that holds itself, a list that holds itself, headers that go on, and a body that is merely long."""

    class Endless(Exception):
        status_code = 500
        body: Any = None
        headers: Any = None

    error = Endless()
    error.body = {}
    error.body["error"] = error.body
    error.headers = iter(lambda: ("a", "b"), None)
    assert Fault("transient", 500) == classify(error)
    error.body = []
    error.body += [error.body, error.body]
    assert Fault("transient", 500) == classify(error)
    error.body = json.dumps({"code": "overloaded_error", "message": "x" * 70_000})
    assert Fault("transient", 500) == classify(error), "too long to be taken apart"


def test_no_response_is_read_over_the_network() -> None:
    """requests, for one, fetches what is left of a body when its attribute is read: in the event loop's thread."""

    read: list[str] = []

    class Lazy:
        status_code = 503

        @property
        def content(self) -> bytes:
            read.append("content")
            return b""

    class Failed(Exception):
        response = Lazy()

    assert Fault("overloaded", 503) == classify(Failed())
    assert not read


def test_nothing_deprecated_is_read() -> None:
    """aiohttp warns whoever reads the `code` of its exceptions."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        classify(of_aiohttp(429))
        classify(of_aiohttp(0))
    assert not warned


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.binary(max_size=30)
    | st.builds(_Refusing)
    | st.builds(_RefusingMapping)
    | st.sampled_from([threading.Lock(), io.BytesIO(), 429, 400, 200, "1s", "-1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["error", "code", "type", "message", "details", "retry-after", b"x"]), inner)
    ),
    max_leaves=6,
)
_attributes = st.dictionaries(
    st.sampled_from(
        ["status", "status_code", "code", "type", "body", "response", "headers", "message", "errno", "error_type"]
    ),
    _values,
    max_size=5,
)


@given(_attributes, _attributes, _values, st.sampled_from([Exception, OSError, KeyboardInterrupt]))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_object_makes_it_raise(
    outer: dict[str, Any], inner: dict[str, Any], value: Any, base: type[BaseException]
) -> None:
    """Whatever an exception, its response, its cause or a thing that is no exception at all carries."""
    response = type("Response", (), {**inner, "content": value, "is_closed": True})()
    error: Any = type("Odd", (base,), {"response": response, **outer})(value)
    error.__cause__ = type("Cause", (Exception,), inner)()
    for each in (error, ExceptionGroup("g", [error.__cause__]), value):
        assert classify(each).kind in FAULT_KINDS
