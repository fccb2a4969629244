"""The pipeline of the demonstration: cache → router → timeout → call, around the real OpenAI client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI

from observability_integration.context import WorkflowContext
from observability_integration.primitives import CachePrimitive, LLMCallPrimitive, RouterPrimitive, TimeoutPrimitive
from observability_integration.routing.complexity import estimate_complexity

Request = dict[str, Any]
Answer = dict[str, Any]
PREMIUM_COMPLEXITY = 0.30  # questions with at least this score go to the premium model


@dataclass(slots=True)
class UpstreamCounts:
    """The calls to one model, and the tokens that it reported.

    Attributes:
        calls: number of calls, answered or not.
        input_tokens: input tokens of the answered calls.
        output_tokens: output tokens of the answered calls.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class Pipeline:
    """The pipeline and its client.

    Args:
        base_url: URL of the provider's API.
        api_key: key of the API.
        models: models by route, with ``fast`` and ``premium`` among the routes.
        cost_per_route: USD per call, for the router's savings metric.
        cost_per_call: USD per call, for the cache's savings metric.
        timeout_seconds: timeout of a call, in seconds.
    """

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str,
        models: Mapping[str, str],
        cost_per_route: Mapping[str, float],
        cost_per_call: float,
        timeout_seconds: float,
    ) -> None:
        self.upstream: dict[str, UpstreamCounts] = {model: UpstreamCounts() for model in models.values()}
        # The SDK's own retries would be missing from every count.
        self._client = AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0)
        routes: dict[str, TimeoutPrimitive[Request, Answer]] = {
            route: TimeoutPrimitive(
                LLMCallPrimitive(self._call_of(model), model=model, provider="openai", server_url=base_url),
                timeout_seconds,
                grace_period_seconds=0.5,
                operation_name=f"answer.{route}",
            )
            for route, model in models.items()
        }
        self.router = RouterPrimitive[Request, Answer](
            routes, _choose_route, default_route="fast", cost_per_route=cost_per_route, name="by-difficulty"
        )
        # The key must hold everything that shapes the answer: here, the messages are the whole request.
        self.cache = CachePrimitive[Request, Answer](
            self.router,
            lambda request: request["messages"],
            ttl_seconds=3600.0,
            cost_per_call=cost_per_call,
            operation_name="answers",
        )

    def _call_of(self, model: str) -> Any:
        async def call(request: Request) -> Answer:
            self.upstream[model].calls += 1
            completion = await self._client.chat.completions.create(model=model, messages=request["messages"])
            if completion.usage is not None:
                self.upstream[model].input_tokens += completion.usage.prompt_tokens
                self.upstream[model].output_tokens += completion.usage.completion_tokens
            return completion.model_dump(mode="json")

        return call

    async def answer(self, request: Request, pinned_route: str | None) -> Answer:
        """Answers one request."""
        return await self.cache.execute(request, WorkflowContext(metadata={"route": pinned_route}))

    async def aclose(self) -> None:
        """Closes the client's connections."""
        await self._client.close()


def _choose_route(request: Request, context: WorkflowContext) -> str:
    pinned: str | None = context.metadata.get("route")
    if pinned is not None:
        return pinned
    return "premium" if estimate_complexity(request["messages"][-1]["content"]) >= PREMIUM_COMPLEXITY else "fast"
