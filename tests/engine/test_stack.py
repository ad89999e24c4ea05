"""Requests that share a launch get the answers, and the refusals, that each of them gets alone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from service.engine.batch import Answer
from service.engine.scheduler import Engine
from service.engine.stack import Stack, stack_key
from service.errors import NonFinite, RequestError, UndefinedMean
from service.ops.bind import Job
from tests.support.asking import CPU, job_of
from tests.support.batches import VARIANTS, batch_of, operator_of, same_bits

STACKED = [variant for variant in VARIANTS if "weighted" not in variant and variant != "nll-loss"] + [
    "nll-loss, unweighted",
    "cross-entropy, smoothed",
]
"""Weights belong to a request, so that weighted requests are computed alone."""

every_variant = pytest.mark.parametrize("variant", STACKED)
every_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)


def requests(variant: str, classes: int, dtype: torch.dtype = torch.float32) -> Iterator[dict[str, Any]]:
    """Yield requests of one key with different rows, reductions and upstream gradients."""
    for seed, rows in enumerate((1, 8, 3, 17, 8, 64)):
        fields = batch_of(variant, rows, classes, dtype=dtype, seed=seed)
        fields.pop("weight", None)
        yield fields
        if "reduction" in fields:
            upstream = torch.tensor(0.5 + seed)
            yield fields | {"reduction": "mean", "grad_output": upstream}
            yield fields | {"reduction": "sum", "grad_output": None}
            yield fields | {"reduction": "mean", "normalizer": 3.0 + seed, "grad_output": None}


def jobs_of(variant: str, fields: list[dict[str, Any]], *, gradient: bool) -> list[Job]:
    if not gradient:
        fields = [
            {name: value for name, value in each.items() if name not in ("grad_output", "outputs")} for each in fields
        ]
    return [job_of(operator_of(variant), gradient=gradient, **each) for each in fields]


def alone(job: Job) -> dict[str, torch.Tensor]:
    answer = CPU.compute(job)
    return {name: tensor.clone() for name, tensor in answer.tensors.items()}


def outcomes_of(jobs: list[Job]) -> list[Answer | RequestError | None]:
    stack = Stack(jobs, torch.device("cpu"))
    stack.compute()
    return stack.outcomes


@every_dtype
@pytest.mark.parametrize("gradient", [False, True])
@every_variant
def test_stacking_changes_no_bit(variant: str, gradient: bool, dtype: torch.dtype) -> None:
    for classes in (1, 10, 33, 513):
        jobs = jobs_of(variant, list(requests(variant, classes, dtype)), gradient=gradient)
        random.Random(classes).shuffle(jobs)
        assert len({stack_key(job) for job in jobs}) == 1

        for job, outcome in zip(jobs, outcomes_of(jobs), strict=True):
            assert isinstance(outcome, Answer)
            expected = alone(job)
            assert list(outcome.tensors) == list(expected)
            for name, tensor in expected.items():
                assert outcome.tensors[name].shape == tensor.shape
                assert same_bits(outcome.tensors[name], tensor), name


@every_variant
def test_stacked_inputs_are_not_written_to(variant: str) -> None:
    jobs = jobs_of(variant, list(requests(variant, 10)), gradient=True)
    before = [{name: tensor.clone() for name, tensor in job.tensors.items()} for job in jobs]

    outcomes_of(jobs)

    for job, tensors in zip(jobs, before, strict=True):
        assert all(torch.equal(job.tensors[name], tensor) for name, tensor in tensors.items())


def cross_entropy(logits: torch.Tensor, target: list[int], **options: Any) -> Job:
    return job_of("cross-entropy", gradient=True, logits=logits, target=torch.tensor(target), **options)


def test_a_refusal_in_a_stack_is_the_one_that_the_request_gets_alone() -> None:
    bad = torch.zeros(4, 10)
    bad[2, 3] = torch.nan
    jobs = [
        cross_entropy(torch.randn(4, 10), [0, 1, 2, 3]),
        cross_entropy(bad, [0, 1, 2, 3]),
        cross_entropy(torch.randn(2, 10), [-100, -100]),
        cross_entropy(torch.randn(4, 10), [4, 5, 6, 7]),
    ]
    assert len({stack_key(job) for job in jobs}) == 1

    outcomes = outcomes_of(jobs)

    assert [type(outcome) for outcome in outcomes] == [Answer, NonFinite, UndefinedMean, Answer]
    for job, outcome in zip(jobs, outcomes, strict=True):
        if isinstance(outcome, RequestError):
            with pytest.raises(type(outcome)) as caught:
                CPU.compute(job)
            assert (caught.value.detail, caught.value.pointer) == (outcome.detail, outcome.pointer)


def test_a_nan_that_one_request_asks_for_is_not_refused_to_it_nor_given_to_others() -> None:
    bad = torch.full((1, 10), torch.nan)
    jobs = [cross_entropy(bad, [0], non_finite="propagate"), cross_entropy(bad, [0])]

    asked, refused = outcomes_of(jobs)

    assert isinstance(asked, Answer)
    assert asked.tensors["loss"].isnan()
    assert isinstance(refused, NonFinite)


@pytest.mark.parametrize(
    "changes",
    [
        {"label_smoothing": 0.1},
        {"temperature": 2.0},
        {"accuracy": "accurate"},
        {"outputs": ["loss"]},
        {"logits": torch.zeros(4, 11)},
        {"logits": torch.zeros(4, 10, dtype=torch.float64)},
        {"target": torch.rand(4, 10)},
    ],
    ids=str,
)
def test_what_rows_feel_is_not_stacked(changes: dict[str, Any]) -> None:
    fields = {"logits": torch.zeros(4, 10), "target": torch.zeros(4, dtype=torch.int64)}

    assert stack_key(job_of("cross-entropy", gradient=True, **fields)) != stack_key(
        job_of("cross-entropy", gradient=True, **(fields | changes))
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"logits": torch.zeros(4, 10), "target": torch.zeros(4, dtype=torch.int64), "weight": torch.ones(10)},
        {"logits": torch.zeros(4, 10, 3), "target": torch.zeros(4, 3, dtype=torch.int64)},
        {"logits": torch.zeros(0, 10), "target": torch.zeros(0, dtype=torch.int64)},
        {"logits": torch.zeros(4, 10), "target": torch.zeros(4, dtype=torch.int64), "outputs": ["total_weight"]},
    ],
    ids=["weight", "inner", "empty", "scalar"],
)
def test_what_cannot_be_stacked_has_no_key(fields: dict[str, Any]) -> None:
    assert stack_key(job_of("cross-entropy", **fields)) is None


def test_jobs_of_one_turn_of_the_event_loop_are_computed_together_with_the_same_bits() -> None:
    engine = Engine(torch.device("cpu"), threads=1)
    jobs = [cross_entropy(torch.randn(8, 10), [1] * 8) for _ in range(20)]
    jobs += [cross_entropy(torch.randn(8, 10), [1] * 8, reduction="sum") for _ in range(5)]
    jobs += [job_of("softmax", logits=torch.randn(3, 7)) for _ in range(5)] + [job_of("softmax", logits=torch.zeros(5))]
    launches: list[int] = []
    real = Stack.compute

    def counted(stack: Stack) -> None:
        launches.append(len(stack.outcomes))
        real(stack)

    async def together() -> list[Answer]:
        return list(await asyncio.gather(*map(engine.compute_together, jobs)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stack, "compute", counted)
        answers = asyncio.run(together())

    assert sorted(launches) == [5, 25]
    for job, answer in zip(jobs, answers, strict=True):
        for name, tensor in alone(job).items():
            assert same_bits(answer.tensors[name], tensor)
