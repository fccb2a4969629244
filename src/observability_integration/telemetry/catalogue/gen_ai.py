"""Metrics of LLMCallPrimitive, by the gen_ai semantic conventions."""

from __future__ import annotations

from observability_integration.telemetry.metrics.instruments import counter, histogram
from observability_integration.telemetry.metrics.spec import Profile

from .common import GEN_AI_SECONDS, GEN_AI_TOKENS

_GEN_AI = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
_GEN_AI_RESULT = (*_GEN_AI, "gen_ai.response.model")

GEN_AI_DURATION = histogram(
    "gen_ai.client.operation.duration",
    (*_GEN_AI_RESULT, "error.type"),
    "GenAI operation duration.",
    "s",
    GEN_AI_SECONDS,
    profile=Profile.V1_41,
)
GEN_AI_TOKEN_USAGE = histogram(
    "gen_ai.client.token.usage",
    (*_GEN_AI_RESULT, "gen_ai.token.type"),
    "Number of input and output tokens used.",
    "{token}",
    GEN_AI_TOKENS,
    profile=Profile.V1_41,
)
GEN_AI_FIRST_CHUNK = histogram(
    "gen_ai.client.operation.time_to_first_chunk",
    _GEN_AI,
    "Time from the request to the first chunk of a streamed answer.",
    "s",
    GEN_AI_SECONDS,
    profile=Profile.V1_41,
)
GEN_AI_CHUNK_GAP = histogram(
    "gen_ai.client.operation.time_per_output_chunk",
    _GEN_AI,
    "Time between two chunks of a streamed answer, after the first.",
    "s",
    GEN_AI_SECONDS,
    profile=Profile.V1_41,
)
GEN_AI_INFERENCE_DURATION = histogram(
    "gen_ai.client.inference.duration",
    (*_GEN_AI_RESULT, "error.type"),
    "GenAI inference duration.",
    "s",
    GEN_AI_SECONDS,
    profile=Profile.LATEST,
)
GEN_AI_INFERENCE_FIRST_CHUNK = histogram(
    "gen_ai.client.inference.time_to_first_chunk",
    _GEN_AI,
    "Time from the request to the first chunk of a streamed answer.",
    "s",
    GEN_AI_SECONDS,
    profile=Profile.LATEST,
)
GEN_AI_INFERENCE_CHUNK_GAP = histogram(
    "gen_ai.client.inference.time_per_output_chunk",
    _GEN_AI,
    "Time between two chunks of a streamed answer, after the first.",
    "s",
    GEN_AI_SECONDS,
    profile=Profile.LATEST,
)
GEN_AI_INPUT_TOKENS = histogram(
    "gen_ai.client.inference.operation.input_tokens",
    (*_GEN_AI_RESULT, "error.type"),
    "Input tokens of one inference.",
    "{token}",
    GEN_AI_TOKENS,
    profile=Profile.LATEST,
)
GEN_AI_OUTPUT_TOKENS = histogram(
    "gen_ai.client.inference.operation.output_tokens",
    (*_GEN_AI_RESULT, "error.type"),
    "Output tokens of one inference.",
    "{token}",
    GEN_AI_TOKENS,
    profile=Profile.LATEST,
)
_USAGE_COUNTERS = {
    "input_tokens": "Input tokens billed.",
    "output_tokens": "Output tokens billed.",
    "cache_read.input_tokens": "Input tokens read from the provider's prompt cache.",
    "cache_write.input_tokens": "Input tokens written to the provider's prompt cache.",
    "reasoning.output_tokens": "Output tokens spent on reasoning.",
}
GEN_AI_USAGE = {
    part: counter(
        f"gen_ai.client.inference.usage.{part}",
        (*_GEN_AI_RESULT, "gen_ai.token.modality"),
        description,
        "{token}",
        profile=Profile.LATEST,
    )
    for part, description in _USAGE_COUNTERS.items()
}
