"""What an exception from below means: memory that ran out, a device that is lost, or a bug."""

from __future__ import annotations

import torch

from service.engine.admission import retry_seconds
from service.errors import EngineRestarting, MemoryBudget

_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")
"""How torch's allocators say in a RuntimeError that there is no memory."""

_DEVICE_LOST = ("CUDA error", "CUDA driver error", "device-side assert")
"""How errors read after which the process can no longer use the device."""


_ACCELERATOR_ERROR: type[BaseException] | tuple[()] = getattr(torch, "AcceleratorError", ())
"""Class of such errors from torch 2.8 on; before, they are plain RuntimeErrors."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in the process or on the device; what was freed can be used again."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether the device will fail whatever comes next, until the process is started anew."""
    if is_out_of_memory(error):
        return False
    if isinstance(error, _ACCELERATOR_ERROR):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _DEVICE_LOST)


def as_answer(error: BaseException) -> BaseException:
    """Return what a request is told that met with `error`: itself, unless it says something else than it means."""
    if is_device_lost(error):
        return EngineRestarting("restarting", seconds=retry_seconds())
    if is_out_of_memory(error):
        return MemoryBudget("engine", seconds=retry_seconds())
    return error
