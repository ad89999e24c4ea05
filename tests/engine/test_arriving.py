"""A job computed while its rows arrive: the bits of one that was all there, and nothing touched after it is dropped."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import pytest
import torch

from service.engine.admission import Deadline
from service.engine.scheduler import Engine
from service.errors import DeadlineExceeded, NonFinite
from service.ops.bind import Job
from tests.support.asking import ask, job_of
from tests.support.batches import VARIANTS, batch_of, operator_of, same_bits

ROWS, CLASSES = 60, 300


@pytest.fixture
def engine(two_workers: Engine, cut_into: Callable[[int], None]) -> Engine:
    """Two workers, and blocks of seven rows of float32."""
    cut_into(7 * CLASSES * 4)
    return two_workers


async def arriving(engine: Engine, job: Job, seed: int = 0) -> dict[str, torch.Tensor]:
    """Compute a job whose rows come a few at a time."""
    launch = engine.begin(job, engine.backlog.ticket("kind", 1))
    assert launch is not None
    come = 0
    chance = random.Random(seed)
    while come < ROWS:
        come = min(ROWS, come + chance.randint(1, 20))
        launch.note_arrived(come)
    return (await engine.finish(launch)).tensors


@pytest.mark.anyio
@pytest.mark.parametrize("variant", VARIANTS)
async def test_rows_that_arrive_while_others_are_computed_have_the_same_bits(variant: str, engine: Engine) -> None:
    fields = batch_of(variant, ROWS, CLASSES)
    expected = ask(operator_of(variant), gradient=True, **fields)

    for seed in range(3):
        answer = await arriving(engine, job_of(operator_of(variant), gradient=True, **fields), seed)
        assert all(same_bits(tensor, expected[name]) for name, tensor in answer.items())


@pytest.mark.anyio
async def test_a_row_is_not_looked_at_before_it_has_arrived(engine: Engine) -> None:
    logits = torch.full((ROWS, CLASSES), torch.nan)
    job = job_of("softmax", logits=logits)
    launch = engine.begin(job, engine.backlog.ticket("kind", 1))
    assert launch is not None
    for come in range(0, ROWS, 10):
        job.first.view(ROWS, CLASSES)[come : come + 10] = 1.0
        launch.note_arrived(come + 10)

    answer = (await engine.finish(launch)).tensors

    assert torch.equal(answer["probs"], torch.softmax(torch.ones(ROWS, CLASSES), 1))


@pytest.mark.anyio
async def test_a_dropped_job_gives_its_memory_back(engine: Engine) -> None:
    for come in (0, 1, 30, 59):
        launch = engine.begin(job_of("softmax", logits=torch.zeros(ROWS, CLASSES)), engine.backlog.ticket("kind", 1))
        assert launch is not None
        launch.note_arrived(come)

        await engine.drop(launch)

        assert launch._outstanding == 0


@pytest.mark.anyio
async def test_what_is_wrong_with_values_is_said_in_the_end(engine: Engine) -> None:
    logits = torch.zeros(ROWS, CLASSES)
    logits[41, 3] = torch.nan

    with pytest.raises(NonFinite) as caught:
        await arriving(engine, job_of("softmax", logits=logits))
    assert caught.value.pointer == "/logits/41"


@pytest.mark.anyio
async def test_a_deadline_that_passes_meanwhile_ends_it(engine: Engine) -> None:
    deadline = Deadline(time.perf_counter() + 0.2, 200)
    launch = engine.begin(
        job_of("softmax", logits=torch.zeros(ROWS, CLASSES)), engine.backlog.ticket("kind", 1, deadline)
    )
    assert launch is not None
    await asyncio.sleep(0.3)

    with pytest.raises(DeadlineExceeded):
        await engine.finish(launch)


@pytest.mark.anyio
async def test_nothing_is_begun_while_others_wait_for_the_workers(engine: Engine) -> None:
    job = job_of("softmax", logits=torch.zeros(ROWS, CLASSES))
    ticket = engine.backlog.admit("other", 1000)

    assert engine.begin(job, engine.backlog.ticket("kind", 1)) is None
    engine.backlog.leave(ticket, is_done=False)
    launch = engine.begin(job, engine.backlog.ticket("kind", 1))
    assert launch is not None
    await engine.drop(launch)


@pytest.mark.anyio
async def test_no_more_jobs_are_begun_than_there_are_workers(engine: Engine) -> None:
    job = job_of("softmax", logits=torch.zeros(ROWS, CLASSES))
    launches = [engine.begin(job, engine.backlog.ticket("kind", 1)) for _ in range(3)]

    assert [launch is None for launch in launches] == [False, False, True]
    for launch in launches[:2]:
        assert launch is not None
        await engine.drop(launch)
    again = engine.begin(job, engine.backlog.ticket("kind", 1))
    assert again is not None
    await engine.drop(again)


@pytest.mark.anyio
async def test_a_job_of_one_block_is_not_begun(two_workers: Engine) -> None:
    assert two_workers.begin(job_of("softmax", logits=torch.zeros(2, 3)), two_workers.backlog.ticket("kind", 1)) is None
