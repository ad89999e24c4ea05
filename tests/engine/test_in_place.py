"""A result that takes the place of its input has the bits of one that does not, and nothing needed is overwritten."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.engine.batch import BLOCK_BYTES
from service.engine.scheduler import Engine
from service.errors import NonFinite
from service.ops import OPERATORS
from service.ops.bind import Job, bind
from tests.support.asking import CPU, all_outputs, message_of
from tests.support.batches import VARIANTS, batch_of, operator_of, same_bits
from tests.support.cases import Case, cases

ROWS_PER_BLOCK = BLOCK_BYTES // (1024 * 4)
"""Rows of 1024 float32."""

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def job_over(variant: str, fields: dict[str, Any], *, gradient: bool, owns_memory: bool) -> Job:
    """Return the job of a request whose tensors lie in memory of their own, which may be overwritten or not."""
    copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in fields.items()}
    message = message_of({name: value for name, value in copies.items() if gradient or name != "grad_output"})
    message.owns_memory = owns_memory
    return bind(OPERATORS[operator_of(variant)], message, gradient=gradient)


def check(variant: str, fields: dict[str, Any], *, gradient: bool, engine: Engine = CPU) -> None:
    """Assert that owning the memory changes no bit."""
    answers = [
        engine.compute(job_over(variant, fields, gradient=gradient, owns_memory=owns)).tensors for owns in (False, True)
    ]

    assert list(answers[0]) == list(answers[1])
    for name, tensor in answers[0].items():
        assert tensor.shape == answers[1][name].shape
        assert same_bits(tensor, answers[1][name]), name


def output_sets(variant: str, *, gradient: bool) -> list[list[str] | None]:
    """Return the default outputs, all of them, each alone, and each with the loss."""
    names = all_outputs(operator_of(variant), gradient=gradient, soft="soft" in variant.replace("softmax", ""))
    return [None, names, *([name] for name in names), *(["loss", name] for name in names[1:] if names[0] == "loss")]


def requests() -> list[Any]:
    return [
        pytest.param(variant, gradient, outputs, id=f"{variant}{'/gradient' if gradient else ''}-{outputs}")
        for variant in VARIANTS
        for gradient in (False, True)
        for outputs in output_sets(variant, gradient=gradient)
    ]


def in_layout(fields: dict[str, Any], place: str) -> dict[str, Any]:
    """Return a request of [rows, classes] with the classes last, in the middle, or first."""
    if place == "last":
        return fields
    by_class = ("logits", "log_probs", "grad_output", "target")
    turned = dict(fields) | {"class_dim": 1 if place == "middle" else 0}
    for name in by_class:
        tensor = fields.get(name)
        if not isinstance(tensor, Tensor):
            continue
        if tensor.ndim == 1:
            turned[name] = tensor.view(2, -1) if place == "middle" else tensor
        else:
            turned[name] = (tensor.view(2, -1, tensor.shape[1]).mT if place == "middle" else tensor.T).contiguous()
    return turned


@pytest.mark.parametrize("place", ["last", "middle", "first"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("variant", "gradient", "outputs"), requests())
def test_owning_the_memory_changes_no_bit(
    variant: str, gradient: bool, outputs: list[str] | None, dtype: torch.dtype, place: str
) -> None:
    for classes in (5, 130):
        fields = in_layout(batch_of(variant, 24, classes, dtype=dtype), place) | {"outputs": outputs}

        check(variant, fields, gradient=gradient)


@pytest.mark.parametrize("options", [{"accuracy": "accurate"}, {"temperature": 0.7}, {"reduction": "sum"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("variant", "gradient", "outputs"), requests())
def test_nor_does_any_option(
    variant: str, gradient: bool, outputs: list[str] | None, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    fields = batch_of(variant, 24, 130, dtype=dtype) | {"outputs": outputs}
    declared = OPERATORS[operator_of(variant)].options.model_fields
    fields |= {name: value for name, value in options.items() if name in declared}
    if fields.get("reduction") == "sum":
        fields["grad_output"] = torch.tensor(0.5)

    check(variant, fields, gradient=gradient)


@pytest.mark.parametrize("place", ["last", "middle"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("variant", "gradient", "outputs"), requests())
def test_nor_does_cutting_into_blocks(
    *,
    variant: str,
    gradient: bool,
    outputs: list[str] | None,
    dtype: torch.dtype,
    place: str,
    cut_into: Callable[[int], None],
    two_workers: Engine,
) -> None:
    cut_into(5 * 130 * 8)
    fields = in_layout(batch_of(variant, 24, 130, dtype=dtype), place) | {"outputs": outputs}

    check(variant, fields, gradient=gradient, engine=two_workers)


@pytest.mark.parametrize("operator", OPERATORS)
def test_nor_for_any_request(operator: str) -> None:
    @given(case=cases(operator), data=st.data())
    def law(case: Case, data: st.DataObject) -> None:
        gradient = data.draw(st.booleans())
        names = all_outputs(operator, gradient=gradient, soft=case.is_soft)
        outputs = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))

        check(operator, case.fields | {"outputs": outputs}, gradient=gradient)

    law()


@pytest.mark.parametrize(
    ("variant", "gradient", "outputs", "replaced"),
    [
        ("softmax", False, ["probs"], "probs"),
        ("softmax", False, ["probs", "logsumexp"], None),
        ("softmax", True, ["probs", "grad_logits"], None),
        ("softmax", True, ["grad_logits"], "grad_logits"),
        ("log-softmax", False, ["log_probs"], "log_probs"),
        ("nll-loss", True, ["loss", "total_weight", "grad_log_probs"], "grad_log_probs"),
        ("cross-entropy", True, ["loss", "total_weight", "grad_logits"], "grad_logits"),
        ("cross-entropy", True, ["log_probs", "grad_logits"], None),
        ("cross-entropy, soft", True, ["grad_target"], None),
        ("cross-entropy, soft", True, ["grad_logits", "grad_target"], None),
    ],
)
def test_a_result_takes_the_place_of_its_input_where_nothing_else_needs_it(
    variant: str, gradient: bool, outputs: list[str], replaced: str | None
) -> None:
    for owns_memory in (False, True):
        job = job_over(
            variant, batch_of(variant, 4, 130) | {"outputs": outputs}, gradient=gradient, owns_memory=owns_memory
        )
        taken = job.first.data_ptr()

        answer = CPU.compute(job)

        inside = [name for name, tensor in answer.tensors.items() if tensor.data_ptr() == taken]
        assert inside == ([replaced] if replaced and owns_memory else [])


def test_a_refused_row_is_found_in_place_too() -> None:
    logits = torch.zeros(6, 130)
    logits[4, 7] = torch.nan

    for outputs in (["probs"], ["grad_logits"]):
        fields = {"logits": logits, "grad_output": torch.ones(6, 130), "outputs": outputs}
        with pytest.raises(NonFinite, match="row 4"):
            CPU.compute(job_over("softmax", fields, gradient=True, owns_memory=True))


def test_other_inputs_are_left_alone() -> None:
    fields = batch_of("cross-entropy, soft", 24, 130) | {"outputs": ["loss", "grad_logits"]}
    job = job_over("cross-entropy, soft", fields, gradient=True, owns_memory=True)

    CPU.compute(job)

    assert same_bits(job.tensors["target"].view(24, 130), fields["target"])


def test_memory_of_others_is_never_given_to_the_pool() -> None:
    engine = Engine(torch.device("cpu"), threads=1)
    job = job_over(
        "softmax", {"logits": torch.zeros(3000, 600), "outputs": ["probs"]}, gradient=False, owns_memory=True
    )

    engine.compute(job).release()

    assert engine.buffers.kept_bytes == 0


@pytest.mark.parametrize("rows", [8 * ROWS_PER_BLOCK, 32 * ROWS_PER_BLOCK])
def test_beside_its_input_a_job_of_another_type_needs_two_blocks_however_many_it_has(rows: int) -> None:
    engine = Engine(torch.device("cpu"), threads=1)
    fields = {"logits": torch.zeros(rows, 1024, dtype=torch.float16), "target": torch.zeros(rows, dtype=torch.int64)}

    engine.compute(job_over("cross-entropy", fields, gradient=True, owns_memory=True)).release()

    assert engine.buffers.kept_bytes == 2 * BLOCK_BYTES


def test_memory_of_a_block_that_fails_is_given_back() -> None:
    engine = Engine(torch.device("cpu"), threads=1)
    logits = torch.zeros(8 * ROWS_PER_BLOCK, 1024, dtype=torch.float16)
    job = job_over("softmax", {"logits": logits, "outputs": ["probs"]}, gradient=False, owns_memory=True)

    def fail(*_: object) -> bool:
        raise RuntimeError("of the test's own making")

    failing = dataclasses.replace(job.operator, forward=fail)
    with pytest.raises(RuntimeError, match="own making"):
        engine.compute(dataclasses.replace(job, plan=dataclasses.replace(job.plan, operator=failing)))

    assert engine.buffers.kept_bytes == 2 * BLOCK_BYTES
