"""Semantic lookup: answers for prompts that mean the same but are worded differently. Opt-in, and off by default.

Static similarity thresholds give wrong answers: a prompt and its negation have nearly one vector. So a match must also
pass gates, and is served only once enough of them were checked against fresh answers.
"""

from __future__ import annotations

from .evidence import Evidence
from .gates import DEFAULT_GATES, Gate, Prompt, Trace
from .lookup import Mode, SameAnswer, SemanticLookup, SemanticStats, same_text
from .memory_index import MemoryIndex
from .protocol import Candidate, Embedder, Match, SemanticIndex

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
