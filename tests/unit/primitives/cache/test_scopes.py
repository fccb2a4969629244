"""No answer reaches a caller of another scope, whatever the scope comes from and wherever the answer is kept."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability_integration import WorkflowContext
from observability_integration.caching import GlobalScope
from observability_integration.errors import ConfigurationError
from observability_integration.primitives import GLOBAL, CachePrimitive
from observability_integration.telemetry import guard
from tests.cache_doubles import Server

pytestmark = [pytest.mark.once, pytest.mark.promise("C13")]

USERS = ["ada", "bob", "", " ", None, "GLOBAL", "None", "null"]


async def answer(request: dict[str, Any]) -> str:
    return f"for {request['user']!r}"


async def stream(request: dict[str, Any]) -> AsyncIterator[str]:
    yield "for "
    yield repr(request["user"])


def by_request(request: dict[str, Any]) -> Any:
    return request.get("user")


def by_context(request: dict[str, Any], context: WorkflowContext) -> Any:
    return context.metadata.get("user")


async def later(request: dict[str, Any]) -> Any:
    return request.get("user")


def forgotten(request: dict[str, Any]) -> Any:
    request.get("user")


def raising(request: dict[str, Any]) -> Any:
    raise LookupError


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "of the request": by_request,
    "of the context": by_context,
    "asynchronous": later,
    "that forgets to return": forgotten,
    "that raises": raising,
}


async def ask(cache: CachePrimitive[Any, Any], way: str, user: Any) -> str:
    request = {"model": "m", "messages": [{"role": "user", "content": "my balance?"}], "user": user}
    context = WorkflowContext(metadata={"user": user})
    if way == "execute":
        return str(await cache.execute(request, context))
    async with cache.stream(request, context) as chunks:
        return "".join([chunk async for chunk in chunks])


def made(place: str, server: Server, way: str, form: str, scope: Any) -> Callable[[], CachePrimitive[Any, Any]]:
    step: Any = answer if way == "execute" else stream
    shared: Any = {"operation_name": "balance"}

    def make() -> CachePrimitive[Any, Any]:
        options = dict(shared) if place == "memory" else {**shared, "backend": server.store()}
        if form == "request":
            return CachePrimitive.for_requests(step, scope=scope, **options)
        return CachePrimitive(step, lambda request: request["messages"][0]["content"], scope=scope, **options)

    one = make()
    return (lambda: one) if place != "another process" else make


@pytest.mark.parametrize("place", ["memory", "shared store", "another process"])
@pytest.mark.parametrize("way", ["execute", "stream"])
@pytest.mark.parametrize("form", ["key", "request"])
@pytest.mark.parametrize("function", FUNCTIONS)
async def test_each_caller_gets_its_own(function: str, form: str, way: str, place: str) -> None:
    """Each pair of users, of which one or both may have no name that can be read."""
    cache = made(place, Server(), way, form, FUNCTIONS[function])
    for first, second in itertools.product(USERS, repeat=2):
        for user in (first, second, first):
            assert f"for {user!r}" == await ask(cache(), way, user)


@pytest.mark.parametrize("way", ["execute", "stream"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "no_scope"), ("", "no_scope"), (" \t\n", "no_scope"), (7, "key_error"), (b"t", "key_error")],
)
async def test_a_missing_scope_goes_around_the_cache(value: Any, reason: str, way: str, metrics: Any) -> None:
    """It is counted with its reason, makes each call and keeps nothing."""
    calls = 0

    async def call(request: Any) -> Any:
        nonlocal calls
        calls += 1
        return "answer"

    async def chunks(request: Any) -> AsyncIterator[Any]:
        yield await call(request)

    step: Any = call if way == "execute" else chunks
    cache = CachePrimitive(step, lambda request: "one", scope=lambda request: value, operation_name="missing")
    for _ in range(3):
        await ask(cache, way, "ada")
    assert (3, 3) == (calls, metrics("cache.bypasses", operation="missing", reason=reason))
    assert 0 == cache.get_stats()["total"]


@pytest.mark.parametrize("way", ["execute", "stream"])
async def test_a_missing_key_goes_around_the_cache(way: str, metrics: Any) -> None:
    """A key function without a return would give one key to all inputs. An empty prompt is a key."""
    step: Any = answer if way == "execute" else stream
    cache = CachePrimitive(step, lambda request: None, operation_name="keyless")
    for user in ("ada", "bob"):
        assert f"for {user!r}" == await ask(cache, way, user)
    assert 2 == metrics("cache.bypasses", operation="keyless", reason="no_key")
    prompts = CachePrimitive(step, lambda request: "", operation_name="empty")
    await ask(prompts, way, "ada")
    await ask(prompts, way, "ada")
    assert 1 == prompts.get_stats()["hits"]


async def test_it_is_said_once_for_each_operation(caplog: Any, monkeypatch: Any) -> None:
    """With the operation's name and what to write instead; the second operation is not silent because the first was."""
    monkeypatch.setattr(guard, "_warned", set())
    for name in ("one", "two"):
        cache = CachePrimitive(answer, lambda request: "k", scope=lambda request: None, operation_name=name)
        for _ in range(3):
            await ask(cache, "execute", "ada")
    lines = [record.getMessage() for record in caplog.records]
    assert [1, 1] == [sum(f"'{name}'" in line for line in lines) for name in ("one", "two")]
    assert all("GLOBAL" in line for line in lines)


@pytest.mark.parametrize("scope", [None, "", "  "])
def test_a_missing_scope_given_outright_is_refused(scope: Any) -> None:
    """It is a mistake in the code, and the remedy is one word."""
    for make in (
        lambda: CachePrimitive(answer, str, scope=scope),
        lambda: CachePrimitive(scope=scope),
        lambda: CachePrimitive.for_requests(answer, scope=scope),
    ):
        with pytest.raises(ConfigurationError, match="scope=GLOBAL"):
            make()


async def test_a_key_given_outright_is_refused() -> None:
    """``get_or_compute(request.get("id"), ...)`` would share among all requests without one."""
    cache = CachePrimitive(operation_name="model form")
    with pytest.raises(TypeError, match="None"):
        await cache.get_or_compute(None, lambda: 1)
    with pytest.raises(ConfigurationError):
        await cache.invalidate(None)


@pytest.mark.parametrize("way", ["execute", "stream"])
@pytest.mark.parametrize("scope", [GLOBAL, lambda request: GLOBAL], ids=["fixed", "returned"])
async def test_global_shares_on_purpose(scope: Any, way: str) -> None:
    """The word has to be written, and then all callers share."""
    cache = made("memory", Server(), way, "key", scope)
    assert "for 'ada'" == await ask(cache(), way, "ada")
    assert "for 'ada'" == await ask(cache(), way, "bob")


Owners = st.one_of(st.just(GLOBAL), st.text(min_size=1).filter(lambda text: not text.isspace()))


@given(first=Owners, second=Owners, key=st.one_of(st.text(), st.tuples(st.text(), st.none())))
async def test_fixed_scopes_of_one_store(first: str | GlobalScope, second: str | GlobalScope, key: Any) -> None:
    """Two tenants with caches of one name on one store share an entry only if they are one tenant."""
    server: Any = Server()
    one = CachePrimitive(operation_name="balance", backend=server.store(), scope=first)
    other = CachePrimitive(operation_name="balance", backend=server.store(), scope=second)
    assert "first" == await one.get_or_compute(key, lambda: "first")
    expected = "first" if first == second else "second"
    assert expected == await other.get_or_compute(key, lambda: "second")


@pytest.mark.parametrize("way", ["execute", "stream"])
async def test_a_key_that_looks_like_a_scope_and_a_key(way: str) -> None:
    """A cache without scopes, beside one of the same name with a function for them, meets none of its entries."""
    server: Any = Server()
    step: Any = answer if way == "execute" else stream
    for key in (("ada", "my balance?"), ["ada", "my balance?"]):
        tenants = CachePrimitive(
            step, lambda request: "my balance?", scope=by_request, operation_name="b", backend=server.store()
        )
        shared = CachePrimitive(step, lambda request, key=key: key, operation_name="b", backend=server.store())
        assert "for 'ada'" == await ask(tenants, way, "ada")
        assert "for 'bob'" == await ask(shared, way, "bob")
        await shared.clear()


@pytest.mark.parametrize("scope", [by_request, by_context, later])
async def test_a_key_alone_has_no_scope_of_the_input(scope: Any) -> None:
    """``get_or_compute`` would share among all scopes, and reach the entries of one with a pair as its key."""
    cache = made("memory", Server(), "execute", "key", scope)()
    await ask(cache, "execute", "ada")
    for key in ("my balance?", ("ada", "my balance?")):
        with pytest.raises(ConfigurationError, match="function of the input"):
            await cache.get_or_compute(key, lambda: "for all")
        with pytest.raises(ConfigurationError, match="scope="):
            await cache.invalidate(key)


@pytest.mark.parametrize("way", ["execute", "stream"])
@pytest.mark.parametrize("place", ["memory", "store"])
async def test_a_key_is_invalidated_in_its_scope(place: str, way: str) -> None:
    """Without a scope the entry that was to be deleted stood on, and no error told of it."""
    calls = 0

    async def counted(request: dict[str, Any]) -> int:
        nonlocal calls
        calls += 1
        return calls

    async def counting(request: dict[str, Any]) -> AsyncIterator[str]:
        yield str(await counted(request))

    step: Any = counted if way == "execute" else counting
    options: Any = {} if place == "memory" else {"backend": Server().store()}
    cache = CachePrimitive[Any, Any](step, lambda request: "key", scope=by_request, **options)
    assert ["1", "2", "1"] == [await ask(cache, way, user) for user in ("ada", "bob", "ada")]
    await cache.invalidate("key", scope="ada")
    assert ["3", "2"] == [await ask(cache, way, user) for user in ("ada", "bob")]


async def test_a_scope_that_does_not_fit_the_cache_is_refused() -> None:
    """It would be ignored, and the wrong entry deleted."""
    fixed = CachePrimitive[Any, Any](answer, str, scope="ada")
    varying = CachePrimitive[Any, Any](answer, str, scope=by_request)
    for cache, options in (
        (fixed, {"key": "x", "scope": "ada"}),
        (varying, {"key": "x", "scope": " "}),
        (varying, {"tag": "x", "scope": "ada"}),
    ):
        with pytest.raises(ConfigurationError):
            await cache.invalidate(**options)
