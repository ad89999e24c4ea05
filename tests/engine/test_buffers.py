"""The pool lends memory to one user at a time and keeps no more than it may."""

from __future__ import annotations

import threading

import pytest
import torch

from service.engine.buffers import ALIGNMENT_BYTES, SMALLEST_POOLED_BYTES, BufferPool

LARGE = SMALLEST_POOLED_BYTES * 2


@pytest.mark.parametrize(
    "size", [0, 1, SMALLEST_POOLED_BYTES - 1, SMALLEST_POOLED_BYTES, SMALLEST_POOLED_BYTES + 1, LARGE]
)
def test_a_buffer_has_at_least_the_bytes_asked_for(size: int) -> None:
    buffer = BufferPool(1 << 30).take(size)

    assert buffer.dtype == torch.uint8
    assert buffer.numel() >= size


def test_a_buffer_given_back_is_lent_again() -> None:
    pool = BufferPool(1 << 30)
    buffer = pool.take(LARGE)
    pool.give_back(buffer)

    assert pool.take(LARGE).data_ptr() == buffer.data_ptr()


def test_nearly_equal_sizes_share_a_buffer() -> None:
    pool = BufferPool(1 << 30)
    buffer = pool.take(LARGE + 1)
    pool.give_back(buffer)

    assert pool.take(LARGE + ALIGNMENT_BYTES).data_ptr() == buffer.data_ptr()


def test_a_buffer_is_lent_to_one_user_at_a_time() -> None:
    pool = BufferPool(1 << 30)
    pool.give_back(pool.take(LARGE))

    first, second = pool.take(LARGE), pool.take(LARGE)

    assert first.data_ptr() != second.data_ptr()


def test_small_buffers_are_not_kept() -> None:
    pool = BufferPool(1 << 30)

    pool.give_back(pool.take(SMALLEST_POOLED_BYTES - 1))

    assert pool.kept_bytes == 0


def test_the_bytes_kept_are_counted() -> None:
    pool = BufferPool(1 << 30)
    buffers = [pool.take(LARGE) for _ in range(3)]

    for number, buffer in enumerate(buffers, start=1):
        pool.give_back(buffer)
        assert pool.kept_bytes == number * LARGE
    pool.take(LARGE)
    assert pool.kept_bytes == 2 * LARGE


def test_no_more_is_kept_than_allowed() -> None:
    pool = BufferPool(2 * LARGE)
    for buffer in [pool.take(LARGE) for _ in range(5)]:
        pool.give_back(buffer)

    assert pool.kept_bytes == 2 * LARGE


def test_a_buffer_larger_than_the_pool_is_not_kept() -> None:
    pool = BufferPool(LARGE)

    pool.give_back(pool.take(LARGE + 1))

    assert pool.kept_bytes == 0


def test_what_was_kept_longest_makes_room_for_another_size() -> None:
    pool = BufferPool(4 * LARGE)
    for buffer in [pool.take(LARGE) for _ in range(4)]:
        pool.give_back(buffer)
    other = pool.take(2 * LARGE)

    pool.give_back(other)

    assert pool.kept_bytes == 4 * LARGE
    assert pool.take(2 * LARGE).data_ptr() == other.data_ptr()


def test_threads_never_hold_the_same_buffer() -> None:
    pool = BufferPool(8 * LARGE)
    clashes: list[int] = []

    def use(number: int) -> None:
        for _ in range(200):
            buffer = pool.take(LARGE)
            buffer[:64] = number
            if not (buffer[:64] == number).all():
                clashes.append(number)
            pool.give_back(buffer)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not clashes
    assert pool.kept_bytes <= 4 * LARGE


def test_what_lies_unused_is_let_go_and_what_is_in_use_stays() -> None:
    pool = BufferPool(1 << 30)
    pool.give_back(pool.take(LARGE))
    pool.give_back(pool.take(2 * LARGE))

    assert pool.drop_unused(60.0) == 0
    assert pool.drop_unused(0.0) == 3 * LARGE
    assert pool.kept_bytes == 0
    assert pool.drop_unused(0.0) == 0
