"""What was found about callers of a provider that fails, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.table import Table, TableRow

from . import benchmark, faults
from .contestants import OURS
from .faults import COMPLETE, FAULTS, Fault, Seen

_NOT_INSTALLED, _NOT_RUN = "not installed", "–"


def tables(found: Mapping[str, Any], scale: float) -> Iterator[Table]:
    """All of it.

    Args:
        found: what `failover.measure` returned.
        scale: that it was given.
    """
    rows = [_row(found, fault) for fault in FAULTS]
    passed = tuple(_passed(found, contestant) for contestant in benchmark.CONTESTANTS)
    yield Table(
        "A provider that fails",
        ("fault", *benchmark.CONTESTANTS),
        [*rows, TableRow("passed", passed)],
        "Each figure: whether it passes (✓) or not (✗), what the caller got, attempts at the primary + at the "
        "fallback, seconds of the slowest question. What a caller can get is the complete answer, a wrong one (cut "
        "short, or spliced, and handed out as whole), the provider's own error, or another error. The providers are "
        "OpenAI-compatible servers on loopback sockets, and both give the same answer of 24 tokens, as a stream. "
        f"Limits where there is a knob: {faults.TIMEOUT_SECONDS:g} s for a call, "
        f"{faults.FIRST_TOKEN_SECONDS:g} s for its first token; nobody was waited for longer than "
        f"{faults.CAP_SECONDS:g} s. The openai SDK comes with two retries and has nobody to fall back on. "
        "LiteLLM's Router has the fallback for any error and for a context too long, else its defaults. With tenacity "
        "(its defaults: any exception) and stamina (told which errors to retry, and to wait for Retry-After) the "
        "whole stream is tried three times, with exponential waits and jitter, then the fallback in the same way; the "
        "SDK below them makes no retries, and a silence of "
        f"{faults.FIRST_TOKEN_SECONDS:g} s ends an attempt. Each fault was run once, with times scaled by "
        f"{scale:g}"
        + ("; what a library lets nobody set, such as the SDK's own waits, is not scaled." if scale != 1 else "."),
    )


def _row(found: Mapping[str, Any], fault: Fault) -> TableRow:
    figures = tuple(_figure(found, contestant, fault) for contestant in benchmark.CONTESTANTS)
    of_ours = found.get(OURS)
    kept = None if of_ours is None else fault.passes(Seen.of(of_ours[fault.code]))
    return TableRow(f"{fault.code} {fault.what}", figures, fault.target, kept)


def _figure(found: Mapping[str, Any], contestant: str, fault: Fault) -> str:
    if contestant not in found:
        return _NOT_RUN
    if found[contestant] is None:
        return _NOT_INSTALLED
    seen = Seen.of(found[contestant][fault.code])
    complete = [reply for reply in seen.replies if reply.outcome == COMPLETE]
    outcome = seen.replies[0].outcome if len(seen.replies) == 1 else f"{len(complete)} of {len(seen.replies)}"
    untold = "" if all(reply.usage and reply.model for reply in complete) else ", model or tokens untold"
    mark = "✓" if fault.passes(seen) else "✗"
    return f"{mark} {outcome}, {len(seen.primary)} + {len(seen.fallback)}, {seen.seconds:.1f} s{untold}"


def _passed(found: Mapping[str, Any], contestant: str) -> str:
    if found.get(contestant) is None:
        return _NOT_RUN
    count = sum(fault.passes(Seen.of(found[contestant][fault.code])) for fault in FAULTS)
    return f"{count} of {len(FAULTS)}"
