"""`LLMTarget`: one model of one provider, and the settings of the primitives that a pipeline puts around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from observability_integration.context import WorkflowContext
from observability_integration.errors import ConfigurationError
from observability_integration.propagation import outgoing_headers
from observability_integration.resilience.aimd import Aimd
from observability_integration.resilience.backoff import Backoff
from observability_integration.resilience.retry_budget import RetryBudget

from .base import WorkflowPrimitive
from .circuit_breaker.breaker import Breaker, BreakerPolicy
from .concurrency.limit import ConcurrencyLimit
from .lifting import lift
from .llm.call import LLMCallPrimitive
from .llm.choices import requested_choices
from .llm.completion import answer_from_chunks

_SYNCHRONOUS = frozenset({"OpenAI", "AzureOpenAI"})  # clients of the SDK that would block the event loop


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMTarget:
    """One model of one provider, for `pipeline`. None means the pipeline's default.

    Attributes:
        call: async function of ``(request)`` or ``(request, context)`` that calls the provider: an async generator
            function, or one that returns the answer or (with `streaming`) an async iterator of chunks. A primitive is
            used as it is.
        name: the target's name in metrics, errors and events; by default `model`, or the name of `call`.
        model: requested model, for spans and metrics.
        provider: value of ``gen_ai.provider.name``.
        server_url: base URL of the provider, for spans.
        announces_end: whether an answer of `call` without a finish reason is always cut; by default that goes by the
            shape of its chunks. False if `call` makes several calls of the provider, as an agent does: more may follow
            after each finish reason, however late.
        choices: how many choices `call` asks for, >= 1, if the request's own ``n`` does not say so; by default as many
            as there are in the stream.
        streaming: whether `call` streams; by default if it is an async generator function. A slow first token, a stall
            or a cut shows only in a stream.
        context_window: in tokens, >= 1. If it is known, a request that was too long for another target comes here only
            if this window is larger.
        attempt_timeout_seconds: limit of one attempt, > 0.
        first_chunk_seconds: limit until the first content, > 0.
        idle_seconds: limit between two chunks with content, > 0.
        max_attempts: attempts of one call, >= 1.
        backoff: the waits between them.
        retry_budget: bounds the retries of all calls; by default the target has its own budget.
        breaker: when its circuit opens; or a `Breaker`, to share it with other pipelines or processes.
        max_concurrency: calls in flight, >= 1; or an `Aimd`, which adapts it; or a `ConcurrencyLimit`, to share it.
        requests_per_minute: >= 1.
        tokens_per_minute: >= 1.
    """

    call: Any
    name: str | None = None
    model: str | None = None
    provider: str | None = None
    server_url: str | None = None
    announces_end: bool | None = None
    choices: int | None = None
    streaming: bool | None = None
    context_window: int | None = None
    attempt_timeout_seconds: float | None = None
    first_chunk_seconds: float | None = None
    idle_seconds: float | None = None
    max_attempts: int | None = None
    backoff: Backoff | None = None
    retry_budget: RetryBudget | None = None
    breaker: BreakerPolicy | Breaker | None = None
    max_concurrency: int | Aimd | ConcurrencyLimit | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def step(self) -> WorkflowPrimitive[Any, Any]:
        """Returns the call as a primitive, with its CLIENT span.

        Raises:
            ConfigurationError: `call` cannot be called.
        """
        call: Any = self.call
        if isinstance(cast("object", call), WorkflowPrimitive) or not callable(call):
            return lift(call)
        return LLMCallPrimitive(
            call,
            model=self.model,
            provider=self.provider,
            server_url=self.server_url,
            streaming=self.streaming,
            announces_end=self.announces_end,
            choices=self.choices,
            collect=answer_from_chunks,
        )

    def label(self) -> str:
        """Returns the target's name; without one, its model or the name of its call."""
        label = self.name or self.model
        if label is not None:
            return label
        return getattr(self.call, "name", None) or getattr(self.call, "__name__", None) or type(self.call).__name__

    @classmethod
    def openai(
        cls,
        client: Any,
        model: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        propagate: bool = False,
        **knobs: Any,
    ) -> LLMTarget:
        """A model behind an ``AsyncOpenAI`` client, or any with its ``chat.completions.create``; always streamed.

        The request is a text, a list of messages, or a mapping of fields of the chat completions API; `model` replaces
        its ``model``. The client's own retries are off for these calls: the pipeline makes them, and counts them.

        Args:
            client: the client.
            model: the model to request.
            parameters: further fields of each request, such as ``temperature``; the request's own fields override them.
            propagate: sends deadline, trace context and baggage (`propagation.outgoing_headers`). For your own services
                only: other providers must not see the baggage.
            **knobs: the other attributes of `LLMTarget`.

        Raises:
            ConfigurationError: `client` has no ``chat.completions.create``.
        """
        blocks = any(kind.__name__ in _SYNCHRONOUS for kind in type(client).__mro__)
        if blocks or _create_of(client) is None:
            raise ConfigurationError("client must have an asynchronous chat.completions.create, as AsyncOpenAI has")
        fixed = {"stream_options": {"include_usage": True}} | dict(parameters or {})
        served = {"provider": "openai", "server_url": _text(getattr(client, "base_url", None))}
        knobs = served | {"choices": requested_choices(fixed)} | knobs
        return cls(
            call=_chat_call(client, model, fixed, propagate), announces_end=True, model=model, streaming=True, **knobs
        )


def _create_of(client: Any) -> Any:
    return getattr(getattr(getattr(client, "chat", None), "completions", None), "create", None)


class _WithoutRetries:
    """A client without its own retries. Copies the client again when its API key has changed."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._key: Any = None
        self._create: Any = None

    def create(self) -> Callable[..., Awaitable[Any]]:
        """Returns the function that makes a request."""
        key = getattr(self._client, "api_key", None)
        if self._create is None or key is not self._key:
            with_options = getattr(self._client, "with_options", None)
            self._create = _create_of(self._client if with_options is None else with_options(max_retries=0))
            self._key = key
        return cast("Callable[..., Awaitable[Any]]", self._create)


def _chat_call(
    client: Any, model: str, fixed: Mapping[str, Any], propagate: bool
) -> Callable[[Any, WorkflowContext], Awaitable[Any]]:
    client = _WithoutRetries(client)

    async def call(request: Any, context: WorkflowContext) -> Any:
        if isinstance(request, str):
            fields: dict[str, Any] = {"messages": [{"role": "user", "content": request}]}
        elif isinstance(request, Mapping):
            fields = dict(cast("Mapping[str, Any]", request))
        else:
            fields = {"messages": request}
        if propagate:
            fields["extra_headers"] = outgoing_headers(context, fields.get("extra_headers"))
        return await client.create()(**{**fixed, **fields, "model": model, "stream": True})

    return call


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
