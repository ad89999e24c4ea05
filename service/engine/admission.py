"""Whether work is let in: how long it would wait for what is ahead of it, and whether it would be done in time.

Work is measured in the seconds that workers are predicted to be busy with it. What a kind of work takes is learnt from
what it took.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Hashable
from dataclasses import dataclass

from service.engine.queue import due
from service.errors import DeadlineExceeded, Overloaded

START_SECONDS_PER_BYTE = 5e-9
"""What a byte of a body takes until its kind of work has been seen: between binary (1e-9) and JSON (2e-8)."""

MEMORY = 0.9
"""What remains, of what has been learnt, after one more piece of work of the kind."""

LEAST_LEFT = 0.05
"""Part of its prediction that unfinished work is taken to need still, however long it has run."""

CAUTION = 1.1
"""So many times its prediction a wait is taken to last: what refuses others meanwhile slows the workers a little."""

MOST_RETRY_SECONDS = 5


def retry_seconds(wait: float = 0.0) -> int:
    """Return after how many seconds to try again: jittered, so that those refused together do not return together."""
    soonest = min(max(1, math.ceil(wait)), MOST_RETRY_SECONDS - 2)
    return soonest + random.randrange(3)  # noqa: S311  # jitter needs no cryptography


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a request is given up.

    Attributes:
        at: on the clock of `time.perf_counter`.
        milliseconds: how much time the request had in all.
    """

    at: float
    milliseconds: int

    @property
    def left(self) -> float:
        """Seconds until then, negative afterwards."""
        return self.at - time.perf_counter()

    def check(self) -> None:
        """Raise DeadlineExceeded when it has passed."""
        self.check_at(time.perf_counter())

    def check_at(self, now: float) -> None:
        """Do the same at a time that is known."""
        if now > self.at:
            raise DeadlineExceeded("late", limit=self.milliseconds)


NO_DEADLINE = Deadline(math.inf, 0)


@dataclass(slots=True, eq=False)
class Ticket:
    """One request's place among the work.

    Attributes:
        seconds: how long workers are predicted to be busy with it.
        due: its place in the queue of steps.
        spent: how long they have been.
    """

    seconds: float
    due: float
    deadline: Deadline = NO_DEADLINE
    kind: Hashable = None
    amount: int = 0
    spent: float = 0.0

    @property
    def left(self) -> float:
        """Seconds that workers are still to be busy with it."""
        return max(self.seconds - self.spent, self.seconds * LEAST_LEFT)


class Backlog:
    """All work that has been let in and is not done.

    Tickets are given and taken back on the event loop only; workers add to `spent` meanwhile.
    """

    def __init__(self, workers: int, most_seconds: float = math.inf) -> None:
        self._workers = workers
        self._most_seconds = most_seconds
        self._tickets: set[Ticket] = set()
        self._learnt: dict[Hashable, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def seconds(self) -> float:
        """How long the workers are predicted to need for all of it."""
        return sum(ticket.left for ticket in self._tickets) / self._workers

    def predicted(self, kind: Hashable, amount: int) -> float:
        """Return how many seconds of a worker an amount of a kind of work is predicted to take."""
        seconds, of = self._learnt.get(kind, (START_SECONDS_PER_BYTE, 1.0))
        return amount * seconds / of

    def ticket(self, kind: Hashable, amount: int, deadline: Deadline = NO_DEADLINE) -> Ticket:
        """Return the place that work of a kind and amount would have now, without giving it."""
        seconds = self.predicted(kind, amount)
        return Ticket(seconds, due(time.perf_counter(), seconds), deadline, kind, amount)

    def admit(self, kind: Hashable, amount: int, deadline: Deadline = NO_DEADLINE, *, waited: float = 0.0) -> Ticket:
        """Return a place for work of a kind and amount, to be given back with `leave`; raises what `check` does."""
        ticket = self.ticket(kind, amount, deadline)
        self.check(ticket, waited=waited)
        self.hold(ticket)
        return ticket

    def hold(self, ticket: Ticket) -> None:
        """Give a place to work that has been begun with, whatever is ahead of it."""
        self._tickets.add(ticket)

    def check(self, ticket: Ticket, *, waited: float = 0.0, coming: float = 0.0) -> None:
        """See whether a place can be given to whoever has `waited` for some seconds already.

        `coming` is how long a worker is predicted to be busy with what is about to be let in before it.

        Raises Overloaded when the work ahead takes longer than allowed, or leaves too little time until the deadline;
        DeadlineExceeded when that has passed already.
        """
        ticket.deadline.check()
        ahead = coming + sum(other.left for other in self._tickets if other.due <= ticket.due)
        wait = CAUTION * ahead / self._workers
        if wait + waited > self._most_seconds:
            raise Overloaded("queue", most=f"{self._most_seconds:g}", seconds=retry_seconds(wait))
        if ahead and wait + ticket.seconds / self._workers > ticket.deadline.left:
            raise Overloaded("deadline", limit=ticket.deadline.milliseconds, seconds=retry_seconds(wait))

    def leave(self, ticket: Ticket, *, is_done: bool) -> None:
        """Take a place back; work that was done teaches what its kind takes."""
        self._tickets.discard(ticket)
        if is_done and ticket.amount:
            seconds, of = self._learnt.get(ticket.kind, (0.0, 0.0))
            self._learnt[ticket.kind] = (seconds * MEMORY + ticket.spent, of * MEMORY + ticket.amount)
