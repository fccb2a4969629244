"""The part of the OpenAI API that the local provider serves: two paths, a key check, and models that may fail."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

from observability_integration.testing.http.chat_reply import ReplyFrame, error_document, model_list, refusal
from observability_integration.testing.http.chat_request import ChatRequest, ChatRequestError, parse_chat_request
from observability_integration.testing.http.exchange import UNKNOWN_MODEL, Exchange, wait_until_cancelled

from .chat_answer import ChatAnswer, Pace
from .model_profiles import Failure, ModelProfile
from .prefix_memory import PrefixMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from observability_integration.testing.http.http1 import Request

_MODELS_PATH = "/v1/models"
_CHAT_PATH = "/v1/chat/completions"
METHOD_BY_PATH = {_MODELS_PATH: "GET", _CHAT_PATH: "POST"}
_FLAKY_PERIOD = 3


class OpenAIApi:
    """Replies to requests as the model profiles say."""

    def __init__(self, profiles: Sequence[ModelProfile], *, time_scale: float, seed: int) -> None:
        self._profiles = {profile.name: profile for profile in profiles}
        self._time_scale = time_scale
        # One generator per model: requests to one model do not change the times of another.
        self._rng_by_model = {name: random.Random(f"{seed}:{name}") for name in self._profiles}
        self._request_counts: Counter[str] = Counter()
        self._answer_numbers = itertools.count(1)
        self._prefixes = PrefixMemory()
        self._started = int(time.time())

    async def handle(self, exchange: Exchange, request: Request) -> None:
        """Replies to one request for a path of `METHOD_BY_PATH`.

        Raises:
            ConnectionError: the client disconnected.
        """
        if not _has_bearer(request):
            message = "No API key was given: send an Authorization header with Bearer and any key."
            challenge = ("WWW-Authenticate", "Bearer")
            await exchange.reply(401, refusal(message, code="invalid_api_key"), challenge)
        elif request.path == _MODELS_PATH:
            await exchange.reply(200, model_list(tuple(self._profiles), self._started))
        else:
            await self._handle_chat(exchange, request)

    async def _handle_chat(self, exchange: Exchange, request: Request) -> None:
        try:
            chat = parse_chat_request(request.body)
        except ChatRequestError as error:
            await exchange.reply(400, refusal(error.message, param=error.param))
            return
        profile = self._profiles.get(chat.model)
        if profile is None:
            exchange.model = UNKNOWN_MODEL
            message = f"The model '{chat.model[:64]}' does not exist here."
            await exchange.reply(404, refusal(message, code="model_not_found", param="model"))
            return
        exchange.model = profile.name
        await self._run_model(exchange, chat, profile)

    async def _run_model(self, exchange: Exchange, chat: ChatRequest, profile: ModelProfile) -> None:
        self._request_counts[profile.name] += 1
        pace = Pace(profile, self._time_scale, self._rng_by_model[profile.name])
        match profile.failure:
            case Failure.HANG:
                await wait_until_cancelled()
            case Failure.RATE_LIMITED:
                await self._refuse_for_rate(exchange, profile)
            case Failure.SERVER_ERROR:
                await _fail(exchange, pace)
            case Failure.FLAKY if self._request_counts[profile.name] % _FLAKY_PERIOD == 0:
                await _fail(exchange, pace)
            case _:
                await self._answer(exchange, chat, profile, pace)

    async def _answer(self, exchange: Exchange, chat: ChatRequest, profile: ModelProfile, pace: Pace) -> None:
        frame = ReplyFrame(f"chatcmpl-local-{next(self._answer_numbers):06d}", int(time.time()), profile.name)
        cached_tokens = self._prefixes.cached_tokens(profile.name, chat.messages)
        answer = ChatAnswer.compose(frame, chat, profile, cached_tokens)
        if chat.stream:
            await answer.send_stream(exchange, pace, include_usage=chat.include_usage)
        else:
            await answer.send_whole(exchange, pace)

    async def _refuse_for_rate(self, exchange: Exchange, profile: ModelProfile) -> None:
        wait_seconds = profile.retry_after_seconds * self._time_scale
        message = f"Rate limit reached for {profile.name}; try again later."
        await exchange.reply(
            429,
            error_document(message, "requests", code="rate_limit_exceeded"),
            # RFC 9110 allows whole seconds only; OpenAI's clients read the finer header first.
            ("Retry-After", str(max(1, math.ceil(wait_seconds)))),
            ("Retry-After-Ms", str(math.ceil(wait_seconds * 1000))),
        )


def _has_bearer(request: Request) -> bool:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and bool(token.strip())


async def _fail(exchange: Exchange, pace: Pace) -> None:
    await pace.until_token(0)
    await exchange.reply(500, error_document("The model failed, as this model is meant to.", "server_error"))
