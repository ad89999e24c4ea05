"""Large bodies are received a few at a time; who would wait too long is told so before he sends."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from service.engine.admission import NO_DEADLINE, Deadline
from service.errors import DeadlineExceeded, MemoryBudget
from service.http.intake import (
    LEAST_TURN_BYTES,
    LOOK_SECONDS,
    SLOW_BYTES_PER_SECOND,
    START_BYTES_PER_SECOND,
    TURNS,
    Intake,
    Passage,
    thread_seconds,
)
from service.http.limits import DRAIN_SECONDS
from tests.support.binary import cross_entropy_request
from tests.support.raw_http import Answer, Listening, as_problem, listening, read_answer

MB = 1 << 20
SOME_LOOKS = 4 * LOOK_SECONDS


def busy_intake(most_seconds: float) -> Intake:
    """Return one whose event loop has no time to spare."""
    return Intake(most_seconds, lambda: False, time.perf_counter)


async def turn(intake: Intake, size: int = MB, deadline: Deadline = NO_DEADLINE) -> Passage:
    passage = intake.enter(size)
    try:
        await intake.take_turn(passage, deadline)
    except BaseException:
        intake.leave(passage)
        raise
    return passage


async def send(intake: Intake, passage: Passage, rate: float) -> None:
    """Let bytes come at a rate until the body is there."""
    last = time.perf_counter()
    while passage.received < passage.size:
        await asyncio.sleep(LOOK_SECONDS / 4)
        now = time.perf_counter()
        intake.note(passage, min(int(rate * (now - last)), passage.size - passage.received))
        last = now


@pytest.mark.anyio
async def test_the_next_gets_a_turn_when_one_ends_in_the_order_of_coming() -> None:
    intake = busy_intake(60.0)
    having = [await turn(intake) for _ in range(TURNS)]
    order: list[int] = []

    async def wait(number: int) -> None:
        passage = await turn(intake)
        order.append(number)
        intake.leave(passage)

    waiting = [asyncio.create_task(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    assert order == []
    intake.leave(having[0])
    await asyncio.gather(*waiting)

    assert order == [0, 1, 2]


@pytest.mark.anyio
async def test_who_would_wait_too_long_is_refused_at_once_and_the_first_never() -> None:
    intake = busy_intake(1.0)
    second = int(START_BYTES_PER_SECOND)
    having = [await turn(intake, 10 * second) for _ in range(TURNS)]

    with pytest.raises(MemoryBudget) as refused:
        intake.enter(LEAST_TURN_BYTES)
    assert "1 s" in refused.value.detail

    for passage in having:
        intake.note(passage, passage.size - second // 4)
    assert intake.enter(second // 4) is not None


@pytest.mark.anyio
async def test_whoever_sends_slowly_loses_his_turn_and_does_not_count() -> None:
    intake = busy_intake(60.0)
    silent = await turn(intake, 100 * MB)
    slow = await turn(intake, 100 * MB)
    sending = asyncio.create_task(send(intake, slow, SLOW_BYTES_PER_SECOND / 4))

    async with asyncio.timeout(SOME_LOOKS * 10):
        fast = [await turn(intake) for _ in range(TURNS)]
    sending.cancel()

    assert intake.enter(MB) is not None
    for passage in (silent, slow, *fast):
        intake.leave(passage)


@pytest.mark.anyio
async def test_whoever_sends_fast_keeps_his_turn() -> None:
    intake = busy_intake(60.0)
    rate = 4 * SLOW_BYTES_PER_SECOND
    having = [await turn(intake, int(rate * SOME_LOOKS)) for _ in range(TURNS)]
    waiting = asyncio.create_task(turn(intake))

    await asyncio.gather(*(send(intake, passage, rate) for passage in having))
    assert not waiting.done()
    for passage in having:
        intake.leave(passage)

    intake.leave(await waiting)


@pytest.mark.anyio
async def test_the_wait_is_reckoned_from_how_fast_bodies_came() -> None:
    intake = busy_intake(1.0)
    rate = START_BYTES_PER_SECOND / 10  # each: one after the other they are as fast as that
    size = int(START_BYTES_PER_SECOND * 0.3)
    for _ in range(3):
        having = [await turn(intake, int(rate * 0.3)) for _ in range(TURNS)]
        await asyncio.gather(*(send(intake, passage, rate) for passage in having))
        for passage in having:
            intake.leave(passage)

    assert [intake.enter(size) for _ in range(TURNS)]
    with pytest.raises(MemoryBudget):
        intake.enter(size)


@pytest.mark.anyio
async def test_nobody_waits_longer_than_that_nor_past_his_deadline() -> None:
    intake = busy_intake(0.1)
    having = [await turn(intake, 50 * MB) for _ in range(TURNS)]
    sending = [asyncio.create_task(send(intake, passage, 4 * SLOW_BYTES_PER_SECOND)) for passage in having]
    with pytest.raises(MemoryBudget):
        await turn(intake)
    with pytest.raises(DeadlineExceeded):
        await turn(intake, deadline=Deadline(time.perf_counter() + 0.02, 20))
    for task, passage in zip(sending, having, strict=True):
        task.cancel()
        intake.leave(passage)

    intake.leave(await turn(intake))


@pytest.mark.anyio
async def test_who_leaves_while_he_waits_is_passed_over() -> None:
    intake = busy_intake(60.0)
    having = [await turn(intake) for _ in range(TURNS)]
    gone, staying = asyncio.create_task(turn(intake)), asyncio.create_task(turn(intake))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    intake.leave(having[0])

    intake.leave(await staying)


@pytest.mark.anyio
async def test_nobody_waits_for_a_loop_that_has_time_to_spare() -> None:
    intake = Intake(1.0, lambda: False, lambda: 0.0)
    second = int(START_BYTES_PER_SECOND)
    having = [await turn(intake, second // 10) for _ in range(TURNS)]
    waiting = [asyncio.create_task(turn(intake, MB)) for _ in range(3)]
    sending = [asyncio.create_task(send(intake, passage, 4 * SLOW_BYTES_PER_SECOND)) for passage in having]

    async with asyncio.timeout(10 * LOOK_SECONDS):
        having += await asyncio.gather(*waiting)

    for passage in having + [intake.enter(second) for _ in range(3)]:
        intake.leave(passage)
    for task in sending:
        task.cancel()


@pytest.mark.anyio
async def test_a_loop_with_time_to_spare_gives_twice_as_many_turns_with_every_look() -> None:
    intake = Intake(60.0, lambda: False, lambda: 0.0)
    count = 8 * TURNS
    coming = [asyncio.create_task(turn(intake, 100 * MB)) for _ in range(count)]
    await asyncio.sleep(0)
    having: list[int] = []
    for _ in range(200):
        await asyncio.sleep(LOOK_SECONDS / 10)
        passages = [task.result() for task in coming if task.done()]
        for passage in passages:  # fast enough not to be slow, with bursts of any length between
            intake.note(passage, 2 * MB)
        if not having or having[-1] != len(passages):
            having.append(len(passages))
        if having[-1] == count:
            break

    assert having == [TURNS, 2 * TURNS, 4 * TURNS, count]
    for task in coming:
        intake.leave(task.result())


@pytest.mark.anyio
async def test_while_the_workers_do_not_keep_up_no_turns_are_added() -> None:
    intake = Intake(60.0, lambda: True, lambda: 0.0)
    having = [await turn(intake, 100 * MB) for _ in range(TURNS)]
    waiting = asyncio.create_task(turn(intake))
    sending = [asyncio.create_task(send(intake, passage, 4 * SLOW_BYTES_PER_SECOND)) for passage in having]

    await asyncio.sleep(SOME_LOOKS)
    assert not waiting.done()
    for task, passage in zip(sending, having, strict=True):
        task.cancel()
        intake.leave(passage)

    intake.leave(await waiting)


def test_how_long_a_thread_had_something_to_do_is_known() -> None:
    started, before = time.perf_counter(), thread_seconds()
    while time.perf_counter() < started + 0.2:
        pass
    busy = thread_seconds() - before
    time.sleep(0.2)

    assert 0.1 < busy < 0.3
    assert thread_seconds() - before - busy < 0.1


@pytest.fixture(scope="module")
def service() -> Iterator[Listening]:
    with listening("tcp", "--device=cpu", "--threads=1", "--queue-seconds=5", "--log-level=error") as running:
        yield running


LARGE = cross_entropy_request(1200, 1000)
HEAD, _, BODY = LARGE.partition(b"\r\n\r\n")
ASKING = HEAD + b"\r\nExpect: 100-continue\r\n\r\n"


def test_those_who_send_nothing_keep_nobody_waiting(service: Listening) -> None:
    with ExitStack() as stack:
        for _ in range(4 * TURNS):
            stack.enter_context(service.connect()).sendall(HEAD + b"\r\n\r\n")
        started = time.monotonic()

        assert service.ask(LARGE).status == 200
        assert time.monotonic() - started < 2.0


def test_who_asks_first_is_asked_to_send_when_it_is_his_turn(service: Listening) -> None:
    with service.connect() as connection:
        connection.sendall(ASKING)
        assert read_interim(connection).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)

        assert read_answer(connection).status == 200


def read_interim(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        received += connection.recv(1)
    return received


@pytest.fixture(scope="module")
def busy() -> Iterator[Listening]:
    with listening("tcp", "--device=cpu", "--queue-seconds=0.001", "--log-level=error") as running:
        yield running


@contextmanager
def refused(service: Listening, head: bytes) -> Iterator[tuple[socket.socket, Answer]]:
    """Ask until it is refused: while others have all turns, which is for a moment only, since they send nothing."""
    for _ in range(20):
        with ExitStack() as stack:
            connection, *others = [stack.enter_context(known_connection(service)) for _ in range(TURNS + 1)]
            for other in others:
                other.sendall(HEAD + b"\r\n\r\n")
            connection.sendall(head)
            is_answered = select.select([connection], [], [], 1.0)[0]
            if is_answered and (answer := read_answer(connection)).status == 503:
                for other in others:
                    other.close()
                yield connection, answer
                return
        time.sleep(2 * LOOK_SECONDS)  # what was seen of these is not to be held against the next
    raise AssertionError("it was never refused")


def known_connection(service: Listening) -> socket.socket:
    """Return one that has been used.

    What comes on several such is read in the order in which it was sent, but for the one used last: it may come first.
    """
    connection = service.connect()
    connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert read_answer(connection).status == 200
    return connection


def test_who_asks_first_is_refused_without_a_byte_of_the_body(busy: Listening) -> None:
    with refused(busy, ASKING) as (_, answer):
        assert as_problem(answer) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["connection"] == "close"


def test_who_is_to_come_again_may_send_to_the_end_however_long_that_takes(busy: Listening) -> None:
    with refused(busy, HEAD + b"\r\n\r\n") as (connection, answer):
        assert as_problem(answer) == (503, "memory-budget")
        pieces = 6
        for piece in range(pieces):
            connection.sendall(BODY[len(BODY) * piece // pieces : len(BODY) * (piece + 1) // pieces])
            time.sleep(2 * DRAIN_SECONDS / pieces)
        connection.sendall(LARGE)

        assert read_answer(connection).status == 200
