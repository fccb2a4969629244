"""The gen_ai semantic conventions: attribute names, and the metrics that each profile emits.

The OpenTelemetry GenAI instrumentations ship v1.41. The conventions have since moved to a repository of their own,
which renames most client metrics (``latest``). All gen_ai conventions are still in development.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .catalogue import Profile
from .catalogue.gen_ai import (
    GEN_AI_CHUNK_GAP,
    GEN_AI_DURATION,
    GEN_AI_FIRST_CHUNK,
    GEN_AI_INFERENCE_CHUNK_GAP,
    GEN_AI_INFERENCE_DURATION,
    GEN_AI_INFERENCE_FIRST_CHUNK,
    GEN_AI_INPUT_TOKENS,
    GEN_AI_OUTPUT_TOKENS,
    GEN_AI_TOKEN_USAGE,
    GEN_AI_USAGE,
)
from .metrics import instruments

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS = "gen_ai.usage.cache_creation.input_tokens"
CACHE_WRITE_TOKENS_LATEST = "gen_ai.usage.cache_write.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"

# Request parameters that the span carries as gen_ai.request.*; none of them is content.
REQUEST_PARAMETERS: Mapping[str, str] = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}


def _profiles() -> frozenset[Profile]:
    return instruments.switch.profiles


def token_attributes(usage: Any) -> dict[str, int]:
    """The span attributes for a `Usage`, in the current profiles."""
    profiles = _profiles()
    pairs: list[tuple[str, int | None]] = [
        (INPUT_TOKENS, usage.input_tokens),
        (OUTPUT_TOKENS, usage.output_tokens),
        (CACHE_READ_TOKENS, usage.cache_read_tokens),
        (REASONING_TOKENS, usage.reasoning_tokens),
    ]
    if Profile.V1_41 in profiles:
        pairs.append((CACHE_WRITE_TOKENS, usage.cache_write_tokens))
    if Profile.LATEST in profiles:
        pairs.append((CACHE_WRITE_TOKENS_LATEST, usage.cache_write_tokens))
    return {key: count for key, count in pairs if count is not None}


Call = tuple[str, str | None, str | None]  # operation, provider, request model


def record_call(
    call: Call, response_model: str | None, seconds: float, error_type: str | None, usage: Any, span: object
) -> None:
    """Records duration and tokens of one finished call, successful or not."""
    if not instruments.switch.on:
        return
    profiles = _profiles()
    labels = (*call, response_model)
    if Profile.V1_41 in profiles:
        GEN_AI_DURATION.series(*labels, error_type).record(seconds, span)
        for kind, tokens in (("input", usage.input_tokens), ("output", usage.output_tokens)):
            if tokens is not None:
                GEN_AI_TOKEN_USAGE.series(*labels, kind).record(tokens, span)
    if Profile.LATEST in profiles:
        GEN_AI_INFERENCE_DURATION.series(*labels, error_type).record(seconds, span)
        for histogram, tokens in (
            (GEN_AI_INPUT_TOKENS, usage.input_tokens),
            (GEN_AI_OUTPUT_TOKENS, usage.output_tokens),
        ):
            # The convention: 0 for a failed call, nothing where the count is unknown.
            if tokens is not None or error_type is not None:
                histogram.series(*labels, error_type).record(tokens or 0, span)
        for part, tokens in (
            ("input_tokens", usage.input_tokens),
            ("output_tokens", usage.output_tokens),
            ("cache_read.input_tokens", usage.cache_read_tokens),
            ("cache_write.input_tokens", usage.cache_write_tokens),
            ("reasoning.output_tokens", usage.reasoning_tokens),
        ):
            if tokens:
                GEN_AI_USAGE[part].series(*labels, "unknown").add(tokens)


def record_first_chunk(call: Call, seconds: float, span: object) -> None:
    """Records the time to the first chunk of a streamed answer."""
    profiles = _profiles()
    if Profile.V1_41 in profiles:
        GEN_AI_FIRST_CHUNK.series(*call).record(seconds, span)
    if Profile.LATEST in profiles:
        GEN_AI_INFERENCE_FIRST_CHUNK.series(*call).record(seconds, span)


def record_chunk_gap(call: Call, seconds: float, span: object) -> None:
    """Records the time between two chunks of a streamed answer."""
    profiles = _profiles()
    if Profile.V1_41 in profiles:
        GEN_AI_CHUNK_GAP.series(*call).record(seconds, span)
    if Profile.LATEST in profiles:
        GEN_AI_INFERENCE_CHUNK_GAP.series(*call).record(seconds, span)
