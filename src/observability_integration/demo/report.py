"""Prints the results of the demonstration: a table, a scrape to check it against, and one trace as a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from observability_integration.telemetry.tracing.trace_memory import RememberedSpan

from .run import Cost, RunResult, quantile
from .scrape import Samples

# The metric families that are printed; the table is checked against some of them.
SHOWN_FAMILIES = (
    "router_decisions_total",
    "router_cost_savings_usd_total",
    "router_errors_total",
    "cache_hits_total",
    "cache_misses_total",
    "cache_hit_rate",
    "cache_latency_seconds_count",
    "cache_cost_savings_usd_total",
    "timeout_successes_total",
    "timeout_failures_total",
    "timeout_errors_total",
    "timeout_rate",
    "gen_ai_client_operation_duration_seconds_count",
    "gen_ai_client_token_usage_sum",
)
_SHOWN_ATTRIBUTES = (
    "cache.hit",
    "router.route",
    "router.reason",
    "outcome",
    "gen_ai.response.model",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "error.type",
)


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """One figure from two independent counts.

    Attributes:
        what: name of the figure.
        scraped: count of the primitives, from the scrape.
        seen: count of the provider or of the callers.
    """

    what: str
    scraped: float
    seen: float

    @property
    def agrees(self) -> bool:
        """Whether both counts are the same."""
        return self.scraped == self.seen


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"


def print_table(console: Console, result: RunResult, samples: Samples, cost: Cost | None, speed: float) -> None:
    """Prints the figures of the run."""
    requests = len(result.latencies_seconds)
    hits, misses = samples.total("cache_hits_total"), samples.total("cache_misses_total")
    table = Table(title="What the callers saw", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("requests", f"{requests:,} in {result.seconds:.1f} s")
    for name in ("answered", "timed out", "failed"):
        table.add_row(name, f"{result.outcomes[name]:,}")
    if result.wrong:
        table.add_row("wrong answers", f"{result.wrong:,}", style="red")
    table.add_row("hit rate", f"{hits / (hits + misses):.1%}  ({hits:,.0f} of {hits + misses:,.0f})")
    decisions = samples.by_label("router_decisions_total", "route")
    total = sum(decisions.values()) or 1
    shares = ", ".join(f"{route} {count / total:.1%}" for route, count in sorted(decisions.items()) if count)
    table.add_row("route shares", shares)
    table.add_row("timeouts", f"{samples.total('timeout_failures_total'):,.0f}")
    for share in (0.50, 0.95, 0.99):
        table.add_row(f"p{share * 100:.0f}", _milliseconds(quantile(result.latencies_seconds, share)))
    if cost is None:
        table.add_row("cost", "unknown: no prices are known for these models")
    else:
        table.add_row("cost with the primitives (simulated)", f"${cost.with_primitives:.4f}")
        table.add_row("cost without (simulated)", f"${cost.without_primitives:.4f}")
        if cost.without_primitives:
            saved = 1 - cost.with_primitives / cost.without_primitives
            table.add_row("saved (simulated)", f"{saved:.1%}")
    console.print(table)
    if speed != 1:
        console.print(
            f"Provider and arrivals run {speed:g} times as fast as life; latencies are as measured.", style="dim"
        )
    if cost is not None:
        console.print(
            "Prices are simulated. Without: every answered request sent to the premium model, nothing cached.",
            style="dim",
        )


def print_scrape(console: Console, url: str, samples: Samples, checks: Sequence[CrossCheck]) -> bool:
    """Prints the lines of the scrape; returns whether all `checks` agree."""
    console.print(Text(f"\nScrape of {url}", style="bold"))
    for line in samples.lines(SHOWN_FAMILIES):
        console.print(Text(f"  {line}"), soft_wrap=True)
    console.print(Text("\nCounted twice", style="bold"))
    for check in checks:
        mark, style = ("agree", "green") if check.agrees else ("DIFFER", "red")
        console.print(
            Text(f"  {mark}  {check.what}: {check.scraped:,.0f} scraped, {check.seen:,.0f} seen", style=style)
        )
    return all(check.agrees for check in checks)


def print_trace(console: Console, spans: Sequence[RememberedSpan]) -> None:
    """Prints one trace as a tree."""
    children: dict[str | None, list[RememberedSpan]] = {}
    known = {span.span_id for span in spans}
    for span in spans:
        children.setdefault(span.parent_id if span.parent_id in known else None, []).append(span)
    console.print(Text(f"\nTrace {spans[0].trace_id}", style="bold"))

    def add_children(tree: Tree, parent: str | None) -> None:
        for span in children.get(parent, []):
            add_children(tree.add(_line(span)), span.span_id)

    for root in children[None]:
        tree = Tree(_line(root))
        add_children(tree, root.span_id)
        console.print(tree)


def _line(span: RememberedSpan) -> Text:
    attributes = " ".join(f"{key}={span.attributes[key]}" for key in _SHOWN_ATTRIBUTES if key in span.attributes)
    text = Text(f"{span.name}  ")
    text.append(f"{span.duration_ms:.1f} ms  {span.kind}", style="cyan")
    text.append(f"  {attributes}", style="red" if span.status == "error" else "dim")
    return text
