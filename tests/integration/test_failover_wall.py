"""Sixteen faults of a provider, over real sockets with the real client: each ends with the whole answer, in time.

All waits are scaled: the provider's, and the limits that stand against them. Where a rule is about a number of seconds,
the test allows for the lag of a loaded machine on top.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("openai")

import openai

from observability_integration.errors import StreamInterruptedError
from observability_integration.primitives import Completion, LLMTarget, PipelineDefaults, pipeline
from observability_integration.primitives.circuit_breaker.breaker import BreakerPolicy
from observability_integration.resilience.backoff import Backoff
from observability_integration.telemetry.catalogue import Profile
from observability_integration.telemetry.metrics import instruments
from observability_integration.testing import FaultyProvider

pytestmark = [pytest.mark.promise("P1"), pytest.mark.once]

SCALE = 0.05
LAG_SECONDS = 1.0
ANSWER_END = "it ends with the word end."
USAGE = {"prompt_tokens": 9, "completion_tokens": 24, "total_tokens": 33}


def _scaled() -> PipelineDefaults:
    """The defaults, with the time-out of 30 s and the first-token limit of 10 s, at the scale of the test."""
    usual = PipelineDefaults()
    back, breaker = usual.backoff, usual.breaker
    return PipelineDefaults(
        timeout_seconds=30.0 * SCALE,
        first_chunk_seconds=10.0 * SCALE,
        idle_seconds=usual.idle_seconds * SCALE,
        grace_period_seconds=usual.grace_period_seconds * SCALE,
        backoff=Backoff(base_seconds=back.base_seconds * SCALE, max_seconds=back.max_seconds * SCALE),
        breaker=BreakerPolicy(
            window_seconds=breaker.window_seconds * SCALE,
            open_seconds=breaker.open_seconds * SCALE,
            max_open_seconds=breaker.max_open_seconds * SCALE,
            probe_seconds=breaker.probe_seconds * SCALE,
        ),
    )


class Wall:
    """A pipeline of a primary that misbehaves and a fallback, and what was seen of a call."""

    def __init__(self, provider: FaultyProvider, client: openai.AsyncOpenAI, primary: str, fallback: str) -> None:
        self.provider = provider
        self.primary = primary
        self.fallback = fallback
        self.pipeline = pipeline(
            [LLMTarget.openai(client, primary), LLMTarget.openai(client, fallback)], defaults=_scaled()
        )
        self.seconds = 0.0

    async def ask(self) -> Any:
        began = time.perf_counter()
        try:
            return await self.pipeline.execute("What is the answer?")
        finally:
            self.seconds = time.perf_counter() - began

    @property
    def attempts(self) -> tuple[int, int]:
        return self.provider.attempts(self.primary), self.provider.attempts(self.fallback)


@pytest.fixture
async def provider() -> AsyncIterator[FaultyProvider]:
    """Where all models are."""
    async with FaultyProvider(time_scale=SCALE) as opened:
        yield opened


@pytest.fixture
async def client(provider: FaultyProvider) -> AsyncIterator[openai.AsyncOpenAI]:
    """At its defaults, own retries included: the pipeline has to switch them off."""
    async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="none") as opened:
        yield opened


def whole(answer: Any, model: str) -> bool:
    """Whether this is the whole answer of that model, with its tokens and nobody else's."""
    assert isinstance(answer, Completion)
    assert answer.text.endswith(ANSWER_END), answer.text
    assert (model, "stop", USAGE) == (answer.model, answer.finish_reason, answer.usage)
    return True


@pytest.mark.parametrize(
    ("fault", "attempts", "at_most_seconds"),
    [
        ("faulty-429", (3, 1), 3.0),
        ("faulty-500", (3, 1), 3.0),
        ("faulty-503-for-60", (3, 1), 3.0),
        ("faulty-reset", (3, 1), 3.0),
        ("faulty-silent", (1, 1), 12.0),
        ("faulty-slow-first-token-20", (1, 1), 15.0),
        ("faulty-cut-at-5", (1, 1), 45.0),
        ("faulty-stall-at-5", (1, 1), 45.0),
        ("faulty-malformed-at-5", (1, 1), 45.0),
        ("faulty-no-end", (1, 1), 45.0),
        ("faulty-context-length", (1, 1), 3.0),
        ("faulty-empty", (1, 1), 3.0),
        ("faulty-not-json", (1, 1), 3.0),
        ("faulty-wrong-content-type", (1, 1), 3.0),
        ("faulty-502-html", (3, 1), 3.0),
    ],
)
async def test_the_fallback_answers(
    fault: str, attempts: tuple[int, int], at_most_seconds: float, provider: Any, client: Any, metrics: Any
) -> None:
    """As many attempts as may help, no more; the whole answer, with the fallback's name and its tokens alone."""
    instruments.switch.profiles |= {Profile.V1_41}
    wall = Wall(provider, client, fault, "good")
    assert whole(await wall.ask(), "good")
    assert attempts == wall.attempts
    assert wall.seconds <= at_most_seconds * SCALE + LAG_SECONDS
    assert 1 == metrics("fallback.served", operation="pipeline", target="good")
    billed = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.response.model": "good"}
    for model, expected in ((fault, None), ("good", 1)):
        found = metrics(
            "gen_ai.client.token.usage", **billed, **{"gen_ai.request.model": model, "gen_ai.token.type": "output"}
        )
        assert expected == found


@pytest.mark.parametrize(
    ("fault", "attempts", "gap_seconds"),
    [("faulty-500-once", (2, 0), 0.0), (f"faulty-429-retry-after-{2 * SCALE}", (2, 0), 1.8)],
)
async def test_the_primary_answers_after_all(
    fault: str, attempts: tuple[int, int], gap_seconds: float, provider: Any, client: Any
) -> None:
    """What passes is waited for, not run away from; a provider that says when is not asked before."""
    wall = Wall(provider, client, fault, "good")
    assert whole(await wall.ask(), fault)
    assert attempts == wall.attempts
    assert provider.gaps(fault)[0] >= gap_seconds * SCALE


async def test_a_missing_end_marker_is_a_normal_end(provider: Any, client: Any) -> None:
    """The finish reason is there, so the answer is whole."""
    wall = Wall(provider, client, "faulty-no-end-marker", "good")
    assert whole(await wall.ask(), "faulty-no-end-marker")
    assert (1, 0) == wall.attempts


async def test_a_content_filter_is_not_routed_around(provider: Any, client: Any) -> None:
    """The provider's own error, after one attempt."""
    wall = Wall(provider, client, "faulty-content-filter", "good")
    with pytest.raises(openai.BadRequestError):
        await wall.ask()
    assert (1, 0) == wall.attempts


async def test_a_cut_is_no_reason_to_put_words_into_the_fallbacks_mouth(provider: Any, client: Any) -> None:
    """A provider that refuses to go on from half an answer is not asked to: it is asked the whole question."""
    wall = Wall(provider, client, "faulty-cut-at-5", "faulty-prefill-rejected")
    assert whole(await wall.ask(), "faulty-prefill-rejected")
    assert (1, 1) == wall.attempts


async def test_an_outage_costs_a_few_attempts_and_is_over_when_it_is_over(provider: Any, client: Any) -> None:
    """Down for 60 s, asked every 4 s: all are served, it sees five attempts at most, and is used again in 30 s."""
    wall = Wall(provider, client, "primary", "good")
    began = time.perf_counter()
    during = 0
    served_by: list[str] = []
    for number in range(23):
        await asyncio.sleep(max(0.0, began + number * 4 * SCALE - time.perf_counter()))
        if number == 0:
            provider.down("primary")
        if number == 15:
            provider.up("primary")
            during = provider.attempts("primary")
        answer = await wall.ask()
        assert whole(answer, answer.model)
        served_by.append(answer.model)
    assert 3 <= during <= 5
    assert ["good"] * 15 == served_by[:15]
    # Each 4 s, so the eighth after the end is the first one that is later than 30 s.
    assert "primary" in served_by[15:23]


async def test_a_flapping_provider_is_used_when_it_is_well(provider: Any, client: Any) -> None:
    """Every third request fails: each is answered, by the primary."""
    wall = Wall(provider, client, "faulty-flapping-every-3", "good")
    for _ in range(9):
        assert whole(await wall.ask(), "faulty-flapping-every-3")


async def test_a_lone_target_is_spared_too(provider: Any, client: Any) -> None:
    """Without a fallback the breaker opens all the same, at the third question: 15 calls are not 45 attempts."""
    alone = pipeline([LLMTarget.openai(client, "faulty-reset")], defaults=_scaled())
    for _ in range(15):
        with pytest.raises(Exception):  # noqa: B017 - its own error first, then ours: it fails, that is all
            await alone.execute("What is the answer?")
    attempts = provider.attempts("faulty-reset")
    assert 3 + 3 + 1 <= attempts <= 3 + 3 + 1 + 2, "two whole questions, the one that opens it, and the probes"


async def test_a_live_reader_is_told(provider: Any, client: Any) -> None:
    """Before content the fallback streams; after it, the reader hears that the answer was cut, never half as whole."""
    for fault, seen in (("faulty-reset", "good"), ("faulty-silent", "good"), ("faulty-cut-at-5", None)):
        wall = Wall(provider, client, fault, "good")
        texts: list[str] = []

        async def read(wall: Wall = wall, texts: list[str] = texts, model: str = seen or fault) -> None:
            async with wall.pipeline.stream("What is the answer?") as chunks:
                async for chunk in chunks:
                    texts += [choice.delta.content or "" for choice in chunk.choices]
                    assert chunk.model == model

        if seen is None:
            with pytest.raises(StreamInterruptedError):
                await read()
        else:
            await read()
        assert (seen is not None) == "".join(texts).endswith(ANSWER_END)
