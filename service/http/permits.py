"""What one request holds of the service until it is answered: memory, a place among the work, and time."""

from __future__ import annotations

import time
from functools import partial

from starlette.types import Receive, Scope

from service.engine.admission import Backlog, Deadline, Ticket
from service.engine.batch import computing_bytes
from service.engine.budget import STEP_BYTES, Budget, Reservation
from service.errors import InvalidOption, quoted
from service.http.connection import connection_of
from service.http.formats import Format
from service.http.intake import Intake, Passage
from service.http.leaving import Departure
from service.http.receiver import ClientDisconnectedError
from service.ops.bind import Job
from service.wire import json_codec

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
_TIMEOUT_KEY = TIMEOUT_HEADER.lower().encode()

LONGEST_TIMEOUT_MS = 86_400_000
"""A day."""

SMALL_BODY_BYTES = 1 << 16
"""Up to this size a body is given at once the most that any body of its size can need."""

BUFFER_SLACK_BYTES = 1 << 17
"""What a pooled buffer may be larger than the body in it."""


class Gate:
    """Gives every request its permit."""

    def __init__(self, budget: Budget, backlog: Backlog, intake: Intake, deadline_seconds: float) -> None:
        self.budget = budget
        self.backlog = backlog
        self.intake = intake
        self._seconds = deadline_seconds

    def permit(self, headers: dict[bytes, bytes], started: float, scope: Scope, receive: Receive) -> Permit:
        """Return the permit of a request that began at a time of `time.perf_counter`.

        Raises InvalidOption when the caller's deadline cannot be read.
        """
        text = headers.get(_TIMEOUT_KEY)
        seconds = self._seconds if text is None else _milliseconds(text) / 1e3
        deadline = Deadline(started + seconds, int(seconds * 1e3))
        return Permit(self, deadline, scope, receive)


def _milliseconds(text: bytes) -> int:
    if not (text.isdigit() and len(text) <= 18 and 0 < int(text) <= LONGEST_TIMEOUT_MS):
        raise InvalidOption(
            "value",
            name=TIMEOUT_HEADER,
            expected=f"a whole number of milliseconds from 1 to {LONGEST_TIMEOUT_MS}",
            got=quoted(text.decode("latin-1")),
        )
    return int(text)


class Permit:
    """What one request holds; `close` it in the end.

    Memory is asked for with `may_...`, which answers at once; where it says no, `wait_for` waits for what was refused.
    """

    __slots__ = (
        "_backlog", "_departure", "_intake", "_is_done", "_passage", "_receive", "_scope", "_waited", "_wanted",
        "deadline", "memory", "ticket",
    )  # fmt: skip

    def __init__(self, gate: Gate, deadline: Deadline, scope: Scope, receive: Receive) -> None:
        self._backlog = gate.backlog
        self._intake = gate.intake
        self._passage: Passage | None = None
        self._scope = scope
        self._receive = receive
        self._departure: Departure | None = None
        self._is_done = False
        self._wanted = 0
        self._waited = 0.0
        self.memory = Reservation(gate.budget)
        self.deadline = deadline
        self.ticket: Ticket | None = None

    def let_in(self, kind: tuple[str, Format], size: int, *, asks_first: bool) -> None:
        """Let a large body of a declared length come, into memory of its own.

        Raises MemoryBudget when too many come already; and, for a caller who waits to be asked for it, what `enter`
        would raise now.
        """
        ticket = self.ticket_for(kind, size)
        if asks_first:
            self._backlog.check(ticket, coming=self._intake.work_ahead())
        if (connection := connection_of(self._scope)) is not None:
            self._passage = self._intake.enter(size, ticket.seconds)
            connection.note = partial(self._intake.note, self._passage)

    async def wait_for_turn(self, kind: tuple[str, Format], size: int, *, asks_first: bool) -> None:
        """Wait until the body may come; raises what `Intake.take_turn` does, and what `let_in` does."""
        if self._passage is None:
            return
        started = time.perf_counter()
        await self._intake.take_turn(self._passage, self.deadline)
        self._waited = time.perf_counter() - started
        if asks_first:
            coming = self._intake.work_ahead(self._passage)
            self._backlog.check(self.ticket_for(kind, size), waited=self._waited, coming=coming)

    def end_turn(self) -> None:
        """Let the next body come."""
        if self._passage is not None:
            self._intake.leave(self._passage)
            self._passage = None

    def may_read(self, declared: int | None, of: Format) -> bool:
        """Whether there is memory for a body of a declared length; for one without, for its first piece."""
        size = STEP_BYTES if declared is None else declared
        if size <= SMALL_BODY_BYTES:
            return self._may_hold(json_codec.MOST_DECODING_BYTES_PER_BYTE * size)
        # The pieces of a JSON body are joined in the end, when both they and the whole are there.
        return self._may_hold(2 * size if of == "json" else size + BUFFER_SLACK_BYTES)

    def may_decode(self, size: int) -> bool:
        """Whether there is memory for decoding that takes so much, the body included."""
        return self._may_hold(size)

    def may_compute(self, job: Job, body_bytes: int, answer_bytes: int, wanted: Format) -> bool:
        """Whether there is memory for a job: its body, its inputs, its results, and the text of its answer."""
        if body_bytes <= SMALL_BODY_BYTES:
            return self._may_hold(json_codec.MOST_DECODING_BYTES_PER_BYTE * body_bytes + 2 * answer_bytes)
        inputs = job.input_bytes
        size = max(body_bytes, inputs) if job.owns_memory else body_bytes + inputs
        size += computing_bytes(job) + BUFFER_SLACK_BYTES
        if wanted == "json":
            size += answer_bytes
        self.memory.shrink_to(size)
        return self._may_hold(size)

    def bring_forward(self, deadline: Deadline) -> None:
        """Heed a deadline that became known later, where it is the earlier; raises DeadlineExceeded when it is past."""
        if deadline.at < self.deadline.at:
            self.deadline = deadline
            if self.ticket is not None:
                self.ticket.deadline = deadline
        deadline.check()

    async def wait_for(self) -> None:
        """Wait for the memory that was refused last; raises what `Reservation.grow_to` does."""
        await self.memory.grow_to(self._wanted, self.deadline)

    async def cover(self, received: int) -> None:
        """Have memory for a body that has grown to so many bytes without saying how long it will be, and the time."""
        self.deadline.check()
        while self.memory.size < received:
            await self.memory.grow_to(self.memory.size + STEP_BYTES, self.deadline)

    async def cover_twice(self, received: int) -> None:
        """Do the same for a body whose pieces are joined in the end."""
        await self.cover(2 * received)

    def enter(self, kind: tuple[str, Format], amount: int) -> None:
        """Take a place among the work, once, to be given up when the caller leaves.

        Raises Overloaded when the work would have to wait too long there. The body must have been read.
        """
        if self.ticket is None:
            self._keep(self._backlog.admit(kind, amount, self.deadline, waited=self._waited))

    def ticket_for(self, kind: tuple[str, Format], amount: int) -> Ticket:
        """Return the place that work would have now, without giving it."""
        return self._backlog.ticket(kind, amount, self.deadline)

    def enter_begun(self, ticket: Ticket) -> None:
        """Take a place for work that has been begun with before the whole body was there."""
        self._backlog.hold(ticket)
        self._keep(ticket)

    def _keep(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self._departure = Departure(self._scope, self._receive)

    def note_done(self) -> None:
        """Take note that the work was done to its end."""
        self._is_done = True

    def check_left(self) -> None:
        """Raise ClientDisconnectedError when it is the caller's leaving that ended the work."""
        if self._departure is not None and self._departure.has_happened:
            raise ClientDisconnectedError

    def close(self) -> None:
        """Give everything back."""
        self.end_turn()
        if self._departure is not None:
            self._departure.forget()
        if self.ticket is not None:
            self._backlog.leave(self.ticket, is_done=self._is_done)
        if self.memory.size:
            self.memory.release()

    def _may_hold(self, size: int) -> bool:
        self._wanted = size
        return self.memory.try_grow_to(size)
