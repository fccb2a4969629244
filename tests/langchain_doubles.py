"""LangChain's messages, in the shape of `langchain_core` 1.8 as `langchain_openai` and `langchain_anthropic` fill them.

LangChain itself is no dependency of the tests.
"""

from __future__ import annotations

from typing import Any


class AIMessage:
    """A whole answer."""

    type = "ai"

    def __init__(
        self,
        content: str | list[Any],
        response_metadata: dict[str, Any] | None = None,
        *,
        usage_metadata: dict[str, Any] | None = None,
        tool_calls: list[dict[str, Any]] | None = None,
        additional_kwargs: dict[str, Any] | None = None,
        id: str | None = "lc_run--1",  # noqa: A002 - its name there
    ) -> None:
        self.content = content
        self.response_metadata = response_metadata or {}
        self.usage_metadata = usage_metadata
        self.tool_calls = tool_calls or []
        self.invalid_tool_calls: list[dict[str, Any]] = []
        self.additional_kwargs = additional_kwargs or {}
        self.id = id


class AIMessageChunk(AIMessage):
    """A chunk of a streamed answer. `langchain_core` marks the last one, also when the provider's stream was cut."""

    type = "AIMessageChunk"

    def __init__(
        self,
        content: str | list[Any],
        response_metadata: dict[str, Any] | None = None,
        *,
        tool_call_chunks: list[dict[str, Any]] | None = None,
        chunk_position: str | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(content, response_metadata, **fields)
        self.tool_call_chunks = tool_call_chunks or []
        self.chunk_position = chunk_position
