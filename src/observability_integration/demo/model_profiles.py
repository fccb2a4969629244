"""The models of the local provider: speed, simulated price and failure of each."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum


class Failure(StrEnum):
    """The failure of every request to a model, or of some."""

    NONE = "none"
    HANG = "hang"  # no byte until the client disconnects
    SERVER_ERROR = "server_error"  # 500
    RATE_LIMITED = "rate_limited"  # 429 with Retry-After
    FLAKY = "flaky"  # 500 at every third request for this model
    CUT = "cut"  # the connection breaks half-way through the answer
    SILENT_CUT = "silent_cut"  # the answer ends half-way without a finish reason; the HTTP reply is complete
    STALL = "stall"  # half of the answer, then nothing until the client disconnects
    TRUNCATED = "truncated"  # half of the answer, finish reason "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """The behaviour of one model of the local provider.

    Attributes:
        name: model name in requests.
        first_token_seconds: time before the first token, in seconds, before the provider's `time_scale`.
        seconds_per_token: time between tokens after that, in seconds, before `time_scale`.
        jitter_fraction: both times vary uniformly by up to this fraction, from 0.0 to 1.0.
        simulated_input_usd_per_million: price of a million prompt tokens, in USD. Simulated: no bill follows.
        simulated_output_usd_per_million: price of a million completion tokens, in USD, simulated.
        failure: failure of the model.
        reasoning_tokens: invisible tokens before each answer.
        retry_after_seconds: Retry-After of a rate-limited model, in seconds, before `time_scale`.
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


def _small_model(name: str, failure: Failure) -> ModelProfile:
    return ModelProfile(
        name=name,
        first_token_seconds=0.25,
        seconds_per_token=0.008,
        simulated_input_usd_per_million=Decimal("0.15"),
        simulated_output_usd_per_million=Decimal("0.60"),
        failure=failure,
    )


# Times and prices have the order of magnitude of small and large hosted models in 2025; none is a real offer.
DEFAULT_PROFILES: tuple[ModelProfile, ...] = (
    _small_model("local-small", Failure.NONE),
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
    # Twice the common timeout of 30 seconds.
    ModelProfile(
        name="local-slow",
        first_token_seconds=60.0,
        seconds_per_token=0.05,
        simulated_input_usd_per_million=Decimal("2.50"),
        simulated_output_usd_per_million=Decimal("10.00"),
    ),
    _small_model("local-hang", Failure.HANG),
    _small_model("local-error", Failure.SERVER_ERROR),
    _small_model("local-ratelimited", Failure.RATE_LIMITED),
    _small_model("local-flaky", Failure.FLAKY),
    _small_model("local-cut", Failure.CUT),
    _small_model("local-silent-cut", Failure.SILENT_CUT),
    _small_model("local-stall", Failure.STALL),
    _small_model("local-truncated", Failure.TRUNCATED),
)
