"""A cache is trusted with answers and with money: what it returns, and what it says it saved, must both be true."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import threading
import time
from collections import UserDict
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.context import Deadline, WorkflowContext, current_deadline
from observability_integration.errors import ConfigurationError, PrimitiveTimeoutError
from observability_integration.primitives import GLOBAL, CachePrimitive, TimeoutPrimitive


class _Work:
    """Counts its calls, and answers as it is told."""

    def __init__(self, answer: Any = None) -> None:
        self.calls: list[Any] = []
        self.answer = answer

    async def __call__(self, question: Any) -> Any:
        self.calls.append(question)
        answer = self.answer(question) if callable(self.answer) else self.answer
        if isinstance(answer, BaseException):
            raise answer
        return answer


class _Gate:
    """Work that goes on when it is let."""

    def __init__(self, answer: Any = "answer") -> None:
        self.calls = 0
        self.opened = asyncio.Event()
        self.answer = answer

    async def __call__(self, question: Any) -> Any:
        self.calls += 1
        await self.opened.wait()
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class _Store:
    """A shared store in memory."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.closed = False
        self.gets = 0

    async def get(self, key: str) -> bytes | None:
        self.gets += 1
        await asyncio.sleep(0)
        return self.entries.get(key)

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        await asyncio.sleep(0)
        self.entries[key] = value

    async def delete(self, *keys: str) -> None:
        for key in keys:
            self.entries.pop(key, None)

    async def clear(self, prefix: str) -> None:
        self.entries = {key: value for key, value in self.entries.items() if not key.startswith(prefix)}

    async def aclose(self) -> None:
        self.closed = True


def _same(question: Any) -> Any:
    return question


def _cache(step: Any, key_fn: Any = _same, **options: Any) -> CachePrimitive[Any, Any]:
    return CachePrimitive(step, key_fn, **{"operation_name": "answers", **options})


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def _counts(metrics: Callable[..., Any]) -> dict[str, Any]:
    return {
        "hits": metrics("cache.hits", operation="answers"),
        "misses": metrics("cache.misses", operation="answers"),
        "rate": metrics("cache.hit_rate", operation="answers"),
        "saved": metrics("cache.cost_savings_usd", operation="answers"),
        "hit lookups": metrics("cache.latency", operation="answers", hit="true"),
        "miss lookups": metrics("cache.latency", operation="answers", hit="false"),
    }


# Hits and misses


@pytest.mark.promise("C1")
async def test_a_repeated_call_is_a_hit(metrics: Callable[..., Any]) -> None:
    """The wrapper form: one call, then the kept value; every count says the same, here and on the wire."""
    work = _Work(lambda question: f"answer to {question}")
    cache = _cache(work, cost_per_call=0.009)
    assert {"hits": 0, "misses": 0, "rate": None, "saved": 0, "hit lookups": 0, "miss lookups": 0} == {
        **_counts(metrics),
        "hit lookups": metrics("cache.latency", operation="answers", hit="true") or 0,
        "miss lookups": metrics("cache.latency", operation="answers", hit="false") or 0,
    }
    assert ["answer to a"] * 4 == [await cache.execute("a") for _ in range(4)]
    assert "answer to b" == await cache.execute("b")
    assert ["a", "b"] == work.calls
    assert {
        "operation": "answers",
        "hits": 3,
        "misses": 2,
        "total": 5,
        "hit_rate": 0.6,
        "cost_savings_usd": 0.027,
    } == cache.get_stats()
    assert {"hits": 3, "misses": 2, "rate": 0.6, "saved": 0.027, "hit lookups": 3, "miss lookups": 2} == _counts(
        metrics
    )


@pytest.mark.promise("C1")
async def test_the_model_form_does_the_same(metrics: Callable[..., Any]) -> None:
    """`get_or_compute` with its own key, and its own cost where one is given."""
    cache: CachePrimitive[Any, Any] = CachePrimitive(operation_name="answers", cost_per_call=0.5)
    calls = 0

    async def compute() -> str:
        nonlocal calls
        calls += 1
        return "answer"

    for cost in (None, None, 0.25, 0):
        assert "answer" == await cache.get_or_compute({"model": "small"}, compute, cost_per_call=cost)
    assert 1 == calls
    assert 0.75 == cache.get_stats()["cost_savings_usd"]
    assert {"hits": 3, "misses": 1, "rate": 0.75, "saved": 0.75, "hit lookups": 3, "miss lookups": 1} == _counts(
        metrics
    )


async def test_compute_functions_of_every_kind() -> None:
    """An async function, one that returns an awaitable, and one that returns the value."""
    cache: CachePrimitive[Any, Any] = CachePrimitive()

    async def asynchronous() -> str:
        return "async"

    def future() -> asyncio.Future[str]:
        made: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        made.set_result("future")
        return made

    assert "async" == await cache.get_or_compute("a", asynchronous)
    assert "async" == await cache.get_or_compute("b", lambda: asynchronous())
    assert "future" == await cache.get_or_compute("c", future)
    assert "plain" == await cache.get_or_compute("d", lambda: "plain")


def test_stats_before_the_first_call() -> None:
    """A rate of nothing is 0, not an error; the name of the older interface's operation is the step's."""

    async def summarise(text: str) -> str:
        return text

    stats = CachePrimitive(summarise, _same).get_stats()
    assert {
        "operation": "summarise",
        "hits": 0,
        "misses": 0,
        "total": 0,
        "hit_rate": 0.0,
        "cost_savings_usd": 0.0,
    } == stats
    assert "cache" == CachePrimitive[Any, Any]().name


async def test_counts_are_kept_without_telemetry() -> None:
    """`get_stats` is there for those who export nothing."""
    cache = _cache(_Work("answer"))
    await cache.execute("a")
    await cache.execute("a")
    assert (1, 1) == (cache.get_stats()["hits"], cache.get_stats()["misses"])


@pytest.mark.promise("C7")
@pytest.mark.parametrize(
    "value", [None, "", 0, False, [], {}, float("nan"), "x" * 500_000, 10**400], ids=lambda value: repr(value)[:20]
)
async def test_every_value_is_a_value(value: Any) -> None:
    """None, empty and false answers are answers; not keeping them would call again and again."""
    work = _Work(value)
    cache = _cache(work)
    for _ in range(3):
        assert repr(value) == repr(await cache.execute("a"))
    assert 1 == len(work.calls)
    assert 2 == cache.get_stats()["hits"]


async def test_a_huge_value_is_returned_and_not_kept() -> None:
    """One answer must not push out all others."""
    work = _Work("x" * 3000)
    cache = _cache(work, policy=CachePolicy(max_value_bytes=1000))
    for _ in range(2):
        assert 3000 == len(await cache.execute("a"))
    assert (2, 0) == (len(work.calls), cache.get_stats()["hits"])


@pytest.mark.promise("C6")
async def test_memory_is_bounded_by_entries() -> None:
    """The least recently used goes."""
    work = _Work("answer")
    cache = _cache(work, policy=CachePolicy(max_entries=2))
    for question in ("a", "b", "a", "c", "a", "b"):
        await cache.execute(question)
    assert ["a", "b", "c", "b"] == work.calls


@pytest.mark.promise("C6")
async def test_memory_is_bounded_by_bytes() -> None:
    """Large structures that JSON cannot hold count with all that they hold."""
    work = _Work(lambda question: {1: {"deep": ["x" * 40_000, question]}})
    cache = _cache(work, policy=CachePolicy(max_bytes=100_000))
    for question in ("a", "b", "c"):
        await cache.execute(question)
    await cache.execute("c")
    await cache.execute("a")
    assert ["a", "b", "c", "a"] == work.calls


@pytest.mark.promise("C6")
async def test_a_value_is_gone_after_its_ttl() -> None:
    """Fractions of a second count: they are not rounded away."""
    work = _Work("answer")
    cache = _cache(work, ttl_seconds=0.03)
    await cache.execute("a")
    await cache.execute("a")
    time_up = time.monotonic() + 0.035
    while time.monotonic() < time_up:
        await asyncio.sleep(0.005)
    await cache.execute("a")
    assert 2 == len(work.calls)


class _Odd:
    """An answer whose usage cannot be read."""

    @property
    def usage(self) -> Any:
        raise RuntimeError("read me and fail")


class _LazyProxy:
    """Stands for an answer that cannot be had any more."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise LookupError(name)


class _LazyMapping(UserDict[str, Any]):
    """Makes its values when they are asked for, or fails to."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError(key)

    def __contains__(self, key: object) -> bool:
        return True


@pytest.mark.parametrize("answer", [_Odd(), _LazyProxy(), _LazyMapping()], ids=lambda answer: type(answer).__name__)
async def test_an_answer_whose_usage_cannot_be_read_fails_no_call(answer: Any, metrics: Callable[..., Any]) -> None:
    """It was made and paid for: it goes to the caller, whatever is not known about it."""
    work = _Work(lambda _: answer)
    assert answer is await _cache(work).execute("a")
    cache: CachePrimitive[Any, Any] = CachePrimitive(operation_name="keyed")
    assert answer is await cache.get_or_compute("a", lambda: answer)
    assert 1 == len(work.calls)
    assert 2 == metrics("telemetry.faults", site="cache.usage")


# Values are each caller's own


@dataclasses.dataclass
class Answer:
    """Not JSON, hence kept as a copy."""

    parts: list[str]


@pytest.mark.promise("C7")
@pytest.mark.parametrize(
    "make", [lambda: {"parts": ["a"]}, lambda: {1: ["a"]}, lambda: Answer(["a"]), lambda: (["a"],)]
)
async def test_no_two_callers_share_a_value_that_can_change(make: Callable[[], Any]) -> None:
    """Callers append to answers and pop from them; the next caller must get what the call returned."""

    def spoil(value: Any) -> None:
        if isinstance(value, Answer):
            value.parts.append("spoilt")
        else:
            next(iter(value.values() if isinstance(value, dict) else value)).append("spoilt")

    work, pristine = _Work(lambda _: make()), make()
    cache = _cache(work)
    for _ in range(4):
        value = await cache.execute("a")
        assert pristine == value
        spoil(value)
    assert 1 == len(work.calls)


@pytest.mark.promise("C7")
@pytest.mark.parametrize("make", [lambda: {"parts": ["a"]}, lambda: Answer(["a"])])
async def test_those_who_waited_together_do_not_share_either(make: Callable[[], Any]) -> None:
    """The one who made the call may change its value before the others have even woken up."""
    gate = _Gate(make())
    cache = _cache(gate)

    async def ask_and_spoil() -> Any:
        value = await cache.execute("a")
        pristine = value == make()
        (value["parts"] if isinstance(value, dict) else value.parts).append("spoilt")
        return pristine

    callers = [asyncio.create_task(ask_and_spoil()) for _ in range(5)]
    await _settle()
    gate.opened.set()
    assert [True] * 5 == await asyncio.gather(*callers)
    assert 1 == gate.calls


async def test_what_can_be_had_only_once_goes_to_one_caller_each(metrics: Callable[..., Any]) -> None:
    """A stream handed to a second caller is exhausted; each gets one of its own, uncached, and it is counted."""
    calls = 0

    async def work(question: str) -> Any:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return (part for part in ("a", "b"))

    cache = _cache(work)
    streams = await asyncio.gather(*(cache.execute("a") for _ in range(3)))
    streams.append(await cache.execute("a"))
    assert [["a", "b"]] * 4 == [list(stream) for stream in streams]
    assert 4 == calls
    assert 2 == metrics("cache.bypasses", operation="answers", reason="uncopyable")
    assert 0 == cache.get_stats()["hits"]


async def test_the_input_is_not_touched() -> None:
    """`execute` never changes what it is given."""
    question = {"messages": [{"content": "a"}]}
    before = json.dumps(question)
    await _cache(_Work("answer")).execute(question)
    assert before == json.dumps(question)


# Keys


async def test_key_functions_of_every_kind() -> None:
    """Synchronous or not, of the input or of input and context; the context is made if none is given."""
    contexts: list[WorkflowContext] = []

    def with_context(question: str, context: WorkflowContext) -> Any:
        contexts.append(context)
        return [context.session_id, question]

    async def asynchronous(question: str) -> Any:
        await asyncio.sleep(0)
        return question

    async def asynchronous_with_context(question: str, context: WorkflowContext) -> Any:
        return with_context(question, context)

    for key_fn in (with_context, asynchronous, asynchronous_with_context, lambda question: question.encode()):
        work = _Work("answer")
        cache = _cache(work, key_fn)
        for session in ("one", "two", "one"):
            await cache.execute("a", WorkflowContext(session_id=session))
        await cache.execute("a")
        expected = 3 if "context" in getattr(key_fn, "__name__", "") else 1
        assert expected == len(work.calls), key_fn
    assert all(isinstance(context, WorkflowContext) for context in contexts)


def _broken(question: str) -> Any:
    raise RuntimeError(f"cannot make a key of {question}")


async def _broken_later(question: str) -> Any:
    raise RuntimeError(f"cannot make a key of {question}")


@pytest.mark.parametrize("key_fn", [_broken, _broken_later, lambda question: object(), lambda question: [object()]])
async def test_a_key_function_that_fails_does_not_fail_the_call(
    key_fn: Any, metrics: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The call is made without the cache, and counted as such; neither log nor stats make anything else of it."""
    work = _Work("answer")
    cache = _cache(work, key_fn)
    for _ in range(3):
        assert "answer" == await cache.execute("the prompt")
    assert 3 == len(work.calls)
    assert 3 == metrics("cache.bypasses", operation="answers", reason="key_error")
    assert 3 == metrics("telemetry.faults", site="cache.key_fn")
    assert 0 == cache.get_stats()["total"]
    assert "the prompt" not in caplog.text


async def test_an_error_of_the_call_passes_when_the_key_failed(tracing: Any) -> None:
    """The two errors must not be mixed up."""
    error = ValueError("broken")
    with pytest.raises(ValueError, match="broken") as caught:
        await _cache(_Work(error), _broken).execute("a")
    assert error is caught.value
    span = tracing.named("cache answers")
    assert error is span.error
    assert "key_error" == span.attributes["cache.bypass"]


async def test_a_key_that_cannot_be_is_refused_where_it_is_the_callers_own() -> None:
    """In the model form the key is an argument: a wrong one is a mistake to be told."""
    cache: CachePrimitive[Any, Any] = CachePrimitive()
    with pytest.raises(TypeError, match="a cache key"):
        await cache.get_or_compute(object(), lambda: "answer")
    with pytest.raises(TypeError, match="a cache key"):
        await cache.invalidate(object())


@pytest.mark.promise("C3")
async def test_scopes_do_not_share_and_operations_do_not_share() -> None:
    """One tenant's answer is never another's, though all of them use one store."""
    store = _Store()
    work = _Work("answer")
    for options in (
        {"scope": GLOBAL},
        {"scope": "tenant a"},
        {"scope": "tenant b"},
        {"scope": "tenant a", "operation_name": "summaries"},
    ):
        await _cache(work, backend=store, **options).execute("a")
        await _cache(work, backend=store, **options).execute("a")
    assert 4 == len(work.calls)
    assert 4 == len(store.entries)


@pytest.mark.promise("C3")
async def test_keys_the_older_layout_confused_are_told_apart() -> None:
    """Spaces used to become underscores, and long keys were cut: one prompt got the other's answer."""
    work = _Work(lambda question: f"answer to {question}")
    cache = _cache(work)
    for question in ("a b", "a_b", "a\nb", "x" * 300 + "1", "x" * 300 + "2"):
        assert f"answer to {question}" == await cache.execute(question)
    assert 5 == len(work.calls)


@pytest.mark.promise("C3")
async def test_no_prompt_is_in_keys_logs_or_spans(tracing: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What was asked and answered is in the values only."""
    store = _Store()
    cache = _cache(_Work("the answer"), backend=store)
    await cache.execute("the prompt")
    await cache.execute("the prompt")
    seen = caplog.text + str(list(store.entries)) + str([(span.name, span.attributes) for span in tracing.spans])
    assert "the prompt" not in seen
    assert "the answer" not in seen


# Concurrency


@pytest.mark.promise("C2")
async def test_equal_misses_that_overlap_are_one_call(metrics: Callable[..., Any]) -> None:
    """Fifty callers, one call: one miss, and forty-nine values returned instead of calls."""
    gate = _Gate()
    cache = _cache(gate, cost_per_call=0.01)
    callers = [asyncio.create_task(cache.execute("a")) for _ in range(50)]
    await _settle()
    gate.opened.set()
    assert ["answer"] * 50 == await asyncio.gather(*callers)
    assert 1 == gate.calls
    assert {"hits": 49, "misses": 1, "rate": 0.98, "saved": 0.49, "hit lookups": 49, "miss lookups": 1} == _counts(
        metrics
    )


async def test_the_time_of_a_lookup_is_without_the_call(metrics: Callable[..., Any]) -> None:
    """Whether caching is fast cannot be seen in a number that holds the model's seconds."""
    from observability_integration.telemetry.catalogue.cache import CACHE_LATENCY

    gate = _Gate()
    cache = _cache(gate)
    callers = [asyncio.create_task(cache.execute("a")) for _ in range(5)]
    await _settle()
    await asyncio.sleep(0.2)
    gate.opened.set()
    await asyncio.gather(*callers)
    for hit in ("true", "false"):
        assert CACHE_LATENCY.series("answers", hit).maximum < 0.15


@pytest.mark.promise("C2")
async def test_a_failure_is_shared_and_not_kept(metrics: Callable[..., Any]) -> None:
    """One error for all who waited, no call each; the next caller tries again. Nothing was saved."""
    error = ValueError("broken")
    gate = _Gate(error)
    cache = _cache(gate)
    callers = [asyncio.create_task(cache.execute("a")) for _ in range(5)]
    await _settle()
    gate.opened.set()
    assert all(result is error for result in await asyncio.gather(*callers, return_exceptions=True))
    assert 1 == gate.calls
    gate.answer = "answer"
    assert "answer" == await cache.execute("a")
    assert (0, 6) == (cache.get_stats()["hits"], cache.get_stats()["misses"])
    assert 0 == metrics("cache.cost_savings_usd", operation="answers")


async def test_a_compute_function_that_raises_at_once() -> None:
    """Before it has returned anything to await."""
    cache: CachePrimitive[Any, Any] = CachePrimitive()

    def compute() -> str:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await cache.get_or_compute("a", compute)
    assert "answer" == await cache.get_or_compute("a", lambda: "answer")


@pytest.mark.promise("C2")
@pytest.mark.parametrize("leaver", [0, 2])
async def test_a_cancelled_caller_harms_no_other(leaver: int) -> None:
    """Also not if it was the first, who made the call; what was paid for is kept."""
    gate = _Gate()
    cache = _cache(gate)
    callers = [asyncio.create_task(cache.execute("a")) for _ in range(4)]
    await _settle()
    callers[leaver].cancel()
    await _settle()
    assert callers[leaver].cancelled()
    gate.opened.set()
    others = [caller for caller in callers if caller is not callers[leaver]]
    assert ["answer"] * 3 == await asyncio.gather(*others)
    assert "answer" == await cache.execute("a")
    assert 1 == gate.calls


async def test_the_value_is_kept_if_everybody_left(tracing: Any) -> None:
    """It is paid for. The span of who left has ended and is not written to any more."""
    gate = _Gate()
    cache = _cache(gate, backend=_Store())
    caller = asyncio.create_task(cache.execute("a"))
    await _settle()
    caller.cancel()
    await _settle()
    gate.opened.set()
    await _settle()
    assert "answer" == await cache.execute("a")
    assert 1 == gate.calls
    assert (1, 1) == (cache.get_stats()["hits"], cache.get_stats()["misses"])
    assert [] == tracing.unended()


@pytest.mark.promise("C8")
@pytest.mark.parametrize("forget", [lambda cache: cache.invalidate("a"), lambda cache: cache.clear()])
@pytest.mark.parametrize("store", [None, _Store])
async def test_invalidating_voids_a_call_under_way(forget: Any, store: Any) -> None:
    """What it brings goes to those who waited, and is not kept; who asks later gets a call of their own."""
    first, second = _Gate("old"), _Gate("new")
    gates = [first, second]
    cache = _cache(_one_after_the_other(gates), backend=None if store is None else store())
    old = asyncio.create_task(cache.execute("a"))
    await _settle()
    await forget(cache)
    new = asyncio.create_task(cache.execute("a"))
    await _settle()
    second.opened.set()
    assert "new" == await new
    first.opened.set()
    assert "old" == await old
    assert "new" == await cache.execute("a")
    assert (1, 1) == (first.calls, second.calls)


def _one_after_the_other(gates: list[_Gate]) -> Any:
    """Work that goes to one gate after the other."""

    async def work(question: str) -> Any:
        return await gates.pop(0)(question)

    return work


async def test_invalidating_forgets_one_value_and_clearing_all() -> None:
    """Of the same key function's keys; of this operation, in all scopes of the store."""
    store, work = _Store(), _Work("answer")
    cache = _cache(work, backend=store)
    of_tenant, of_other = (
        _cache(work, backend=store, scope="tenant"),
        _cache(work, backend=store, operation_name="other"),
    )
    for question in ("a", "b"):
        await cache.execute(question)
    await of_tenant.execute("a")
    await of_other.execute("a")
    await cache.invalidate("a")
    assert 3 == len(store.entries)
    await cache.execute("b")
    assert 4 == len(work.calls)
    await cache.execute("a")
    assert 5 == len(work.calls)
    await cache.clear()
    assert 1 == len(store.entries)
    await cache.execute("b")
    assert 6 == len(work.calls)


# Deadlines


async def test_a_follower_with_more_time_than_the_leader_tries_again() -> None:
    """The leader's deadline is the leader's; whoever has time left must not fail of it."""
    gates = [_Gate("first"), _Gate("second")]
    first, second = gates
    inner = TimeoutPrimitive(_one_after_the_other(gates), 30.0, grace_period_seconds=0.0, operation_name="inner")
    cache = _cache(inner)
    hurried = asyncio.create_task(cache.execute("a", WorkflowContext(deadline=Deadline.after(0.05))))
    await _settle()
    patient = asyncio.create_task(cache.execute("a", WorkflowContext(deadline=Deadline.after(30.0))))
    unlimited = asyncio.create_task(cache.execute("a"))
    with pytest.raises(PrimitiveTimeoutError) as caught:
        await hurried
    assert "inherited" == caught.value.deadline_source
    second.opened.set()
    assert ["second"] * 2 == await asyncio.gather(patient, unlimited)
    assert (1, 1) == (first.calls, second.calls)
    assert (1, 2) == (cache.get_stats()["hits"], cache.get_stats()["misses"])


async def test_a_follower_out_of_time_as_well_fails_with_the_leader() -> None:
    """There is nothing left to try again in."""
    gate = _Gate()
    inner = TimeoutPrimitive(gate, 30.0, grace_period_seconds=0.0, operation_name="inner")
    cache = _cache(inner)
    deadline = Deadline.after(0.05)
    callers = [asyncio.create_task(cache.execute("a", WorkflowContext(deadline=deadline))) for _ in range(3)]
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [PrimitiveTimeoutError] * 3 == [type(result) for result in results]
    assert 1 == gate.calls


async def test_a_timeout_of_the_works_own_is_shared_like_any_error() -> None:
    """It is no matter of who was in a hurry: the call takes too long for everybody."""
    gate = _Gate()
    cache = _cache(TimeoutPrimitive(gate, 0.03, grace_period_seconds=0.0, operation_name="inner"))
    results = await asyncio.gather(*(cache.execute("a") for _ in range(3)), return_exceptions=True)
    assert [PrimitiveTimeoutError] * 3 == [type(result) for result in results]
    assert 1 == gate.calls


async def test_the_deadline_of_the_context_holds_for_the_call() -> None:
    """It is in force inside, as one set by a primitive further out would be, and not any more afterwards."""
    seen: list[Deadline | None] = []

    async def work(question: str) -> str:
        seen.append(current_deadline())
        return "answer"

    deadline = Deadline.after(30.0)
    await _cache(work).execute("a", WorkflowContext(deadline=deadline))
    assert [deadline] == seen
    assert current_deadline() is None


# Spans


async def test_spans_say_what_happened_and_nest(tracing: Any) -> None:
    """A miss has the call inside; a hit has nothing inside and says where the value came from."""
    store = _Store()
    cache = _cache(TimeoutPrimitive(_Work("answer"), 5.0, operation_name="call"), backend=store)
    await cache.execute("a", WorkflowContext(workflow_id="w", correlation_id="c"))
    await cache.execute("a")
    await _cache(_Work("answer"), backend=store).execute("a")
    miss, hit, shared = (span for span in tracing.spans if span.name == "cache answers")
    assert "cache answers > timeout call" in tracing.tree()
    assert {"cache.hit": False, "workflow.id": "w", "workflow.correlation_id": "c"}.items() <= miss.attributes.items()
    assert {"cache.hit": True, "cache.tier": "memory", "cache.freshness": "fresh"} == hit.attributes
    assert {"cache.hit": True, "cache.tier": "backend", "cache.freshness": "fresh"} == shared.attributes
    assert [] == tracing.unended()


async def test_spans_of_those_who_waited_and_of_failures(tracing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each caller has a span of its own, linked to that of the call it waited for; a failure is marked on all."""
    links: list[Any] = []
    monkeypatch.setattr(type(tracing), "link", lambda _, span, other: links.append((span, other)))
    gate = _Gate()
    cache = _cache(gate)
    callers = [asyncio.create_task(cache.execute("a")) for _ in range(2)]
    await _settle()
    gate.opened.set()
    await asyncio.gather(*callers)
    assert [None, "flight"] == [span.attributes.get("cache.tier") for span in tracing.spans]
    led, followed = tracing.spans
    assert [(followed, led)] == links
    tracing.spans.clear()
    gate.opened.clear()
    gate.answer = ValueError("broken")
    callers = [asyncio.create_task(cache.execute("b")) for _ in range(2)]
    await _settle()
    gate.opened.set()
    await asyncio.gather(*callers, return_exceptions=True)
    assert [gate.answer] * 2 == [span.error for span in tracing.spans]
    assert [False, False] == [span.attributes["cache.hit"] for span in tracing.spans]
    assert [] == tracing.unended()


# The shared store


@pytest.mark.promise("C1")
async def test_a_value_found_in_the_store_is_a_hit_for_all_who_asked(metrics: Callable[..., Any]) -> None:
    """One look at the store for all of them, no call."""
    store, work = _Store(), _Work({"a": [1]})
    await _cache(work, backend=store).execute("a")
    other = _cache(work, backend=store)
    store.gets = 0
    values = await asyncio.gather(*(other.execute("a") for _ in range(5)))
    assert [{"a": [1]}] * 5 == values
    assert 5 == len({id(value) for value in values})
    assert (1, 1) == (len(work.calls), store.gets)
    assert (5, 0) == (other.get_stats()["hits"], other.get_stats()["misses"])
    assert 5 == metrics("cache.hits", operation="answers")


async def test_models_are_shared_with_their_type_known() -> None:
    """`value_type` is what makes of JSON a model again."""
    store, work = _Store(), _Work(lambda _: Answer(["a"]))
    for _ in range(2):
        cache = _cache(work, backend=store, value_type=Answer)
        assert Answer(["a"]) == await cache.execute("a")
    assert 1 == len(work.calls)
    for _ in range(2):  # without it they stay in memory
        cache = _cache(work, backend=store, operation_name="untyped")
        assert Answer(["a"]) == await cache.execute("a")
        assert Answer(["a"]) == await cache.execute("a")
    assert 3 == len(work.calls)


async def test_closing_lets_go_of_the_store() -> None:
    """And does nothing where there is none."""
    store = _Store()
    await _cache(_Work("answer"), backend=store).aclose()
    assert store.closed
    await _cache(_Work("answer")).aclose()


# Event loops and threads


def test_one_cache_in_several_loops_one_after_the_other() -> None:
    """A script that calls `asyncio.run` twice keeps its cache."""
    work = _Work("answer")
    cache = _cache(work)
    assert ["answer", "answer"] == [asyncio.run(cache.execute("a")) for _ in range(2)]
    assert 1 == len(work.calls)


def test_one_cache_in_several_threads_at_once() -> None:
    """Each thread has its own loop; the counts are right in the end, and no caller waits for another loop's call."""
    work = _Work(lambda question: f"answer to {question}")
    cache = _cache(work)
    begin = threading.Barrier(4)
    errors: list[BaseException] = []

    async def ask() -> None:
        for number in range(300):
            assert f"answer to {number % 20}" == await cache.execute(number % 20)

    def run() -> None:
        begin.wait()
        try:
            asyncio.run(ask())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == errors
    stats = cache.get_stats()
    assert 1200 == stats["total"]
    assert len(work.calls) == stats["misses"] <= 80


# Streams


async def test_a_stream_read_as_a_whole_is_kept() -> None:
    """`execute` on a streaming step collects, and what it collects is a value like any other."""
    calls = 0

    async def stream(question: str) -> AsyncIterator[str]:
        nonlocal calls
        calls += 1
        yield "a"
        yield "b"

    cache = _cache(stream)
    assert ["ab", "ab"] == [await cache.execute("a") for _ in range(2)]
    assert 1 == calls


# Construction


async def test_a_cost_that_is_none_is_refused_with_the_call() -> None:
    """A NaN would spoil the sum of savings for good."""
    cache: CachePrimitive[Any, Any] = CachePrimitive()
    with pytest.raises(ConfigurationError, match="cost_per_call"):
        await cache.get_or_compute("a", lambda: "answer", cost_per_call=float("nan"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"primitive": _Work()}, "primitive and cache_key_fn belong together"),
        ({"cache_key_fn": _same}, "primitive and cache_key_fn belong together"),
        ({"primitive": _Work(), "cache_key_fn": "key"}, "cache_key_fn must be a function"),
        ({"primitive": _Work(), "cache_key_fn": _same, "redis_url": "redis://localhost"}, "redis_url belongs"),
        ({"redis_client": _Store(), "backend": _Store()}, "one of redis_url, redis_client and backend"),
        ({"redis_url": "redis://localhost", "backend": _Store()}, "one of redis_url, redis_client and backend"),
        ({"redis_client": "redis://localhost"}, "redis_client must be a Redis client"),
        ({"primitive": lambda question: question, "cache_key_fn": _same}, "synchronous"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    """The message says which keywords belong together, or what was expected."""
    with pytest.raises(ConfigurationError, match=message):
        CachePrimitive(**arguments)


async def test_each_form_says_how_it_is_used() -> None:
    """The model form wraps nothing that could be executed or streamed."""
    cache: CachePrimitive[Any, Any] = CachePrimitive()
    with pytest.raises(ConfigurationError, match="get_or_compute"):
        await cache.execute("a")
    with pytest.raises(ConfigurationError, match="wraps nothing"):
        cache.stream("a")


def test_the_chain_describes_itself() -> None:
    """What is inside, how long it keeps, and where."""
    inner = TimeoutPrimitive(_Work(), 5.0, operation_name="call")
    assert "cache answers (ttl 60s, memory)" == _cache(inner, ttl_seconds=60.0).describe().splitlines()[0]
    shared = _cache(inner, ttl_seconds=60.0, backend=_Store()).describe().splitlines()
    assert "cache answers (ttl 60s, memory, then shared store)" == shared[0]
    assert shared[1].startswith("  timeout call")
    assert [] == CachePrimitive[Any, Any]().steps()


def test_attributes_of_the_older_interface() -> None:
    """Callers of it read these."""

    class Client:
        async def execute_command(self, *_: Any) -> None:
            raise NotImplementedError

    client = Client()
    cache = _cache(_Work(), ttl_seconds=60.0, redis_client=client, cost_per_call=0.5)
    assert (60.0, 0.5) == (cache.ttl_seconds, cache.cost_per_call)
    assert client is cache.redis_client


async def test_no_log_line_in_ordinary_use(caplog: pytest.LogCaptureFixture) -> None:
    """A cache that works has nothing to say."""
    caplog.set_level(logging.INFO)
    cache = _cache(_Work({"a": 1}), backend=_Store())
    for question in ("a", "a", "b"):
        await cache.execute(question)
    await cache.invalidate("a")
    await cache.clear()
    assert [] == caplog.records


async def test_a_cache_made_before_telemetry_is_switched_on_reports_all_the_same(metrics: Any) -> None:
    """Switching on begins every series anew: one that a cache only holds on to would count where nobody looks."""
    from observability_integration.telemetry.metrics import instruments

    cache = CachePrimitive[Any, Any](operation_name="early")
    instruments.start(exemplars=False, profiles=frozenset())
    for _ in range(2):
        await cache.get_or_compute("key", lambda: "value")
    for name in ("cache.entry.size", "cache.hit.age", "cache.hits", "cache.misses"):
        assert 1 == metrics(name, operation="early"), name
    assert 1 == metrics("cache.served", operation="early", tier="memory", freshness="fresh")
    assert 1 == metrics("cache.compute", operation="early", outcome="success")
