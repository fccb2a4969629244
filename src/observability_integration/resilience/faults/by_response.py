"""Classifies exceptions by the response they carry: its status, the provider's codes and words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from . import shapes
from .by_class import hint_from_class
from .kinds import PLAIN_FAULTS, Fault, FaultKind

# What a rule finds: a kind, or a used-up quota, which is ``rate_limited`` without a retry.
_Finding: TypeAlias = FaultKind | Literal["quota"]

_BY_STATUS: dict[int, FaultKind] = {
    **dict.fromkeys((401, 403, 407), "auth"),
    429: "rate_limited",  # 402 is a used-up quota
    **dict.fromkeys((408, 409, 425), "transient"),  # too slow, met a lock (OpenAI), too early
    **dict.fromkeys((498, 503, 529), "overloaded"),  # 498: Groq's flex tier; 529: Anthropic
    **dict.fromkeys((501, 505), "invalid_request"),
    **dict.fromkeys((504, 522, 524), "timeout"),  # a gateway has waited already: no retry here
    **dict.fromkeys((499, 521, 523, 525, 526), "connection"),  # between client and provider; 52x: Cloudflare
}


def _by_code(codes: dict[_Finding, str]) -> dict[str, tuple[int, _Finding]]:
    return {code: (row, finding) for row, (finding, listed) in enumerate(codes.items()) for code in listed.split()}


# What the provider calls the fault. These say more than the status does. Of several, the highest row decides.
_STRONG_CODES = _by_code(
    {
        "quota": """billing_error billing_hard_limit_reached billing_not_active contract_spend_limit_reached
            enforced_spend_limit_reached exceeded_current_quota_error insufficient_balance insufficient_quota
            linked_organization_spend_limit_reached""",
        "content_filter": """content_filter content_policy_violation responsibleaipolicyviolation moderation_blocked
            invalid_prompt data_inspection_failed""",
        "context_length": "context_length_exceeded model_context_window_exceeded",
        "rate_limited": "rate_limit_error rate_limit_exceeded resource_exhausted",
        "overloaded": "overloaded_error engine_overloaded_error slow_down",
    }
)
# Codes that count where there is no status: inside a stream.
_WEAK_CODES = _by_code(
    {
        "auth": "authentication_error invalid_api_key permission_denied permission_error unauthenticated",
        "invalid_request": "badrequesterror invalid_argument invalid_request_error model_not_found not_found_error",
        "timeout": "deadline_exceeded gateway_timeout request_timeout timeout_error",
        "overloaded": "service_unavailable unavailable",
        "transient": "api_error internal internal_error internal_server_error internalservererror server_error",
    }
)

# Words of providers that have no code for it. They are looked for only with the statuses that report such a fault,
# because an error may quote the prompt.
_WORDY = (None, 400, 403, 413, 422, 500)
_WORDS: tuple[tuple[_Finding, str], ...] = (
    ("content_filter", "content management policy"),  # Azure
    ("content_filter", "blocked by content filtering policy"),  # Anthropic
    ("content_filter", "violating our usage policy"),  # OpenAI
    ("content_filter", "your input was flagged"),  # OpenRouter
    ("quota", "credit balance is too low"),  # Anthropic
    ("context_length", "maximum context length"),  # OpenAI, Azure, vLLM, Mistral, DeepSeek, OpenRouter
    ("context_length", "longer than the maximum model length"),  # vLLM
    ("context_length", "prompt is too long"),  # Anthropic
    ("context_length", "exceed context limit"),  # Anthropic, where prompt and max_tokens together are too many
    ("context_length", "exceeds the context window"),  # OpenAI
    ("context_length", "exceeds the maximum number of tokens allowed"),  # Gemini
    ("context_length", "input is too long for requested model"),  # Bedrock
    ("context_length", "too many input tokens"),  # Bedrock
    ("context_length", "reduce the length of the messages"),  # Groq
    ("context_length", "maximum prompt length is"),  # xAI
    ("context_length", "longer than the model's context length"),  # Together, SGLang
    ("context_length", "exceeds the available context size"),  # llama.cpp
    ("context_length", "exceeded max context length"),  # Ollama
)


class _Response:
    """What an exception says of the response."""

    __slots__ = ("body", "codes", "error", "parts", "status")

    def __init__(self, error: object) -> None:
        self.error = error
        self.body: Any = shapes.body_of(error)
        self.parts: list[Mapping[Any, Any]] = shapes.parts_of(self.body)
        self.status = shapes.status_of(error, self.parts)
        self.codes = shapes.codes_of(error, self.parts)


def _from_codes(table: dict[str, tuple[int, _Finding]], codes: frozenset[str]) -> _Finding | None:
    found = [table[code] for code in codes if code in table]
    return min(found)[1] if found else None


def _from_words(it: _Response) -> _Finding | None:
    if it.status not in _WORDY or (it.status is None and not it.parts):
        return None
    words = shapes.words_of(it.error, it.body, it.parts)
    return next((finding for finding, phrase in _WORDS if phrase in words), None)


def _from_status(it: _Response) -> FaultKind | None:
    if it.status is None:
        return None
    return _BY_STATUS.get(it.status) or ("transient" if it.status >= 500 else "invalid_request")


# Tried in order: the first that finds something decides.
_RULES: tuple[Callable[[_Response], _Finding | None], ...] = (
    lambda it: "quota" if it.status == 402 else None,  # payment required
    lambda it: _from_codes(_STRONG_CODES, it.codes),
    _from_words,
    _from_status,
    lambda it: _from_codes(_WEAK_CODES, it.codes),
    lambda it: hint_from_class(it.error),
)


def fault_from_response(error: object) -> Fault:
    """Classifies an exception by its response: ``unknown`` where that says nothing."""
    it = _Response(error)
    finding: _Finding = "unknown"
    for rule in _RULES:
        found = rule(it)
        if found is not None:
            finding = found
            break
    kind: FaultKind = "rate_limited" if finding == "quota" else finding
    headers = shapes.headers_of(error)
    wait = shapes.retry_after_seconds(headers, kind == "rate_limited", it.codes, it.parts)
    should_retry = {"true": True, "false": False}.get(headers.get("x-should-retry", "").lower())
    if finding == "quota":
        should_retry = False
    if it.status is None and wait is None and should_retry is None:
        return PLAIN_FAULTS[kind]
    return Fault(kind, it.status, wait, should_retry)
