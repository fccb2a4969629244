"""Sends the workload through the pipeline and records the result of each request."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from observability_integration.costs.usage import usage_of
from observability_integration.errors import PrimitiveTimeoutError

from .model_profiles import ModelProfile
from .pipeline import Pipeline, UpstreamCounts
from .workload import Arrival

MILLION = Decimal(1_000_000)


@dataclass(slots=True)
class RunResult:
    """The results of a run.

    Attributes:
        latencies_seconds: latency of every request, in the order of completion.
        outcomes: number of requests by outcome: ``answered``, ``timed out``, ``failed``.
        wrong: number of answers that differ from the corpus.
        usage_by_request: model, input tokens and output tokens of each answer, including cache hits.
        seconds: time from the first arrival to the last answer.
    """

    latencies_seconds: list[float] = field(default_factory=list[float])
    outcomes: Counter[str] = field(default_factory=Counter[str])
    wrong: int = 0
    usage_by_request: list[tuple[str, int, int]] = field(default_factory=list[tuple[str, int, int]])
    seconds: float = 0.0


async def drive(
    pipeline: Pipeline, arrivals: Sequence[Arrival], *, check_answers: bool, on_done: Callable[[], None]
) -> RunResult:
    """Sends each request at its time of arrival, whether or not earlier ones have ended."""
    result = RunResult()
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def send(arrival: Arrival) -> None:
        started = time.perf_counter()
        try:
            answer = await pipeline.answer({"messages": arrival.messages}, arrival.pinned_route)
        except PrimitiveTimeoutError:
            result.outcomes["timed out"] += 1
        except Exception:  # noqa: BLE001 - any failure is counted as an outcome
            result.outcomes["failed"] += 1
        else:
            result.outcomes["answered"] += 1
            result.wrong += check_answers and answer["choices"][0]["message"]["content"] != arrival.entry.answer
            used = usage_of(answer)
            result.usage_by_request.append((str(answer["model"]), used.input_tokens or 0, used.output_tokens or 0))
        result.latencies_seconds.append(time.perf_counter() - started)
        on_done()

    async with asyncio.TaskGroup() as group:
        for arrival in arrivals:
            await asyncio.sleep(max(0.0, began + arrival.at_seconds - loop.time()))
            group.create_task(send(arrival))
    result.seconds = loop.time() - began
    return result


def price(profile: ModelProfile, input_tokens: int, output_tokens: int) -> Decimal:
    """Returns the cost of the tokens in USD, at the simulated price of a model."""
    usd_times_million = (
        profile.simulated_input_usd_per_million * input_tokens
        + profile.simulated_output_usd_per_million * output_tokens
    )
    return usd_times_million / MILLION


def quantile(values: Sequence[float], share: float) -> float:
    """Returns the value that `share` of `values` do not exceed (nearest rank); NaN without values."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(round(share * len(ordered), 9)) - 1)]


@dataclass(frozen=True, slots=True)
class Cost:
    """Simulated cost in USD. A call that timed out or failed reports no usage and is in neither figure.

    Attributes:
        with_primitives: cost of the upstream calls.
        without_primitives: cost if every answered request had gone to the premium model.
    """

    with_primitives: Decimal
    without_primitives: Decimal


def cost(
    result: RunResult, upstream: Mapping[str, UpstreamCounts], profiles: Mapping[str, ModelProfile], premium: str
) -> Cost:
    """Returns the simulated cost of the run, with and without cache and router."""
    with_primitives = (
        price(profiles[model], used.input_tokens, used.output_tokens) for model, used in upstream.items()
    )
    without_primitives = (price(profiles[premium], *tokens) for _, *tokens in result.usage_by_request)
    return Cost(sum(with_primitives, Decimal(0)), sum(without_primitives, Decimal(0)))
