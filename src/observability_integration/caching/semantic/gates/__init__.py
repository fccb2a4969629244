"""Gates: conditions besides near vectors for two prompts to share an answer. For English prompts only."""

from __future__ import annotations

from .asking import asking, same_kind
from .contrasts import contrasts, no_contrast
from .english import Prompt, language
from .gate import Gate, Trace
from .names import names
from .negation import negation
from .numbers import numbers
from .wording import no_lone_difference, same_order, subjects, wording

DEFAULT_GATES: tuple[Gate, ...] = (
    Gate("language", language),
    Gate("numbers", numbers),
    Gate("negation", negation),
    Gate("names", names),
    Gate("contrasts", contrasts, no_contrast),
    Gate("asking", asking, same_kind),
    Gate("order", wording, same_order),
    Gate("difference", wording, no_lone_difference),
    Gate("subject", subjects, no_lone_difference),
)
"""All gates; they refuse prompts that are not English."""

__all__ = ["DEFAULT_GATES", "Gate", "Prompt", "Trace"]
