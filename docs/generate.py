"""Writes docs/metrics.md from the catalogue of metrics.

Run by ``make docs``. With ``--check`` nothing is written, and the exit code is 1 when the page is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from observability_integration.telemetry.catalogue import CATALOGUE, Kind, MetricSpec, Profile

ROOT = Path(__file__).parents[1]
HEAD = """# Metrics

This page is generated from the catalogue of metrics (`make docs`). Names are those of a scrape. A histogram has
`_bucket`, `_sum` and `_count` series. A metric has at most 2,000 label sets; measurements of any further set are added
up in one series labelled `otel_metric_overflow="true"`.
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
        ("Primitives and telemetry", Profile.ALWAYS),
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


def main() -> int:
    """Writes or checks the page; returns 1 when the check fails."""
    page, text = ROOT / "docs" / "metrics.md", metrics_page()
    current = page.exists() and page.read_text(encoding="utf-8") == text
    if "--check" in sys.argv[1:]:
        return 0 if current else 1
    if not current:
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
