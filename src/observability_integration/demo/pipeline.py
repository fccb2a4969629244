"""The demonstrated chain: cache → router → timeout → call, around the real OpenAI client."""

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
HARD = 0.30  # questions that score at least this go to the premium model


@dataclass(slots=True)
class Upstream:
    """What was sent to one model, and what it reported.

    Attributes:
        calls: attempts, answered or not.
        input_tokens: of the answered ones.
        output_tokens: of the answered ones.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class Pipeline:
    """The chain, and the client under it.

    Args:
        base_url: the provider's API.
        api_key: its key.
        models: route → model; must hold ``fast`` and ``premium``.
        cost_per_route: USD per call, for the router's savings metric.
        cost_per_call: USD per call, for the cache's savings metric.
        timeout_seconds: per call.
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
        self.upstream: dict[str, Upstream] = {model: Upstream() for model in models.values()}
        # The SDK's own retries would multiply with ours and hide from every count.
        self._client = AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0)
        routes: dict[str, TimeoutPrimitive[Request, Answer]] = {
            route: TimeoutPrimitive(
                LLMCallPrimitive(self._ask(model), model=model, provider="openai", server_url=base_url),
                timeout_seconds,
                grace_period_seconds=0.5,
                operation_name=f"answer.{route}",
            )
            for route, model in models.items()
        }
        self.router = RouterPrimitive[Request, Answer](
            routes, _choose, default_route="fast", cost_per_route=cost_per_route, name="by-difficulty"
        )
        # The desk and the question are the whole request here; everything that shapes the answer belongs in the key.
        self.cache = CachePrimitive[Request, Answer](
            self.router,
            lambda request: request["messages"],
            ttl_seconds=3600.0,
            cost_per_call=cost_per_call,
            operation_name="answers",
        )

    def _ask(self, model: str) -> Any:
        async def ask(request: Request) -> Answer:
            self.upstream[model].calls += 1
            completion = await self._client.chat.completions.create(model=model, messages=request["messages"])
            if completion.usage is not None:
                self.upstream[model].input_tokens += completion.usage.prompt_tokens
                self.upstream[model].output_tokens += completion.usage.completion_tokens
            return completion.model_dump(mode="json")

        return ask

    async def answer(self, request: Request, pinned_route: str | None) -> Answer:
        """Answers one request."""
        return await self.cache.execute(request, WorkflowContext(metadata={"route": pinned_route}))

    async def aclose(self) -> None:
        """Closes the client's connections."""
        await self._client.close()


def _choose(request: Request, context: WorkflowContext) -> str:
    pinned: str | None = context.metadata.get("route")
    if pinned is not None:
        return pinned
    return "premium" if estimate_complexity(request["messages"][-1]["content"]) >= HARD else "fast"
