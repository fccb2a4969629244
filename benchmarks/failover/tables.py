"""The table of the part "failover"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.table import Table, TableRow

from . import benchmark, faults
from .contestants import OURS
from .faults import COMPLETE, FAULTS, Fault, FaultResult

_NOT_INSTALLED, _NOT_RUN = "not installed", "–"


def tables(found: Mapping[str, Any], scale: float) -> Iterator[Table]:
    """Yields the table.

    Args:
        found: the result of `benchmark.measure`.
        scale: of the run.
    """
    rows = [_row(found, fault) for fault in FAULTS]
    passed = tuple(_passed(found, contestant) for contestant in benchmark.CONTESTANTS)
    yield Table(
        f"Failover: {len(FAULTS)} faults of a provider",
        ("fault", *benchmark.CONTESTANTS),
        [*rows, TableRow("passed", passed)],
        "Each figure: pass (✓) or fail (✗), the caller's outcome, attempts at the primary + at the fallback, seconds "
        "of the slowest question. Outcomes are the complete answer, a wrong one (cut short or spliced, but returned as "
        "whole), the provider's own error, or another error. The providers are OpenAI-compatible servers on loopback "
        "sockets, and both stream the same answer of 24 tokens. Limits, where a library has them: "
        f"{faults.TIMEOUT_SECONDS:g} s for a call, {faults.FIRST_TOKEN_SECONDS:g} s for its first token; a question "
        f"ends after {faults.CAP_SECONDS:g} s. The openai SDK has two retries and no fallback. LiteLLM's Router has a "
        "fallback for any error and for a context too long, else its defaults. tenacity (at its defaults: any "
        "exception) and stamina (with a hook for the errors to retry and for Retry-After) try the whole stream three "
        "times, with exponential backoff and jitter, then the fallback in the same way. The SDK below them makes no "
        f"retries, and a silence of {faults.FIRST_TOKEN_SECONDS:g} s ends an attempt. Each fault ran once, with times "
        f"scaled by {scale:g}"
        + ("; fixed waits of libraries, such as the SDK's own, are not scaled." if scale != 1 else "."),
    )


def _row(found: Mapping[str, Any], fault: Fault) -> TableRow:
    figures = tuple(_figure(found, contestant, fault) for contestant in benchmark.CONTESTANTS)
    of_ours = found.get(OURS)
    kept = None if of_ours is None else fault.passes(FaultResult.of(of_ours[fault.code]))
    return TableRow(f"{fault.code} {fault.what}", figures, fault.target, kept)


def _figure(found: Mapping[str, Any], contestant: str, fault: Fault) -> str:
    if contestant not in found:
        return _NOT_RUN
    if found[contestant] is None:
        return _NOT_INSTALLED
    seen = FaultResult.of(found[contestant][fault.code])
    complete = [reply for reply in seen.replies if reply.outcome == COMPLETE]
    outcome = seen.replies[0].outcome if len(seen.replies) == 1 else f"{len(complete)} of {len(seen.replies)}"
    missing = "" if all(reply.usage and reply.model for reply in complete) else ", without model or tokens"
    mark = "✓" if fault.passes(seen) else "✗"
    return f"{mark} {outcome}, {len(seen.primary)} + {len(seen.fallback)}, {seen.seconds:.1f} s{missing}"


def _passed(found: Mapping[str, Any], contestant: str) -> str:
    if found.get(contestant) is None:
        return _NOT_RUN
    count = sum(fault.passes(FaultResult.of(found[contestant][fault.code])) for fault in FAULTS)
    return f"{count} of {len(FAULTS)}"
