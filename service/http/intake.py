"""Whose turn it is to have a large body received: a few at once, and the rest wait unread.

Were all received together, all would be late. So a few bodies have a turn each, the others follow in the order of their
coming, and who would have to wait too long is told so before any of his body is read. Whose bytes come slowly keeps
nobody waiting: such a body is received beside those that have a turn.
"""

from __future__ import annotations

import asyncio
from collections import deque

from service.engine.admission import Deadline, retry_seconds
from service.errors import MemoryBudget

LEAST_TURN_BYTES = 1 << 22
"""Smaller bodies need no turn: receiving one takes less than all else that its request takes."""

TURNS = 2
"""How many have a turn at once: while one sender pauses for breath, the other goes on."""

START_BYTES_PER_SECOND = 2e9
"""How fast bodies come in until that has been seen."""

LEARNT_SECONDS = 1.0
"""How far back the speed is looked at, in seconds in which all turns were taken."""

SLOW_BYTES_PER_SECOND = 64e6
"""Whoever sends more slowly needs no turn."""

LOOK_SECONDS = 0.02
"""How often those who have a turn are looked at, while all turns are taken."""


class Passage:
    """A large body on its way.

    Attributes:
        size: bytes in all.
        received: bytes that have come.
    """

    __slots__ = ("given", "received", "seen", "since", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.received = self.seen = 0
        self.since = 0.0
        self.given: asyncio.Future[None] | None = None


class Intake:
    """The large bodies on their way to one event loop."""

    def __init__(self, most_seconds: float) -> None:
        """Let nobody in who would have to wait for longer."""
        self._most_seconds = most_seconds
        self._passages: set[Passage] = set()
        self._having_turns: set[Passage] = set()
        self._waiting: deque[Passage] = deque()
        self._seconds, self._bytes = LEARNT_SECONDS / 10, START_BYTES_PER_SECOND * LEARNT_SECONDS / 10
        self._full_since: float | None = None
        """Since when all turns are taken, of what has not been learnt from."""
        self._came = 0
        """Bytes that have come since."""
        self._next_look: asyncio.TimerHandle | None = None

    def enter(self, size: int) -> Passage:
        """Let a body of `size` bytes come, to be followed by `leave`.

        Raises MemoryBudget when it would not have come in time, behind those that are on their way.
        """
        passage = Passage(size)
        if len(self._passages) >= TURNS:
            left = size + sum(other.size - other.received for other in self._passages)
            if (seconds := left * self._seconds / self._bytes) > self._most_seconds:
                raise self._refusal(seconds)
        self._passages.add(passage)
        return passage

    def _refusal(self, seconds: float) -> MemoryBudget:
        return MemoryBudget("arriving", most=f"{self._most_seconds:g}", seconds=retry_seconds(seconds))

    async def take_turn(self, passage: Passage, deadline: Deadline) -> None:
        """Wait for a turn; raises MemoryBudget when none comes in time, DeadlineExceeded when that is past."""
        if len(self._having_turns) < TURNS and not self._waiting:
            self._give_turn(passage)
            return
        passage.given = asyncio.get_running_loop().create_future()
        self._waiting.append(passage)
        try:
            async with asyncio.timeout(max(0.0, min(self._most_seconds, deadline.left))):
                await passage.given
        except TimeoutError:
            deadline.check()
            raise self._refusal(self._most_seconds) from None

    def note(self, passage: Passage, size: int) -> None:
        """Take note that so many more bytes have come."""
        passage.received += size
        self._came += size

    def leave(self, passage: Passage) -> None:
        """Take note that a body has come, or will not."""
        self._passages.discard(passage)
        if passage in self._waiting:
            self._waiting.remove(passage)
        if passage in self._having_turns:
            self._learn()
            self._having_turns.discard(passage)
            self._hand_on()

    def _give_turn(self, passage: Passage) -> None:
        loop = asyncio.get_running_loop()
        passage.since, passage.seen = loop.time(), passage.received
        self._having_turns.add(passage)
        if len(self._having_turns) == TURNS:
            self._full_since, self._came = passage.since, 0
            if self._next_look is None:
                self._next_look = loop.call_later(LOOK_SECONDS, self._look, loop)

    def _hand_on(self) -> None:
        while self._waiting and len(self._having_turns) < TURNS:
            passage = self._waiting.popleft()
            if passage.given is not None and not passage.given.done():
                passage.given.set_result(None)
                self._give_turn(passage)

    def _learn(self) -> None:
        """Learn how fast bodies come in, from the time in which all turns were taken."""
        if self._full_since is None:
            return
        self._seconds += asyncio.get_running_loop().time() - self._full_since
        self._bytes += self._came
        if self._seconds > LEARNT_SECONDS:
            self._seconds, self._bytes = self._seconds / 2, self._bytes / 2
        self._full_since = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the turn from those whose bytes come slowly."""
        now = loop.time()
        self._next_look = None
        if slow := {passage for passage in self._having_turns if self._is_slow(passage, now)}:
            self._full_since = None
            self._having_turns -= slow
            self._passages -= slow
            self._hand_on()
        if self._next_look is None and len(self._having_turns) == TURNS:
            self._next_look = loop.call_later(LOOK_SECONDS, self._look, loop)

    @staticmethod
    def _is_slow(passage: Passage, now: float) -> bool:
        """Return whether bytes have come slowly since the last look that came late enough to tell."""
        if (seconds := now - passage.since) < LOOK_SECONDS / 2:
            return False
        came, passage.since, passage.seen = passage.received - passage.seen, now, passage.received
        return came < SLOW_BYTES_PER_SECOND * seconds
