"""The faults of a `FaultyProvider`, each with the model name that requests it.

==================================================  ====================================================================
model name                                          what a client sees
==================================================  ====================================================================
any that does not begin with ``faulty-``            the whole answer
``faulty-429[-first-{requests}]``                   429; from request `requests` + 1 on the answer, else never
``faulty-429-retry-after-{seconds}                  429 with Retry-After at the first `requests` (1) requests, then the
[-first-{requests}]``                               answer
``faulty-500``                                      500 every time
``faulty-500-once``                                 500 at the first request, then the answer
``faulty-503[-for-{seconds}]``                      503 for so long from the first request on, or until `heal()`
``faulty-reset``                                    a connection reset before a byte of the reply
``faulty-silent``                                   nothing: the request is read and never answered
``faulty-slow-first-token-{seconds}``               the answer, after so long
``faulty-drip-{seconds}``                           the answer, each token after so long
``faulty-cut-at-{token}``                           the connection ends after so many tokens
``faulty-reset-at-{token}``                         the connection is reset after so many tokens
``faulty-stall-at-{token}``                         so many tokens, then nothing
``faulty-malformed-at-{token}``                     after so many tokens an event of broken JSON; all content comes
``faulty-malformed-then-cut-at-{token}``            the same, and the connection ends there
``faulty-no-end-marker``                            the answer with its finish reason, no ``[DONE]``
``faulty-no-end``                                   all content; no finish reason, no usage, no ``[DONE]``
``faulty-finish-content-filter``                    the answer with finish reason ``content_filter``
``faulty-content-filter``                           400 with code ``content_filter``
``faulty-context-length``                           400 with code ``context_length_exceeded``
``faulty-prefill-rejected``                         400 if the last message is the assistant's, else the answer
``faulty-401``                                      401 with code ``invalid_api_key``
``faulty-flapping-every-{nth}``                     500 at every n-th request, the answer at the others
``faulty-flapping-good-{good_seconds}               the answer for so long, then 503 for so long, and so on, from the
-bad-{bad_seconds}``                                first request on
``faulty-not-json``                                 200 whose body is no JSON, though its content type says so
``faulty-empty``                                    200 without a body
``faulty-wrong-content-type``                       200 with the answer as one document of ``text/plain``
``faulty-502-html``                                 502 with a page of HTML
``faulty-huge-headers``                             200 with 128 KiB of headers
==================================================  ====================================================================

A part in brackets is optional. Seconds, up to a million with six decimals, are multiplied by the provider's
`time_scale`, except those of Retry-After, which the client waits.

A client that requests no stream gets half of the document if the connection breaks at a token, half of it with the
length of a half if the JSON is malformed, and no finish reason if there is no end.

Each class formats the name of its fault: ``CutAt(5).model`` is ``faulty-cut-at-5``. A suffix after a colon tells models
with the same fault apart; each counts its own requests: ``faulty-500-once:first target``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from observability_integration.errors import ConfigurationError

from .fault_name import PREFIX, Fault, format_number
from .pending_request import AnswerPlan, PendingRequest

_HUGE_HEADERS = tuple((f"X-Padding-{number}", "x" * 4_096) for number in range(32))
_HTML_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>\r\n"


@dataclass(frozen=True, slots=True)
class RateLimited(Fault):
    """429 without Retry-After, at the first `requests` requests, or always if `requests` is None."""

    template: ClassVar[str] = "faulty-429[-first-{requests}]"
    requests: int | None = None

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        if self.requests is None or request.number <= self.requests:
            await _refuse_for_rate(request)
        else:
            await request.answer()


@dataclass(frozen=True, slots=True)
class RateLimitedWithRetryAfter(Fault):
    """429 with Retry-After (whole seconds, rounded up) and Retry-After-Ms (exact), at the first `requests` requests."""

    template: ClassVar[str] = "faulty-429-retry-after-{seconds}[-first-{requests}]"
    seconds: float
    requests: int = 1

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        if request.number > self.requests:
            await request.answer()
            return
        milliseconds = ("Retry-After-Ms", format_number(self.seconds * 1000))
        await _refuse_for_rate(request, ("Retry-After", str(math.ceil(self.seconds))), milliseconds)


@dataclass(frozen=True, slots=True)
class ServerError(Fault):
    """500 every time."""

    template: ClassVar[str] = "faulty-500"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await _fail(request)


@dataclass(frozen=True, slots=True)
class ServerErrorOnce(Fault):
    """500 at the first request."""

    template: ClassVar[str] = "faulty-500-once"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await (_fail(request) if request.number == 1 else request.answer())


@dataclass(frozen=True, slots=True)
class Unavailable(Fault):
    """503 for `seconds` from the first request on, or until `FaultyProvider.heal` if `seconds` is None."""

    template: ClassVar[str] = "faulty-503[-for-{seconds}]"
    seconds: float | None = None

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        healthy = request.healed or (self.seconds is not None and request.age_seconds >= self.seconds)
        await (request.answer() if healthy else refuse_as_overloaded(request))


@dataclass(frozen=True, slots=True)
class Reset(Fault):
    """A connection reset before a byte of the reply."""

    template: ClassVar[str] = "faulty-reset"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        request.reset()


@dataclass(frozen=True, slots=True)
class Silent(Fault):
    """The request is read and never answered."""

    template: ClassVar[str] = "faulty-silent"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.hang()


@dataclass(frozen=True, slots=True)
class SlowFirstToken(Fault):
    """The answer, after `seconds`."""

    template: ClassVar[str] = "faulty-slow-first-token-{seconds}"
    seconds: float

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.answer(AnswerPlan(first_token_seconds=self.seconds))


@dataclass(frozen=True, slots=True)
class Drip(Fault):
    """The answer, each token after `seconds`."""

    template: ClassVar[str] = "faulty-drip-{seconds}"
    seconds: float

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.answer(AnswerPlan(seconds_per_token=self.seconds))


@dataclass(frozen=True, slots=True)
class CutAt(Fault):
    """The connection ends after `token` tokens."""

    template: ClassVar[str] = "faulty-cut-at-{token}"
    token: int

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.answer(AnswerPlan(breaks_at=self.token))


@dataclass(frozen=True, slots=True)
class ResetAt(Fault):
    """The connection is reset after `token` tokens."""

    template: ClassVar[str] = "faulty-reset-at-{token}"
    token: int

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.answer(AnswerPlan(breaks_at=self.token, breaks_by="reset"))


@dataclass(frozen=True, slots=True)
class StallAt(Fault):
    """Nothing more comes after `token` tokens; the connection stays open."""

    template: ClassVar[str] = "faulty-stall-at-{token}"
    token: int

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.answer(AnswerPlan(breaks_at=self.token, breaks_by="stall"))


@dataclass(frozen=True, slots=True)
class MalformedAt(Fault):
    """After `token` tokens comes an event of broken JSON, and then the rest of the answer."""

    template: ClassVar[str] = "faulty-malformed-at-{token}"
    token: int

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.answer(AnswerPlan(malformed_at=self.token))


@dataclass(frozen=True, slots=True)
class MalformedThenCutAt(Fault):
    """After `token` tokens comes an event of broken JSON, and then the connection ends."""

    template: ClassVar[str] = "faulty-malformed-then-cut-at-{token}"
    token: int

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.answer(AnswerPlan(malformed_at=self.token, breaks_at=self.token))


@dataclass(frozen=True, slots=True)
class NoEndMarker(Fault):
    """The answer with its finish reason, but the stream lacks ``[DONE]``."""

    template: ClassVar[str] = "faulty-no-end-marker"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.answer(AnswerPlan(has_end_marker=False))


@dataclass(frozen=True, slots=True)
class NoEnd(Fault):
    """All content without finish reason and ``[DONE]``."""

    template: ClassVar[str] = "faulty-no-end"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.answer(AnswerPlan(finish_reason=None, has_end_marker=False))


@dataclass(frozen=True, slots=True)
class FinishContentFilter(Fault):
    """The answer with finish reason ``content_filter``."""

    template: ClassVar[str] = "faulty-finish-content-filter"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.answer(AnswerPlan(finish_reason="content_filter"))


@dataclass(frozen=True, slots=True)
class ContentFilter(Fault):
    """400 with code ``content_filter``: the prompt was refused."""

    template: ClassVar[str] = "faulty-content-filter"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        message = "The response was filtered due to the prompt triggering the content management policy."
        await request.refuse(400, message, "invalid_request_error", code="content_filter", param="prompt")


@dataclass(frozen=True, slots=True)
class ContextLength(Fault):
    """400 with code ``context_length_exceeded``."""

    template: ClassVar[str] = "faulty-context-length"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        message = (
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens. "
            "Please reduce the length of the messages."
        )
        await request.refuse(400, message, "invalid_request_error", code="context_length_exceeded", param="messages")


@dataclass(frozen=True, slots=True)
class PrefillRejected(Fault):
    """400 if the last message is the assistant's, else the answer."""

    template: ClassVar[str] = "faulty-prefill-rejected"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        if request.chat.messages[-1].role != "assistant":
            await request.answer()
            return
        message = "Assistant message prefill is not supported. The conversation must end with a user message."
        await request.refuse(400, message, "invalid_request_error", param="messages")


@dataclass(frozen=True, slots=True)
class Unauthorized(Fault):
    """401 with code ``invalid_api_key``."""

    template: ClassVar[str] = "faulty-401"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        challenge = ("WWW-Authenticate", "Bearer")
        message = "Incorrect API key provided."
        await request.refuse(401, message, "invalid_request_error", challenge, code="invalid_api_key")


@dataclass(frozen=True, slots=True)
class FlappingEvery(Fault):
    """500 at every request whose number is a multiple of `nth`."""

    template: ClassVar[str] = "faulty-flapping-every-{nth}"
    nth: int

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await (_fail(request) if request.number % self.nth == 0 else request.answer())


@dataclass(frozen=True, slots=True)
class Flapping(Fault):
    """The answer for `good_seconds`, then 503 for `bad_seconds`, and so on, from the first request on."""

    template: ClassVar[str] = "faulty-flapping-good-{good_seconds}-bad-{bad_seconds}"
    good_seconds: float
    bad_seconds: float

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        period = self.good_seconds + self.bad_seconds
        good = period == 0 or request.age_seconds % period < self.good_seconds
        await (request.answer() if good else refuse_as_overloaded(request))


@dataclass(frozen=True, slots=True)
class NotJson(Fault):
    """200 with the content type of JSON and a body that is not JSON."""

    template: ClassVar[str] = "faulty-not-json"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.reply_raw(200, b"upstream connect error or disconnect before headers", "application/json")


@dataclass(frozen=True, slots=True)
class Empty(Fault):
    """200 without a body."""

    template: ClassVar[str] = "faulty-empty"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.reply_raw(200, b"", "application/json")


@dataclass(frozen=True, slots=True)
class WrongContentType(Fault):
    """200 with the answer as one document of ``text/plain``, even if the client requested a stream."""

    template: ClassVar[str] = "faulty-wrong-content-type"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.reply_raw(200, request.document(), "text/plain")


@dataclass(frozen=True, slots=True)
class HtmlBadGateway(Fault):
    """502 with a page of HTML, the reply of a proxy whose provider is down."""

    template: ClassVar[str] = "faulty-502-html"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.reply_raw(502, _HTML_PAGE, "text/html")


@dataclass(frozen=True, slots=True)
class HugeHeaders(Fault):
    """200 with 128 KiB of headers, more than common clients accept."""

    template: ClassVar[str] = "faulty-huge-headers"

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        await request.reply_raw(200, request.document(), "application/json", *_HUGE_HEADERS)


FAULTS: tuple[type[Fault], ...] = (
    RateLimited,
    RateLimitedWithRetryAfter,
    ServerError,
    ServerErrorOnce,
    Unavailable,
    Reset,
    Silent,
    SlowFirstToken,
    Drip,
    CutAt,
    ResetAt,
    StallAt,
    MalformedAt,
    MalformedThenCutAt,
    NoEndMarker,
    NoEnd,
    FinishContentFilter,
    ContentFilter,
    ContextLength,
    PrefillRejected,
    Unauthorized,
    FlappingEvery,
    Flapping,
    NotJson,
    Empty,
    WrongContentType,
    HtmlBadGateway,
    HugeHeaders,
)


def fault_of(model: str) -> Fault | None:
    """Returns the fault that a model name requests, or None.

    Raises:
        ConfigurationError: the name begins with ``faulty-``, but there is no such fault, or a number is out of range.
    """
    if not model.startswith(PREFIX):
        return None
    name = model.partition(":")[0]
    for kind in FAULTS:
        fault = kind.read(name)
        if fault is not None:
            return fault
    raise ConfigurationError(f"there is no fault {name[:64]!r}; see observability_integration.testing.faults")


async def refuse_as_overloaded(request: PendingRequest) -> None:
    """Replies with 503 and OpenAI's message for overload."""
    await request.refuse(503, "The engine is currently overloaded, please try again later.", "server_error")


async def _refuse_for_rate(request: PendingRequest, *headers: tuple[str, str]) -> None:
    message = "Rate limit reached; please try again later."
    await request.refuse(429, message, "requests", *headers, code="rate_limit_exceeded")


async def _fail(request: PendingRequest) -> None:
    await request.refuse(500, "The server had an error while processing your request.", "server_error")
