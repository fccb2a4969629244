"""Reads from a request how many choices it asks for."""

from __future__ import annotations

from typing import Any, cast

from observability_integration.costs.shapes import read

_MAX_CHOICES = 10_000  # our choice: a greater number means something else


def requested_choices(request: Any) -> int | None:
    """Returns how many choices a request asks for; None if it does not say.

    Reads ``n``, also in ``extra_body``, and the prompts of OpenAI's legacy completions, each of which has so many.

    Args:
        request: any request; a mapping, or an object with attributes.
    """
    if isinstance(request, str | bytes):
        return None
    count = _count(read(request, "n")) or _count(read(request, "extra_body", "n"))
    prompts = _prompts(read(request, "prompt"))
    return count if prompts is None else _count(prompts * (count or 1))


def _count(value: Any) -> int | None:
    valid = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_CHOICES
    return value if valid else None


def _prompts(prompt: Any) -> int | None:
    # A list of texts, or of lists of token ids; a plain list of token ids is one prompt.
    if not isinstance(cast("object", prompt), list | tuple) or not prompt:
        return None
    return len(prompt) if isinstance(prompt[0], str | list | tuple) else None
