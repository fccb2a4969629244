"""Estimates how hard a question is, from its text alone.

An untrained heuristic, the default complexity function. It weighs length, code, mathematics, words that ask for
reasoning and the number of separate demands. The weights are a choice of this library, not of a study; pass
`complexity_fn` to replace it.
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
_MAX_WORDS = 400  # more words add nothing to the estimate
_MAX_CHARACTERS = 20_000  # the rest of a longer text is not read


def estimate_complexity(text: str) -> float:
    """Returns how hard `text` looks, from 0 (trivial) to 1 (hard)."""
    text = text[:_MAX_CHARACTERS]
    words = len(text.split())
    length = min(1.0, math.log1p(words) / math.log1p(_MAX_WORDS))
    reasoning = min(1.0, len(_REASONING.findall(text)) / 3)
    demands = min(1.0, max(0, len(_DEMANDS.findall(text)) - 1) / 6)
    code = 1.0 if _CODE.search(text) else 0.0
    maths = 1.0 if _MATHS.search(text) else 0.0
    return min(1.0, 0.30 * length + 0.35 * reasoning + 0.15 * demands + 0.20 * code + 0.15 * maths)
