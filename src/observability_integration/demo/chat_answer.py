"""Composes the answer of a local model and sends it at the model's pace, with the model's failure."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from observability_integration.testing.http.chat_reply import STREAM_END, FinishReason, ReplyFrame
from observability_integration.testing.http.exchange import wait_until_cancelled
from observability_integration.testing.http.tokens import TokenCounts, message_tokens, split_tokens

from .corpus import corpus_answers, normalise_prompt
from .model_profiles import Failure, ModelProfile

if TYPE_CHECKING:
    import random

    from observability_integration.testing.http.chat_request import ChatRequest
    from observability_integration.testing.http.exchange import Exchange

# Read at import: reading a file while requests are served would block all of them.
_ANSWERS = corpus_answers()


def answer_to(question: str) -> str:
    """Returns the corpus answer to the question, else a sentence computed from the question alone."""
    normalised = normalise_prompt(question)
    known = _ANSWERS.get(normalised)
    if known is not None:
        return known
    reference = hashlib.blake2b(normalised.encode("utf-8", "backslashreplace"), digest_size=4).hexdigest()
    return (
        f"This local model has no stored answer to that. It read {len(normalised.split())} words "
        f"(reference {reference}) and replies to them with this sentence every time."
    )


class Pace:
    """The times at which the tokens of one answer are due, counted from the creation of this object.

    Attributes:
        first_token_seconds: time until the first token, in seconds, jittered and scaled.
        seconds_per_token: time between tokens after that, in seconds, jittered and scaled.
    """

    def __init__(self, profile: ModelProfile, time_scale: float, rng: random.Random) -> None:
        factor = time_scale * (1.0 + profile.jitter_fraction * rng.uniform(-1.0, 1.0))
        self.first_token_seconds = profile.first_token_seconds * factor
        self.seconds_per_token = profile.seconds_per_token * factor
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()

    async def until_token(self, index: int) -> None:
        """Waits until the token of this index, from 0, is due; yields to other tasks even if the token is overdue."""
        # Due times are absolute, so a sleep that takes too long shortens the next one.
        due = self._start + self.first_token_seconds + index * self.seconds_per_token
        await asyncio.sleep(max(0.0, due - self._loop.time()))


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """One answer, ready to send.

    Attributes:
        frame: id, time and model of the answer.
        tokens: the visible text, token by token.
        finish_reason: finish reason, unless the failure prevents it.
        usage: token counts of the answer.
        failure: failure of the model.
    """

    frame: ReplyFrame
    tokens: tuple[str, ...]
    finish_reason: FinishReason
    usage: TokenCounts
    failure: Failure

    @classmethod
    def compose(cls, frame: ReplyFrame, chat: ChatRequest, profile: ModelProfile, cached_tokens: int) -> ChatAnswer:
        """Finds the answer to a request and truncates it to the length that the request and the model allow."""
        tokens = split_tokens(answer_to(chat.question))
        reasoning = profile.reasoning_tokens
        allowed = len(tokens)
        if profile.failure is Failure.TRUNCATED:
            allowed = max(1, len(tokens) // 2)
        if chat.max_tokens is not None:
            # Reasoning comes first and counts against the limit too.
            reasoning = min(reasoning, chat.max_tokens)
            allowed = min(allowed, chat.max_tokens - reasoning)
        is_truncated = allowed < len(tokens) or profile.failure is Failure.TRUNCATED
        usage = TokenCounts(
            prompt=sum(message_tokens(message) for message in chat.messages),
            cached=cached_tokens,
            completion=allowed + reasoning,
            reasoning=reasoning,
        )
        return cls(frame, tuple(tokens[:allowed]), "length" if is_truncated else "stop", usage, profile.failure)

    async def send_whole(self, exchange: Exchange, pace: Pace) -> None:
        """Sends the answer as one document when its last token is due."""
        await pace.until_token(max(0, self.usage.completion - 1))
        match self.failure:
            case Failure.CUT | Failure.STALL:
                await exchange.reply_half(200, self.frame.completion("".join(self.tokens), "stop", self.usage))
                if self.failure is Failure.STALL:
                    await wait_until_cancelled()
            case Failure.SILENT_CUT:
                half = "".join(self.tokens[: self._half])
                await exchange.reply(200, self.frame.completion(half, None, self.usage))
            case _:
                document = self.frame.completion("".join(self.tokens), self.finish_reason, self.usage)
                await exchange.reply(200, document)

    async def send_stream(self, exchange: Exchange, pace: Pace, *, include_usage: bool) -> None:
        """Sends the answer token by token, each when it is due."""
        frame = self.frame
        breaks = self.failure in (Failure.CUT, Failure.SILENT_CUT, Failure.STALL)
        await pace.until_token(0)
        await exchange.open_stream()
        first = frame.delta_event({"role": "assistant", "content": ""}, announce_usage=include_usage)
        await exchange.send_events(first)
        for index, token in enumerate(self.tokens[: self._half] if breaks else self.tokens):
            await pace.until_token(self.usage.reasoning + index)
            await exchange.send_events(frame.delta_event({"content": token}, announce_usage=include_usage))
        match self.failure:
            case Failure.CUT:
                exchange.break_off()
            case Failure.STALL:
                await wait_until_cancelled()
            case Failure.SILENT_CUT:
                await exchange.close_stream()
            case _:
                await exchange.send_events(frame.delta_event({}, self.finish_reason, announce_usage=include_usage))
                if include_usage:
                    await exchange.send_events(frame.usage_event(self.usage))
                await exchange.send_events(STREAM_END)
                await exchange.close_stream()

    @property
    def _half(self) -> int:
        # At least one token, so that the client has read content before the break.
        return max(1, len(self.tokens) // 2)
