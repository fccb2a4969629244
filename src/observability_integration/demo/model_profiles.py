"""The models of the local provider: how fast each is, what it pretends to cost, and how it misbehaves."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum


class Failure(StrEnum):
    """What goes wrong with every request to a model, or with some of them."""

    NONE = "none"
    HANG = "hang"  # not one byte until the client goes away
    SERVER_ERROR = "server_error"  # 500
    RATE_LIMITED = "rate_limited"  # 429 with Retry-After
    FLAKY = "flaky"  # 500 at every third request of this model
    CUT = "cut"  # the connection breaks half-way through the answer
    SILENT_CUT = "silent_cut"  # the answer ends half-way, in good order but without a finish reason
    STALL = "stall"  # half of the answer, then nothing until the client goes away
    TRUNCATED = "truncated"  # half of the answer, finish reason "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """How one model of the local provider behaves.

    Attributes:
        name: the model name that requests use.
        first_token_seconds: time before the first token, in seconds, before the provider's `time_scale`.
        seconds_per_token: time of each token after that, in seconds, before `time_scale`.
        jitter_fraction: both times vary evenly by up to this fraction, from 0.0 to 1.0.
        simulated_input_usd_per_million: price of a million prompt tokens, in USD. Simulated: nobody is billed.
        simulated_output_usd_per_million: price of a million completion tokens, in USD. Simulated as well.
        failure: what goes wrong.
        reasoning_tokens: tokens that the model thinks with, unseen, before each answer.
        retry_after_seconds: the wait that a rate-limited model asks for, in seconds, before `time_scale`.
    """

    name: str
    first_token_seconds: float
    seconds_per_token: float
    jitter_fraction: float = 0.2
    simulated_input_usd_per_million: Decimal
    simulated_output_usd_per_million: Decimal
    failure: Failure = Failure.NONE
    reasoning_tokens: int = 0
    retry_after_seconds: float = 20.0


def _small_but(name: str, failure: Failure) -> ModelProfile:
    return ModelProfile(
        name=name,
        first_token_seconds=0.25,
        seconds_per_token=0.008,
        simulated_input_usd_per_million=Decimal("0.15"),
        simulated_output_usd_per_million=Decimal("0.60"),
        failure=failure,
    )


# Times and prices are the order of magnitude of small and large hosted models in 2025, rounded; none is a real offer.
DEFAULT_PROFILES: tuple[ModelProfile, ...] = (
    _small_but("local-small", Failure.NONE),
    ModelProfile(
        name="local-large",
        first_token_seconds=0.9,
        seconds_per_token=0.025,
        simulated_input_usd_per_million=Decimal("2.50"),
        simulated_output_usd_per_million=Decimal("10.00"),
    ),
    ModelProfile(
        name="local-reasoning",
        first_token_seconds=0.9,
        seconds_per_token=0.015,
        simulated_input_usd_per_million=Decimal("1.10"),
        simulated_output_usd_per_million=Decimal("4.40"),
        reasoning_tokens=64,
    ),
    # Twice the 30 seconds that callers commonly allow.
    ModelProfile(
        name="local-slow",
        first_token_seconds=60.0,
        seconds_per_token=0.05,
        simulated_input_usd_per_million=Decimal("2.50"),
        simulated_output_usd_per_million=Decimal("10.00"),
    ),
    _small_but("local-hang", Failure.HANG),
    _small_but("local-error", Failure.SERVER_ERROR),
    _small_but("local-ratelimited", Failure.RATE_LIMITED),
    _small_but("local-flaky", Failure.FLAKY),
    _small_but("local-cut", Failure.CUT),
    _small_but("local-silent-cut", Failure.SILENT_CUT),
    _small_but("local-stall", Failure.STALL),
    _small_but("local-truncated", Failure.TRUNCATED),
)
