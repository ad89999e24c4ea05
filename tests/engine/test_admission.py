"""Work is let in by how long it would wait, and what it takes is learnt."""

from __future__ import annotations

import time

import pytest

from service.engine.admission import START_SECONDS_PER_BYTE, Backlog, Deadline, Ticket, retry_seconds
from service.errors import DeadlineExceeded, Overloaded

SECOND = int(1 / START_SECONDS_PER_BYTE)
"""An amount of work that is taken for a second's before anything has been learnt."""


def within(seconds: float) -> Deadline:
    return Deadline(time.perf_counter() + seconds, int(seconds * 1000))


def test_an_idle_service_takes_any_work() -> None:
    Backlog(1, most_seconds=0.001).admit("kind", 100 * SECOND, within(60))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_work_is_refused_once_the_work_ahead_takes_longer_than_allowed(workers: int) -> None:
    backlog = Backlog(workers, most_seconds=1.15)
    for _ in range(4 * workers + 1):
        backlog.admit("kind", SECOND // 4)

    with pytest.raises(Overloaded) as caught:
        backlog.admit("kind", SECOND // 4)
    assert caught.value.sentence == "queue"


def test_work_that_would_miss_its_deadline_behind_others_is_refused_at_once() -> None:
    backlog = Backlog(1, most_seconds=100.0)
    backlog.admit("kind", 2 * SECOND)

    with pytest.raises(Overloaded) as caught:
        backlog.admit("kind", 2 * SECOND, within(3))
    assert caught.value.sentence == "deadline"
    backlog.admit("kind", 2 * SECOND, within(5))


def test_a_deadline_that_has_passed_is_told_so() -> None:
    with pytest.raises(DeadlineExceeded):
        Backlog(1).admit("kind", 1, within(-1))


def test_small_work_does_not_wait_for_large_work_that_it_overtakes() -> None:
    backlog = Backlog(1, most_seconds=1.0)
    backlog.admit("kind", 5 * SECOND)

    backlog.admit("kind", SECOND // 100)
    with pytest.raises(Overloaded):
        backlog.admit("kind", 6 * SECOND)


def test_done_work_makes_room_and_so_does_what_is_done_of_unfinished_work() -> None:
    backlog = Backlog(1, most_seconds=1.0)
    ticket = backlog.admit("kind", 2 * SECOND)
    with pytest.raises(Overloaded):
        backlog.admit("kind", 2 * SECOND)
    ticket.spent = 1.5
    second = backlog.admit("kind", 2 * SECOND)
    backlog.leave(ticket, is_done=False)
    backlog.leave(second, is_done=False)

    assert (len(backlog), backlog.seconds) == (0, 0.0)


def test_what_a_kind_of_work_takes_is_learnt_and_others_learn_nothing_from_it() -> None:
    backlog = Backlog(1)
    for _ in range(50):
        ticket = backlog.admit("slow", 1000)
        ticket.spent = 2.0
        backlog.leave(ticket, is_done=True)
    failed = backlog.admit("slow", 1000)
    failed.spent = 99.0
    backlog.leave(failed, is_done=False)

    assert backlog.predicted("slow", 500) == pytest.approx(1.0)
    assert backlog.predicted("other", 500) == 500 * START_SECONDS_PER_BYTE


def test_what_has_changed_is_learnt_anew() -> None:
    backlog = Backlog(1)
    for spent in [2.0] * 50 + [0.5] * 50:
        ticket = backlog.admit("kind", 1000)
        ticket.spent = spent
        backlog.leave(ticket, is_done=True)

    assert backlog.predicted("kind", 1000) == pytest.approx(0.5, rel=0.05)


def test_unfinished_work_is_never_taken_for_done() -> None:
    assert Ticket(seconds=1.0, due=0.0, spent=100.0).left > 0


def test_the_refused_come_back_at_different_times() -> None:
    for wait in (0.0, 0.7, 3.0, 1000.0):
        seconds = {retry_seconds(wait) for _ in range(200)}
        assert len(seconds) == 3
        assert min(seconds) >= 1
        assert max(seconds) <= 5
