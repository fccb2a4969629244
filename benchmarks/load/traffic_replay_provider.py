"""A provider in the process of its callers that streams answers in OpenAI's format, and fails sometimes."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

PIECES = 8
FAULTS = ("429", "503", "reset", "cut", "stall", "malformed")
_AT_ONCE = ("429", "503", "reset")
_RETRY_AFTER_SECONDS = 1.0
_FIRST_TOKEN_SECONDS, _TOKEN_SECONDS = 0.3, 0.02


class Question(NamedTuple):
    """A question: its number in the trace, and the tokens of its answer."""

    number: int
    tokens: int


class StatusError(Exception):
    """A reply with an error status, as SDKs raise it.

    Args:
        status_code: of the reply.
        headers: of the reply.
    """

    def __init__(self, status_code: int, headers: dict[str, str]) -> None:
        super().__init__(status_code)
        self.status_code = status_code
        self.headers = headers


def whole_answer(question: Question) -> str:
    """Returns the text of the answer. Each piece has the numbers of question and piece, so that pieces are unique."""
    return "".join(_piece(question, number) for number in range(PIECES))


def answer_seconds(question: Question) -> float:
    """Returns the seconds from the request to the last token."""
    return _FIRST_TOKEN_SECONDS + _TOKEN_SECONDS * question.tokens


def _piece(question: Question, number: int) -> str:
    return f"{question.number}/{number} "


class Provider:
    """Answers questions; an attempt may meet a fault.

    Args:
        name: the model named in answers.
        speed: speed-up of the answers.
        finished: counts whole answers by number of the question.
        failing: share of attempts that meet a fault; all kinds are equally frequent.
        seed: of the faults.
    """

    def __init__(self, name: str, speed: float, finished: bytearray, failing: float = 0.0, seed: int = 0) -> None:
        self.name = name
        self._speed = speed
        self._failing = failing
        self._random = random.Random(seed)
        self.attempts = 0
        self.open = 0
        """Running attempts."""
        self.faults: Counter[str] = Counter()
        self._finished = finished

    async def ask(self, question: Question) -> AsyncIterator[dict[str, Any]]:
        """Streams the answer."""
        self.attempts += 1
        self.open += 1
        try:
            fault = self._random.choice(FAULTS) if self._random.random() < self._failing else None
            if fault is not None:
                self.faults[fault] += 1
            await asyncio.sleep(_FIRST_TOKEN_SECONDS / self._speed)
            if fault in _AT_ONCE:
                raise self._refusal(fault)
            pause_seconds = _TOKEN_SECONDS * question.tokens / PIECES / self._speed
            for number in range(PIECES):
                await asyncio.sleep(pause_seconds)
                if fault is not None and number == PIECES // 2:
                    await self._break_off(fault)
                    return
                yield self._chunk({"content": _piece(question, number)})
            self._finished[question.number] += 1
            usage = {"prompt_tokens": 1, "completion_tokens": question.tokens, "total_tokens": 1 + question.tokens}
            yield self._chunk({}, finish_reason="stop") | {"usage": usage}
        finally:
            self.open -= 1

    def _refusal(self, fault: str) -> Exception:
        if fault == "reset":
            return ConnectionResetError("connection reset by peer")
        waits = {"retry-after": f"{_RETRY_AFTER_SECONDS / self._speed:g}"}
        return StatusError(int(fault), waits if fault == "429" else {})

    async def _break_off(self, fault: str) -> None:
        """Breaks an answer: stalls, raises, or ends without a finish reason."""
        if fault == "stall":
            await asyncio.get_running_loop().create_future()
        if fault == "malformed":
            json.loads('{"choices": [{"delta": {"con')

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {"id": "chunk", "model": self.name, "choices": [choice]}
