"""CircuitBreakerPrimitive: what it counts, whom it refuses, what it tells, and that no permit is ever lost."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import sys
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from observability_integration import WorkflowContext, events
from observability_integration.errors import (
    AllTargetsFailedError,
    CircuitOpenError,
    ConfigurationError,
    PrimitiveTimeoutError,
)
from observability_integration.primitives.circuit_breaker import CircuitBreakerPrimitive
from observability_integration.primitives.circuit_breaker.breaker import Breaker, BreakerPolicy
from observability_integration.primitives.fallback import FallbackPrimitive
from observability_integration.primitives.timeout import TimeoutPrimitive
from observability_integration.resilience.faults import Fault
from observability_integration.testing import FakeClockLoop
from tests.unit.primitives.test_cancel_every_tick import WORKS, Complaints, Work, read, run

pytestmark = pytest.mark.promise("K1", "K2")

LOOP_FACTORY = FakeClockLoop

POLICY = BreakerPolicy(jitter=0.0)


class ServerError(Exception):
    """A fault of the target, by its shape."""

    status_code = 500


class WrongKeyError(Exception):
    """A fault of the caller's, by its shape."""

    status_code = 401


class Target:
    """Raises what it is told to, else answers."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.calls = 0

    async def __call__(self, question: str) -> str:
        self.calls += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return f"answer to {question}"


def guarded(step: Any, **knobs: Any) -> CircuitBreakerPrimitive[Any, Any]:
    loop = asyncio.get_running_loop()
    return CircuitBreakerPrimitive(step, **{"breaker": Breaker(POLICY, clock=loop.time), "target": "t", **knobs})


async def outcome(primitive: Any) -> Any:
    """The answer, or the type of the error."""
    try:
        return await primitive.execute("q")
    except Exception as error:
        return type(error)


async def opened(asked: Target, **knobs: Any) -> CircuitBreakerPrimitive[Any, Any]:
    """One that three failures have opened; the target is well again."""
    primitive = guarded(asked, **knobs)
    asked.error = ServerError()
    for _ in range(3):
        assert ServerError is await outcome(primitive)
    asked.error = None
    return primitive


# ---- calls


async def test_a_target_that_fails_is_left_alone_and_found_again(metrics: Any, tracing: Any) -> None:
    """Three failures open it, calls are refused with the time that is left, and a probe closes it."""
    target = Target()
    primitive = await opened(target)
    assert "open" == primitive.state
    with pytest.raises(CircuitOpenError) as caught:
        await primitive.execute("q")
    assert ("t", 21.0) == (caught.value.operation, caught.value.retry_after_seconds)
    assert 3 == target.calls
    await asyncio.sleep(21.0)
    assert "answer to q" == await primitive.execute("q")
    assert "closed" == primitive.state
    counts = {name: metrics("circuit_breaker.calls", target="t", outcome=name) for name in _OUTCOMES}
    assert {"success": 1, "failure": 3, "ignored": 0, "refused": 1} == counts
    first, *_, refused, probe = [span.attributes for span in tracing.spans]
    assert {"outcome": "error", "circuit_breaker.counted": True} == first
    assert {"outcome": "error", "circuit_breaker.refused": True} == refused
    assert {"outcome": "success", "circuit_breaker.probe": True} == probe
    assert ["circuit_breaker t"] * 5 == tracing.tree()
    assert isinstance(tracing.spans[3].error, CircuitOpenError)
    assert [] == tracing.unended()


_OUTCOMES = ("success", "failure", "ignored", "refused")


async def test_each_turn_is_told_once(metrics: Any, caplog: pytest.LogCaptureFixture) -> None:
    """As a level, a count, an event and a line in the log, with the target and why."""
    told: list[Any] = []
    unsubscribe = events.subscribe(lambda event: told.append((event.name, dict(event.attributes))), "circuit_breaker.")
    target = Target()
    levels = []
    with caplog.at_level(logging.INFO):
        primitive = await opened(target, target="told")
        levels.append(metrics("circuit_breaker.state", target="told"))
        await asyncio.sleep(21.0)
        target.error = ServerError()
        assert ServerError is await outcome(primitive)
        target.error = None
        await asyncio.sleep(31.5)
        assert "answer to q" == await outcome(primitive)
        levels.append(metrics("circuit_breaker.state", target="told"))
    unsubscribe()
    turns = [
        ("open", "opened", "consecutive_failures"),
        ("half_open", "half_opened", "due"),
        ("open", "opened", "probe_failed"),
        ("half_open", "half_opened", "due"),
        ("closed", "closed", "probe_succeeded"),
    ]
    assert [(f"circuit_breaker.{name}", {"target": "told", "reason": why}) for _, name, why in turns] == told
    for state, _, why in turns:
        count = sum((state, why) == (each, reason) for each, _, reason in turns)
        assert count == metrics("circuit_breaker.transitions", target="told", state=state, reason=why)
    assert [2, 0] == levels
    lines = [record for record in caplog.records if record.name == "observability_integration"]
    assert ["WARNING", "INFO", "INFO", "INFO", "WARNING"] == [line.levelname for line in lines]
    assert "Circuit of 'told': open, was closed (consecutive_failures)" == lines[0].getMessage()


async def test_counts_begin_at_zero(metrics: Any) -> None:
    """Before the first call, so that the first failure and the first opening are a rise."""
    primitive = guarded(Target(), target="new")
    assert [0] * 4 == [metrics("circuit_breaker.calls", target="new", outcome=name) for name in _OUTCOMES]
    assert 0 == metrics("circuit_breaker.state", target="new")
    assert "closed" == primitive.state
    assert 0 == metrics("circuit_breaker.transitions", target="new", state="open", reason="failure_ratio")


async def test_what_is_not_the_targets_fault_does_not_count(metrics: Any, tracing: Any) -> None:
    """A wrong key must not open it: that would be routed around, and nobody would repair it."""
    target = Target()
    primitive = guarded(target)
    for error in (WrongKeyError(), CircuitOpenError("further in", 1.0), *[WrongKeyError()] * 5):
        target.error = error
        with pytest.raises(type(error)) as caught:
            await primitive.execute("q")
        assert error is caught.value
    assert ("closed", (0, 0, 0, False)) == (primitive.state, primitive.breaker.counts())
    assert 7 == metrics("circuit_breaker.calls", target="t", outcome="ignored")
    assert {"outcome": "error"} == tracing.spans[0].attributes


async def test_a_classifier_of_the_users_decides(metrics: Any) -> None:
    """What it does not know is left to the table; one that fails is counted, and fails no call."""

    def known(error: BaseException) -> Any:
        if isinstance(error, LookupError):
            return "invalid_request"
        if isinstance(error, WrongKeyError):
            return Fault("transient")
        return 1 / 0

    target = Target()
    primitive = guarded(target, classifier=known)
    for error, failures in ((LookupError(), 0), (WrongKeyError(), 1), (ServerError(), 2)):
        target.error = error
        assert type(error) is await outcome(primitive)
        assert failures == primitive.breaker.counts().failures
    assert 1 == metrics("telemetry.faults", site="faults.classifier")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), asyncio.CancelledError()])
async def test_what_stops_the_program_says_nothing_about_the_target(error: BaseException, tracing: Any) -> None:
    """It passes unchanged, is not shown to the classifier, and gives the permit back."""
    asked: list[BaseException] = []
    target = Target()
    primitive = await opened(target, classifier=lambda error: asked.append(error))
    asked.clear()
    await asyncio.sleep(21.0)

    async def stopped(*_: Any) -> str:
        raise error

    primitive._call = stopped
    coroutine = primitive.execute("q")
    with pytest.raises(type(error)):
        coroutine.send(None)
    assert [] == asked
    assert "half_open" == primitive.state
    assert not primitive.breaker.counts().probing
    assert "cancelled" == tracing.spans[-1].attributes["outcome"]
    assert [] == tracing.unended()


async def test_a_timeout_further_in_counts_and_one_further_out_does_not() -> None:
    """Which is why the limit of an attempt belongs inside: who cancels from outside may have any reason."""

    async def hangs(question: str) -> str:
        await asyncio.sleep(60.0)
        return "late"

    inside = guarded(TimeoutPrimitive(hangs, 1.0))
    outside = TimeoutPrimitive(guarded(hangs, target="u"), 1.0)
    for _ in range(3):
        assert [PrimitiveTimeoutError] * 2 == [await outcome(inside), await outcome(outside)]
    assert "open" == inside.state
    assert "closed" == outside.steps()[0][1].state  # type: ignore[attr-defined]


async def test_one_probe_at_a_time() -> None:
    """Of a hundred that are called when the pause is over."""
    target = Target()
    primitive = await opened(target)
    await asyncio.sleep(21.0)
    came = await asyncio.gather(*(outcome(primitive) for _ in range(100)))
    assert [1, 99] == [came.count("answer to q"), came.count(CircuitOpenError)]


async def test_the_last_target_that_is_left_is_asked_all_the_same() -> None:
    """A fallback whose targets are all open asks the last one, one call at a time; the others are left alone."""
    first, second = Target(), Target()
    steps = [await opened(first, target="a"), await opened(second, target="b")]
    fallback = FallbackPrimitive({"a": steps[0], "b": steps[1]})
    gate = asyncio.Event()

    async def slow(question: str, _: Any) -> str:
        await gate.wait()
        return await second(question)

    steps[1]._call = slow
    calls = [asyncio.ensure_future(fallback.execute("q")) for _ in range(5)]
    await asyncio.sleep(1.0)
    gate.set()
    came = await asyncio.gather(*calls, return_exceptions=True)
    assert 1 == came.count("answer to q")
    assert 4 == sum(isinstance(each, AllTargetsFailedError) for each in came)
    assert (3, 4) == (first.calls, second.calls)
    assert ["open", "closed"] == [step.state for step in steps]


# ---- streams


class Spoken:
    """A stream of two words, which may break off before any of them."""

    def __init__(self) -> None:
        self.breaks_at: int | None = None
        self.closed = 0

    async def __call__(self, question: str) -> AsyncIterator[str]:
        try:
            for number, word in enumerate(("", "one ", "two")):
                if number == self.breaks_at:
                    raise ServerError
                yield word
        finally:
            self.closed += 1


def permits_are_back(primitive: CircuitBreakerPrimitive[Any, Any]) -> bool:
    return not primitive.breaker.counts().probing


async def test_a_stream_that_ends_is_a_success(metrics: Any, tracing: Any) -> None:
    """As `execute` is, which reads it to its end; and a primitive further out may read the stream itself."""
    primitive = guarded(Spoken())
    assert "one two" == await primitive.execute("q")
    assert primitive.execute_reads_stream
    assert "ab" == primitive.join_chunks(["a", "b"])
    async with primitive.stream("q", WorkflowContext("w-1")) as chunks:
        assert 1 == primitive.breaker.counts().calls  # not before it has ended
        assert ["", "one ", "two"] == [chunk async for chunk in chunks]
    assert (2, 0, 0, False) == primitive.breaker.counts()
    assert 2 == metrics("circuit_breaker.calls", target="t", outcome="success")
    assert "w-1" == tracing.spans[-1].attributes["workflow.id"]
    assert [] == tracing.unended()


@pytest.mark.parametrize("breaks_at", [0, 1, 2])
async def test_a_stream_that_breaks_off_is_a_failure(breaks_at: int, tracing: Any, metrics: Any) -> None:
    """Whether or not something of it was seen."""
    spoken = Spoken()
    spoken.breaks_at = breaks_at
    primitive = guarded(spoken)
    for _ in range(3):
        with pytest.raises(ServerError):
            await read(primitive)
    assert "open" == primitive.state
    with pytest.raises(CircuitOpenError):
        await read(primitive)
    attributes = tracing.spans[-1].attributes
    assert ("error", True) == (attributes["outcome"], attributes["circuit_breaker.refused"])
    assert (3, 1) == tuple(
        metrics("circuit_breaker.calls", target="t", outcome=name) for name in ("failure", "refused")
    )
    assert 3 == spoken.closed
    assert [] == tracing.unended()


@pytest.mark.parametrize(("chunks_read", "counted"), [(0, "ignored"), (1, "ignored"), (2, "success")])
@pytest.mark.parametrize("leaves", ["closes", "is dropped", "is cancelled"])
async def test_a_reader_who_leaves(chunks_read: int, counted: str, leaves: str, metrics: Any, tracing: Any) -> None:
    """After some content: it was served. Before any (the first chunk is empty), or cancelled: that tells nothing."""
    spoken = Spoken()
    primitive = guarded(spoken, breaker=Breaker(POLICY, clock=asyncio.get_running_loop().time))
    primitive.force_open(1.0)
    await asyncio.sleep(1.0)
    stream: Any = primitive.stream("q")
    chunks = await stream.__aenter__()
    for _ in range(chunks_read):
        await anext(chunks)
    if leaves == "closes":
        await stream.__aexit__(None, None, None)
    elif leaves == "is dropped":
        del chunks
        stream = None
        gc.collect()
    else:

        async def cancelled() -> Any:
            raise asyncio.CancelledError

        chunks._next = cancelled
        with pytest.raises(asyncio.CancelledError):
            await anext(chunks)
        await stream.__aexit__(None, None, None)
        counted = "ignored"
    assert 1 == metrics("circuit_breaker.calls", target="t", outcome=counted)
    assert 1 == sum(metrics("circuit_breaker.calls", target="t", outcome=name) for name in _OUTCOMES)
    assert permits_are_back(primitive)
    assert ("closed" if counted == "success" else "half_open") == primitive.state
    assert [] == tracing.unended()


async def test_a_stream_that_is_never_opened_takes_no_permit(tracing: Any) -> None:
    """It is asked for when it is opened."""
    primitive = guarded(Spoken())
    primitive.force_open(1.0)
    await asyncio.sleep(1.0)
    primitive.stream("q")
    assert "open" == primitive.state
    assert [] == tracing.spans


# ---- cancelled at every turn of the loop


@pytest.mark.once
@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("streams", [False, True])
def test_cancelled_at_every_turn_no_permit_is_lost(streams: bool, work: Work, new_tracing: Any) -> None:
    """Whenever the probe is cancelled, another may be let through at once, and the loop has nothing to complain of."""
    complaints = Complaints()
    used: list[CircuitBreakerPrimitive[Any, Any]] = []

    async def scenario(work: Work) -> Any:
        loop = asyncio.get_running_loop()
        breaker = Breaker(POLICY, clock=loop.time)
        primitive: Any = CircuitBreakerPrimitive(work.stream if streams else work.call, breaker=breaker, target="t")
        used.append(primitive)
        primitive.force_open(1.0)
        await asyncio.sleep(1.0)
        return await (read(primitive) if streams else primitive.execute("question"))

    turns = run(scenario, work, [], new_tracing(), complaints)
    for turn in range(turns + 2):
        run(scenario, work, [turn], new_tracing(), complaints)
    gc.collect()
    assert [] == complaints
    assert all(map(permits_are_back, used))


# ---- what it is made of


async def test_several_primitives_share_one_breaker(metrics: Any) -> None:
    """Chat and embeddings of one provider: what one finds out is for the other, and is told once."""
    target = Target()
    chat = guarded(target, target="chat")
    other = CircuitBreakerPrimitive(target, breaker=chat.breaker, target="chat")
    target.error = ServerError()
    assert [ServerError] * 3 == [await outcome(each) for each in (chat, other, chat)]
    target.error = None
    assert CircuitOpenError is await outcome(other)
    assert 1 == metrics("circuit_breaker.transitions", target="chat", state="open", reason="consecutive_failures")
    third = CircuitBreakerPrimitive(target, breaker=chat.breaker, target="other")
    assert 2 == metrics("circuit_breaker.state", target="other")
    third.reset()
    assert [0, 0] == [metrics("circuit_breaker.state", target=name) for name in ("chat", "other")]
    assert "closed" == chat.state
    await chat.aclose()  # nothing is exchanged


def level(metrics: Any, target: str) -> Any:
    return metrics("circuit_breaker.state", target=target)


def test_of_breakers_with_one_name_the_worst_is_shown(metrics: Any) -> None:
    """One that is well must not hide another that is open: alerts look at the level."""
    well, ill = Breaker(POLICY), Breaker(POLICY)
    first = CircuitBreakerPrimitive(Target(), breaker=ill, target="one name")
    ill.force_open()
    second = CircuitBreakerPrimitive(Target(), breaker=well, target="one name")
    assert 2 == level(metrics, "one name")
    well.force_open()
    well.reset()
    assert 2 == level(metrics, "one name")
    ill.force_probe()
    assert 1 == level(metrics, "one name")
    ill.reset()
    assert 0 == level(metrics, "one name")
    assert "one name" == first.name == second.name


def test_one_that_is_gone_is_not_shown(metrics: Any) -> None:
    """An open breaker that was thrown away leaves the level to those that are left."""
    kept, gone = (CircuitBreakerPrimitive(Target(), target="gone") for _ in range(2))
    gone.force_open()
    assert 2 == level(metrics, "gone")
    del gone
    gc.collect()
    assert 0 == level(metrics, "gone")
    kept.force_open()
    del kept
    gc.collect()
    assert 0 == level(metrics, "gone")


def test_one_that_goes_while_the_level_is_taken(metrics: Any) -> None:
    """The collector may run a finaliser in the middle of it, in the same thread: nobody waits, and it is not lost."""
    primitive = CircuitBreakerPrimitive(Target(), target="in the middle")
    shown: list[str] = []

    class Other(Breaker):
        @property
        def state(self) -> Any:
            found = super().state
            if len(shown) == 1:
                primitive.force_open()
            shown.append(found)
            return found

    other = Other(POLICY)
    guarded_by_other = CircuitBreakerPrimitive(Target(), breaker=other, target="in the middle")
    other.force_open()
    other.reset()
    assert 2 == level(metrics, "in the middle")
    assert "closed" == guarded_by_other.state


async def test_by_hand(metrics: Any) -> None:
    """An operator may close the way to a target, and open it again without waiting for the probe."""
    primitive = guarded(Target())
    primitive.force_open(100.0)
    assert CircuitOpenError is await outcome(primitive)
    primitive.reset()
    assert "answer to q" == await outcome(primitive)
    primitive.force_open()
    primitive.force_open(50.0)
    with pytest.raises(CircuitOpenError, match=r"in 50\.0s"):
        await primitive.execute("q")
    assert 2 == metrics("circuit_breaker.transitions", target="t", state="open", reason="by_hand")
    with pytest.raises(ConfigurationError, match="seconds"):
        primitive.force_open(0)


async def test_what_was_under_way_when_it_was_closed_by_hand_is_not_listened_to() -> None:
    """Neither a probe nor an ordinary call."""
    primitive = guarded(Target())
    old = [primitive.breaker.admit() for _ in range(4)]
    primitive.force_open(1.0)
    await asyncio.sleep(1.0)
    old.append(primitive.breaker.admit())
    primitive.reset()
    for permit in old:
        permit.failure()  # type: ignore[union-attr]
    assert ("closed", (0, 0, 0, False)) == (primitive.state, primitive.breaker.counts())


async def test_it_says_what_it_is() -> None:
    """In descriptions; its name is the target's, by default that of what it wraps."""

    async def ask(question: str) -> str:
        return question

    primitive = CircuitBreakerPrimitive(ask)
    assert "circuit breaker ask\n  ask" == primitive.describe()
    assert ("ask", "closed") == (primitive.name, primitive.state)
    assert not primitive.execute_reads_stream
    assert "hä?" == await primitive.execute("hä?")


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"policy": POLICY, "breaker": Breaker()}, "breaker"),
        ({"redis_url": "redis://127.0.0.1:1/0", "breaker": Breaker()}, "breaker"),
        ({"redis_client": object(), "breaker": Breaker()}, "breaker"),
        ({"redis_url": "redis://127.0.0.1:1/0"}, "target is required"),
        ({"redis_client": object()}, "target is required"),
        ({"redis_client": object(), "redis_url": "redis://127.0.0.1:1/0", "target": "t"}, "give one of"),
        ({"redis_client": object(), "target": "t"}, "redis_client"),
    ],
)
def test_a_wrong_knob_is_refused(knobs: dict[str, Any], named: str) -> None:
    """With an error that names it."""

    async def ask(question: str) -> str:
        return question

    with pytest.raises(ConfigurationError, match=named):
        CircuitBreakerPrimitive(ask, **knobs)


@pytest.mark.needs_redis_package
def test_a_url_that_is_none_is_refused() -> None:
    """Without being quoted: there may be a password in it."""

    async def ask(question: str) -> str:
        return question

    with pytest.raises(ConfigurationError, match=r"^redis_url must be like") as caught:
        CircuitBreakerPrimitive(ask, target="t", redis_url="redis://h:port/0")
    assert caught.value.__suppress_context__


async def test_without_the_package_each_process_goes_by_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says so; everything else is as without a Redis."""
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    primitive = CircuitBreakerPrimitive(Target(), target="t", redis_url="redis://127.0.0.1:1/0")
    assert "answer to q" == await primitive.execute("q")
    assert "redis is not installed" in caplog.text
    assert "circuit breaker t\n  Target" == primitive.describe()
    await primitive.aclose()


# ---- the engine beneath, in the middle of whose work a finaliser may speak


def test_a_word_that_comes_while_the_lock_is_held_is_heard_afterwards() -> None:
    """A stream that is collected gives its permit back in whatever the thread is doing just then."""
    breaker = Breaker(POLICY, clock=lambda: 0.0)
    permits = [breaker.admit() for _ in range(4)]
    with breaker._lock:
        for permit in permits[:3]:
            permit.failure()  # type: ignore[union-attr]
        assert "closed" == breaker.state
    permits[3].ignore()  # type: ignore[union-attr]
    assert "open" == breaker.state


# ---- the whole against a model


class _Callers(RuleBasedStateMachine):
    """Calls that succeed, fail, are refused by a filter or are cancelled, at any time, against a plain account."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = FakeClockLoop()
        self.error: BaseException | None = None
        self.state = "closed"
        self.log: list[bool] = []
        self.open_until = 0.0
        self.pause = 8.0
        self.made = 0
        policy = BreakerPolicy(
            minimum_calls=1000, consecutive_failures=2, open_seconds=8.0, max_open_seconds=15.0, jitter=0.0
        )

        async def call(question: str) -> str:
            self.made += 1
            await asyncio.sleep(1.0)
            if self.error is not None:
                raise self.error
            return "answer"

        breaker = Breaker(policy, clock=self.loop.time)
        self.primitive: Any = CircuitBreakerPrimitive(call, breaker=breaker, target="model")

    @rule(seconds=st.sampled_from([1.0, 7.0, 12.0]))
    def passes(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @rule(
        error=st.sampled_from([None, ServerError, WrongKeyError, asyncio.CancelledError]),
        callers=st.integers(1, 3),
    )
    def call(self, error: type[BaseException] | None, callers: int) -> None:
        """So many at once, which all go the same way."""
        now, before = self.loop.time(), self.made
        admitted = callers
        if self.state == "open":
            admitted = 0 if now < self.open_until else 1
            self.state = "open" if admitted == 0 else "half_open"
        elif self.state == "half_open":
            admitted = 1
        self.error = None if error is None else error()

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(self.primitive.execute("q") for _ in range(callers)), return_exceptions=True)

        came = self.loop.run_until_complete(all_of_them())
        assert admitted == self.made - before
        assert callers - admitted == sum(isinstance(each, CircuitOpenError) for each in came)
        for _ in range(admitted):
            self._ended(error, now)

    def _ended(self, error: type[BaseException] | None, began: float) -> None:
        if error in (WrongKeyError, asyncio.CancelledError) or self.state == "open":
            return
        failed = error is not None
        if self.state == "half_open":
            self.pause = min(15.0, self.pause * 1.5) if failed else 8.0
            self.state, self.open_until, self.log = ("open" if failed else "closed"), began + self.pause, []
            return
        self.log.append(failed)
        if self.log[-2:] == [True, True]:
            self.state, self.open_until, self.log = "open", self.loop.time() + self.pause, []

    @invariant()
    def agrees(self) -> None:
        assert self.state == self.primitive.state
        row = len(list(itertools.takewhile(bool, reversed(self.log))))
        assert row == self.primitive.breaker.counts().consecutive_failures

    def teardown(self) -> None:
        self.loop.close()


@pytest.mark.once
def test_it_agrees_with_a_plain_account() -> None:
    """In any order of calls, ends and pauses."""
    run_state_machine_as_test(_Callers, settings=settings(max_examples=30, stateful_step_count=25, deadline=None))


@pytest.mark.once
async def test_no_reference_is_kept_to_what_was_asked() -> None:
    """Neither by the breaker nor by the record of its target, and the breaker goes with the primitive."""

    class Question:
        pass

    async def ask(question: Any) -> str:
        return "answer"

    primitive = CircuitBreakerPrimitive(ask, target="t")
    question = Question()
    gone = [weakref.ref(question), weakref.ref(primitive.breaker)]
    await primitive.execute(question)
    del question
    gc.collect()
    assert gone[0]() is None
    del primitive
    gc.collect()
    assert gone[1]() is None
