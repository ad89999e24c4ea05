"""Which step comes next: small work first, and nothing waits for ever."""

from __future__ import annotations

import random

import pytest

from service.engine.queue import AGEING, StepQueue, Steps, due


class Work:
    """Work of a number of steps, one second each."""

    def __init__(self, name: str, arrived: float, seconds: int) -> None:
        self.name = name
        self.steps = Steps(self.run, seconds, due(arrived, seconds))
        self.done: list[str] = []

    def run(self) -> None:
        self.done.append(self.name)


def names(queue: StepQueue, count: int) -> str:
    """Take so many steps and return whose they were."""
    taken = ""
    for _ in range(count):
        step = queue.take()
        assert step is not None
        taken += step.__self__.name  # type: ignore[attr-defined]
    return taken


def test_small_work_runs_between_the_steps_of_large_work() -> None:
    queue = StepQueue()
    queue.put(Work("L", arrived=0, seconds=4).steps)
    before = names(queue, 2)
    queue.put(Work("s", arrived=2, seconds=1).steps)

    assert before + names(queue, 3) == "LLsLL"


def test_equal_work_is_done_in_the_order_it_came() -> None:
    queue = StepQueue()
    for name in "abc":
        queue.put(Work(name, arrived=0, seconds=2).steps)

    assert names(queue, 6) == "aabbcc"


def test_a_stream_of_small_work_never_starves_large_work() -> None:
    queue = StepQueue()
    large = Work("L", arrived=0, seconds=10)
    queue.put(large.steps)
    now, finished = 0, None
    while finished is None and now < 1000:  # as much small work comes as can be done
        queue.put(Work("s", arrived=now, seconds=1).steps)
        names(queue, 1)
        now += 1
        finished = now if large.steps.left == 0 else None

    assert finished is not None
    assert finished <= AGEING * 10 + 10 + 1


def test_no_work_is_overtaken_by_what_comes_long_after_it() -> None:
    random_ = random.Random(0)
    queue = StepQueue()
    works = [Work(str(number), random_.uniform(0, 100), random_.randint(1, 9)) for number in range(200)]
    for work in works:
        queue.put(work.steps)
    order = []
    while any(work.steps.left for work in works):
        step = queue.take()
        assert step is not None
        order.append(step.__self__)  # type: ignore[attr-defined]

    last = {work: place for place, work in enumerate(order)}
    first = {work: place for place, work in reversed(list(enumerate(order)))}
    for work in works:
        for other in works:
            if other.steps.due > work.steps.due:
                assert first[other] > last[work]


def test_withdrawn_steps_are_never_taken() -> None:
    queue = StepQueue()
    work = Work("a", arrived=0, seconds=5)
    queue.put(work.steps)
    queue.put(Work("b", arrived=99, seconds=1).steps)
    names(queue, 2)

    assert queue.withdraw(work.steps) == 3
    assert queue.withdraw(work.steps) == 0
    assert names(queue, 1) == "b"


def test_a_closed_queue_gives_what_it_has_and_takes_no_more() -> None:
    queue = StepQueue()
    queue.put(Work("a", arrived=0, seconds=1).steps)
    queue.close()

    assert names(queue, 1) == "a"
    assert queue.take() is None
    with pytest.raises(RuntimeError, match="closed"):
        queue.put(Work("b", arrived=0, seconds=1).steps)
