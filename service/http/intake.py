"""Whose turn it is to have a large body received, while there is more to receive or to compute than can be.

Were all received together then, all would be late. So a few bodies have a turn each, the others follow in the order of
their coming, and who would have to wait too long is told so before any of his body is read. As long as the event loop
has time to spare and the workers keep up, it is the network that everybody waits for: then the turns double with every
look, until everybody has one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from service.engine.admission import Deadline, retry_seconds
from service.errors import MemoryBudget

LEAST_TURN_BYTES = 1 << 20
"""Smaller bodies need no turn: receiving one takes less than all else that its request takes."""

TURNS = 2
"""How many have a turn at once, at least: while one sender pauses for breath, the other goes on."""

START_BYTES_PER_SECOND = 2e9
"""How fast bodies come in until that has been seen."""

LEARNT_SECONDS = 1.0
"""How far back the speed is looked at, in seconds in which the loop was busy."""

SLOW_BYTES_PER_SECOND = 16e6
"""Whoever sends more slowly needs no turn, and takes no time from others that would count."""

LOOK_SECONDS = 0.05
"""How often a look is taken at what comes in."""

BUSY = 0.8
"""From this part of its time on the event loop counts as busy."""

_SCHEDULED = Path("/proc/thread-self/schedstat")
"""Where Linux tells how long the calling thread has run, and how long it would have, had a processor been free: ns."""


class Passage:
    """A large body on its way.

    Attributes:
        size: bytes in all.
        work_seconds: what it is predicted to take of a worker, once it is there.
        received: bytes that have come.
    """

    __slots__ = ("let_in", "received", "seen", "since", "size", "work_seconds")

    def __init__(self, size: int, work_seconds: float) -> None:
        self.size = size
        self.work_seconds = work_seconds
        self.received = self.seen = 0
        self.since = time.perf_counter()
        self.let_in: asyncio.Future[None] | None = None
        """Done when a body that has to wait may come."""


class Intake:
    """The large bodies on their way to one event loop."""

    def __init__(
        self, most_seconds: float, is_backed_up: Callable[[], bool], work_seconds: Callable[[], float] | None = None
    ) -> None:
        """Let nobody in who would have to wait for longer.

        `is_backed_up()` says whether what has been received waits already, and `work_seconds()` for how long the event
        loop has had something to do.
        """
        self._most_seconds = most_seconds
        self._is_backed_up = is_backed_up
        self._work_seconds = work_seconds or thread_seconds
        self._passages: set[Passage] = set()
        """All but those that come slowly."""
        self._having_turns: set[Passage] = set()
        self._waiting: deque[Passage] = deque()
        self._is_busy = True
        """Whether the event loop has no time to spare, as far as is known."""
        self._turns = TURNS
        """How many may have a turn at once while the workers keep up."""
        self._seconds, self._bytes = LEARNT_SECONDS / 10, START_BYTES_PER_SECOND * LEARNT_SECONDS / 10
        self._came = 0
        self._looked = self._worked = 0.0
        self._next_look: asyncio.TimerHandle | None = None

    def enter(self, size: int, work_seconds: float = 0.0) -> Passage:
        """Let a body of `size` bytes come, to be followed by `leave`.

        Raises MemoryBudget when it would not have come in time, behind those that are on their way.
        """
        passage = Passage(size, work_seconds)
        if len(self._passages) >= TURNS:
            left = size + sum(other.size - other.received for other in self._passages)
            if self._is_busy and (seconds := left * self._seconds / self._bytes) > self._most_seconds:
                raise self._refusal(seconds)
        self._passages.add(passage)
        if self._next_look is None and len(self._passages) >= TURNS:
            self._look_later(asyncio.get_running_loop())
        return passage

    def _refusal(self, seconds: float) -> MemoryBudget:
        return MemoryBudget("arriving", most=f"{self._most_seconds:g}", seconds=retry_seconds(seconds))

    async def take_turn(self, passage: Passage, deadline: Deadline) -> None:
        """Wait for a turn; raises MemoryBudget when none comes in time, DeadlineExceeded when that is past."""
        if self._has_turn_left:
            self._give_turn(passage)
            return
        passage.let_in = asyncio.get_running_loop().create_future()
        self._waiting.append(passage)
        try:
            async with asyncio.timeout(max(0.0, min(self._most_seconds, deadline.left))):
                await passage.let_in
        except TimeoutError:
            deadline.check()
            raise self._refusal(self._most_seconds) from None

    def work_ahead(self, passage: Passage | None = None) -> float:
        """Return for how long workers are predicted to be busy with what comes before a passage, or a newcomer."""
        before = self._passages if passage is None else self._having_turns
        return sum(other.work_seconds for other in before if other is not passage)

    @property
    def _has_turn_left(self) -> bool:
        return len(self._having_turns) < (TURNS if self._is_backed_up() else self._turns)

    def note(self, passage: Passage, size: int) -> None:
        """Take note that so many more bytes have come."""
        passage.received += size
        self._came += size

    def leave(self, passage: Passage) -> None:
        """Take note that a body has come, or will not."""
        self._passages.discard(passage)
        self._having_turns.discard(passage)
        if passage in self._waiting:
            self._waiting.remove(passage)
        self._hand_on()

    def _give_turn(self, passage: Passage) -> None:
        passage.since, passage.seen = time.perf_counter(), passage.received
        self._having_turns.add(passage)

    def _hand_on(self) -> None:
        """Let those in whose turn it is."""
        while self._waiting and self._has_turn_left:
            passage = self._waiting.popleft()
            if passage.let_in is not None and not passage.let_in.done():
                passage.let_in.set_result(None)
                self._give_turn(passage)

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looked, self._worked, self._came = time.perf_counter(), self._work_seconds(), 0
        self._next_look = loop.call_later(LOOK_SECONDS, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """See whether the loop was busy and how fast bodies came in, and take the turn from those who are slow."""
        now = time.perf_counter()
        seconds = now - self._looked
        self._is_busy = self._work_seconds() - self._worked >= BUSY * seconds
        waiting = set(self._waiting)
        slow = {each for each in self._passages if each not in waiting and _is_slow(each, now)}
        self._passages -= slow
        self._having_turns -= slow
        self._turns = TURNS if self._is_busy else max(TURNS, 2 * len(self._having_turns))
        if self._is_busy:
            self._seconds, self._bytes = self._seconds + seconds, self._bytes + self._came
            if self._seconds > LEARNT_SECONDS:
                self._seconds, self._bytes = self._seconds / 2, self._bytes / 2
        self._hand_on()
        if len(self._passages) < TURNS:
            self._is_busy, self._turns, self._next_look = True, TURNS, None
        else:
            self._look_later(loop)


def _is_slow(passage: Passage, now: float) -> bool:
    """Return whether bytes have come slowly since the last look that came late enough to tell."""
    if (seconds := now - passage.since) < LOOK_SECONDS / 2:
        return False
    came, passage.since, passage.seen = passage.received - passage.seen, now, passage.received
    return came < SLOW_BYTES_PER_SECOND * seconds


def thread_seconds() -> float:
    """Return for how long the calling thread has had something to do."""
    try:
        ran, waited, _ = _SCHEDULED.read_text().split()
    except (OSError, ValueError):
        return time.thread_time()
    return (int(ran) + int(waited)) / 1e9
