"""Says which metrics the dashboard or the rules name that `/metrics` does not have."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from service import metrics
from service.ops import OPERATORS

HERE = Path(__file__).parent

SCRAPED = {"up"}
"""Metrics that Prometheus makes itself."""


def expressions() -> Iterator[str]:
    """Yield every PromQL expression of the dashboard and the rules."""
    dashboard = json.loads((HERE / "grafana/dashboards/loss-service.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    rules = (HERE / "prometheus/rules.yml").read_text()
    yield from re.findall(r"expr: (?:>-\n)?((?:.*\n)+?) +for:", rules)


def names_in(expression: str) -> set[str]:
    """Return the names of the metrics in an expression: what is followed by a selector, a range, or nothing."""
    without_labels = re.sub(r"\b(?:by|without)\s*\([^)]*\)|\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"", " ", expression)
    words = re.findall(r"\b[a-z][a-z0-9_]*\b(?!\s*\()", without_labels)
    return set(words) - {"by", "without", "and", "or"}


def exposed() -> set[str]:
    """Return the names of the samples and families that the service exposes."""
    for operator in OPERATORS:
        metrics.EndpointMetrics(operator, gradient=False, formats=["json"], codes=[])
    metrics.note_gpu_memory("cuda:0", allocated=0, cached=0)
    names = set()
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        names.update(sample.name for sample in family.samples)
    return names


def main() -> int:
    """Print the names that do not exist; 1 when there are any."""
    named = set().union(*map(names_in, expressions()))
    unknown = named - exposed() - SCRAPED
    for name in sorted(unknown):
        print(f"{name} is not in /metrics")
    print(f"{len(named)} names, {len(unknown)} unknown")
    return 1 if unknown or len(named) < 10 else 0


if __name__ == "__main__":
    sys.exit(main())
