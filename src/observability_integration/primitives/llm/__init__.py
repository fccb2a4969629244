"""One call of a provider: observed, read as a stream or whole, and put together."""

from .call import LLMCallPrimitive
from .completion import Completion, ToolCall, completion_of

__all__ = [
    "Completion",
    "LLMCallPrimitive",
    "ToolCall",
    "completion_of",
]
