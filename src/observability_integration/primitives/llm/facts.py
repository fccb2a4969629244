"""Reads the model, id, tokens and finish reasons of an answer from its chunks."""

from __future__ import annotations

from typing import Any

from observability_integration.costs.usage import (
    Usage,
    choices_of,
    finish_reasons_of,
    id_of,
    is_provider_chunk,
    model_of,
    read,
    usage_of,
)


class AnswerFacts:
    """The facts of one answer, read from its chunks.

    Attributes:
        is_provider_stream: whether a chunk had the shape of a provider's stream, which ends with a finish reason.
        complete: whether each choice seen so far has a finish reason.
        model: the model that answered, by the provider's name.
        id: the provider's id of the answer.
        usage: the tokens reported so far.
    """

    __slots__ = ("_reasons", "_seen", "complete", "id", "is_provider_stream", "model", "usage")

    def __init__(self) -> None:
        self.is_provider_stream = False
        self.complete = False
        self.model: str | None = None
        self.id: str | None = None
        self.usage = Usage()
        self._reasons: dict[int, str] = {}
        self._seen: set[int] = set()

    def note(self, chunk: Any) -> bool:
        """Reads the next chunk, which is no plain text.

        Returns:
            Whether the chunk is more than a part of the answer, so that it may report an error.
        """
        choices = choices_of(chunk)
        if choices is None:
            return self._note_event(chunk)
        self.is_provider_stream = True
        may_be_error = not choices or (chunk.__class__ is dict and "error" in chunk)
        for choice in choices:
            index, reason = read(choice, "index"), read(choice, "finish_reason")
            if reason is not None or index.__class__ is not int or index not in self._seen:
                self._note_choice(index if index.__class__ is int else 0, reason)
                may_be_error = True
        if read(chunk, "usage") is not None:
            self.usage = self.usage.merged(usage_of(chunk))
        self._note_names(chunk)
        return may_be_error

    def _note_choice(self, index: int, reason: Any) -> None:
        self._seen.add(index)
        if isinstance(reason, str) and reason:
            self._reasons[index] = reason
        self.complete = len(self._reasons) == len(self._seen)

    def _note_event(self, event: Any) -> bool:
        kind = read(event, "type")
        self.is_provider_stream = self.is_provider_stream or is_provider_chunk(event)
        if kind == "content_block_delta" or (kind.__class__ is str and kind.endswith(".delta")):
            return False
        for reason in finish_reasons_of(event):
            self._reasons[0] = reason
            self.complete = True
        self.usage = self.usage.merged(usage_of(event))
        self._note_names(event)
        return True

    def _note_names(self, chunk: Any) -> None:
        if self.model is None:
            self.model = model_of(chunk)
        if self.id is None:
            self.id = id_of(chunk)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The finish reasons so far, in the order of the choices."""
        return tuple(reason for _, reason in sorted(self._reasons.items()))

    @property
    def first_reason(self) -> str | None:
        """The finish reason of the first choice, or None."""
        return self._reasons.get(0)
