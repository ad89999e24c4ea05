"""Memory for results that is used again: a fresh large buffer costs as much in page faults as the computation."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections import OrderedDict

import torch
from torch import Tensor

SMALLEST_POOLED_BYTES = 1 << 18
"""Smaller buffers come from the allocator, which keeps them at hand itself."""

ALIGNMENT_BYTES = 1 << 16
"""Sizes are rounded up to this, so that nearly equal requests share buffers."""


class BufferPool:
    """Byte buffers by size, kept up to a total and lent to one user at a time.

    Where a buffer given back finds no room, sizes that nobody has given back for longest make it. With `pinned`,
    buffers of pooled sizes lie in page-locked memory, which a GPU copies to and from while the host goes on.
    """

    def __init__(self, most_kept_bytes: int, *, pinned: bool = False) -> None:
        self._most_kept_bytes = most_kept_bytes
        self._pinned = pinned
        self._kept_bytes = 0
        self._kept: OrderedDict[int, list[Tensor]] = OrderedDict()
        self._last_used: dict[int, float] = {}
        self._lock = threading.Lock()

    @property
    def kept_bytes(self) -> int:
        """Bytes that lie here unused."""
        return self._kept_bytes

    def take(self, size: int) -> Tensor:
        """Lend a uint8 tensor of at least `size` bytes; its contents are arbitrary."""
        if size < SMALLEST_POOLED_BYTES:
            return torch.empty(size, dtype=torch.uint8)
        size = -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        with self._lock:
            if size in self._kept:
                self._last_used[size] = time.monotonic()
                return self._pop(size)
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)

    def give_back(self, buffer: Tensor) -> None:
        """Take a buffer back; nobody may hold a view of it any longer."""
        size = buffer.numel()
        if not SMALLEST_POOLED_BYTES <= size <= self._most_kept_bytes:
            return
        with self._lock:
            while self._kept_bytes + size > self._most_kept_bytes:
                self._pop(next(iter(self._kept)))
            self._kept.setdefault(size, []).append(buffer)
            self._kept.move_to_end(size)
            self._last_used[size] = time.monotonic()
            self._kept_bytes += size

    def drop_unused(self, seconds: float) -> int:
        """Let go of the sizes that nobody has used for so long; return how many bytes those were."""
        limit = time.monotonic() - seconds
        with self._lock:
            before = self._kept_bytes
            for size in [size for size in self._kept if self._last_used[size] <= limit]:
                while size in self._kept:
                    self._pop(size)
            self._last_used = {size: self._last_used[size] for size in self._kept}
            return before - self._kept_bytes

    def _pop(self, size: int) -> Tensor:
        buffers = self._kept[size]
        buffer = buffers.pop()
        if not buffers:
            del self._kept[size]
        self._kept_bytes -= size
        return buffer


def trim() -> None:
    """Hand freed memory back to the system, where the C library keeps it otherwise (glibc)."""
    if sys.platform == "linux" and (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        malloc_trim(0)
