"""How threads work on a device: on a GPU each in a stream of its own, waited for whatever happens; seen with fakes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from service.engine.buffers import SMALLEST_POOLED_BYTES, BufferPool
from service.engine.device import lane

CUDA = torch.device("cuda:0")


class FakeStream:
    """A stream that notes who waited for it."""

    made: list[FakeStream]

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.waited = 0
        self.made.append(self)

    def synchronize(self) -> None:
        self.waited += 1


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[FakeStream]:
    FakeStream.made = []
    current: list[FakeStream] = []

    @contextmanager
    def use(stream: FakeStream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", use)
    return FakeStream.made


def in_new_thread(function: object) -> None:
    thread = threading.Thread(target=function)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_every_thread_has_one_stream_and_waits_for_it(streams: list[FakeStream]) -> None:
    def work() -> None:
        for _ in range(3):
            with lane(CUDA):
                pass

    for _ in range(2):
        in_new_thread(work)

    assert [stream.waited for stream in streams] == [3, 3]
    assert all(stream.device == CUDA for stream in streams)


def test_a_stream_is_waited_for_after_a_failure_too(streams: list[FakeStream]) -> None:
    def work() -> None:
        with pytest.raises(ValueError, match="broken"), lane(CUDA):
            raise ValueError("broken")

    in_new_thread(work)

    assert [stream.waited for stream in streams] == [1]


def test_a_cpu_has_no_streams(streams: list[FakeStream]) -> None:
    with lane(torch.device("cpu")):
        pass

    assert streams == []


def test_a_pinned_pool_asks_for_pinned_memory_where_buffers_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    empty = torch.empty

    def note(size: int, *, dtype: torch.dtype, pin_memory: bool = False) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", note)
    pool = BufferPool(1 << 30, pinned=True)
    pool.take(SMALLEST_POOLED_BYTES - 1)
    pool.take(SMALLEST_POOLED_BYTES)

    assert asked == [False, True]
