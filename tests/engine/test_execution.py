"""What an engine does with a job: cutting, answers, refusals and the memory behind them."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.batch import Execution, cut
from service.engine.buffers import BufferPool
from service.engine.scheduler import INLINE_ELEMENTS, Engine
from service.errors import NonFinite
from service.ops import OPERATORS
from service.ops.bind import Job
from service.ops.layout import Layout
from tests.support.asking import ask, job_of

CPU = torch.device("cpu")


@settings(max_examples=300)
@given(
    shape=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    class_dim=st.integers(0, 3),
    rows_per_block=st.integers(1, 40),
)
def test_blocks_cover_every_row_once_and_in_order(shape: list[int], class_dim: int, rows_per_block: int) -> None:
    class_dim %= len(shape)
    shape[class_dim] = 5
    layout = Layout(tuple(shape), class_dim)
    rows = torch.arange(layout.rows).view(layout.outer, layout.inner)

    blocks = [rows[block.outer, block.inner].reshape(-1) for block in cut(layout, rows_per_block)]

    assert torch.cat([torch.arange(0), *blocks]).tolist() == list(range(layout.rows))
    assert all(len(block) <= max(rows_per_block, 1) for block in blocks)


def large_job(**changes: Any) -> Job:
    """Return a job that is cut into several blocks by itself."""
    fields: dict[str, Any] = {
        "logits": torch.zeros(3000, 500),
        "target": torch.zeros(3000, dtype=torch.int64),
        **changes,
    }
    return job_of("cross-entropy", gradient=True, **fields)


def test_a_small_job_is_one_block_and_a_large_one_is_cut() -> None:
    small = job_of("softmax", logits=torch.zeros(1000, 500))

    assert len(Execution(small, BufferPool(0), CPU).blocks) == 1
    assert len(Execution(large_job(), BufferPool(0), CPU).blocks) > 1


@pytest.mark.parametrize("shape", [(3000, 500), (500, 3000), (3, 500, 1000)])
def test_the_first_of_several_bad_rows_is_named_whoever_finds_it(shape: tuple[int, ...], two_workers: Engine) -> None:
    rows = torch.zeros(3000, 500)
    rows[[2999, 1501, 777, 2000]] = torch.nan
    class_dim = shape.index(500)
    rows_shape = [size for size in shape if size != 500]
    logits = rows.reshape(*rows_shape, 500).movedim(-1, class_dim).contiguous()

    for _ in range(5):
        with pytest.raises(NonFinite) as caught:
            ask("softmax", engine=two_workers, logits=logits, class_dim=class_dim)
        assert "777" in caught.value.detail


def test_an_answer_that_is_released_leaves_its_memory_to_the_next() -> None:
    engine = Engine(CPU, threads=1)
    answer = engine.compute(large_job())
    memory = answer.tensors["grad_logits"].data_ptr()
    answer.release()

    again = engine.compute(large_job())

    assert again.tensors["grad_logits"].data_ptr() == memory


def test_answers_that_are_held_share_no_memory() -> None:
    engine = Engine(CPU, threads=1)

    first, second = engine.compute(large_job()), engine.compute(large_job())

    assert first.tensors["grad_logits"].data_ptr() != second.tensors["grad_logits"].data_ptr()


def test_releasing_twice_gives_the_memory_back_once() -> None:
    engine = Engine(CPU, threads=1)
    answer = engine.compute(large_job())
    answer.release()
    answer.release()

    first, second = engine.compute(large_job()), engine.compute(large_job())

    assert first.tensors["grad_logits"].data_ptr() != second.tensors["grad_logits"].data_ptr()


def test_a_refused_job_gives_its_memory_back() -> None:
    engine = Engine(CPU, threads=1)
    job = large_job(logits=torch.full((3000, 500), torch.nan))

    with pytest.raises(NonFinite):
        engine.compute(job)

    assert engine.buffers.kept_bytes >= 3000 * 500 * 4


def test_a_request_is_not_written_to() -> None:
    fields = {"logits": torch.randn(3000, 500), "target": torch.randint(500, (3000,))}
    before = {name: tensor.clone() for name, tensor in fields.items()}

    ask("cross-entropy", gradient=True, **fields)

    assert all(torch.equal(tensor, before[name]) for name, tensor in fields.items())


@pytest.mark.parametrize("elements", [500, INLINE_ELEMENTS + 500, 1_500_000])
def test_submitting_gives_the_bits_of_computing_here(elements: int, two_workers: Engine) -> None:
    logits = torch.randn(elements // 500, 500, generator=torch.Generator().manual_seed(0))
    expected = ask("log-softmax", logits=logits)["log_probs"]

    async def several() -> list[torch.Tensor]:
        jobs = [job_of("log-softmax", logits=logits) for _ in range(4)]
        return [answer.tensors["log_probs"] for answer in await asyncio.gather(*map(two_workers.submit, jobs))]

    assert all(torch.equal(log_probs, expected) for log_probs in asyncio.run(several()))


class BrokenError(Exception):
    pass


def failing_job() -> Job:
    """Return a job of many blocks whose operator has a bug."""

    def forward(*_: object) -> None:
        raise BrokenError

    broken = dataclasses.replace(OPERATORS["softmax"], forward=forward)
    return job_of(broken, logits=torch.zeros(3000, 500))


def test_an_operators_failure_is_the_answer(two_workers: Engine) -> None:
    with pytest.raises(BrokenError):
        two_workers.compute(failing_job())


def test_jobs_that_fail_in_every_worker_leave_the_engine_working(two_workers: Engine) -> None:
    async def fail_together() -> list[object]:
        tasks = (two_workers.submit(failing_job()) for _ in range(4))
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)

    failures = asyncio.run(fail_together())

    assert [type(failure) for failure in failures] == [BrokenError] * 4
    assert two_workers.compute(large_job()).tensors["total_weight"] == 3000
