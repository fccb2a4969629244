"""Writes the generated parts of the documentation: docs/metrics.md, and the metric table in README.md.

Run by ``make docs``. With ``--check`` nothing is written, and the exit code is 1 when something is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from observability_integration.telemetry.catalogue import CATALOGUE, Kind, MetricSpec, Profile

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- metrics:begin -->", "<!-- metrics:end -->"
HEAD = """# Metrics

Generated from the catalogue (`make docs`). A histogram has `_bucket`, `_sum` and `_count` series. Each label set beyond
2,000 of a metric is added up in one series labelled `otel_metric_overflow="true"`.
"""


def _labels(spec: MetricSpec) -> str:
    return ", ".join(f"`{label}`" for label in spec.prometheus_labels)


def _table(specs: list[MetricSpec]) -> list[str]:
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    lines += [f"| `{s.prometheus_name}` | {s.kind.value} | {_labels(s)} | {s.description} |" for s in specs]
    return lines


def metrics_page() -> str:
    """The text of docs/metrics.md."""
    parts = [HEAD]
    for title, profile in (
        ("Ours", Profile.ALWAYS),
        ("gen_ai, profile `v1.41` (the default) and `both`", Profile.V1_41),
        ("gen_ai, profile `latest` and `both`", Profile.LATEST),
    ):
        specs = [spec for spec in CATALOGUE if spec.profile is profile]
        parts += [f"\n## {title}\n", *_table(specs)]
    parts.append("\n## Buckets\n")
    parts += ["| metric | instrument | unit | upper bounds |", "|---|---|---|---|"]
    for spec in CATALOGUE:
        if spec.kind is Kind.HISTOGRAM:
            bounds = " ".join(f"{bound:g}" for bound in spec.buckets)
            parts.append(f"| `{spec.prometheus_name}` | `{spec.name}` | {spec.unit or '1'} | {bounds} |")
    return "\n".join(parts) + "\n"


def readme(text: str) -> str:
    """README.md with the metric table put in anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    specs = [spec for spec in CATALOGUE if spec.profile in (Profile.ALWAYS, Profile.V1_41)]
    return "\n".join([before + BEGIN, *_table(specs), END + after])


def main() -> int:
    """Writes or checks; 1 when a check fails."""
    page, front = ROOT / "docs" / "metrics.md", ROOT / "README.md"
    wanted = {page: metrics_page(), front: readme(front.read_text(encoding="utf-8"))}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
