"""When a request is sent again, and after how long. Operators are pure functions, so sending again is always safe."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a request is tried, and how long to wait in between.

    Before try n + 1 the wait is a random time from 0 to `base_seconds * 2**(n - 1)` ("full jitter": callers that were
    turned away together do not come back together), after the `Retry-After` of the answer if it has one.

    Attributes:
        attempts: tries in all, the first included; 1 never retries.
        base_seconds: upper bound of the first wait.
        max_seconds: upper bound of any wait, `Retry-After` apart.
    """

    attempts: int = 5
    base_seconds: float = 0.1
    max_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.base_seconds < 0 or self.max_seconds < 0:
            raise ValueError("a request has at least one attempt, and waits are not negative")

    def pause(self, failures: int, retry_after: float | None, draw: random.Random) -> float:
        """Return how many seconds to wait after so many failed tries."""
        bound = min(self.max_seconds, self.base_seconds * 2.0 ** min(failures - 1, 64))
        return (retry_after or 0.0) + draw.uniform(0.0, bound)


@dataclass(slots=True)
class RetryBudget:
    """Bounds the retries of all calls of a client together, so that a service in trouble is not drowned in them.

    A retry takes one from it, an answer puts `refill` back, up to `capacity`: in the long run at most one request in
    five is a retry.
    """

    capacity: float = 20.0
    refill: float = 0.2
    _left: float = field(init=False)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._left = self.capacity

    def take(self) -> bool:
        """Take one retry, or return False when none is left."""
        with self._lock:
            if self._left < 1.0:
                return False
            self._left -= 1.0
            return True

    def put_back(self) -> None:
        """Note that a request was answered."""
        with self._lock:
            self._left = min(self.capacity, self._left + self.refill)
