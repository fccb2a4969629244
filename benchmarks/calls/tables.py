"""The tables of the part "calls": single calls, imports and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.measure import Ratio, Samples, ratio
from benchmarks.table import RatioRow, RatioTable, Target, microseconds

from . import imports, telemetry_modes

BY_HAND = Target(1.1)
BARE = Target(1.5)
CACHES_WITHOUT_TELEMETRY = Target(5.0, at_least=True)
CACHES_WITH_TELEMETRY = Target(1.0, at_least=True)
RETRIES = Target(1.0, at_least=True)
LITELLM = Target(12.0, at_least=True)
LITELLM_IMPORT = Target(40.0, at_least=True)

_TITLES = {
    "on": "telemetry on",
    "api": "OpenTelemetry not initialised",
    "absent": "OpenTelemetry absent",
}
_NOT_INSTALLED = "not installed"


def tables(found: Mapping[str, Any]) -> Iterator[RatioTable]:
    """Yields the tables in the order of display.

    Args:
        found: under ``modes`` a `ModeResult` (as a dict) for each mode; ``imports``, ``initialize``, ``memory`` and
            ``entries`` as the functions in `imports` return them.
    """
    for mode, outcome in found["modes"].items():
        yield _primitives(mode, outcome["cases"])
    yield _caches(found["modes"])
    yield _retries(found["modes"])
    yield _litellm(found["modes"].get("on"))
    yield _imports(found["imports"])
    yield _once(found["initialize"], found["memory"], found["entries"])


def _primitives(mode: str, cases: Mapping[str, Samples]) -> RatioTable:
    other, target = ("bare asyncio", BARE) if mode == "absent" else ("by hand", BY_HAND)
    rows = [_timed(task.name, cases[task.name], other, target) for task in telemetry_modes.TASKS]
    note = (
        "asyncio.timeout never returns if the work ignores its cancellation, and has no grace and no statistics. The "
        "bare call has no limit. asyncio.Semaphore serves one event loop, has no bound on its queue or on waits, and "
        "has no statistics. All three are shown for scale."
    )
    if mode == "absent":
        # Without telemetry LLMCallPrimitive adds no guarantee that an equivalent could give.
        rows = [row._replace(target=None) if row.what == telemetry_modes.LLM_CALL.name else row for row in rows]
        note += (
            " Without telemetry an LLM call is just the call, so it has no target. Two limits do more than their "
            "equivalents: the concurrency limit keeps its gauges for telemetry that may start later, and stays right "
            "after event loops were closed; the rate limit reads the answers of any provider."
        )
    for reference in (telemetry_modes.ASYNCIO_TIMEOUT, telemetry_modes.BARE_CALL):
        rows.append(_timed(f"timeout, compared with {reference}", cases[telemetry_modes.TIMEOUT.name], reference))
    limit = f"concurrency limit, compared with {telemetry_modes.SEMAPHORE}"
    rows.append(_timed(limit, cases[telemetry_modes.CONCURRENCY.name], telemetry_modes.SEMAPHORE))
    return RatioTable(f"Time per call, {_TITLES[mode]}", ("primitive", "ours", other, f"ours / {other}"), rows, note)


def _caches(outcomes: Mapping[str, Any]) -> RatioTable:
    rows: list[RatioRow] = []
    for mode, outcome in outcomes.items():
        samples = outcome["cases"][telemetry_modes.BESIDE_CACHES]
        target = CACHES_WITH_TELEMETRY if mode == "on" else CACHES_WITHOUT_TELEMETRY
        for peer in telemetry_modes.CACHE_PEERS:
            what = f"{peer}; ours: {_TITLES[mode]}"
            if peer in samples:
                rows.append(_timed(what, samples, peer, target, inverse=True))
            else:
                rows.append(_not_measured(what, target, microseconds(samples["ours"])))
    return RatioTable(
        "Cache hit in memory, compared with caches without telemetry",
        ("peer", "ours", "peer", "peer / ours"),
        rows,
        "The value is a text, which no cache copies. With protected=False, cashews has no single flight.",
    )


def _retries(outcomes: Mapping[str, Any]) -> RatioTable:
    rows: list[RatioRow] = []
    for mode, outcome in outcomes.items():
        samples = outcome["cases"][telemetry_modes.BESIDE_RETRIES]
        target = RETRIES if mode == "absent" else None
        for peer in telemetry_modes.RETRY_PEERS:
            what = f"{peer}; ours: {_TITLES[mode]}"
            if peer in samples:
                rows.append(_timed(what, samples, peer, target, inverse=True))
            else:
                rows.append(_not_measured(what, target, microseconds(samples["ours"])))
    return RatioTable(
        "Retry that succeeds at the first attempt, compared with libraries without telemetry",
        ("peer", "ours", "peer", "peer / ours"),
        rows,
        "Ours also keeps a retry budget, classifies the faults of providers, and obeys Retry-After and deadlines. "
        "There is a target only without telemetry, which the peers lack.",
    )


def _litellm(outcome: Mapping[str, Any] | None) -> RatioTable:
    what = f"chain on a cache miss, {_TITLES['on']}"
    samples = {} if outcome is None else outcome["cases"].get(telemetry_modes.BESIDE_LITELLM, {})
    row = (
        _timed(what, samples, telemetry_modes.LITELLM, LITELLM, inverse=True)
        if samples
        else _not_measured(what, LITELLM)
    )
    return RatioTable(
        "Whole chain, compared with LiteLLM Router",
        ("what", "ours", "LiteLLM", "LiteLLM / ours"),
        [row],
        "LiteLLM answers from mock_response, exports nothing and does not use its cache. Its logging in the background "
        "after a batch is not timed.",
    )


def _imports(samples: Mapping[str, Sequence[float]]) -> RatioTable:
    rows: list[RatioRow] = []
    for ours in (imports.OURS, imports.PRIMITIVES):
        for peer in imports.PEERS:
            what = f"{ours}, compared with {peer}"
            target = LITELLM_IMPORT if (ours, peer) == (imports.OURS, imports.LITELLM) else None
            figure = _milliseconds(samples[ours])
            if peer in samples:
                rows.append(RatioRow(what, figure, _milliseconds(samples[peer]), ratio(samples, peer, ours), target))
            else:
                rows.append(_not_measured(what, target, figure))
    return RatioTable(
        "Import time, without the start of the interpreter",
        ("statement", "ours", "peer", "peer / ours"),
        rows,
        "Above 1× ours is faster. Rows without a target are information.",
    )


def _once(initialize: Sequence[float], memory: Mapping[str, float], entries: Mapping[str, float]) -> RatioTable:
    rows: list[RatioRow] = []
    if initialize:
        rows.append(RatioRow("initialize_observability(), Prometheus and OTLP", _milliseconds(initialize), "", None))
    rows += [
        RatioRow(f"memory after {code}", _megabytes(memory[code]), "", None)
        for code in (imports.OURS, imports.PRIMITIVES)
        if code in memory
    ]
    for name, figures in (
        ("memory after import {}", {code.removeprefix("import "): size for code, size in memory.items()}),
        (f"memory of {imports.ENTRIES} cached texts of 1 kB, {{}}", entries),
    ):
        ours = figures.get("ours", figures.get("observability_integration.primitives"))
        for peer in imports.PEERS.values():
            if ours and peer in figures:
                quotient = figures[peer] / ours
                found = Ratio(quotient, quotient, quotient)
                rows.append(RatioRow(name.format(peer), _megabytes(ours), _megabytes(figures[peer]), found))
    return RatioTable(
        "Once per process",
        ("what", "ours", "peer", "peer / ours"),
        rows,
        "Memory is resident memory, less that of an empty interpreter. Peers are compared with "
        "observability_integration.primitives. All rows are information.",
    )


def _timed(what: str, samples: Samples, other: str, target: Target | None = None, *, inverse: bool = False) -> RatioRow:
    found = ratio(samples, other, "ours") if inverse else ratio(samples, "ours", other)
    return RatioRow(what, microseconds(samples["ours"]), microseconds(samples[other]), found, target)


def _not_measured(what: str, target: Target | None, ours: str = "") -> RatioRow:
    return RatioRow(what, ours, _NOT_INSTALLED, None, target)


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{median(seconds) * 1e3:.1f} ms"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"
