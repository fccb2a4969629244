"""The tree of errors, and how they travel."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from observability_integration import errors
from observability_integration.errors import (
    AllTargetsFailedError,
    CallRefusedError,
    CircuitOpenError,
    CompensationError,
    ConcurrencyLimitError,
    ConfigurationError,
    MissingDependencyError,
    ObservabilityError,
    PrimitiveTimeoutError,
    ProviderStreamError,
    RateLimitExceededError,
    StreamInterruptedError,
    StreamStalledError,
    TargetFailure,
)


def test_tree_of_errors() -> None:
    """The tree in the module's docstring is the tree, and callers who do not know us can catch what they know."""
    assert issubclass(ConfigurationError, ObservabilityError)
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(MissingDependencyError, ObservabilityError)
    assert issubclass(MissingDependencyError, ImportError)
    assert issubclass(StreamInterruptedError, ObservabilityError)
    assert not issubclass(StreamInterruptedError, PrimitiveTimeoutError)
    assert issubclass(StreamStalledError, StreamInterruptedError)
    assert issubclass(StreamStalledError, PrimitiveTimeoutError)
    drawn = [line.split("── ")[1].split()[0] for line in (errors.__doc__ or "").splitlines() if "── " in line]
    defined = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == errors.__name__
    ]
    assert sorted(drawn) == sorted(defined)


@pytest.mark.parametrize(
    "error",
    [
        ObservabilityError("text"),
        ConfigurationError("text"),
        MissingDependencyError("text", name="redis"),
        CallRefusedError("ask", 1.5, "text"),
        CircuitOpenError("ask", 1.5),
        ConcurrencyLimitError("ask", "shed", 0.25, 8),
        RateLimitExceededError("ask", "tokens", None),
        RateLimitExceededError("ask", "provider", 2.5),
        AllTargetsFailedError("ask", []),
        CompensationError("ask", "book", []),
        ProviderStreamError("ask", "overloaded_error", 529, kind="x"),
        PrimitiveTimeoutError("ask", 1.0, 2.0, kind="first_chunk", cleanup="failed"),
        StreamInterruptedError("ask", 3, "no_finish_reason"),
        StreamStalledError("ask", 1.0, 2.0, chunks=3, cleanup="late_result"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("make", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_errors_survive_pickling(error: Exception, make: Any) -> None:
    """Process pools and task queues hand errors over pickled: type, message and facts must arrive."""
    twin = make(error)
    assert type(error) is type(twin)
    assert str(error) == str(twin)
    assert vars(error) == vars(twin)


class ApiError(Exception):
    """As the SDKs have it: it holds the request, and cannot be made again from its message."""

    def __init__(self, message: str, *, request: Any) -> None:
        super().__init__(message)
        self.request = request


def gathered() -> list[Any]:
    error = ApiError("the secret prompt", request={"authorization": "sk-secret", "callback": lambda: None})
    return [
        AllTargetsFailedError("ask", [TargetFailure("first", "transient", error), TargetFailure("2", "x", OSError(1))]),
        CompensationError("ask", "book", [("pay", error), ("reserve", OSError(1))]),
    ]


@pytest.mark.promise("X4")
@pytest.mark.parametrize("error", gathered(), ids=lambda error: type(error).__name__)
def test_errors_of_others_are_pickled_by_name_only(error: Any) -> None:
    """They hold requests, keys and prompts, and fail when they are loaded; again pickled, the names stay."""
    data = pickle.dumps(error)
    assert b"secret" not in data
    twin = pickle.loads(pickle.dumps(pickle.loads(data)))
    assert (type(error), str(error), error.operation) == (type(twin), str(twin), twin.operation)
    assert "ApiError" in str(twin)
    assert [each[:-1] for each in error.failures] == [each[:-1] for each in twin.failures]
    assert [type(each) for each in error.failures] == [type(each) for each in twin.failures]
    named = [each[-1] for each in twin.failures]
    assert [f"{__name__}.ApiError", "builtins.OSError"] == [str(each) for each in named]
    assert {ObservabilityError} == {type(each) for each in named}
    assert error.failures is copy.copy(error).failures


@pytest.mark.promise("T9")
def test_messages_of_stream_errors() -> None:
    """How far the stream got and why it ended, or which clock it was; nothing of the answer."""
    assert "Stream of 'ask' was interrupted after 3 chunks (no_finish_reason)" == str(
        StreamInterruptedError("ask", 3, "no_finish_reason")
    )
    assert "raise idle_seconds to allow more" in str(StreamStalledError("ask", 1.0, 2.0, chunks=3))
