"""A provider of language models that misbehaves on demand, for tests of code that calls one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

from observability_integration.checks import check_choice, check_count, check_positive
from observability_integration.errors import ConfigurationError
from observability_integration.tasks import spawn, wait_done

from .faults import fault_of, refuse_as_overloaded
from .http.chat_reply import refusal
from .http.chat_request import ChatRequest, ChatRequestError, parse_chat_request
from .http.loopback import LoopbackProvider
from .http.tokens import split_tokens
from .pending_request import PendingRequest
from .request_log import ReceivedRequest, RequestLog, redact_headers

if TYPE_CHECKING:
    from .http.exchange import Exchange
    from .http.http1 import Request

Outage = Literal["reset", "503"]

# 24 tokens by the rule of `http.tokens`: enough for a cut at any token that a test may name.
ANSWER = "This is the whole answer, and long enough to be cut in the middle: it ends with the word end."
_CHAT_PATH = "/v1/chat/completions"
_BODY_BYTES = 32 * 1024 * 1024  # a long conversation with images


class FaultyProvider(LoopbackProvider):
    """An OpenAI-compatible HTTP server on the loopback interface; the model name of a request selects the fault.

    Usage::

        async with FaultyProvider(time_scale=0.01) as provider:
            client = AsyncOpenAI(base_url=provider.base_url, api_key="any", max_retries=0)
            await client.chat.completions.create(model="faulty-429-retry-after-2", messages=[...])
            assert provider.attempts("faulty-429-retry-after-2") == 1

    `faults` has the table of the names. Any other model answers with `ANSWER` at once, whole or streamed, with its own
    name, a finish reason and token counts. The server ignores the key and limits on tokens. It listens on a free port.
    Leaving the context drops all connections, including those of unfinished answers. Needs h11 (extra `testing`).

    Args:
        time_scale: factor of all waits of the provider, > 0: with 0.01 a `faulty-slow-first-token-20` takes 0.2 s, and
            a `faulty-503-for-60` answers after 0.6 s. Retry-After is not scaled.
        max_connections: further connections are dropped at once.
        max_request_seconds: a request that is unfinished after this time, in seconds and not scaled, is reset, so that
            no test hangs on a silent provider.

    Raises:
        ConfigurationError: an argument is out of range.
    """

    def __init__(
        self, *, time_scale: float = 1.0, max_connections: int = 1024, max_request_seconds: float = 300.0
    ) -> None:
        check_positive("time_scale", time_scale)
        check_positive("max_request_seconds", max_request_seconds)
        check_count("max_connections", max_connections)
        self._time_scale = time_scale
        self._max_request_seconds = max_request_seconds
        self._log = RequestLog()
        self._outages: dict[str | None, Outage] = {}
        self._healed: set[str | None] = set()
        self._tokens = split_tokens(ANSWER)
        super().__init__(
            self._answer, {_CHAT_PATH: "POST"}, max_body_bytes=_BODY_BYTES, max_connections=max_connections
        )

    @property
    def requests(self) -> tuple[ReceivedRequest, ...]:
        """The latest 10,000 requests for chat completions, in the order of their arrival."""
        return self._log.requests

    def attempts(self, model: str) -> int:
        """Returns the number of requests for the model."""
        return self._log.attempts(model)

    def gaps(self, model: str) -> list[float]:
        """Returns the seconds between successive requests for the model, on the event loop's clock."""
        return self._log.gaps(model)

    def down(self, model: str | None = None, *, how: Outage = "reset") -> None:
        """Begins an outage: every request gets a reset or a 503.

        Args:
            model: the model that is down; None is all models.
            how: ``reset`` or ``503``.
        """
        check_choice("how", how, get_args(Outage))
        self._outages[model] = how

    def up(self, model: str | None = None) -> None:
        """Ends the outage that `down` began with the same `model`; does nothing without an outage."""
        self._outages.pop(model, None)

    def heal(self, model: str | None = None) -> None:
        """Ends the ``faulty-503`` of the model, or of all models, until `reset`."""
        self._healed.add(model)

    def reset(self) -> None:
        """Clears all requests, outages and healings: every fault starts again at its first request."""
        self._log = RequestLog()
        self._outages.clear()
        self._healed.clear()

    async def _answer(self, exchange: Exchange, request: Request) -> None:
        now = asyncio.get_running_loop().time()
        headers: Mapping[str, str] = MappingProxyType(redact_headers(request.headers))
        try:
            chat = parse_chat_request(request.body)
        except ChatRequestError as error:
            received = ReceivedRequest("", now, headers, stream=False, status=400, outcome="refused")
            self._log.add(received)
            await exchange.reply(400, refusal(error.message, param=error.param))
            return
        received = ReceivedRequest(chat.model, now, headers, chat.stream)
        number, first_seconds = self._log.add(received)
        age_seconds = (now - first_seconds) / self._time_scale
        work = spawn(self._misbehave(exchange, received, chat, number, age_seconds), name="faulty answer")
        try:
            if await wait_done(work, self._max_request_seconds):
                work.result()
                return
            received.outcome = "broken"
            exchange.reset()
        except (asyncio.CancelledError, ConnectionError):
            # Applies even after a complete reply: the client has not read all of it.
            self._record_disconnect(received)
            raise
        finally:
            work.cancel()

    async def _misbehave(
        self, exchange: Exchange, received: ReceivedRequest, chat: ChatRequest, number: int, age_seconds: float
    ) -> None:
        model = chat.model
        request = PendingRequest(
            exchange,
            received,
            chat,
            number=number,
            age_seconds=age_seconds,
            healed=not self._healed.isdisjoint({model, None}),
            time_scale=self._time_scale,
            tokens=self._tokens,
        )
        outage = self._outages.get(model) or self._outages.get(None)
        if outage == "reset":
            request.reset()
            return
        if outage is not None:
            await refuse_as_overloaded(request)
            return
        try:
            fault = fault_of(model)
        except ConfigurationError as error:
            await request.refuse(404, str(error), "invalid_request_error", code="model_not_found", param="model")
            return
        await (request.answer() if fault is None else fault.play(request))

    def _record_disconnect(self, received: ReceivedRequest) -> None:
        if not self.is_open:
            received.outcome = "closed"
        else:
            received.outcome = "left"
            received.disconnected_seconds = asyncio.get_running_loop().time()
