"""What becomes of jobs when they are given up, when memory runs out, and when the device is lost."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from service.engine import scheduler
from service.engine.admission import Deadline, Ticket
from service.engine.batch import Answer
from service.engine.scheduler import Engine
from service.errors import DeadlineExceeded, EngineRestarting, MemoryBudget
from service.ops import OPERATORS
from service.ops.bind import Job
from service.ops.spec import Operator
from tests.support.asking import CPU, job_of
from tests.support.batches import same_bits

SOFTMAX = OPERATORS["softmax"]
NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
LOST = torch.AcceleratorError("CUDA error: device-side assert triggered")


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(torch.device("cpu"), threads=1)
    yield engine
    engine.close()


def softmax_that(act: Callable[[Any], None]) -> Operator:
    """Return a softmax that calls `act` with every block of rows before it computes it."""

    def forward(rows: Any, options: Any, out: Any) -> None:
        act(rows)
        SOFTMAX.forward(rows, options, out)

    return dataclasses.replace(SOFTMAX, forward=forward)


def large(operator: Operator = SOFTMAX, blocks: int = 6) -> Job:
    """Return a job of some blocks."""
    return job_of(operator, logits=torch.zeros(blocks * 524, 1000))


def small(operator: Operator = SOFTMAX, seed: int = 0, marked: bool = False) -> Job:
    """Return a job that is computed by a worker, and may share a launch with others of its kind."""
    logits = torch.randn(2, 16, generator=torch.Generator().manual_seed(seed))
    logits[0, 0] = 666.0 if marked else 1.0
    return job_of(operator, logits=logits)


@pytest.fixture
def nothing_is_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "INLINE_ELEMENTS", 0)


class Gate:
    """A worker waits here until it is let through."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.open = threading.Semaphore(0)

    def __call__(self, _: object) -> None:
        self.reached.release()
        assert self.open.acquire(timeout=30)


async def reached(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.reached.acquire, timeout=30)


def test_a_job_given_up_stops_at_the_next_block_and_gives_its_memory_back(engine: Engine) -> None:
    gate, blocks = Gate(), []

    async def leave() -> None:
        task = asyncio.create_task(engine.submit(large(softmax_that(lambda rows: (blocks.append(rows), gate(rows))))))
        await reached(gate)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done(), "a worker is still writing"
        gate.open.release()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())

    assert len(blocks) == 1
    assert engine.buffers.kept_bytes >= 6 * 524 * 1000 * 4


def test_a_job_given_up_while_it_waits_is_never_begun(engine: Engine) -> None:
    gate, begun = Gate(), []

    async def leave() -> None:
        first = asyncio.create_task(engine.submit(large(softmax_that(gate), blocks=2)))
        await reached(gate)
        second = asyncio.create_task(engine.submit(large(softmax_that(begun.append))))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.open.release(9)
        (await first).release()

    asyncio.run(leave())

    assert not begun


@pytest.mark.usefixtures("nothing_is_tiny")
def test_what_waits_shares_the_next_launch_and_one_who_leaves_does_not_hold_the_others(engine: Engine) -> None:
    gate, launched = Gate(), []
    operator = softmax_that(lambda rows: launched.append(rows.count))

    async def run() -> list[Answer]:
        first = asyncio.create_task(engine.submit(large(softmax_that(gate), blocks=1)))
        await reached(gate)
        tasks = [asyncio.create_task(engine.submit(small(operator, seed))) for seed in range(5)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.wait([tasks[2]])
        gate.open.release(9)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        (await first).release()
        assert isinstance(answers.pop(2), asyncio.CancelledError)
        return answers  # type: ignore[return-value]

    answers = asyncio.run(run())

    assert launched == [8]
    for seed, answer in zip((0, 1, 3, 4), answers, strict=True):
        assert same_bits(answer.tensors["probs"], CPU.compute(small(seed=seed)).tensors["probs"])


def poison(rows: Any) -> None:
    if (rows["logits"] == 666.0).any():
        raise ValueError("poison")


@pytest.mark.usefixtures("nothing_is_tiny")
def test_only_the_guilty_member_of_a_launch_fails(engine: Engine) -> None:
    poisoned = softmax_that(poison)
    expected = [CPU.compute(small(seed=seed)).tensors["probs"] for seed in range(32)]

    async def round_of(guilty: int) -> list[Any]:
        gate = Gate()
        first = asyncio.create_task(engine.submit(large(softmax_that(gate), blocks=1)))
        await reached(gate)
        jobs = [small(poisoned, seed, marked=seed == guilty) for seed in range(32)]
        tasks = [asyncio.create_task(engine.submit(job)) for job in jobs]
        await asyncio.sleep(0)
        gate.open.release(9)
        (await first).release()
        return await asyncio.gather(*tasks, return_exceptions=True)

    for guilty in range(0, 32, 5):
        outcomes = asyncio.run(round_of(guilty))
        assert isinstance(outcomes.pop(guilty), ValueError)
        innocent = [tensor for seed, tensor in enumerate(expected) if seed != guilty]
        assert all(same_bits(each.tensors["probs"], tensor) for each, tensor in zip(outcomes, innocent, strict=True))


def test_only_the_guilty_fails_among_those_computed_together_on_the_event_loop(engine: Engine) -> None:
    poisoned = softmax_that(poison)

    async def together() -> list[Any]:
        jobs = [small(poisoned, seed, marked=seed == 3) for seed in range(8)]
        return await asyncio.gather(*map(engine.compute_together, jobs), return_exceptions=True)

    outcomes = asyncio.run(together())

    assert isinstance(outcomes.pop(3), ValueError)
    for seed, outcome in zip((0, 1, 2, 4, 5, 6, 7), outcomes, strict=True):
        assert same_bits(outcome.tensors["probs"], CPU.compute(small(seed=seed)).tensors["probs"])


def failing(error: BaseException, times: int) -> Callable[[Any], None]:
    """Return what raises an error so many times."""
    left = [times]

    def act(_: object) -> None:
        if left[0]:
            left[0] -= 1
            raise error

    return act


@pytest.mark.parametrize("error", [NO_MEMORY, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")], ids=str)
@pytest.mark.parametrize("job", [small, large])
def test_memory_that_runs_out_once_is_freed_and_the_job_computed_again(
    error: BaseException, job: Callable[[Operator], Job], engine: Engine
) -> None:
    answer = asyncio.run(engine.submit(job(softmax_that(failing(error, 1)))))

    assert same_bits(answer.tensors["probs"], CPU.compute(job(SOFTMAX)).tensors["probs"])


@pytest.mark.parametrize("job", [small, large])
def test_memory_that_runs_out_again_is_an_orderly_refusal(job: Callable[[Operator], Job], engine: Engine) -> None:
    with pytest.raises(MemoryBudget) as caught:
        asyncio.run(engine.submit(job(softmax_that(failing(NO_MEMORY, 99)))))

    assert caught.value.sentence == "engine"
    assert asyncio.run(engine.submit(large())).tensors["probs"].shape == (6 * 524, 1000)


def test_a_job_computed_over_its_own_input_is_not_computed_twice(engine: Engine) -> None:
    calls: list[int] = []

    def act(_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError

    job = dataclasses.replace(large(softmax_that(act)), owns_memory=True)

    with pytest.raises(MemoryBudget):
        asyncio.run(engine.submit(job))
    assert len(calls) == 2


def test_memory_that_runs_out_while_decoding_is_not_the_callers_fault(engine: Engine) -> None:
    def decode() -> None:
        raise MemoryError

    with pytest.raises(MemoryBudget):
        asyncio.run(engine.call(decode))


@pytest.mark.parametrize("error", [LOST, RuntimeError("CUDA error: an illegal memory access was encountered")])
@pytest.mark.parametrize("job", [small, large])
def test_a_lost_device_is_told_to_all_from_then_on(
    error: BaseException, job: Callable[[Operator], Job], engine: Engine
) -> None:
    told: list[bool] = []
    engine.on_failure = lambda: told.append(True)
    gate = Gate()

    async def run() -> list[Any]:
        waiting = asyncio.create_task(engine.submit(large(softmax_that(gate))))
        await reached(gate)
        behind = asyncio.create_task(engine.submit(large()))
        await asyncio.sleep(0)
        with pytest.raises(EngineRestarting):
            engine.compute(small(softmax_that(failing(error, 1))))
        gate.open.release(99)
        later = engine.submit(job(SOFTMAX))
        return await asyncio.gather(waiting, behind, later, return_exceptions=True)

    outcomes = asyncio.run(run())

    assert [type(outcome) for outcome in outcomes] == [EngineRestarting] * 3
    assert told == [True]


class Passing(Deadline):
    """A deadline that passes after so many looks at it."""

    looks = 0

    def check_at(self, now: float) -> None:
        Passing.looks += 1
        if Passing.looks > self.milliseconds:
            super().check_at(math.inf)


@pytest.mark.parametrize("blocks", [0, 1, 4])
def test_a_deadline_is_looked_at_before_every_block(blocks: int, engine: Engine) -> None:
    computed: list[object] = []
    Passing.looks = 0
    ticket = Ticket(1.0, 0.0, Passing(at=0.0, milliseconds=blocks + (blocks > 0)))  # one look before the preparation

    with pytest.raises(DeadlineExceeded):
        asyncio.run(engine.submit(large(softmax_that(computed.append), blocks=50), ticket))

    assert len(computed) == blocks


def test_small_jobs_run_between_the_blocks_of_a_large_one(engine: Engine) -> None:
    order: list[str] = []
    gate = Gate()

    def note_large(rows: Any) -> None:
        order.append("L")
        if len(order) == 1:
            gate(rows)

    async def run() -> None:
        first = asyncio.create_task(engine.submit(large(softmax_that(note_large), blocks=8), Ticket(1.0, due=4.0)))
        await reached(gate)
        note_small = softmax_that(lambda _: order.append("s"))
        second = asyncio.create_task(engine.submit(large(note_small, blocks=1), Ticket(0.1, due=1.0)))
        await asyncio.sleep(0)
        gate.open.release()
        for answer in await asyncio.gather(first, second):
            answer.release()

    asyncio.run(run())

    assert "".join(order) == "Ls" + "L" * 7


def test_jobs_cancelled_at_any_moment_leave_the_engine_working_and_its_memory_whole() -> None:
    engine = Engine(torch.device("cpu"), threads=2)

    async def run() -> None:
        for wait in range(60):
            tasks = [asyncio.create_task(engine.submit(large(blocks=2))) for _ in range(3)]
            await asyncio.sleep(wait * 1e-4)
            for task in tasks[: wait % 4]:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Answer):
                    outcome.release()

    asyncio.run(run())
    engine.close()

    assert engine.buffers.kept_bytes <= 3 * (2 * 524 * 1000 * 4 + (1 << 16))
