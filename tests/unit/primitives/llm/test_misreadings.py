"""A programming error before the first chunk is the caller's; after it, the provider's reply could not be read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from observability_integration.errors import ConfigurationError, StreamInterruptedError
from observability_integration.primitives import LLMCallPrimitive, LLMTarget, pipeline
from observability_integration.resilience.faults import classify

pytestmark = [pytest.mark.once, pytest.mark.promise("L4")]


def part(content: str | None, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": reason}]}


def breaking(error: Exception, *chunks: Any) -> LLMCallPrimitive[Any, Any]:
    async def call(_: Any) -> AsyncIterator[Any]:
        for chunk in chunks:
            yield chunk
        raise error

    return LLMCallPrimitive(call, model="m")


MISREADINGS = [
    TypeError("'NoneType' object is not subscriptable"),
    KeyError("choices"),
    IndexError("list index out of range"),
    AttributeError("'NoneType' object has no attribute 'content'"),
    ValueError("not enough values to unpack"),
]


class OwnError(ValueError):
    """An error that the caller's code designed."""


@pytest.mark.parametrize("error", MISREADINGS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("chunks", [[part("a")], [part("a", "stop")], [part("a"), part(None, "stop")], ["a"]], ids=str)
async def test_after_a_chunk_the_stream_was_interrupted(error: Exception, chunks: list[Any], tracing: Any) -> None:
    """Such as an item of ``choices`` that the last chunk lacks; what came is told, and what broke is the cause."""
    error = type(error)(*error.args)  # a note on one that was raised before would tell of another stream
    with pytest.raises(StreamInterruptedError) as caught:
        await breaking(error, *chunks).execute("q")
    assert (error, "cut", len(chunks)) == (caught.value.__cause__, caught.value.reason, caught.value.chunks)
    assert "stream_cut" == classify(caught.value).kind
    assert str(error) not in str(caught.value)
    assert caught.value is tracing.named("chat m").error


@pytest.mark.parametrize("error", MISREADINGS, ids=lambda error: type(error).__name__)
async def test_before_any_chunk_it_passes_unchanged(error: Exception) -> None:
    """Nothing has been read yet that could have caused it."""
    error = type(error)(*error.args)  # as above
    with pytest.raises(type(error)) as caught:
        await breaking(error).execute("q")
    assert error is caught.value


@pytest.mark.parametrize(
    "error", [OwnError(), ConfigurationError("x"), LookupError(), NameError(), RuntimeError(), ZeroDivisionError()]
)
async def test_other_errors_pass_unchanged(error: Exception) -> None:
    """An error that an application designed says what it is, and one that no data causes is a mistake in the code."""
    with pytest.raises(type(error)) as caught:
        await breaking(error, part("a")).execute("q")
    assert error is caught.value


async def test_the_next_target_is_asked() -> None:
    """To `execute` nothing is lost."""

    async def broken(_: str) -> AsyncIterator[Any]:
        yield part("a")
        raise KeyError("usage")

    async def whole(_: str) -> AsyncIterator[Any]:
        yield part("ab")
        yield part(None, "stop")

    assert "ab" == (await pipeline([LLMTarget(call=broken), LLMTarget(call=whole)]).execute("q")).text
