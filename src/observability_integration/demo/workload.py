"""The workload: a help desk that receives the same questions again, in bursts.

Each request is a system prompt (the desk that receives it) and a question from the corpus. Popularity follows Zipf's
law, so some requests repeat often and most never. This favours a cache: in one hour of real open-ended chat only about
1 % of whole prompts repeat (Mooncake conversation trace, FAST'25).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from .corpus import CorpusEntry, load_corpus

DESKS = (
    "You answer in the in-app chat. Be brief.",
    "You answer by e-mail. Be friendly and complete.",
    "You answer colleagues in engineering. Be exact.",
    "You answer new customers. Avoid jargon.",
    "You answer on the public forum. Be neutral.",
    "You answer partners. Be formal.",
    "You answer students. Explain each step.",
    "You answer on a voice line. Use short sentences.",
)
ZIPF_EXPONENT = 0.9  # popularity of the k-th request is proportional to 1 / k^0.9
BURSTINESS = 0.5  # shape of the gamma-distributed gaps; 1 would be a Poisson process, below 1 comes in bursts
SLOW_SHARE = 0.02  # share of the requests pinned to the slow model
FLAKY_SHARE = 0.03  # share of the requests pinned to the flaky model


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request.

    Attributes:
        at_seconds: time of arrival, in seconds from the start.
        entry: the question and its correct answer.
        messages: messages of the request.
        pinned_route: required route, or None for the router's choice.
    """

    at_seconds: float
    entry: CorpusEntry
    messages: list[dict[str, Any]]
    pinned_route: str | None


def plan(requests: int, *, requests_per_second: float, seed: int, with_faults: bool) -> Sequence[Arrival]:
    """Returns the arrivals of one run; the same seed gives the same arrivals.

    Args:
        requests: number of requests.
        requests_per_second: mean rate.
        seed: seed of the random generator.
        with_faults: whether to pin a few requests to models that are too slow or that fail.
    """
    rng = random.Random(seed)
    distinct = [(desk, entry) for entry in load_corpus() for desk in DESKS]
    rng.shuffle(distinct)
    weights = list(accumulate(1 / rank**ZIPF_EXPONENT for rank in range(1, len(distinct) + 1)))
    arrivals: list[Arrival] = []
    now = 0.0
    for desk, entry in rng.choices(distinct, cum_weights=weights, k=requests):
        now += rng.gammavariate(BURSTINESS, 1 / (BURSTINESS * requests_per_second))
        draw = rng.random()
        pinned = "slow" if draw < SLOW_SHARE else "flaky" if draw < SLOW_SHARE + FLAKY_SHARE else None
        pinned = pinned if with_faults else None
        messages = [{"role": "system", "content": desk}, {"role": "user", "content": entry.prompt}]
        arrivals.append(Arrival(now, entry, messages, pinned))
    return arrivals
