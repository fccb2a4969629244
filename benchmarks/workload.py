"""The common workload: all contestants get the same requests, answers, routing rule, cache key and limits."""

from __future__ import annotations

from itertools import count
from typing import Any, Protocol

OPERATION = "answers"
MODEL = "gpt-4o-mini"
PROVIDER = "openai"
FAST, PREMIUM = "fast", "premium"
COST_PER_ROUTE_USD = {FAST: 0.001, PREMIUM: 0.01}
SAVED_PER_HIT_USD = 0.01
TTL_SECONDS = 3600.0
MAX_ENTRIES = 10_000
TIMEOUT_SECONDS = 30.0
GRACE_SECONDS = 5.0
TARGET, OTHER_TARGET = "primary", "secondary"
MAX_ATTEMPTS = 3
MAX_CONCURRENCY = 64
REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE = 6e9, 6e12  # never reached
HEDGE_QUANTILE, HEDGE_WARMUP_CALLS = 0.95, 100
HEDGE_MIN_SECONDS = 1.0  # longer than any call takes, even if the machine stalls briefly
PIPELINE = "pipeline"
PIPELINE_SECONDS, PIPELINE_ATTEMPT_SECONDS, PIPELINE_GRACE_SECONDS = 60.0, 30.0, 2.0
DISTINCT_PROMPTS = 16  # repeated where hits are timed

TEXT = "Paris has been the capital of France for most of the time since 987. " * 9
COMPLETION: dict[str, Any] = {
    "id": "chatcmpl-0001",
    "object": "chat.completion",
    "model": f"{MODEL}-2024-07-18",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": TEXT}}],
    "usage": {"prompt_tokens": 57, "completion_tokens": 138, "total_tokens": 195},
}


class Work:
    """The wrapped call. It answers at once, so the measured time is the cost of the wrapper."""

    def __init__(self, answer: Any) -> None:
        self.calls = 0
        self._answer = answer

    async def answer(self, request: Any) -> Any:
        """Returns the answer and counts the call."""
        self.calls += 1
        return self._answer


class Runnable(Protocol):
    """The object that a kit makes: it has `execute`, and some have statistics."""

    async def execute(self, request: Any, /) -> Any:
        """Makes one call."""


def choose(request: dict[str, Any]) -> str:
    """The routing rule: sends short questions to the fast route."""
    return FAST if len(request["messages"][0]["content"]) < 4000 else PREMIUM


def key_of_request(request: dict[str, Any]) -> str:
    """The cache key of a request."""
    prompt: str = request["messages"][0]["content"]
    return prompt


def key_of_prompt(prompt: str) -> str:
    """The cache key of a prompt: itself."""
    return prompt


def tokens_of_request(request: dict[str, Any]) -> int:
    """Estimates the tokens of a request."""
    characters = sum(len(message["content"]) for message in request["messages"])
    most: int = request["max_tokens"]
    return characters // 4 + most


async def undo(_: Any) -> None:
    """The compensation of a saga's step."""


_numbers = count()


def new_prompts(number: int) -> list[str]:
    """Returns prompts of about 200 characters, each unique in this process."""
    return [f"Question {next(_numbers):012d}: " + "what is the capital of France? " * 6 for _ in range(number)]


def new_requests(number: int) -> list[dict[str, Any]]:
    """Returns such prompts as requests to a chat model."""
    return [
        {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "temperature": 0.2, "max_tokens": 256}
        for prompt in new_prompts(number)
    ]


class Repeated:
    """Returns arguments that repeat `DISTINCT_PROMPTS` prompts."""

    def __init__(self) -> None:
        self._prompts = new_prompts(DISTINCT_PROMPTS)

    def __call__(self, number: int) -> list[str]:
        """Returns this number of prompts."""
        return [self._prompts[index % DISTINCT_PROMPTS] for index in range(number)]
