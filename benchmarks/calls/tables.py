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


def sections(found: Mapping[str, Any]) -> Iterator[RatioTable]:
    """Everything that was found, in the order in which it is shown.

    Args:
        found: under ``modes`` a `modes.Outcome` (as a dict) for each mode; ``imports``, ``initialize``, ``memory`` and
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
        "asyncio.timeout waits for ever for work that ignores its cancellation, gives no grace and counts nothing; the "
        "bare call bounds nothing at all. asyncio.Semaphore serves one event loop, lets any number wait for any time, "
        "and counts nothing. All three are shown for scale."
    )
    if mode == "absent":
        # With nothing to show, an LLM call has no guarantee left that an equivalent could give.
        rows = [row._replace(target=None) if row.what == telemetry_modes.LLM_CALL.name else row for row in rows]
        note += (
            " Without telemetry an LLM call is just the call, so there is nothing to hold it to. What equivalents do "
            "without costs most in two limits: the one of calls keeps its level for telemetry that may come on, and is "
            "right over event loops that were closed; the one of rates reads the answers of any provider."
        )
    for reference in (telemetry_modes.ASYNCIO_TIMEOUT, telemetry_modes.BARE_CALL):
        rows.append(_timed(f"timeout, beside {reference}", cases[telemetry_modes.TIMEOUT.name], reference))
    limit = f"concurrency limit, beside {telemetry_modes.SEMAPHORE}"
    rows.append(_timed(limit, cases[telemetry_modes.CONCURRENCY.name], telemetry_modes.SEMAPHORE))
    return RatioTable(f"One call, {_TITLES[mode]}", ("primitive", "ours", other, f"ours / {other}"), rows, note)


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
        "A hit in memory, beside caches that have no telemetry",
        ("peer", "ours", "peer", "peer / ours"),
        rows,
        "The value is a text, which all hand out as it is. With protected=False, cashews goes without single flight.",
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
        "A call that succeeds at the first attempt, beside retries that have no telemetry",
        ("peer", "ours", "peer", "peer / ours"),
        rows,
        "Ours keeps a budget, knows the faults of providers, and obeys Retry-After and deadlines. Where it reports "
        "what it does, which the peers do not, there is no target.",
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
        "The whole chain, beside LiteLLM Router",
        ("what", "ours", "LiteLLM", "LiteLLM / ours"),
        [row],
        "LiteLLM answers from mock_response, exports nothing and does not use its cache. What it goes on logging in "
        "the background after a batch is not held against it.",
    )


def _imports(samples: Mapping[str, Sequence[float]]) -> RatioTable:
    rows: list[RatioRow] = []
    for ours in (imports.OURS, imports.PRIMITIVES):
        for peer in imports.PEERS:
            what = f"{ours}, beside {peer}"
            target = LITELLM_IMPORT if (ours, peer) == (imports.OURS, imports.LITELLM) else None
            figure = _milliseconds(samples[ours])
            if peer in samples:
                rows.append(RatioRow(what, figure, _milliseconds(samples[peer]), ratio(samples, peer, ours), target))
            else:
                rows.append(_not_measured(what, target, figure))
    return RatioTable(
        "Import, less the start of the interpreter",
        ("statement", "ours", "peer", "peer / ours"),
        rows,
        "What has no target here is information; above 1× ours is faster.",
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
        "Once in a process",
        ("what", "ours", "peer", "peer / ours"),
        rows,
        "Memory is resident memory, less that of an empty interpreter; peers are held beside "
        "observability_integration.primitives. All of this is information.",
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
