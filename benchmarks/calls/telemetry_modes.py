"""Checks and times all cases of one telemetry mode; each mode runs in a process of its own.

The modes are "on" (spans over OTLP, metrics for Prometheus), "api" (OpenTelemetry is installed but not initialised) and
"absent" (it cannot be imported).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from benchmarks import checks, workload
from benchmarks.measure import Call, Case, Contestant, Effort, Samples, run
from benchmarks.workload import Repeated, Runnable, Work

from . import peers
from .bare.kit import Bare
from .ours import Ours
from .peers import Peer

Report = Callable[[str], None]


class Kit(Protocol):
    """Makes each primitive, or its equivalent, around some work."""

    name: str

    def router(self, work: Work, /) -> Runnable: ...
    def cache(self, work: Work, /) -> Runnable: ...
    def timeout(self, work: Work, /) -> Runnable: ...
    def llm_call(self, work: Work, /) -> Runnable: ...
    def chain(self, work: Work, /) -> Runnable: ...
    def retry(self, work: Work, /) -> Runnable: ...
    def fallback(self, work: Work, /) -> Runnable: ...
    def breaker(self, work: Work, /) -> Runnable: ...
    def concurrency(self, work: Work, /) -> Runnable: ...
    def rate_limit(self, work: Work, /) -> Runnable: ...
    def hedge(self, work: Work, /) -> Runnable: ...
    def saga(self, work: Work, /) -> Runnable: ...
    def pipeline(self, work: Work, /) -> Runnable: ...


class Task(NamedTuple):
    """A primitive to time.

    Attributes:
        name: shown in the tables.
        makes: the method of `Kit` that makes the primitive.
        answer: the answer of the wrapped work.
        arguments: returns a function that makes the arguments of a batch.
        works: calls of the work per call of the primitive.
        share: fraction of a batch's calls that are made.
    """

    name: str
    makes: str
    answer: Any = workload.COMPLETION
    arguments: Callable[[], Callable[[int], Sequence[Any]]] = lambda: workload.new_requests
    works: int = 1
    share: float = 1.0


ROUTER = Task("router", "router", workload.COMPLETION, lambda: workload.new_requests)
HIT = Task("cache hit", "cache", workload.TEXT, Repeated)
HIT_STRUCTURE = Task("cache hit, a dict", "cache", workload.COMPLETION, Repeated)
MISS = Task("cache miss", "cache", workload.TEXT, lambda: workload.new_prompts)
TIMEOUT = Task("timeout", "timeout", workload.COMPLETION, lambda: workload.new_requests)
LLM_CALL = Task("LLM call", "llm_call", workload.COMPLETION, lambda: workload.new_requests)
CHAIN = Task("whole chain, miss", "chain", workload.COMPLETION, lambda: workload.new_requests)
RETRY = Task("retry, at the first attempt", "retry")
CONCURRENCY = Task("concurrency limit, with room", "concurrency")
RESILIENCE = (
    RETRY,
    Task("fallback, by the first target", "fallback"),
    Task("circuit breaker, closed", "breaker"),
    CONCURRENCY,
    Task("rate limit, with room", "rate_limit"),
    Task("hedge, by one call", "hedge"),
    Task("saga of two steps", "saga", works=2),
    # Six spans per call: 80 calls stay below the 512 spans at which the SDK's processor exports.
    Task("whole pipeline, by the first target", "pipeline", share=0.8),
)
TASKS = (ROUTER, HIT, HIT_STRUCTURE, MISS, TIMEOUT, LLM_CALL, CHAIN, *RESILIENCE)

BESIDE_CACHES = "cache hit beside peers"
BESIDE_RETRIES = "retry beside peers"
BESIDE_LITELLM = "whole chain beside LiteLLM"
ASYNCIO_TIMEOUT = "asyncio.timeout"
SEMAPHORE = "asyncio.Semaphore"
BARE_CALL = "bare call"
LITELLM = "LiteLLM Router"
CACHE_PEERS = {
    "cashews": peers.cashews,
    "cashews, protected=False": peers.cashews_unprotected,
    "aiocache": peers.aiocache,
}
RETRY_PEERS = {
    "tenacity, decorator": peers.tenacity_decorated,
    "tenacity, AsyncRetrying": peers.tenacity_loop,
    "stamina, decorator": peers.stamina_decorated,
}
# Shown for scale: they guarantee less.
_REFERENCES: dict[str, dict[str, Callable[[Work], Call]]] = {
    TIMEOUT.name: {ASYNCIO_TIMEOUT: peers.with_asyncio_timeout, BARE_CALL: lambda work: work.answer},
    CONCURRENCY.name: {SEMAPHORE: peers.with_semaphore},
}


class ModeResult(NamedTuple):
    """The results of one mode.

    Attributes:
        cases: seconds per call by case and contestant, one figure per round.
        missing: peers that are not installed.
        checked: the checks that passed, as sentences.
    """

    cases: dict[str, Samples]
    missing: list[str]
    checked: list[str]


async def run_mode(mode: str, effort: Effort, report: Report, *, beside_peers: bool = True) -> ModeResult:
    """Checks and times all cases of a mode, with peers or without.

    Raises:
        NotDoneError: a contestant did not do its work.
    """
    outcome = ModeResult({}, [], [])
    if mode == "on":
        await _telemetry_on(outcome, effort, report, beside_peers)
    else:
        await _own_tasks((Ours(), Bare() if mode == "absent" else _with_api()), outcome, effort, report)
        if beside_peers:
            await _beside_caches(outcome, effort, report)
            await _beside_retries(outcome, effort, report)
    return outcome


def _with_api() -> Kit:
    from opentelemetry import metrics, trace

    from .by_hand.kit import ByHand

    return ByHand(trace.get_tracer("by_hand"), metrics.get_meter("by_hand"))


async def _telemetry_on(outcome: ModeResult, effort: Effort, report: Report, beside_peers: bool) -> None:
    from .otlp_sink import OtlpSink
    from .telemetry import OurTelemetry, SdkTelemetry

    with OtlpSink() as sink:
        ours, sdk = OurTelemetry(sink.url("ours")), SdkTelemetry(sink.url("by_hand"))
        try:

            async def flush() -> None:
                ours.flush()
                sdk.flush()

            await _own_tasks((Ours(), sdk.kit), outcome, effort, report, flush)
            spans = sink.received
            checks.expect_equal("spans", spans.get("ours", {}), spans.get("by_hand", {}))
            counts = ours.counts()
            checks.expect_equal("counts", counts, sdk.counts())
            arrived = sum(spans["ours"].values())
            outcome.checked.append(
                f"{arrived} spans of each side arrived, equal in name, kind, status and attributes; "
                f"{len(counts)} counts of each side are equal"
            )
            if beside_peers:
                await _beside_caches(outcome, effort, report, flush)
                await _beside_retries(outcome, effort, report, flush)
                await _beside_litellm(outcome, effort, report, flush)
        finally:
            ours.close()
            sdk.close()


async def _nothing() -> None:
    pass


async def _own_tasks(
    kits: Sequence[Kit],
    outcome: ModeResult,
    effort: Effort,
    report: Report,
    settle: Callable[[], Awaitable[None]] = _nothing,
) -> None:
    for task in TASKS:
        report(task.name)
        works = [Work(task.answer) for _ in kits]
        made = [getattr(kit, task.makes)(work) for kit, work in zip(kits, works, strict=True)]
        contestants = [
            Contestant(kit.name, one.execute, settle, task.share) for kit, one in zip(kits, made, strict=True)
        ]
        references = [
            Contestant(name, make(Work(task.answer))) for name, make in _REFERENCES.get(task.name, {}).items()
        ]
        arguments = task.arguments()
        for contestant in (*contestants, *references):
            checks.expect_answer(contestant.name, task.answer, await contestant.call(arguments(1)[0]))
        outcome.cases[task.name] = await run(Case(task.name, (*contestants, *references), arguments), effort)
        for kit, work, one in zip(kits, works, made, strict=True):
            _check(f"{kit.name}, {task.name}", task, effort, work, one)
    outcome.checked.append(
        f"every call of {' and '.join(kit.name for kit in kits)} reached the work or was a hit, as expected"
    )


def _check(name: str, task: Task, effort: Effort, work: Work, runnable: Any) -> None:
    calls = effort._replace(calls=max(1, round(effort.calls * task.share))).total + 1
    made = min(effort.calls, workload.DISTINCT_PROMPTS) if task.arguments is Repeated else calls
    checks.expect_calls(name, work, made * task.works)
    if task.makes in ("cache", "chain"):
        checks.expect_stats(name, runnable, {"hits": calls - made, "misses": made})
    if task.makes == "timeout":
        checks.expect_stats(name, runnable, {"successes": calls, "failures": 0})


async def _beside_caches(
    outcome: ModeResult, effort: Effort, report: Report, settle: Callable[[], Awaitable[None]] = _nothing
) -> None:
    report(BESIDE_CACHES)
    works = [Work(workload.TEXT)]
    contestants = [Contestant(Ours.name, Ours().cache(works[0]).execute, settle)]
    found: list[Peer] = []
    for name, join in CACHE_PEERS.items():
        work = Work(workload.TEXT)
        try:
            found.append(join(work))
        except ImportError:
            outcome.missing.append(name)
            continue
        works.append(work)
        contestants.append(Contestant(name, found[-1].call))
    arguments = Repeated()
    try:
        for contestant in contestants:
            checks.expect_answer(contestant.name, workload.TEXT, await contestant.call(arguments(1)[0]))
        outcome.cases[BESIDE_CACHES] = await run(Case(BESIDE_CACHES, contestants, arguments), effort)
        for contestant, work in zip(contestants, works, strict=True):
            checks.expect_calls(contestant.name, work, min(effort.calls, workload.DISTINCT_PROMPTS))
    finally:
        for peer in found:
            await peer.close()


async def _beside_retries(
    outcome: ModeResult, effort: Effort, report: Report, settle: Callable[[], Awaitable[None]] = _nothing
) -> None:
    report(BESIDE_RETRIES)
    work = Work(RETRY.answer)
    works, contestants = [work], [Contestant(Ours.name, Ours().retry(work).execute, settle)]
    for name, join in RETRY_PEERS.items():
        work = Work(RETRY.answer)
        try:
            contestants.append(Contestant(name, join(work)))
        except ImportError:
            outcome.missing.append(name)
            continue
        works.append(work)
    for contestant in contestants:
        checks.expect_answer(contestant.name, RETRY.answer, await contestant.call(workload.new_requests(1)[0]))
    outcome.cases[BESIDE_RETRIES] = await run(Case(BESIDE_RETRIES, contestants, workload.new_requests), effort)
    for contestant, work in zip(contestants, works, strict=True):
        checks.expect_calls(contestant.name, work, effort.total + 1)


async def _beside_litellm(
    outcome: ModeResult, effort: Effort, report: Report, settle: Callable[[], Awaitable[None]]
) -> None:
    report(BESIDE_LITELLM)
    try:
        call = peers.litellm_router()
    except ImportError:
        outcome.missing.append(LITELLM)
        return
    checks.expect_answer(LITELLM, workload.TEXT, await call(workload.new_requests(1)[0]))
    work = Work(workload.COMPLETION)
    contestants = (
        Contestant(Ours.name, Ours().chain(work).execute, settle),
        Contestant(LITELLM, call, peers.let_litellm_log, share=0.1),
    )
    outcome.cases[BESIDE_LITELLM] = await run(Case(BESIDE_LITELLM, contestants, workload.new_requests), effort)
    checks.expect_calls(Ours.name, work, effort.total)
