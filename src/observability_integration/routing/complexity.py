"""A first guess at how hard a question is, from its text alone.

A heuristic without training, meant as the default where nothing better is at hand: it reads length, signs of code and
mathematics, words that ask for reasoning, and the number of separate demands. The weights are our own choice, not taken
from a study; pass `complexity_fn` to replace it.
"""

from __future__ import annotations

import math
import re

_REASONING = re.compile(
    r"\b(why|prove|derive|analy[sz]e|compare|contrast|evaluate|design|architect|optimi[sz]e|refactor|debug|explain how|"
    r"step by step|trade-?offs?|implications?|critique|reconcile|strategy|algorithm|complexity|theorem|hypothesis)\b",
    re.IGNORECASE,
)
_CODE = re.compile(r"```|\b(def|class|import|SELECT|function|const|async|struct|traceback|exception)\b|[{};]\s*$", re.M)
_MATHS = re.compile(
    r"[∫∑√≤≥≠∂]|\\(frac|sum|int)|\b\d+\s*[*/^%]\s*\d+\b|\b(equation|integral|probability|matrix)\b", re.I
)
_DEMANDS = re.compile(r"[?\n;]|\b(and then|also|finally|first|second|third)\b", re.IGNORECASE)
_WORDS_FOR_LONG = 400  # beyond this, more words add nothing
_READ_AT_MOST = 20_000  # characters; a longer text is hard whatever else stands in it


def estimate_complexity(text: str) -> float:
    """How hard `text` looks, from 0 (trivial) to 1 (hard)."""
    text = text[:_READ_AT_MOST]
    words = len(text.split())
    length = min(1.0, math.log1p(words) / math.log1p(_WORDS_FOR_LONG))
    reasoning = min(1.0, len(_REASONING.findall(text)) / 3)
    demands = min(1.0, max(0, len(_DEMANDS.findall(text)) - 1) / 6)
    code = 1.0 if _CODE.search(text) else 0.0
    maths = 1.0 if _MATHS.search(text) else 0.0
    return min(1.0, 0.30 * length + 0.35 * reasoning + 0.15 * demands + 0.20 * code + 0.15 * maths)
