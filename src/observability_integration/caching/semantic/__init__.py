"""Semantic lookup: answers for prompts with the same meaning in other words. Opt-in, and off by default.

A similarity threshold alone gives wrong answers: a prompt and its negation have nearly the same vector. So a match must
also pass gates, and matches are served only once enough of them were compared with fresh answers.
"""

from __future__ import annotations

from .evidence import Evidence
from .gates import DEFAULT_GATES, Gate, Prompt, Trace
from .memory_index import MemoryIndex
from .protocol import Candidate, Embedder, Match, SemanticIndex
from .semantic_lookup import Mode, SameAnswer, SemanticLookup, SemanticStats, same_text

__all__ = [
    "DEFAULT_GATES",
    "Candidate",
    "Embedder",
    "Evidence",
    "Gate",
    "Match",
    "MemoryIndex",
    "Mode",
    "Prompt",
    "SameAnswer",
    "SemanticIndex",
    "SemanticLookup",
    "SemanticStats",
    "Trace",
    "same_text",
]
