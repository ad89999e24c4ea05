"""A batch larger than the service takes has the results of the whole, whatever it is cut into."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_client import LossClient, Progress, ServiceError
from loss_client.problems import (
    ContentTooLargeError,
    NonFiniteError,
    ShapeMismatchError,
    TargetOutOfRangeError,
    UndefinedMeanError,
)
from loss_client.splitting import boxes

from tests.client.conftest import KEY, LIMIT
from tests.support.asking import ask
from tests.support.batches import same_bits
from tests.support.running import RunningService

RANDOM = torch.Generator().manual_seed(5)
CLASSES = 50


def logits_of(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=RANDOM) * 3


def indices_of(*shape: int) -> torch.Tensor:
    target = torch.randint(CLASSES, shape, generator=RANDOM)
    return target.masked_fill(torch.rand(shape, generator=RANDOM) < 0.2, -100)


def large(**fields: Any) -> dict[str, Any]:
    return {"logits": logits_of(4000, CLASSES), "target": indices_of(4000), **fields}


WEIGHT = torch.rand(CLASSES, generator=RANDOM) + 0.1
SOFT = torch.rand(4000, CLASSES, generator=RANDOM)
EVERYTHING = ["loss", "total_weight", "log_probs", "logsumexp", "grad_logits"]

CASES: dict[str, dict[str, Any]] = {
    "mean": large(),
    "every output": large(outputs=EVERYTHING),
    "sum": large(reduction="sum"),
    "none": large(reduction="none", grad_output=torch.randn(4000, generator=RANDOM)),
    "weighted": large(weight=WEIGHT, label_smoothing=0.1, temperature=2.0),
    "weighted in half precision": large(weight=WEIGHT.bfloat16()),
    "ignoring class 3": large(ignore_index=3, target=torch.randint(CLASSES, (4000,), generator=RANDOM)),
    "small targets": large(target=torch.randint(CLASSES, (4000,), generator=RANDOM, dtype=torch.uint8)),
    "upstream": large(grad_output=torch.tensor(3.0)),
    "normalizer": large(normalizer=12.5),
    "soft": large(target=SOFT),
    "soft, weighted, with its gradient": large(target=SOFT, weight=WEIGHT, outputs=[*EVERYTHING, "grad_target"]),
    "soft, none": large(target=SOFT, reduction="none", outputs=["loss", "grad_target"]),
    "half": large(logits=logits_of(8000, CLASSES).bfloat16(), target=indices_of(8000)),
    "double": large(logits=logits_of(4000, CLASSES).double()),
    "classes in the middle": large(logits=logits_of(300, CLASSES, 6), target=indices_of(300, 6), outputs=EVERYTHING),
    "classes last": large(logits=logits_of(30, 60, CLASSES), target=indices_of(30, 60), class_dim=-1),
    "classes first": large(logits=logits_of(CLASSES, 4000), class_dim=0, target=indices_of(4000), outputs=EVERYTHING),
    "few in the first dimension": large(logits=logits_of(2, CLASSES, 40, 50), target=indices_of(2, 40, 50)),
    "weights that sum to less than nothing": large(weight=-WEIGHT),
}


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_cut_batch_has_the_results_of_the_whole(client: LossClient, case: str, gradient: bool) -> None:
    fields = dict(CASES[case])
    if not gradient:
        fields.pop("grad_output", None)
        if "outputs" in fields:
            fields["outputs"] = [name for name in fields["outputs"] if not name.startswith("grad")]
    expected = ask("cross-entropy", gradient=gradient, **fields)

    tensors = {name: fields.pop(name, None) for name in ("logits", "target", "weight", "grad_output")}
    answer = client.compute("cross-entropy", tensors, fields, gradient=gradient)

    assert len(answer.request_ids) > 1
    assert list(answer) == list(expected) or set(answer) == set(expected)
    for name, value in expected.items():
        if name == "loss" and value.ndim == 0:
            # Each part's loss is rounded once, and so is their sum: half a unit of each.
            exact = ask("cross-entropy", **{**CASES[case], "grad_output": None, "outputs": ["loss"]})["loss"]
            torch.testing.assert_close(answer[name], exact, rtol=torch.finfo(exact.dtype).eps, atol=0)
        elif "sum to less" in case:
            torch.testing.assert_close(answer[name], value, rtol=1e-6, atol=1e-9)
        else:
            assert same_bits(answer[name], value), name


@pytest.mark.parametrize("operator", ["softmax", "log-softmax"])
def test_what_is_not_reduced_is_cut_too(client: LossClient, operator: str) -> None:
    fields: dict[str, Any] = {"logits": logits_of(300, CLASSES, 9), "grad_output": logits_of(300, CLASSES, 9)}

    answer = client.compute(operator, fields, gradient=True)

    assert len(answer.request_ids) > 1
    for name, value in ask(operator, gradient=True, **fields).items():
        assert same_bits(answer[name], value)


def test_parts_are_as_few_as_the_limit_allows(client: LossClient) -> None:
    logits = np.zeros((4096, 64), "float32")

    answer = client.softmax(logits)

    assert len(answer.request_ids) == -(-logits.nbytes // (LIMIT - 4096))


def test_the_limit_is_learned_from_a_refusal(service: RunningService) -> None:
    with LossClient(service.address, api_key=KEY) as fresh:
        logits = np.zeros((LIMIT // 64, 32), "float32")  # small enough to be tried at first

        answers = [fresh.softmax(logits) for _ in range(2)]

    assert [len(answer.request_ids) for answer in answers] == [3, 3]
    np.testing.assert_array_equal(answers[0].probs, np.full_like(logits, 1 / 32))


def test_a_row_that_is_too_large_cannot_be_cut(client: LossClient) -> None:
    with pytest.raises(ContentTooLargeError) as caught:
        client.softmax(np.zeros((2, LIMIT), "float32"))

    assert caught.value.limit == LIMIT


def test_a_problem_in_a_part_is_told_as_one_of_the_whole(client: LossClient) -> None:
    case = large()
    case["target"][3333] = CLASSES
    with pytest.raises(TargetOutOfRangeError) as of_target:
        client.cross_entropy(case["logits"], case["target"])
    case = large(logits=logits_of(CLASSES, 4000))
    case["logits"][7, 2222] = torch.nan
    with pytest.raises(NonFiniteError) as of_row:
        client.log_softmax(case["logits"].T.contiguous())

    assert of_target.value.pointer == "/target/3333"
    assert of_row.value.pointer == "/logits/2222"
    part = of_target.value.problem.part
    assert part is not None
    first, last = map(int, part.removeprefix("rows [").removesuffix("]").split(":"))
    assert first <= 3333 < last
    assert f"of {part}" in str(of_target.value)


def test_tensors_that_do_not_fit_are_never_cut(client: LossClient) -> None:
    with pytest.raises((ShapeMismatchError, ContentTooLargeError)):
        client.cross_entropy(logits_of(4000, CLASSES), indices_of(3999))


@pytest.mark.parametrize("gradient", [False, True])
def test_a_mean_over_nothing_is_refused_or_nan_as_without_cutting(client: LossClient, gradient: bool) -> None:
    tensors = large(target=torch.full((4000,), -100))
    with pytest.raises(UndefinedMeanError) as caught:
        client.compute("cross-entropy", tensors, gradient=gradient)
    answer = client.compute("cross-entropy", tensors, {"non_finite": "propagate"}, gradient=gradient)

    with pytest.raises(ServiceError) as uncut:
        client.compute("cross-entropy", {name: part[:10] for name, part in tensors.items()}, gradient=gradient)
    assert (caught.value.code, caught.value.status, caught.value.title, caught.value.detail) == (
        uncut.value.code,
        uncut.value.status,
        uncut.value.title,
        uncut.value.detail,
    )
    assert answer["loss"].isnan()
    assert answer["total_weight"] == 0
    if gradient:
        assert not answer["grad_logits"].any()


@given(st.lists(st.integers(1, 7), max_size=4), st.integers(1, 40))
def test_boxes_hold_every_row_once_in_order_and_never_too_many(sizes: list[int], most: int) -> None:
    shape = tuple(sizes)
    numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape)

    parts = [numbers[box].reshape(-1) for box in boxes(shape, most)]

    assert all(0 < len(part) <= most for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), numbers.reshape(-1))


def test_progress_counts_rows_and_bytes_to_the_end(client: LossClient) -> None:
    reports: list[Progress] = []
    logits = logits_of(4000, CLASSES)

    client.softmax(logits, progress=reports.append)

    assert [report.is_done for report in reports] == [False] * (len(reports) - 1) + [True]
    assert reports[-1].rows == reports[-1].rows_done == 4000
    assert reports[-1].bytes_received >= logits.nbytes
    assert [report.fraction for report in reports] == sorted(report.fraction for report in reports)
    assert reports[-1].fraction == 1
