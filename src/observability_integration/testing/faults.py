"""What a `FaultyProvider` can do wrong, each fault under the model name that asks for it.

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

A client that asked for no stream gets half of the document where a token number says when the connection breaks, half
of it with the length of a half where the JSON is malformed, and no finish reason where there is no end. Seconds, up to
a million with six decimals, are multiplied by the provider's `time_scale`, but for Retry-After, which is the client's
to wait. In the table above, a part in brackets may be left out.

Each class makes the name of its fault, so that none need be written by hand: ``CutAt(5).model`` is ``faulty-cut-at-5``.
What follows a colon only tells models apart, each of which counts its own requests: ``faulty-500-once:first target``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from observability_integration.errors import ConfigurationError

from .fault_name import PREFIX, Fault, written
from .faulty_turn import Plan, Turn

_HUGE_HEADERS = tuple((f"X-Padding-{number}", "x" * 4_096) for number in range(32))
_HTML_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>\r\n"


@dataclass(frozen=True, slots=True)
class RateLimited(Fault):
    """429, without a hint when to come back; at the first `requests` requests, or always where that is None."""

    template: ClassVar[str] = "faulty-429[-first-{requests}]"
    requests: int | None = None

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        if self.requests is None or turn.number <= self.requests:
            await _refuse_for_rate(turn)
        else:
            await turn.answer()


@dataclass(frozen=True, slots=True)
class RateLimitedWithRetryAfter(Fault):
    """429 with Retry-After (whole seconds, rounded up) and Retry-After-Ms (exact), at the first `requests` requests."""

    template: ClassVar[str] = "faulty-429-retry-after-{seconds}[-first-{requests}]"
    seconds: float
    requests: int = 1

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        if turn.number > self.requests:
            await turn.answer()
            return
        milliseconds = ("Retry-After-Ms", written(self.seconds * 1000))
        await _refuse_for_rate(turn, ("Retry-After", str(math.ceil(self.seconds))), milliseconds)


@dataclass(frozen=True, slots=True)
class ServerError(Fault):
    """500 every time."""

    template: ClassVar[str] = "faulty-500"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await _fail(turn)


@dataclass(frozen=True, slots=True)
class ServerErrorOnce(Fault):
    """500 at the first request."""

    template: ClassVar[str] = "faulty-500-once"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await (_fail(turn) if turn.number == 1 else turn.answer())


@dataclass(frozen=True, slots=True)
class Unavailable(Fault):
    """503 for `seconds` from the first request on, or until `FaultyProvider.heal` where that is None."""

    template: ClassVar[str] = "faulty-503[-for-{seconds}]"
    seconds: float | None = None

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        over = turn.healed or (self.seconds is not None and turn.age_seconds >= self.seconds)
        await (turn.answer() if over else refuse_as_overloaded(turn))


@dataclass(frozen=True, slots=True)
class Reset(Fault):
    """A connection reset before a byte of the reply."""

    template: ClassVar[str] = "faulty-reset"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        turn.reset()


@dataclass(frozen=True, slots=True)
class Silent(Fault):
    """The request is read and never answered."""

    template: ClassVar[str] = "faulty-silent"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.hang()


@dataclass(frozen=True, slots=True)
class SlowFirstToken(Fault):
    """The answer, after `seconds`."""

    template: ClassVar[str] = "faulty-slow-first-token-{seconds}"
    seconds: float

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.answer(Plan(first_token_seconds=self.seconds))


@dataclass(frozen=True, slots=True)
class Drip(Fault):
    """The answer, each token after `seconds`."""

    template: ClassVar[str] = "faulty-drip-{seconds}"
    seconds: float

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.answer(Plan(seconds_per_token=self.seconds))


@dataclass(frozen=True, slots=True)
class CutAt(Fault):
    """The connection ends after `token` tokens."""

    template: ClassVar[str] = "faulty-cut-at-{token}"
    token: int

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.answer(Plan(breaks_at=self.token))


@dataclass(frozen=True, slots=True)
class ResetAt(Fault):
    """The connection is reset after `token` tokens."""

    template: ClassVar[str] = "faulty-reset-at-{token}"
    token: int

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.answer(Plan(breaks_at=self.token, breaks_by="reset"))


@dataclass(frozen=True, slots=True)
class StallAt(Fault):
    """Nothing more comes after `token` tokens; the connection stays open."""

    template: ClassVar[str] = "faulty-stall-at-{token}"
    token: int

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.answer(Plan(breaks_at=self.token, breaks_by="stall"))


@dataclass(frozen=True, slots=True)
class MalformedAt(Fault):
    """After `token` tokens comes an event of broken JSON, and then the rest of the answer."""

    template: ClassVar[str] = "faulty-malformed-at-{token}"
    token: int

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.answer(Plan(malformed_at=self.token))


@dataclass(frozen=True, slots=True)
class MalformedThenCutAt(Fault):
    """After `token` tokens comes an event of broken JSON, and then the connection ends."""

    template: ClassVar[str] = "faulty-malformed-then-cut-at-{token}"
    token: int

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.answer(Plan(malformed_at=self.token, breaks_at=self.token))


@dataclass(frozen=True, slots=True)
class NoEndMarker(Fault):
    """The answer with its finish reason, but the stream lacks ``[DONE]``."""

    template: ClassVar[str] = "faulty-no-end-marker"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.answer(Plan(has_end_marker=False))


@dataclass(frozen=True, slots=True)
class NoEnd(Fault):
    """All content, in good order, with neither finish reason nor ``[DONE]``."""

    template: ClassVar[str] = "faulty-no-end"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.answer(Plan(finish_reason=None, has_end_marker=False))


@dataclass(frozen=True, slots=True)
class FinishContentFilter(Fault):
    """The answer with finish reason ``content_filter``."""

    template: ClassVar[str] = "faulty-finish-content-filter"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.answer(Plan(finish_reason="content_filter"))


@dataclass(frozen=True, slots=True)
class ContentFilter(Fault):
    """400 with code ``content_filter``: the prompt was refused."""

    template: ClassVar[str] = "faulty-content-filter"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        message = "The response was filtered due to the prompt triggering the content management policy."
        await turn.refuse(400, message, "invalid_request_error", code="content_filter", param="prompt")


@dataclass(frozen=True, slots=True)
class ContextLength(Fault):
    """400 with code ``context_length_exceeded``."""

    template: ClassVar[str] = "faulty-context-length"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        message = (
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens. "
            "Please reduce the length of the messages."
        )
        await turn.refuse(400, message, "invalid_request_error", code="context_length_exceeded", param="messages")


@dataclass(frozen=True, slots=True)
class PrefillRejected(Fault):
    """400 if the last message is the assistant's, else the answer."""

    template: ClassVar[str] = "faulty-prefill-rejected"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        if turn.chat.messages[-1].role != "assistant":
            await turn.answer()
            return
        message = "Assistant message prefill is not supported. The conversation must end with a user message."
        await turn.refuse(400, message, "invalid_request_error", param="messages")


@dataclass(frozen=True, slots=True)
class Unauthorized(Fault):
    """401 with code ``invalid_api_key``."""

    template: ClassVar[str] = "faulty-401"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        challenge = ("WWW-Authenticate", "Bearer")
        message = "Incorrect API key provided."
        await turn.refuse(401, message, "invalid_request_error", challenge, code="invalid_api_key")


@dataclass(frozen=True, slots=True)
class FlappingEvery(Fault):
    """500 at every request whose number is a multiple of `nth`."""

    template: ClassVar[str] = "faulty-flapping-every-{nth}"
    nth: int

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await (_fail(turn) if turn.number % self.nth == 0 else turn.answer())


@dataclass(frozen=True, slots=True)
class Flapping(Fault):
    """The answer for `good_seconds`, then 503 for `bad_seconds`, and so on, from the first request on."""

    template: ClassVar[str] = "faulty-flapping-good-{good_seconds}-bad-{bad_seconds}"
    good_seconds: float
    bad_seconds: float

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        period = self.good_seconds + self.bad_seconds
        good = period == 0 or turn.age_seconds % period < self.good_seconds
        await (turn.answer() if good else refuse_as_overloaded(turn))


@dataclass(frozen=True, slots=True)
class NotJson(Fault):
    """200 whose body is no JSON, though its content type says so."""

    template: ClassVar[str] = "faulty-not-json"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.reply_raw(200, b"upstream connect error or disconnect before headers", "application/json")


@dataclass(frozen=True, slots=True)
class Empty(Fault):
    """200 without a body."""

    template: ClassVar[str] = "faulty-empty"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.reply_raw(200, b"", "application/json")


@dataclass(frozen=True, slots=True)
class WrongContentType(Fault):
    """200 with the answer as one document of ``text/plain``, also where a stream was asked for."""

    template: ClassVar[str] = "faulty-wrong-content-type"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.reply_raw(200, turn.document(), "text/plain")


@dataclass(frozen=True, slots=True)
class HtmlBadGateway(Fault):
    """502 with a page of HTML, as proxies answer for a provider that is down."""

    template: ClassVar[str] = "faulty-502-html"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.reply_raw(502, _HTML_PAGE, "text/html")


@dataclass(frozen=True, slots=True)
class HugeHeaders(Fault):
    """200 with 128 KiB of headers, more than common clients read."""

    template: ClassVar[str] = "faulty-huge-headers"

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        await turn.reply_raw(200, turn.document(), "application/json", *_HUGE_HEADERS)


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
    """The fault that a model name asks for; None where it asks for none.

    Raises:
        ConfigurationError: the name begins as those of faults do, but there is no such fault, or not with such numbers.
    """
    if not model.startswith(PREFIX):
        return None
    name = model.partition(":")[0]
    for kind in FAULTS:
        fault = kind.read(name)
        if fault is not None:
            return fault
    raise ConfigurationError(f"there is no fault {name[:64]!r}; see observability_integration.testing.faults")


async def refuse_as_overloaded(turn: Turn) -> None:
    """503, as OpenAI says that it is overloaded."""
    await turn.refuse(503, "The engine is currently overloaded, please try again later.", "server_error")


async def _refuse_for_rate(turn: Turn, *headers: tuple[str, str]) -> None:
    message = "Rate limit reached; please try again later."
    await turn.refuse(429, message, "requests", *headers, code="rate_limit_exceeded")


async def _fail(turn: Turn) -> None:
    await turn.refuse(500, "The server had an error while processing your request.", "server_error")
