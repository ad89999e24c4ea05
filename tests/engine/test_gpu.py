"""On a CUDA device: the answers of the CPU within rounding, and rows whose bits depend on nothing but themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.engine import batch
from service.engine.scheduler import Engine
from service.errors import NonFinite, UndefinedMean
from service.ops import OPERATORS
from tests.support.asking import ask
from tests.support.batches import VARIANTS, batch_of, chosen, operator_of, same_bits
from tests.support.cases import cases

pytestmark = pytest.mark.gpu

every_operator = pytest.mark.parametrize("operator", OPERATORS)
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)


@pytest.fixture(scope="module")
def gpu() -> Iterator[Engine]:
    engine = Engine(torch.device("cuda"), threads=1)
    yield engine
    engine.close()


def close(got: Tensor, expected: Tensor) -> bool:
    """Whether two answers differ by no more than two ways to round the same terms."""
    unit = torch.finfo(got.dtype).eps
    computed = torch.finfo(torch.float64 if got.dtype == torch.float64 else torch.float32).eps
    size = expected.double().abs().max().nan_to_num(0.0, 0.0, 0.0) if expected.numel() else 0.0
    return got.dtype == expected.dtype and torch.allclose(
        got.double(), expected.double(), rtol=2 * unit, atol=float(500 * computed * size), equal_nan=True
    )


@every_operator
@pytest.mark.parametrize("gradient", [False, True])
def test_the_example_of_every_operator_is_answered_as_on_the_cpu(operator: str, gradient: bool, gpu: Engine) -> None:
    example = OPERATORS[operator].gradient_example if gradient else OPERATORS[operator].example
    fields = {
        name: torch.tensor(value, dtype=torch.int64 if name == "target" else torch.float32)
        for name, value in example.items()
    }

    answer = ask(operator, gradient=gradient, engine=gpu, **fields)

    for name, expected in ask(operator, gradient=gradient, **fields).items():
        assert answer[name].device.type == "cpu"
        assert close(answer[name], expected), name


@every_operator
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_generated_requests_are_answered_as_on_the_cpu(operator: str, gpu: Engine, data: st.DataObject) -> None:
    case = data.draw(cases(operator))

    answer = ask(operator, gradient=True, engine=gpu, **case.fields)

    for name, expected in ask(operator, gradient=True, **case.fields).items():
        assert close(answer[name], expected), name


@every_dtype
@every_variant
def test_a_row_alone_has_the_bits_it_has_in_a_batch(variant: str, dtype: torch.dtype, gpu: Engine) -> None:
    for classes in (1, 2, 3, 10, 64, 65, 255, 1000, 1025, 4097, 32_000):
        fields = batch_of(variant, 9, classes, dtype=dtype)
        together = ask(operator_of(variant), gradient=True, engine=gpu, **fields)

        for row in range(9):
            part = chosen(fields, slice(row, row + 1))
            alone = ask(operator_of(variant), gradient=True, engine=gpu, **part)
            for name, tensor in alone.items():
                assert same_bits(tensor, together[name][row : row + 1]), (name, classes, row)


@every_variant
def test_a_row_has_the_same_bits_wherever_it_begins_in_memory(variant: str, gpu: Engine) -> None:
    fields = batch_of(variant, 9, 50_257)  # odd: every row begins at another offset from what vectors are aligned to
    together = ask(operator_of(variant), gradient=True, engine=gpu, **fields)

    for row in range(9):
        alone = ask(operator_of(variant), gradient=True, engine=gpu, **chosen(fields, slice(row, row + 1)))
        for name, tensor in alone.items():
            assert same_bits(tensor, together[name][row : row + 1]), (name, row)


@every_variant
def test_permuting_rows_changes_no_bit(variant: str, gpu: Engine) -> None:
    for classes in (5, 1001):
        fields = batch_of(variant, 67, classes)
        order = torch.randperm(67, generator=torch.Generator().manual_seed(1))

        permuted = ask(operator_of(variant), gradient=True, engine=gpu, **chosen(fields, order))

        for name, expected in ask(operator_of(variant), gradient=True, engine=gpu, **fields).items():
            assert same_bits(permuted[name], expected[order]), (name, classes)


@every_variant
def test_cutting_into_blocks_changes_no_bit(variant: str, gpu: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = batch_of(variant, 60, 81)
    whole = ask(operator_of(variant), gradient=True, engine=gpu, **fields)
    monkeypatch.setattr(batch, "UNCUT_ELEMENTS", 0)

    for block_rows in (1, 7, 59):
        monkeypatch.setattr(batch, "CUDA_BLOCK_BYTES", block_rows * 81 * 4)
        answer = ask(operator_of(variant), gradient=True, engine=gpu, **fields)
        for name, expected in whole.items():
            assert same_bits(answer[name], expected), (name, block_rows)


@every_variant
def test_asking_again_changes_no_bit(variant: str, gpu: Engine) -> None:
    fields = batch_of(variant, 300, 5000)

    first, second = (ask(operator_of(variant), gradient=True, engine=gpu, **fields) for _ in range(2))

    assert all(same_bits(tensor, second[name]) for name, tensor in first.items())


def test_a_row_that_would_be_nan_is_named(gpu: Engine) -> None:
    logits = torch.zeros(50, 100)
    logits[17, 3] = torch.nan

    with pytest.raises(NonFinite) as caught:
        ask("softmax", engine=gpu, logits=logits)
    assert caught.value.pointer == "/logits/17"


def test_an_ignored_row_counts_nothing_whatever_it_holds(gpu: Engine) -> None:
    logits = torch.zeros(3, 4)
    logits[1] = torch.nan

    answer = ask("cross-entropy", gradient=True, engine=gpu, logits=logits, target=torch.tensor([1, -100, 3]))

    assert answer["loss"].isfinite()
    assert not answer["grad_logits"][1].any()


@pytest.mark.parametrize("fields", [{"target": torch.tensor([-100])}, {"target": torch.tensor(-100)}])
def test_a_mean_over_nothing_is_undefined(fields: dict[str, Any], gpu: Engine) -> None:
    shape = (*fields["target"].shape, 3)

    with pytest.raises(UndefinedMean):
        ask("cross-entropy", engine=gpu, logits=torch.zeros(shape), **fields)


def test_no_rows_give_empty_results(gpu: Engine) -> None:
    answer = ask("softmax", gradient=True, engine=gpu, logits=torch.zeros(0, 5), grad_output=torch.zeros(0, 5))

    assert answer["grad_logits"].shape == (0, 5)
