"""The contestants of retry storms and brown-outs, each set up as documented.

Each function imports its library when called and raises ImportError when that is not installed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from observability_integration.primitives import LLMTarget, RetryPrimitive, TimeoutPrimitive, pipeline
from observability_integration.resilience.aimd import Aimd
from observability_integration.resilience.faults import FaultKind
from observability_integration.resilience.retry_budget import RetryBudget

PATIENCE_SECONDS = 10.0  # for an attempt
_ATTEMPTS = 3
_FIRST_WAIT_SECONDS, _MOST_WAIT_SECONDS, _JITTER = 0.5, 8.0, 0.25  # of the openai SDK

Ask = Callable[[Any], Awaitable[Any]]
Build = Callable[[Ask], Ask]

OURS, PIPELINE, PIPELINE_AIMD = "RetryPrimitive", "pipeline", "pipeline with Aimd"
OPENAI, TENACITY, STAMINA = "like the openai SDK, 2 retries", "tenacity, 3 attempts", "stamina, 3 attempts"
NO_RETRIES = "no retries"
BUDGETED, UNBUDGETED = "3 attempts, also after timeouts, our budget", "3 attempts, also after timeouts, no budget"


class OverloadedError(Exception):
    """HTTP 503 of an overloaded provider, as SDKs raise it."""

    status_code = 503


def retry(ask: Ask) -> Ask:
    """`RetryPrimitive` at its defaults."""
    return RetryPrimitive(ask).execute


def assembled(ask: Ask) -> Ask:
    """`pipeline` at its defaults, with one target."""
    return pipeline([LLMTarget(call=ask, name="target")]).execute


def openai_sdk(ask: Ask) -> Ask:
    """The openai SDK's default policy without its client: two retries, with exponential backoff and jitter."""

    async def retrying(question: Any) -> Any:
        for retries in range(_ATTEMPTS - 1):
            try:
                return await ask(question)
            except (OverloadedError, TimeoutError):
                wait_seconds = min(_FIRST_WAIT_SECONDS * 2**retries, _MOST_WAIT_SECONDS)
                await asyncio.sleep(wait_seconds * (1 - _JITTER * random.random()))
        return await ask(question)

    return retrying


def tenacity(ask: Ask) -> Ask:
    """`retry` on any exception, with exponential backoff and jitter."""
    from tenacity import retry, stop_after_attempt, wait_exponential_jitter

    retrying: Ask = retry(stop=stop_after_attempt(_ATTEMPTS), wait=wait_exponential_jitter(), reraise=True)(ask)
    return retrying


def stamina(ask: Ask) -> Ask:
    """`retry` at its defaults."""
    from stamina import retry

    retrying: Ask = retry(on=Exception, attempts=_ATTEMPTS)(ask)
    return retrying


def with_timeout(build: Build) -> Build:
    """Adds a timeout of `PATIENCE_SECONDS` to each attempt."""

    def around(ask: Ask) -> Ask:
        async def attempt(question: Any) -> Any:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await ask(question)

        return build(attempt)

    return around


def _once(ask: Ask) -> Ask:
    return ask


def _defaults(ask: Ask) -> Ask:
    return RetryPrimitive(TimeoutPrimitive(ask, PATIENCE_SECONDS)).execute


def _timeouts_are_transient(error: BaseException) -> FaultKind | None:
    # By default a timeout is not retried.
    return "transient" if isinstance(error, TimeoutError) else None


def _with_budget(budget: Callable[[], RetryBudget | None]) -> Build:
    def build(ask: Ask) -> Ask:
        step = TimeoutPrimitive(ask, PATIENCE_SECONDS)
        return RetryPrimitive(step, _ATTEMPTS, budget=budget(), classifier=_timeouts_are_transient).execute

    return build


def _pipeline(**knobs: Any) -> Build:
    def build(ask: Ask) -> Ask:
        target = LLMTarget(call=ask, name="target", **{name: make() for name, make in knobs.items()})
        return pipeline([target], attempt_timeout_seconds=PATIENCE_SECONDS).execute

    return build


STORM_CONTESTANTS: dict[str, Build] = {
    OURS: retry,
    PIPELINE: assembled,
    OPENAI: openai_sdk,
    TENACITY: tenacity,
    STAMINA: stamina,
}

BROWN_OUT_CONTESTANTS: dict[str, Build] = {
    OURS: _defaults,
    PIPELINE: _pipeline(),
    PIPELINE_AIMD: _pipeline(max_concurrency=Aimd),
    BUDGETED: _with_budget(RetryBudget),
    UNBUDGETED: _with_budget(lambda: None),
    OPENAI: with_timeout(openai_sdk),
    TENACITY: with_timeout(tenacity),
    STAMINA: with_timeout(stamina),
    NO_RETRIES: with_timeout(_once),
}
