"""The form for whole requests: equal requests share an answer, different ones never, and not every answer is shared."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability_integration.caching.keys import is_blank
from observability_integration.caching.policy import CachePolicy
from observability_integration.context import WorkflowContext
from observability_integration.primitives import GLOBAL, CachePrimitive
from tests.cache_doubles import Scripted

_CHAT: dict[str, Any] = {
    "model": "small",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
}


def _answer(text: str | None = "Because.", ending: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "object": "chat.completion",
        "choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": ending}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5},
    }


def _cache(work: Any, **options: Any) -> CachePrimitive[Any, Any]:
    return CachePrimitive.for_requests(work, **{"scope": GLOBAL, "operation_name": "chat", **options})


@pytest.mark.promise("C13")
async def test_an_equal_request_is_answered_once(metrics: Any) -> None:
    """Whatever the order of its fields; what a hit saves is counted by what the answer's usage says."""
    work = Scripted(_answer())
    cache = _cache(work)
    assert _answer() == await cache.execute(_CHAT)
    assert _answer() == await cache.execute(dict(reversed(copy.deepcopy(_CHAT).items())))
    assert 1 == work.made
    assert 12 == metrics("cache.saved_tokens", operation="chat")


@pytest.mark.promise("C13")
@pytest.mark.parametrize(
    "change",
    [
        {"model": "large"},
        {"messages": _CHAT["messages"][1:]},
        {"messages": [*_CHAT["messages"], {"role": "user", "content": "Really?"}]},
        {"tools": [{"type": "function", "function": {"name": "search"}}]},
        {"response_format": {"type": "json_object"}},
        {"seed": 7},
        {"temperature": 0},
        {"temperature": 0.0},
        {"max_tokens": 5},
        {"n": 2},
        {"stop": None},
        {"a_field_of_next_year": True},
    ],
    ids=str,
)
async def test_whatever_may_change_the_answer_is_another_request(change: dict[str, Any]) -> None:
    """Fields that nobody knows today included: a list of those that count would be out of date with the next one."""
    work = Scripted(_answer())
    cache = _cache(work)
    await cache.execute(_CHAT)
    await cache.execute({**_CHAT, **change})
    assert 2 == work.made


async def test_what_cannot_change_the_answer_does_not_count() -> None:
    """Who asks, for the provider's own books; and what the user leaves out."""
    work = Scripted(_answer())
    cache = _cache(work, exclude=["trace"])
    for more in ({}, {"user": "5"}, {"metadata": {"a": "b"}}, {"timeout": 5.0}, {"trace": "1"}):
        await cache.execute({**_CHAT, **more})
    assert 1 == work.made


_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(allow_nan=False), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3)),
    max_leaves=8,
)
_requests = st.fixed_dictionaries(
    {"model": st.sampled_from(["small", "large"]), "messages": st.lists(_values, max_size=3)},
    optional={"tools": _values, "seed": _values, "response_format": _values, "unknown": _values},
)

_scopes = st.text(min_size=1, max_size=2).filter(lambda scope: not is_blank(scope))


def _is_same(first: Any, second: Any) -> bool:
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_is_same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(_is_same, first, second))
    return bool(first == second) and repr(first) == repr(second)


def _turned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _turned(value[key]) for key in reversed(value)}
    return [_turned(item) for item in value] if isinstance(value, list) else value


async def _made_by(*requests: tuple[str, Any]) -> int:
    work = Scripted(_answer())
    cache = _cache(work, scope=lambda request: request["scope"], exclude=["scope"])
    for scope, request in requests:
        await cache.execute({**request, "scope": scope})
    assert cache.get_stats()["total"] == len(requests)
    return work.made


@pytest.mark.once
@pytest.mark.promise("C13")
@settings(max_examples=150, deadline=None)
@given(first=_requests, second=_requests, scope=_scopes, other=_scopes)
def test_only_equal_requests_of_one_scope_share_an_answer(first: Any, second: Any, scope: str, other: str) -> None:
    """Generated requests: injective, blind to order, and no two scopes ever share."""
    shared = scope == other and _is_same(first, second)
    assert (1 if shared else 2) == asyncio.run(_made_by((scope, first), (other, second)))
    assert 1 == asyncio.run(_made_by((scope, first), (scope, _turned(first))))


def test_a_scope_must_be_chosen() -> None:
    """Whether tenants share their answers is for nobody to forget."""
    with pytest.raises(TypeError, match="scope"):
        CachePrimitive.for_requests(Scripted())  # type: ignore[call-arg]


@pytest.mark.promise("C13")
async def test_scopes_do_not_share() -> None:
    """One by name, one by a function of the request and its context."""
    work = Scripted(_answer())

    def tenant(request: Any, context: WorkflowContext) -> str:
        return context.session_id or "nobody"

    by_function = _cache(work, scope=tenant)
    for session in ("a", "b", "a", None):
        await by_function.execute(_CHAT, WorkflowContext(session_id=session))
    assert 3 == work.made


@pytest.mark.parametrize("scope", [lambda request: 5, lambda request: request["no such field"], lambda request: b"a"])
async def test_a_scope_that_cannot_be_had_is_no_scope(scope: Any, metrics: Any) -> None:
    """The call is made without the cache: whose answer it is is not known."""
    work = Scripted(_answer())
    cache = _cache(work, scope=scope)
    for _ in range(2):
        assert _answer() == await cache.execute(_CHAT)
    assert 2 == work.made
    assert 2 == metrics("cache.bypasses", operation="chat", reason="key_error")


async def test_a_request_that_has_no_key_is_made_without_the_cache(metrics: Any) -> None:
    """An object whose text would hold an address cannot be told from another."""
    work = Scripted(_answer())
    cache = _cache(work)
    for _ in range(2):
        await cache.execute({**_CHAT, "callback": object()})
    assert 2 == work.made
    assert 2 == metrics("cache.bypasses", operation="chat", reason="key_error")


@pytest.mark.promise("C12")
async def test_a_temperature_asks_for_answers_that_vary(metrics: Any) -> None:
    """They are neither kept nor shared, unless that is asked for; the bypass is counted by its reason."""
    work = Scripted(_answer(), seconds=0.001)
    cache = _cache(work)
    request = {**_CHAT, "temperature": 0.7}
    await asyncio.gather(*(cache.execute(request) for _ in range(3)))
    assert 3 == work.made
    assert 3 == metrics("cache.bypasses", operation="chat", reason="temperature")
    assert (0, 0) == (cache.get_stats()["hits"], cache.get_stats()["misses"])
    asked_for = _cache(work, policy=CachePolicy(store_sampled=True))
    for _ in range(2):
        await asked_for.execute(request)
    assert 4 == work.made


@pytest.mark.promise("C12")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (_answer(ending="length"), "length"),
        (_answer(ending="content_filter"), "content_filter"),
        (_answer(""), "empty"),
        (_answer(None, "tool_calls", tool_calls=[{"id": "1"}]), "tool_call"),
    ],
    ids=["length", "content_filter", "empty", "tool_call"],
)
async def test_an_answer_that_nobody_else_should_get_is_not_kept(
    answer: dict[str, Any], reason: str, metrics: Any
) -> None:
    """Those who wait for it get it; the next one asks again."""
    work = Scripted(answer, _answer("whole"), seconds=0.001)
    cache = _cache(work)
    assert [answer] * 3 == await asyncio.gather(*(cache.execute(_CHAT) for _ in range(3)))
    assert _answer("whole") == await cache.execute(_CHAT)
    assert _answer("whole") == await cache.execute(_CHAT)
    assert 2 == work.made
    assert 1 == metrics("cache.refusals", operation="chat", reason=reason)


async def test_answers_that_call_tools_are_kept_if_asked() -> None:
    """Where the tools have no effect but their answer."""
    work = Scripted(_answer(None, "tool_calls", tool_calls=[{"id": "1"}]))
    cache = _cache(work, policy=CachePolicy(store_tool_calls=True))
    for _ in range(2):
        await cache.execute(_CHAT)
    assert 1 == work.made


async def test_the_user_has_the_last_word(metrics: Any) -> None:
    """A function that says no, or fails, keeps the answer out, and nothing else happens."""

    def admit(answer: Any) -> bool:
        if asked[-1] == "fails":
            raise RuntimeError
        return asked[-1] == "yes"

    asked: list[str] = []
    work = Scripted(_answer())
    cache = _cache(work, admit=admit)
    for says, made in (("no", 1), ("fails", 2), ("yes", 3), ("yes", 3)):
        asked.append(says)
        assert _answer() == await cache.execute(_CHAT)
        assert made == work.made
    assert 2 == metrics("cache.refusals", operation="chat", reason="declined")


async def test_an_error_is_never_kept() -> None:
    """The next one may have more luck."""
    work = Scripted(ValueError("broken"), _answer())
    cache = _cache(work)
    with pytest.raises(ValueError, match="broken"):
        await cache.execute(_CHAT)
    assert _answer() == await cache.execute(_CHAT)


async def test_a_value_that_is_too_large_is_not_kept(metrics: Any) -> None:
    """It would push out many others, and be slow to read."""
    work = Scripted(_answer("x" * 2000))
    cache = _cache(work, policy=CachePolicy(max_value_bytes=1000))
    for _ in range(2):
        await cache.execute(_CHAT)
    assert 2 == work.made
    assert 2 == metrics("cache.refusals", operation="chat", reason="too_large")
