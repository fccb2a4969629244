"""Reads the model, id, tokens and finish reasons of an answer from its chunks, and whether the reasons are final."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from observability_integration.costs.finish_reasons import finish_reasons_of, may_lack_content
from observability_integration.costs.shapes import (
    choices_of,
    chunk_inside,
    is_provider_chunk,
    metadata_of,
    read,
    reason_or_none,
    repeats,
)
from observability_integration.costs.usage import Usage, id_of, model_of, usage_of
from observability_integration.primitives.chunks import is_content

# The last event of an answer, by its type.
_LAST_EVENTS = ("message_stop", "response.completed", "response.incomplete")
# Blocks of an Anthropic answer that begin empty: their content follows in pieces.
_EMPTY_BLOCKS = ("text", "thinking", "redacted_thinking")


class AnswerFacts:
    """The facts of one answer, read from its chunks.

    A finish reason is final, so that nothing more is due, only if the chunks agree: some servers send one with every
    chunk, or before the content. The reason of a choice is final if content of the choice came in an earlier chunk
    that had no reason, or if an answer with this reason may lack content; content after a reason takes that back. An
    event that ends the answer makes all reasons final, and so does a usage report after them, in a chunk of its own, if
    no content of these choices followed an earlier one.

    Args:
        choices: how many choices the request asked for; None if that is unknown.
        reasons_end: whether a finish reason may be final; not if the source makes several calls, each with its reason.

    Attributes:
        is_provider_stream: whether a chunk had the shape of a provider's stream, which ends with a finish reason.
        complete: whether each choice seen so far has a finish reason: the answer is whole if the stream ends here.
        final: whether these reasons are final, and as many choices have one as were requested.
        model: the model that answered, by the provider's name.
        id: the provider's id of the answer.
        usage: the tokens reported so far.
    """

    __slots__ = (
        "_begun",
        "_reasons",
        "_reasons_end",
        "_requested",
        "_seen",
        "_settled",
        "_usage_ends",
        "_usage_reported",
        "complete",
        "final",
        "id",
        "is_provider_stream",
        "model",
        "usage",
    )

    def __init__(self, choices: int | None = None, *, reasons_end: bool = True) -> None:
        self.is_provider_stream = False
        self.complete = False
        self.final = False
        self.model: str | None = None
        self.id: str | None = None
        self.usage = Usage()
        self._requested = choices or 1
        self._reasons_end = reasons_end
        self._reasons: dict[int, str] = {}
        self._seen: set[int] = set()
        self._begun: set[int] = set()  # choices that have content, and no reason so far
        self._settled: set[int] = set()  # choices whose reason is final
        self._usage_reported = False  # after a reason, in a chunk of its own
        self._usage_ends = True  # no content has followed such a report

    def note(self, chunk: Any) -> bool | None:
        """Reads the next chunk, which is no plain text.

        Returns:
            Whether the chunk is more than a part of the answer, so that it may report an error. None if it is an event
            of an SDK's helper that repeats a part of the chunk before it.
        """
        choices: Sequence[Any] | None = read(chunk, "choices")
        if choices is None:
            inner = chunk_inside(chunk)
            if inner is None:
                return self._note_event(chunk)
            chunk = inner
        if choices.__class__ is not list:
            choices = choices_of(chunk)
            if choices is None:
                return self._note_event(chunk)
        self.is_provider_stream = True
        may_be_error = not choices or (chunk.__class__ is dict and "error" in chunk)
        for choice in choices or ():
            index, reason = read(choice, "index"), read(choice, "finish_reason")
            if reason is not None:
                reason = reason_or_none(reason)
            if reason is not None or index.__class__ is not int or index not in self._begun:
                index = index if index.__class__ is int else 0
                self._note_choice(index, reason, has_content=is_content({"choices": [choice]}))
                may_be_error = True
        if read(chunk, "usage") is not None:
            usage = usage_of(chunk)
            self.usage = self.usage.merged(usage)
            if not choices and usage != Usage():
                self._note_report()
        self._note_names(chunk)
        return may_be_error

    def _note_choice(self, index: int, reason: str | None, *, has_content: bool) -> None:
        self._seen.add(index)
        if index in self._reasons:
            if has_content:
                self._usage_ends = self._usage_ends and not self._usage_reported
                self._settled.discard(index)
            if reason is not None:
                self._reasons[index] = reason
        elif reason is not None:
            self._reasons[index] = reason
            if index in self._begun or (not has_content and may_lack_content(reason)):
                self._settled.add(index)
            self._begun.discard(index)
        elif has_content:
            self._begun.add(index)
        self._judge()

    def _note_report(self) -> None:
        if self._reasons:
            self._usage_reported = True
            if self._usage_ends:
                self._settle()

    def _settle(self) -> None:
        self._settled.update(self._reasons)
        self._judge()

    def _judge(self) -> None:
        self.complete = 0 < len(self._reasons) == len(self._seen)
        settled = len(self._settled) == len(self._seen) >= self._requested
        self.final = self._reasons_end and self.complete and settled

    def _note_event(self, event: Any) -> bool | None:
        kind = read(event, "type")
        if kind == "content_block_delta" or (kind.__class__ is str and kind.endswith(".delta")):
            if kind != "content_block_delta" and repeats(event, kind):
                return None if self.is_provider_stream else False
            self.is_provider_stream = self.is_provider_stream or is_provider_chunk(event)
            if 0 not in self._begun:
                self._note_choice(0, None, has_content=True)
            return False
        if self.is_provider_stream and repeats(event, kind):
            return None
        message, usage = metadata_of(event) is not None, usage_of(event)
        had_reason = bool(self._reasons)
        reasons = finish_reasons_of(event)
        has_content = _begins_content(event) if kind == "content_block_start" else is_content(event)
        if self.is_provider_stream:  # then a server's own extra is no content
            has_content = has_content and (message or is_provider_chunk(event))
        else:
            self.is_provider_stream = is_provider_chunk(event)
        if reasons or has_content:
            self._note_choice(0, reasons[-1] if reasons else None, has_content=has_content)
        self.usage = self.usage.plus(usage) if message else self.usage.merged(usage)
        ends = kind in _LAST_EVENTS or (message and read(event, "chunk_position") == "last")
        if ends:
            self._settle()
        elif had_reason and not has_content and usage != Usage():
            self._note_report()
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


def _begins_content(event: Any) -> bool:
    kind = read(event, "content_block", "type")
    return isinstance(kind, str) and kind not in _EMPTY_BLOCKS
