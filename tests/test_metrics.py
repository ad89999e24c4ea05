"""Numbers that are counted together."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import MANY, ManyHistogram, exposition


@pytest.mark.parametrize("count", [1, MANY - 1, MANY, 100])
def test_many_numbers_at_once_count_like_one_after_the_other(count: int) -> None:
    registry = CollectorRegistry()
    amounts = [0.5 * number for number in range(count)]
    together = ManyHistogram("together", "All at once.", buckets=(1, 2, 10, 30), registry=registry)
    apart = ManyHistogram("apart", "One by one.", buckets=(1, 2, 10, 30), registry=registry)

    together.observe_all(amounts)
    for amount in amounts:
        apart.observe(amount)

    first, second = (
        {(sample.name.removeprefix(metric.name), *sample.labels.values()): sample.value for sample in metric.samples}
        for metric in registry.collect()
    )
    assert first == second
    assert first["_count",] == count


def test_the_name_of_every_sample_starts_with_loss() -> None:
    names = [
        sample.name for family in text_string_to_metric_families(exposition().decode()) for sample in family.samples
    ]

    assert "loss_process_resident_memory_bytes" in names
    assert [name for name in names if not name.startswith("loss_")] == []
