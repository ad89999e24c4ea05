"""Which step of which work a free worker takes next: small work first, and nothing waits for ever.

Work is *due* at its arrival plus AGEING times what it costs, and what is due first runs first. So small work overtakes
large work that came shortly before, between two of its steps; but work that costs c seconds is overtaken only by what
comes within AGEING * c seconds after it. Among equals, first come, first served.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

AGEING = 4.0
"""Seconds for which work of one second lets smaller work pass."""


class Steps:
    """Steps of one piece of work, each a call of `function` in some worker, that may run at the same time."""

    __slots__ = ("due", "function", "left", "number")

    def __init__(self, function: Callable[[], None], count: int, due: float) -> None:
        self.function = function
        self.left = count
        self.due = due
        self.number = 0

    def __lt__(self, other: Steps) -> bool:
        return (self.due, self.number) < (other.due, other.number)


def due(arrived: float, cost_seconds: float) -> float:
    """Return when work is due that arrived at a time and costs so much."""
    return arrived + AGEING * cost_seconds


class StepQueue:
    """The steps that nobody has taken yet."""

    def __init__(self) -> None:
        self._heap: list[Steps] = []
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._is_closed = False

    def put(self, steps: Steps) -> None:
        """Offer steps to the workers; raises RuntimeError when the queue is closed."""
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the engine is closed")
            steps.number = next(self._numbers)
            heapq.heappush(self._heap, steps)
            self._changed.notify(steps.left)

    def extend(self, steps: Steps, count: int) -> None:
        """Offer more steps of a piece of work; raises RuntimeError when the queue is closed."""
        with self._changed:
            if steps.left:
                steps.left += count
                self._changed.notify(count)
                return
            steps.left = count
        self.put(steps)

    def take(self) -> Callable[[], None] | None:
        """Wait for a step and return it; None once the queue is closed and empty."""
        with self._changed:
            while True:
                while self._heap and not self._heap[0].left:
                    heapq.heappop(self._heap)
                if self._heap:
                    break
                if self._is_closed:
                    return None
                self._changed.wait()
            first = self._heap[0]
            first.left -= 1
            if not first.left:
                heapq.heappop(self._heap)
            return first.function

    def withdraw(self, steps: Steps) -> int:
        """Take back the steps that nobody has taken; return how many."""
        with self._changed:
            left, steps.left = steps.left, 0
            return left

    def close(self) -> None:
        """Let the workers end once nothing is left."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
