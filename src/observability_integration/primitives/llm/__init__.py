"""One call of a provider: its span and metrics, its stream, and the completion joined from chunks."""

from .call import LLMCallPrimitive
from .completion import Completion, ToolCall, completion_of

__all__ = [
    "Completion",
    "LLMCallPrimitive",
    "ToolCall",
    "completion_of",
]
