"""Drives the workload through the pipeline and notes what the user of each request saw."""

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
from .pipeline import Pipeline, Upstream
from .workload import Arrival

MILLION = Decimal(1_000_000)


@dataclass(slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        latencies_seconds: of every request, in the order of completion.
        outcomes: ``answered``, ``timed out``, ``failed``: how many.
        wrong: answers that are not the corpus's.
        usage_by_request: model and (input, output) tokens of each answer, hits included.
        seconds: from the first arrival to the last answer.
    """

    latencies_seconds: list[float] = field(default_factory=list[float])
    outcomes: Counter[str] = field(default_factory=Counter[str])
    wrong: int = 0
    usage_by_request: list[tuple[str, int, int]] = field(default_factory=list[tuple[str, int, int]])
    seconds: float = 0.0


async def drive(
    pipeline: Pipeline, arrivals: Sequence[Arrival], *, check_answers: bool, on_done: Callable[[], None]
) -> Outcome:
    """Sends each request at its time, however many are still under way."""
    outcome = Outcome()
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one(arrival: Arrival) -> None:
        started = time.perf_counter()
        try:
            answer = await pipeline.answer({"messages": arrival.messages}, arrival.pinned_route)
        except PrimitiveTimeoutError:
            outcome.outcomes["timed out"] += 1
        except Exception:  # noqa: BLE001 - any failure is an outcome to be counted
            outcome.outcomes["failed"] += 1
        else:
            outcome.outcomes["answered"] += 1
            outcome.wrong += check_answers and answer["choices"][0]["message"]["content"] != arrival.entry.answer
            used = usage_of(answer)
            outcome.usage_by_request.append((str(answer["model"]), used.input_tokens or 0, used.output_tokens or 0))
        outcome.latencies_seconds.append(time.perf_counter() - started)
        on_done()

    async with asyncio.TaskGroup() as group:
        for arrival in arrivals:
            await asyncio.sleep(max(0.0, began + arrival.at_seconds - loop.time()))
            group.create_task(one(arrival))
    outcome.seconds = loop.time() - began
    return outcome


def price(profile: ModelProfile, input_tokens: int, output_tokens: int) -> Decimal:
    """USD at the simulated price of a model."""
    whole = (
        profile.simulated_input_usd_per_million * input_tokens
        + profile.simulated_output_usd_per_million * output_tokens
    )
    return whole / MILLION


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of `values` do not exceed (nearest rank); NaN for none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(round(share * len(ordered), 9)) - 1)]


@dataclass(frozen=True, slots=True)
class Cost:
    """Simulated USD. A call that timed out or failed reported no usage and is in neither figure.

    Attributes:
        with_primitives: the upstream calls that were made.
        without_primitives: every answered request sent to the premium model.
    """

    with_primitives: Decimal
    without_primitives: Decimal


def cost(
    outcome: Outcome, upstream: Mapping[str, Upstream], profiles: Mapping[str, ModelProfile], premium: str
) -> Cost:
    """What the run cost, and what it would have cost without cache and router."""
    paid = (price(profiles[model], used.input_tokens, used.output_tokens) for model, used in upstream.items())
    whole = (price(profiles[premium], *tokens) for _, *tokens in outcome.usage_by_request)
    return Cost(sum(paid, Decimal(0)), sum(whole, Decimal(0)))
