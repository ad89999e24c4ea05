"""How much memory requests hold, and who waits for some: bytes are reserved before they are used.

Everything here belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque

from service import metrics
from service.engine.admission import Deadline, retry_seconds
from service.errors import ContentTooLarge, MemoryBudget

STEP_BYTES = 1 << 20
"""What a body of unknown length is given at a time."""

SMALL_BYTES = 1 << 20
"""A request for no more than this passes those that wait for more, as long as there is room for it: it will be over
soon, and those who wait do so for a bounded time."""


class Budget:
    """A number of bytes, given out in reservations."""

    def __init__(self, total: int, wait_seconds: float) -> None:
        self.total = total
        self.reserved = 0
        self._wait_seconds = wait_seconds
        self._growing: deque[_Waiter] = deque()
        self._coming: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        """How many requests wait for memory."""
        return len(self._growing) + len(self._coming)

    def note_state(self) -> None:
        """Tell the metrics how much is reserved."""
        metrics.MEMORY_RESERVED.set(self.reserved)
        metrics.MEMORY_BUDGET.set(self.total)

    def try_take(self, size: int) -> bool:
        """Take bytes if there is room for them and nobody is before."""
        if self.reserved + size > self.total or (size > SMALL_BYTES and self.waiting):
            return False
        self.reserved += size
        return True

    def give_back(self, size: int) -> None:
        """Give bytes back to whoever waits for them: first those that hold some already."""
        self.reserved -= size
        for line in (self._growing, self._coming):
            while line:
                waiter = line[0]
                if waiter.granted.done():  # its time is over, and its task about to leave the line
                    line.popleft()
                    continue
                if self.reserved + waiter.size > self.total:
                    return
                line.popleft()
                self.reserved += waiter.size
                waiter.reservation.size += waiter.size
                waiter.granted.set_result(None)

    async def wait(self, reservation: Reservation, size: int, deadline: Deadline) -> None:
        """Enlarge a reservation once there is room.

        Raises MemoryBudget when there is none in time, or can be none because all that is held belongs to requests
        that wait for more.
        """
        waiter = _Waiter(reservation, size)
        line = self._growing if reservation.size else self._coming
        if sum(each.reservation.size for each in self._growing) + reservation.size == self.reserved:
            raise MemoryBudget("full", seconds=retry_seconds())
        line.append(waiter)
        try:
            async with asyncio.timeout(max(0.0, min(self._wait_seconds, deadline.left))):
                await waiter.granted
        except TimeoutError:
            deadline.check()
            raise MemoryBudget("full", seconds=retry_seconds(self._wait_seconds)) from None
        finally:
            if waiter in line:
                line.remove(waiter)
            self.give_back(0)  # who was behind may fit where this one did not


class Reservation:
    """What one request has reserved; `release` it in the end."""

    __slots__ = ("_budget", "size")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.size = 0

    def try_grow_to(self, size: int) -> bool:
        """Have at least so many bytes if that is possible without waiting."""
        more = size - self.size
        if more > 0:
            if not self._budget.try_take(more):
                return False
            self.size = size
        return True

    async def grow_to(self, size: int, deadline: Deadline) -> None:
        """Have at least so many bytes, waiting for them as long as anybody waits for memory.

        Raises ContentTooLarge when all of the budget is less, MemoryBudget when nothing becomes free in time, and
        DeadlineExceeded when the deadline passes before.
        """
        if size > self._budget.total:
            raise ContentTooLarge("memory", limit=self._budget.total, got=size)
        if not self.try_grow_to(size):
            await self._budget.wait(self, size - self.size, deadline)

    def shrink_to(self, size: int) -> None:
        """Give back what goes beyond so many bytes."""
        if (less := self.size - size) > 0:
            self.size = size
            self._budget.give_back(less)

    def release(self) -> None:
        """Give everything back."""
        self.shrink_to(0)


class _Waiter:
    def __init__(self, reservation: Reservation, size: int) -> None:
        self.reservation = reservation
        self.size = size
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
