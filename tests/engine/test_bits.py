"""A row has the same bits alone and in any batch, however it is cut, spread, permuted or laid out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from service.engine.batch import Execution
from service.engine.buffers import BufferPool
from service.engine.scheduler import Engine
from tests.support.asking import CPU, all_outputs, ask, job_of
from tests.support.batches import VARIANTS, batch_of, chosen, operator_of, same_bits

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)

CLASSES = (1, 2, 3, 7, 10, 16, 33, 64, 65, 100, 255, 1000, 4097)
"""Short rows (computed in float64) and longer ones, with and without a rest after whole vectors."""


def answers_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert same_bits(tensor, second[name]), name


@every_dtype
@every_variant
def test_a_row_alone_has_the_bits_it_has_in_a_batch(variant: str, dtype: torch.dtype) -> None:
    for classes in CLASSES:
        fields = batch_of(variant, 19, classes, dtype=dtype)
        together = ask(operator_of(variant), gradient=True, **fields)

        for row in range(19):
            alone = ask(operator_of(variant), gradient=True, **chosen(fields, slice(row, row + 1)))
            answers_equal(alone, {name: tensor[row : row + 1] for name, tensor in together.items()})


@every_variant
def test_a_row_in_a_batch_of_any_size_has_the_same_bits(variant: str) -> None:
    fields = batch_of(variant, 130, 70)
    together = ask(operator_of(variant), gradient=True, **fields)

    for count in (2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 129):
        part = ask(operator_of(variant), gradient=True, **chosen(fields, slice(130 - count, 130)))
        answers_equal(part, {name: tensor[130 - count :] for name, tensor in together.items()})


@every_variant
def test_a_long_row_alone_has_the_bits_it_has_in_a_batch(variant: str) -> None:
    for classes in (32_000, 262_144 + 3):
        fields = batch_of(variant, 3, classes)
        together = ask(operator_of(variant), gradient=True, **fields)

        alone = ask(operator_of(variant), gradient=True, **chosen(fields, slice(1, 2)))

        answers_equal(alone, {name: tensor[1:2] for name, tensor in together.items()})


@every_dtype
@every_variant
def test_permuting_rows_changes_no_bit(variant: str, dtype: torch.dtype) -> None:
    for classes in (5, 100):
        fields = batch_of(variant, 67, classes, dtype=dtype)
        order = torch.randperm(67, generator=torch.Generator().manual_seed(1))

        permuted = ask(operator_of(variant), gradient=True, **chosen(fields, order))

        expected = ask(operator_of(variant), gradient=True, **fields)
        answers_equal(permuted, {name: tensor[order] for name, tensor in expected.items()})


@every_dtype
@every_variant
def test_where_the_classes_lie_changes_no_bit(variant: str, dtype: torch.dtype) -> None:
    for classes in (3, 64, 100, 1000):
        fields = batch_of(variant, 12, classes, dtype=dtype)
        expected = ask(operator_of(variant), gradient=True, **fields)

        for shape, class_dim in (((12,), 0), ((3, 4), 1), ((3, 4), 0), ((2, 3, 2), 2), ((2, 3, 2), -3)):
            moved = {}
            for name, value in fields.items():
                is_by_class = isinstance(value, torch.Tensor) and value.shape == (12, classes)
                is_by_row = isinstance(value, torch.Tensor) and value.shape == (12,) and name != "weight"
                if is_by_class:
                    moved[name] = value.reshape(*shape, classes).movedim(-1, class_dim).contiguous()
                else:
                    moved[name] = value.reshape(shape) if is_by_row else value
            answer = ask(operator_of(variant), gradient=True, class_dim=class_dim, **moved)
            back = {
                name: tensor.movedim(class_dim, -1).reshape(12, classes)
                if tensor.numel() == 12 * classes
                else tensor.reshape(12)
                for name, tensor in answer.items()
            }
            answers_equal(back, expected)


def large_requests(variant: str) -> Iterator[dict[str, object]]:
    """Yield a request of 60 rows: classes last, classes first, classes in the middle, and reduced where it can be."""
    fields = batch_of(variant, 60, 80)
    yield fields
    for shape, class_dim in (((60,), 0), ((5, 12), 1)):
        moved = {"class_dim": class_dim}
        for name, value in fields.items():
            if isinstance(value, torch.Tensor) and value.shape == (60, 80):
                moved[name] = value.reshape(*shape, 80).movedim(-1, class_dim).contiguous()
            else:
                moved[name] = value.reshape(shape) if isinstance(value, torch.Tensor) and len(value) == 60 else value
        yield moved
    if "reduction" in fields:
        yield fields | {"reduction": "mean", "grad_output": None}
        yield fields | {"reduction": "sum", "grad_output": torch.tensor(3.0)}


def blocks_of(variant: str, fields: dict[str, object]) -> int:
    """Return into how many blocks a request is cut."""
    job = job_of(operator_of(variant), gradient=True, **fields)
    execution = Execution(job, BufferPool(0), torch.device("cpu"))
    execution.abandon()
    return len(execution.blocks)


@pytest.mark.parametrize("block_rows", [1, 2, 5, 7, 13, 59])
@every_variant
def test_cutting_into_blocks_changes_no_bit(variant: str, block_rows: int, cut_into: Callable[[int], None]) -> None:
    requests = list(large_requests(variant))
    whole = [ask(operator_of(variant), gradient=True, **fields) for fields in requests]
    cut_into(block_rows * 80 * 4)

    for fields, expected in zip(requests, whole, strict=True):
        assert blocks_of(variant, fields) > 1
        answers_equal(ask(operator_of(variant), gradient=True, **fields), expected)


@every_variant
def test_the_number_of_workers_changes_no_bit(
    variant: str, two_workers: Engine, cut_into: Callable[[int], None]
) -> None:
    requests = list(large_requests(variant))
    whole = [ask(operator_of(variant), gradient=True, **fields) for fields in requests]
    cut_into(3 * 80 * 4)

    for fields, expected in zip(requests, whole, strict=True):
        for _ in range(3):
            answers_equal(ask(operator_of(variant), gradient=True, engine=two_workers, **fields), expected)


@every_variant
def test_a_job_that_is_cut_by_itself_has_the_bits_of_its_rows(variant: str, two_workers: Engine) -> None:
    fields = batch_of(variant, 1100, 1000)
    assert blocks_of(variant, fields) > 1

    spread = ask(operator_of(variant), gradient=True, engine=two_workers, **fields)

    answers_equal(spread, ask(operator_of(variant), gradient=True, engine=CPU, **fields))
    for part in (slice(0, 1), slice(260, 270), slice(1090, 1100)):
        alone = ask(operator_of(variant), gradient=True, **chosen(fields, part))
        answers_equal(alone, {name: tensor[part] for name, tensor in spread.items()})


@pytest.fixture
def engine_started_among_threads() -> Iterator[Engine]:
    """An engine in a process where torch had split its operations over two threads."""
    torch.set_num_threads(2)
    engine = Engine(torch.device("cpu"), threads=2)
    yield engine
    engine.close()
    torch.set_num_threads(1)


@every_variant
def test_torchs_own_threads_change_no_bit(variant: str, engine_started_among_threads: Engine) -> None:
    requests = [batch_of(variant, 3, 40_000), batch_of(variant, 1, 60_000), batch_of(variant, 500, 80)]
    single = [ask(operator_of(variant), gradient=True, **fields) for fields in requests]

    for fields, expected in zip(requests, single, strict=True):
        here = ask(operator_of(variant), gradient=True, engine=engine_started_among_threads, **fields)
        with ThreadPoolExecutor(1) as threads:
            elsewhere = threads.submit(ask, operator_of(variant), gradient=True, **fields).result()
        answers_equal(here, expected)
        answers_equal(elsewhere, expected)


@pytest.mark.parametrize("operator", ["nll-loss", "cross-entropy"])
def test_a_mean_has_the_same_bits_however_it_is_cut_and_spread(
    operator: str, two_workers: Engine, cut_into: Callable[[int], None]
) -> None:
    fields = batch_of(operator, 5000, 6) | {"reduction": "mean", "grad_output": None}
    fields["outputs"] = all_outputs(operator, gradient=True)
    whole = ask(operator, gradient=True, **fields)

    for block_bytes in (1 << 8, 1 << 12, 1 << 15):
        cut_into(block_bytes)
        answers_equal(ask(operator, gradient=True, engine=two_workers, **fields), whole)
