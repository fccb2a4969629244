"""One request to a `FaultyProvider`, and the correct and faulty ways to answer it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

from .http.chat_reply import STREAM_END, FinishReason, ReplyFrame, error_document
from .http.exchange import wait_until_cancelled
from .http.tokens import TokenCounts, message_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .http.chat_request import ChatRequest
    from .http.exchange import Exchange
    from .request_log import ReceivedRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPlan:
    """The timing and the faults of one answer.

    A token is a piece of content; times are in seconds, before the provider's `time_scale`.

    Attributes:
        first_token_seconds: wait before the status line and the first token.
        seconds_per_token: wait before each token.
        malformed_at: number of tokens before an additional event of broken JSON; None sends none.
        breaks_at: number of tokens before the break, which comes after the last token at the latest; None is no break.
        breaks_by: ``cut`` closes the connection before the end of the answer, ``reset`` resets it, ``stall`` keeps it
            open and sends nothing more.
        finish_reason: finish reason of the answer, or None for an answer without its end.
        has_end_marker: whether a stream ends with ``[DONE]``.
    """

    first_token_seconds: float = 0.0
    seconds_per_token: float = 0.0
    malformed_at: int | None = None
    breaks_at: int | None = None
    breaks_by: Literal["cut", "reset", "stall"] = "cut"
    finish_reason: FinishReason | None = "stop"
    has_end_marker: bool = True


WHOLE_ANSWER = AnswerPlan()


class PendingRequest:
    """One request without a reply yet; a fault calls one of the methods to reply.

    Attributes:
        chat: the request for a chat completion.
        number: number of this request among those for the model, from 1.
        age_seconds: time since the first request for the model, in seconds, before `time_scale`.
        healed: whether `FaultyProvider.heal` was called for the model.
    """

    def __init__(
        self,
        exchange: Exchange,
        received: ReceivedRequest,
        chat: ChatRequest,
        *,
        number: int,
        age_seconds: float,
        healed: bool,
        time_scale: float,
        tokens: Sequence[str],
    ) -> None:
        self.chat = chat
        self.number = number
        self.age_seconds = age_seconds
        self.healed = healed
        self._exchange = exchange
        self._received = received
        self._time_scale = time_scale
        self._tokens = tokens
        self._frame = ReplyFrame(f"chatcmpl-faulty-{number:06d}", int(time.time()), chat.model)

    async def wait(self, seconds: float) -> None:
        """Waits for `seconds` times `time_scale`."""
        if seconds > 0:
            await asyncio.sleep(seconds * self._time_scale)

    async def hang(self) -> None:
        """Waits until the client disconnects or the provider cancels the request."""
        await wait_until_cancelled()

    def reset(self) -> None:
        """Resets the connection: the client gets an RST, not an end."""
        self._received.outcome = "broken"
        self._exchange.reset()

    async def refuse(
        self, status: int, message: str, kind: str, *headers: tuple[str, str], code: str | None = None, param: str = ""
    ) -> None:
        """Replies with an error in the API's shape; `kind` is its ``type``."""
        self._record_status(status)
        await self._exchange.reply(status, error_document(message, kind, code=code, param=param or None), *headers)

    async def reply_raw(self, status: int, body: bytes, content_type: str, *headers: tuple[str, str]) -> None:
        """Replies with any body, then closes the connection."""
        self._record_status(status)
        self._exchange.break_off()
        await self._exchange.reply(status, body, *headers, content_type=content_type)

    def document(self) -> bytes:
        """Returns the correct answer as one document."""
        return self._frame.completion("".join(self._tokens), "stop", self._usage())

    async def answer(self, plan: AnswerPlan = WHOLE_ANSWER) -> None:
        """Answers by the plan, streamed or whole as the client requested."""
        await self.wait(plan.first_token_seconds)
        await (self._stream(plan) if self.chat.stream else self._send_document(plan))

    async def _send_document(self, plan: AnswerPlan) -> None:
        document = self._frame.completion("".join(self._tokens), plan.finish_reason, self._usage())
        if plan.malformed_at is not None:
            document = document[: len(document) // 2]
        self._received.status = 200
        if plan.breaks_at is not None:
            await self._exchange.reply_half(200, document)
            await self._break(plan)
        elif plan.seconds_per_token > 0:
            await self._drip(document, plan.seconds_per_token)
        else:
            self._record_status(200)
            await self._exchange.reply(200, document)

    async def _drip(self, document: bytes, seconds_per_token: float) -> None:
        await self._exchange.announce(200, len(document))
        size = -(-len(document) // len(self._tokens))
        for start in range(0, len(document), size):
            await self.wait(seconds_per_token)
            if start + size >= len(document):
                self._record_status(200)
            await self._exchange.send_part(document[start : start + size])

    async def _stream(self, plan: AnswerPlan) -> None:
        exchange, frame, announce = self._exchange, self._frame, self.chat.include_usage
        self._received.status = 200
        await exchange.open_stream()
        await exchange.send_events(frame.delta_event({"role": "assistant", "content": ""}, announce_usage=announce))
        for index, token in enumerate(self._tokens[: plan.breaks_at]):
            if index == plan.malformed_at:
                await self._send_malformed(token)
            await self.wait(plan.seconds_per_token)
            await exchange.send_events(frame.delta_event({"content": token}, announce_usage=announce))
        if plan.malformed_at is not None and plan.malformed_at >= len(self._tokens[: plan.breaks_at]):
            await self._send_malformed("")
        if plan.breaks_at is not None:
            await self._break(plan)
            return
        if plan.finish_reason is not None:
            await exchange.send_events(frame.delta_event({}, plan.finish_reason, announce_usage=announce))
            if announce:
                await exchange.send_events(frame.usage_event(self._usage()))
        if plan.has_end_marker:
            await exchange.send_events(STREAM_END)
        self._record_status(200)
        await exchange.close_stream()

    async def _send_malformed(self, token: str) -> None:
        event = self._frame.delta_event({"content": token})
        await self._exchange.send_events(event[: len(event) // 2] + b"\n\n")

    async def _break(self, plan: AnswerPlan) -> None:
        if plan.breaks_by == "reset":
            self.reset()
        elif plan.breaks_by == "stall":
            await self.hang()
        else:
            self._received.outcome = "broken"
            self._exchange.break_off()

    def _usage(self) -> TokenCounts:
        prompt = sum(message_tokens(message) for message in self.chat.messages)
        return TokenCounts(prompt=prompt, cached=0, completion=len(self._tokens), reasoning=0)

    def _record_status(self, status: int) -> None:
        # Called before the last byte is sent, so that the log is complete when the client has the reply.
        self._received.status = status
        self._received.outcome = "complete" if status < HTTPStatus.BAD_REQUEST else "refused"
