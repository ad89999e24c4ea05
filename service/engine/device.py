"""Which device computes, the CPU or one CUDA device, and how a thread works on it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

logger = logging.getLogger(__name__)


class DeviceUnavailableError(RuntimeError):
    """The device that the settings ask for is not there."""


def choose_device(name: str) -> torch.device:
    """Return the device that `name` (`auto`, `cpu`, `cuda` or `cuda:N`) stands for.

    `auto` takes CUDA when there is one. Raises DeviceUnavailableError when the device is not there.
    """
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        logger.info("device auto: computing on %s", device)
        return device
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise DeviceUnavailableError(f"device is {name}, but torch {torch.__version__} finds no CUDA device")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise DeviceUnavailableError(
            f"device is {name}, but there are {count} CUDA devices (cuda:0 to cuda:{count - 1})"
        )
    return device


_own = threading.local()


def lane(device: torch.device) -> AbstractContextManager[object]:
    """Let the calling thread work on a device in an order of its own, and wait at the end for what it began there.

    On CUDA every thread has a stream, so that one uploads a block while another's is computed and a third's comes back.
    Copies then return at once where the memory of the host is pinned; until the end it must stay as it is.
    """
    return _stream(device) if device.type == "cuda" else _NO_LANE


_NO_LANE = nullcontext()


@contextmanager
def _stream(device: torch.device) -> Iterator[None]:
    streams: dict[torch.device, torch.cuda.Stream] = _own.__dict__.setdefault("streams", {})
    stream = streams.get(device)
    if stream is None:
        stream = streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # not annotated
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        stream.synchronize()
