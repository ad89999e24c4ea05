"""One launch from its first step to its last: a job in blocks, or several small ones stacked, and what becomes of each.

Whoever waits for a member is told once no worker touches the member's memory any longer, whether it was computed, has
failed or was given up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import torch

from service.engine import faults
from service.engine.admission import Ticket
from service.engine.batch import Answer, Execution
from service.engine.buffers import BufferPool
from service.engine.queue import StepQueue, Steps
from service.engine.stack import MOST_ELEMENTS, MOST_ROWS, Stack
from service.errors import RequestError
from service.metrics import BATCH_REQUESTS, note_launch
from service.ops.bind import Job


class Workplace(Protocol):
    """What launches need of the engine."""

    device: torch.device
    buffers: BufferPool
    queue: StepQueue

    def free_memory(self) -> None:
        """Let go of memory that nobody uses."""

    def note_failure(self, error: BaseException) -> None:
        """Take note of what a launch failed with."""

    def check_alive(self) -> None:
        """Raise EngineRestarting when the device is lost."""


@dataclass(slots=True, eq=False)
class Member:
    """A job in a launch, and whoever waits for it."""

    job: Job
    ticket: Ticket
    ended: Future[Answer] = field(default_factory=Future)
    submitted: float = field(default_factory=time.perf_counter)


class GivenUpError(Exception):
    """Nobody waits for the answer any longer."""


class Launch:
    """One job, cut into blocks that several workers compute.

    `is_second` is set where memory had run out before: then it is not tried once more.
    """

    def __init__(self, place: Workplace, member: Member, *, is_second: bool = False) -> None:
        self._place = place
        self._member = member
        self._is_second = is_second
        self._execution: Execution | None = None
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._steps = Steps(self._begin, 1, member.ticket.due)
        self._outstanding = 1
        self._started = 0.0

    def start(self) -> None:
        """Offer the launch to the workers."""
        self._place.queue.put(self._steps)

    def give_up(self, _: Member) -> None:
        """Stop at the next block."""
        self.stop()

    def stop(self) -> None:
        """Stop at the next block."""
        self._stop(GivenUpError())

    def _begin(self) -> None:
        self._started = time.perf_counter()
        try:
            if self._failure is None:
                self._check()
                self._execution = self._prepared()
                with self._lock:
                    count = len(self._execution.blocks)
                    if count > 1 and self._failure is None:
                        self._steps = Steps(self._step, count, self._member.ticket.due)
                        self._outstanding += count
                        self._place.queue.put(self._steps)
                if count == 1:
                    self._execution.step()
        except BaseException as error:
            self._stop(error)
        self._step_ended(self._started)

    def _prepared(self) -> Execution:
        try:
            return Execution(self._member.job, self._place.buffers, self._place.device)
        except Exception as error:
            if not faults.is_out_of_memory(error):
                raise
        self._place.free_memory()
        return Execution(self._member.job, self._place.buffers, self._place.device)

    def _step(self) -> None:
        started = time.perf_counter()
        try:
            if self._failure is None and self._execution is not None:
                self._check()
                self._execution.step()
        except BaseException as error:
            self._stop(error)
        self._step_ended(started)

    def _check(self) -> None:
        self._place.check_alive()
        self._member.ticket.deadline.check()

    def _stop(self, error: BaseException) -> None:
        """Withdraw the steps that nobody has taken; the first error is what becomes of the launch."""
        with self._lock:
            if self._failure is None:
                self._failure = error
            withdrawn = self._place.queue.withdraw(self._steps)
            self._outstanding -= withdrawn
            is_last = withdrawn > 0 and self._outstanding == 0
        if is_last:
            self._end()

    def _step_ended(self, started: float) -> None:
        with self._lock:
            self._member.ticket.spent += time.perf_counter() - started
            self._outstanding -= 1
            is_last = self._outstanding == 0
        if is_last:
            self._end()

    def _end(self) -> None:
        """Tell whoever waits; no worker is in a step any longer."""
        execution, error = self._execution, self._failure
        self._steps.function = _nothing  # no cycle: whatever memory the job lies in is let go with the launch
        if error is None and execution is not None:
            try:
                answer = execution.finish()
            except BaseException as failure:
                error = failure
            else:
                job = self._member.job
                note_launch(job.operator.name, gradient=job.gradient, rows=job.layout.rows)
                answer.queue_seconds = self._started - self._member.submitted
                answer.compute_seconds = time.perf_counter() - self._started
                self._member.ended.set_result(answer)
                return
        overwritten = False
        if execution is not None:
            overwritten = execution.overwrites_input
            execution.abandon()
        assert error is not None  # noqa: S101  # a launch that ends without an execution has failed
        self._place.note_failure(error)
        if faults.is_out_of_memory(error) and not (self._is_second or overwritten):
            self._place.free_memory()
            Launch(self._place, self._member, is_second=True).start()
            return
        self._member.ended.set_exception(faults.as_answer(error))


class ArrivingLaunch(Launch):
    """A launch whose rows still arrive: a block is offered to the workers once all of its rows are there.

    Until the last row has come only `most_at_once` blocks are computed at a time: receiving needs the processor, too.
    Whoever receives rows says so with `note_arrived`, and in the end calls `complete` or `abandon`, once.
    """

    def __init__(self, place: Workplace, member: Member, most_at_once: int) -> None:
        """Prepare the computation; nothing of the rows themselves is looked at."""
        super().__init__(place, member)
        self._steps = Steps(self._step, 0, member.ticket.due)
        self._most_at_once = most_at_once
        self._arrived = 0
        self._offered = 0
        self._started = time.perf_counter()
        self._check()
        self._execution = self._prepared()
        self._blocks = self._execution.blocks

    def note_arrived(self, rows: int) -> None:
        """Take note that the first `rows` rows are there."""
        with self._lock:
            while self._arrived < len(self._blocks) and self._blocks[self._arrived].outer.stop <= rows:
                self._arrived += 1
            self._offer()

    def _offer(self) -> None:
        """Offer blocks to the workers; the lock must be held."""
        count = self._arrived - self._offered
        if self._arrived < len(self._blocks):
            count = min(count, self._most_at_once - (self._outstanding - 1))
        if self._failure is None and count > 0:
            self._offered += count
            self._outstanding += count
            self._place.queue.extend(self._steps, count)

    def _step_ended(self, started: float) -> None:
        with self._lock:
            self._outstanding -= 1
            self._offer()
            self._outstanding += 1
        super()._step_ended(started)

    def complete(self) -> Future[Answer]:
        """Take note that all rows are there; return what the launch comes to. Its time is counted from here."""
        self._started = self._member.submitted = time.perf_counter()
        self.note_arrived(self._member.job.layout.outer)
        super()._step_ended(self._started)
        return self._member.ended

    def abandon(self) -> Future[Answer]:
        """Stop at the next block, with rows missing; the future is done once no worker touches the job's memory."""
        self.stop()
        super()._step_ended(time.perf_counter())
        return self._member.ended


class StackedLaunch:
    """Several small jobs, computed in one step; open to more of the same key until a worker takes it."""

    def __init__(self, place: Workplace, due: float, close: Callable[[], None]) -> None:
        self._place = place
        self._close = close
        self._steps = Steps(self._run, 1, due)
        self._lock = threading.Lock()
        self._members: list[Member] = []
        self._is_open = True
        self._rows = 0
        self._elements = 0

    def join(self, member: Member) -> bool:
        """Take a job in; return False when there is no room for it any more."""
        rows, elements = member.job.layout.rows, member.job.first.numel()
        with self._lock:
            if not self._is_open or (
                self._members and (self._rows + rows > MOST_ROWS or self._elements + elements > MOST_ELEMENTS)
            ):
                return False
            self._members.append(member)
            self._rows += rows
            self._elements += elements
        return True

    def start(self) -> None:
        """Offer the launch to the workers."""
        self._place.queue.put(self._steps)

    def give_up(self, member: Member) -> None:
        """Leave a member out, if it is not being computed yet."""
        with self._lock:
            if not self._is_open:
                return
            self._members.remove(member)
        member.ended.set_exception(GivenUpError())

    def _run(self) -> None:
        started = time.perf_counter()
        with self._lock:
            self._is_open = False
        self._close()
        self._close = self._steps.function = _nothing
        members = [member for member in self._members if _is_in_time(member)]
        if not members:
            return
        stack = Stack([member.job for member in members], self._place.device)
        try:
            self._place.check_alive()
            stack.compute()
        except BaseException as error:
            self._compute_alone(members, error)
            return
        spent = time.perf_counter() - started
        first = members[0].job
        note_launch(first.operator.name, gradient=first.gradient, rows=self._rows)
        if len(members) > 1:
            BATCH_REQUESTS.observe(len(members))
        for member, outcome in zip(members, stack.outcomes, strict=True):
            member.ticket.spent += spent / len(members)
            if isinstance(outcome, Answer):
                outcome.queue_seconds = started - member.submitted
                outcome.compute_seconds = spent
                member.ended.set_result(outcome)
            elif isinstance(outcome, RequestError):
                member.ended.set_exception(outcome)

    def _compute_alone(self, members: list[Member], error: BaseException) -> None:
        """Compute every member by itself after a failure of all: only the guilty fails then."""
        self._place.note_failure(error)
        if faults.is_device_lost(error) or isinstance(error, RequestError):
            for member in members:
                member.ended.set_exception(faults.as_answer(error))
            return
        if faults.is_out_of_memory(error):
            self._place.free_memory()
        for member in members:
            Launch(self._place, member).start()


def _nothing() -> None:
    """Stand for a step that has been taken."""


def _is_in_time(member: Member) -> bool:
    """Whether a member's deadline is still ahead; otherwise it is told so."""
    try:
        member.ticket.deadline.check()
    except RequestError as error:
        member.ended.set_exception(error)
        return False
    return True
