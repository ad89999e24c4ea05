"""The memory budget: never more is given out than there is, never anything is lost, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.admission import NO_DEADLINE, Deadline
from service.engine.budget import SMALL_BYTES, Budget, Reservation
from service.errors import ContentTooLarge, DeadlineExceeded, MemoryBudget

MB = 1 << 20
TOTAL = 16 * MB


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 30))


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from(["grow", "try", "shrink", "release", "leave", "turn"]),
            st.integers(0, 18 * MB),
        ),
        max_size=60,
    )
)
def test_a_budget_is_never_exceeded_and_never_leaks(steps: list[tuple[int, str, int]]) -> None:
    async def play() -> None:
        budget = Budget(TOTAL, wait_seconds=3600)
        held = [Reservation(budget) for _ in range(6)]
        waiting: dict[int, asyncio.Task[None]] = {}
        for who, what, size in steps:
            busy = who in waiting and not waiting[who].done()
            if what == "leave" and busy:
                waiting[who].cancel()
            elif what == "turn" or busy:
                await turn()
            elif what == "grow":
                waiting[who] = asyncio.create_task(held[who].grow_to(size, NO_DEADLINE))
            elif what == "try":
                held[who].try_grow_to(size)
            elif what == "shrink":
                held[who].shrink_to(size)
            elif what == "release":
                held[who].release()
            assert budget.reserved == sum(each.size for each in held)
            assert 0 <= budget.reserved <= TOTAL
        for task in waiting.values():
            task.cancel()
        await asyncio.gather(*waiting.values(), return_exceptions=True)
        for each in held:
            each.release()
        assert (budget.reserved, budget.waiting) == (0, 0)

    run(play())


@given(sizes=st.lists(st.integers(1, TOTAL), min_size=1, max_size=30))
def test_whoever_waits_is_served_once_the_others_are_done(sizes: list[int]) -> None:
    async def play() -> None:
        budget = Budget(TOTAL, wait_seconds=3600)

        async def hold(size: int) -> None:
            mine = Reservation(budget)
            await mine.grow_to(size, NO_DEADLINE)
            await turn()
            mine.release()

        await asyncio.gather(*map(hold, sizes))
        assert (budget.reserved, budget.waiting) == (0, 0)

    run(play())


def test_what_could_never_fit_is_refused_at_once_with_the_limit() -> None:
    with pytest.raises(ContentTooLarge) as caught:
        run(Reservation(Budget(TOTAL, 1.0)).grow_to(TOTAL + 1, NO_DEADLINE))

    assert caught.value.limit == TOTAL


def test_who_waits_too_long_is_told_to_come_again() -> None:
    async def play() -> None:
        budget = Budget(TOTAL, wait_seconds=0.05)
        assert Reservation(budget).try_grow_to(TOTAL)
        with pytest.raises(MemoryBudget) as caught:
            await Reservation(budget).grow_to(2 * MB, NO_DEADLINE)
        assert caught.value.seconds is not None
        assert 1 <= caught.value.seconds <= 5
        assert budget.waiting == 0

    run(play())


def test_memory_that_becomes_free_just_as_the_waiting_ends_goes_to_who_still_waits() -> None:
    async def play() -> None:
        budget = Budget(TOTAL, wait_seconds=3600)
        holder, leaving, staying = (Reservation(budget) for _ in range(3))
        assert holder.try_grow_to(TOTAL)
        gone = asyncio.create_task(leaving.grow_to(TOTAL, NO_DEADLINE))
        stays = asyncio.create_task(staying.grow_to(TOTAL, NO_DEADLINE))
        await turn()
        gone.cancel()
        holder.release()  # before the task that leaves has had its turn
        await stays
        assert (leaving.size, staying.size, budget.reserved) == (0, TOTAL, TOTAL)
        staying.release()
        assert (budget.reserved, budget.waiting) == (0, 0)

    run(play())


def test_a_deadline_ends_the_waiting_for_memory() -> None:
    async def play() -> None:
        budget = Budget(TOTAL, wait_seconds=3600)
        assert Reservation(budget).try_grow_to(TOTAL)
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(DeadlineExceeded):
            await Reservation(budget).grow_to(2 * MB, Deadline(-1.0, 1))
        assert loop.time() - started < 5

    run(play())


def test_requests_that_hold_memory_and_all_wait_for_more_do_not_block_each_other() -> None:
    async def play() -> None:
        budget = Budget(TOTAL, wait_seconds=3600)
        first, second = Reservation(budget), Reservation(budget)
        assert first.try_grow_to(8 * MB)
        assert second.try_grow_to(8 * MB)
        waiting = asyncio.create_task(first.grow_to(12 * MB, NO_DEADLINE))
        await turn()
        with pytest.raises(MemoryBudget):
            await second.grow_to(12 * MB, NO_DEADLINE)
        second.release()
        await waiting
        assert budget.reserved == first.size == 12 * MB

    run(play())


def test_who_holds_memory_comes_before_who_holds_none_and_the_small_pass() -> None:
    async def play() -> None:
        budget = Budget(TOTAL, wait_seconds=3600)
        holder, newcomer, growing, small = (Reservation(budget) for _ in range(4))
        assert holder.try_grow_to(8 * MB)
        assert growing.try_grow_to(4 * MB)
        coming = asyncio.create_task(newcomer.grow_to(8 * MB, NO_DEADLINE))
        await turn()
        more = asyncio.create_task(growing.grow_to(10 * MB, NO_DEADLINE))
        await turn()
        assert small.try_grow_to(SMALL_BYTES)
        assert not Reservation(budget).try_grow_to(2 * MB), "there is room, but others wait for it"
        holder.release()
        await turn()
        assert more.done()
        assert not coming.done()
        growing.release()
        await coming

    run(play())
