"""Where jobs meet workers: `submit` a job, await its answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from typing import ParamSpec, TypeVar

import torch

from service import metrics
from service.engine import batch, faults
from service.engine.admission import Backlog, Ticket
from service.engine.batch import Answer, Execution
from service.engine.buffers import BufferPool, trim
from service.engine.launch import ArrivingLaunch, GivenUpError, Launch, Member, StackedLaunch
from service.engine.queue import StepQueue, Steps, due
from service.engine.stack import MOST_ELEMENTS, Stack, stack_key
from service.errors import RequestError
from service.metrics import note_launch
from service.ops.bind import Job

P = ParamSpec("P")
T = TypeVar("T")

INLINE_ELEMENTS = 1 << 18
"""A job of fewer elements is computed right where it is submitted: it takes a third of a millisecond, and a worker
would add as much in waking up."""

ROW_ELEMENTS = 16
"""A row costs about as much time as this many elements, however short it is."""

SHARED_ELEMENTS = 1 << 14
"""A tiny job of fewer elements costs mostly what any launch costs, so that it pays to share one."""

WARM_UP_BYTES = 1 << 24


class Engine:
    """Computes jobs on one device with a small pool of workers of one intra-op thread each.

    OpenMP barriers collapse when cores are shared with anything else, so torch never splits an operation: blocks of
    rows are spread over the workers instead. There is no timer: a worker that is free takes what is due first, and what
    came meanwhile and can share a launch is the next launch.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        threads: int,
        most_kept_bytes: int = 1 << 29,
        queue_seconds: float = float("inf"),
    ) -> None:
        self.device = device
        self.buffers = BufferPool(most_kept_bytes, pinned=device.type == "cuda")
        self.queue = StepQueue()
        self.backlog = Backlog(threads, queue_seconds)
        self.on_failure: Callable[[], object] = lambda: None
        """Called once, in any thread, when the device is lost."""
        self._failure: BaseException | None = None
        self._arriving = 0
        """Jobs that have been begun with and whose rows still arrive."""
        self._open_stacks: dict[Hashable, StackedLaunch] = {}
        self._together: dict[Hashable, list[tuple[Job, asyncio.Future[Answer]]]] = {}
        torch.set_num_threads(1)
        self._threads = threads
        self._workers: list[threading.Thread] = []
        # glibc hands freed memory of a block's size back to the kernel until it has seen a larger piece freed.
        torch.empty(WARM_UP_BYTES, dtype=torch.uint8)

    def start_workers(self) -> None:
        """Start the workers, unless they have been."""
        while len(self._workers) < self._threads:
            name = f"loss-engine-{len(self._workers)}"
            self._workers.append(threading.Thread(target=self._work, name=name, daemon=True))
            self._workers[-1].start()

    def _work(self) -> None:
        torch.set_num_threads(1)
        while (step := self.queue.take()) is not None:
            step()
            del step  # it may hold the memory of a job

    def is_tiny(self, job: Job) -> bool:
        """Whether a job is computed right where it is submitted."""
        layout = job.plan.layout
        return layout.rows * (layout.classes + ROW_ELEMENTS) <= INLINE_ELEMENTS and self.device.type == "cpu"

    async def submit(self, job: Job, ticket: Ticket | None = None) -> Answer:
        """Compute a job and return its answer, without holding the event loop for longer than a tiny job takes.

        When cancelled it stops at the next block, and ends once no worker touches the job's memory any longer.
        Raises NonFinite or UndefinedMean when the values of the request allow no answer, DeadlineExceeded when the
        ticket's deadline passes, MemoryBudget when memory ran out, and EngineRestarting when the device is lost.
        """
        self.check_alive()
        if self.is_tiny(job):
            return self.compute(job)
        member = Member(job, ticket or self._ticket_for(job.first.numel() * job.first.dtype.itemsize))
        launch = self._launch(member)
        return await _outcome(member.ended, lambda: launch.give_up(member), Answer.release)

    @property
    def is_backed_up(self) -> bool:
        """Whether there is work that waits for other work."""
        return len(self.backlog) > 1

    def begin(self, job: Job, ticket: Ticket) -> ArrivingLaunch | None:
        """Start on a job whose rows still arrive; None when the workers have others, or it is but one block.

        End it with `finish` or `drop`. The classes must lie last. Raises what `submit` does.
        """
        if len(self.backlog) or self._arriving >= self._threads:
            return None
        if job.layout.rows * job.layout.classes < batch.UNCUT_ELEMENTS:
            return None
        self.start_workers()
        launch = ArrivingLaunch(self, Member(job, ticket), max(1, self._threads // 2))
        self._arriving += 1
        return launch

    async def finish(self, launch: ArrivingLaunch) -> Answer:
        """Return the answer of a job whose rows have all arrived; cancelled, it stops at the next block."""
        self._arriving -= 1
        return await _outcome(launch.complete(), launch.stop, Answer.release)

    async def drop(self, launch: ArrivingLaunch) -> None:
        """Stop a job whose rows do not all arrive, and wait until no worker touches its memory any longer."""
        self._arriving -= 1
        ended = asyncio.wrap_future(launch.abandon())
        while not ended.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([ended])
        if ended.exception() is None:
            ended.result().release()

    async def compute_together(self, job: Job) -> Answer:
        """Compute a tiny job in one launch with those submitted in the same turn of the event loop."""
        self.check_alive()
        if job.first.numel() > SHARED_ELEMENTS or (key := stack_key(job)) is None:
            return self.compute(job)
        loop = asyncio.get_running_loop()
        if key not in self._together:
            self._together[key] = []
            loop.call_soon(self._compute_stack, key)
        answered: asyncio.Future[Answer] = loop.create_future()
        self._together[key].append((job, answered))
        return await answered

    def _compute_stack(self, key: Hashable) -> None:
        members = self._together.pop(key)
        most = max(1, MOST_ELEMENTS // max(job.first.numel() for job, _ in members))
        for start in range(0, len(members), most):
            self._compute_members(members[start : start + most])

    def _compute_members(self, members: list[tuple[Job, asyncio.Future[Answer]]]) -> None:
        """Compute jobs stacked, or each alone when there is one only, or when the launch fails."""
        outcomes: list[Answer | RequestError | None] = [None] * len(members)
        if len(members) > 1:
            started = time.perf_counter()
            stack = Stack([job for job, _ in members], self.device)
            try:
                stack.compute()
            except Exception as error:
                self.note_failure(error)
            else:
                outcomes = [*stack.outcomes]
                metrics.BATCH_REQUESTS.observe(len(members))
                first = members[0][0]
                rows = sum(job.layout.rows for job, _ in members)
                note_launch(first.operator.name, gradient=first.gradient, rows=rows)
                seconds = time.perf_counter() - started
                for outcome in outcomes:
                    if isinstance(outcome, Answer):
                        outcome.compute_seconds = seconds
        for (job, answered), outcome in zip(members, outcomes, strict=True):
            if answered.done():  # its request was cancelled
                continue
            result = outcome or self._outcome_alone(job)
            if isinstance(result, Answer):
                answered.set_result(result)
            else:
                answered.set_exception(result)

    def _outcome_alone(self, job: Job) -> Answer | Exception:
        try:
            return self.compute(job)
        except Exception as error:
            return error

    async def call(self, function: Callable[[], T], ticket: Ticket | None = None, size: int = 0) -> T:
        """Call a function in a worker, in its turn: it handles `size` bytes unless a ticket says what it costs."""
        ticket = ticket or self._ticket_for(size)
        ended: Future[T] = Future()

        def step() -> None:
            started = time.perf_counter()
            try:
                ticket.deadline.check()
                result = function()
            except BaseException as error:
                ended.set_exception(self.answer_to(error))
            else:
                ended.set_result(result)
            finally:
                ticket.spent += time.perf_counter() - started

        steps = Steps(step, 1, ticket.due)

        def give_up() -> None:
            if self.queue.withdraw(steps):
                ended.set_exception(GivenUpError())

        self.start_workers()
        self.queue.put(steps)
        return await _outcome(ended, give_up, lambda _: None)

    def compute(self, job: Job) -> Answer:
        """Compute a job and wait for it: one block in the calling thread, more of them in the workers."""
        if job.layout.rows * job.layout.classes >= batch.UNCUT_ELEMENTS:
            return self._compute_in_workers(job)
        started = time.perf_counter()
        execution = None
        try:
            execution = Execution(job, self.buffers, self.device)
            execution.drain()
            answer = execution.finish()
        except BaseException as error:
            can_repeat = True
            if execution is not None:
                can_repeat = not execution.overwrites_input
                execution.abandon()
            self.note_failure(error)
            if faults.is_out_of_memory(error) and can_repeat:
                self.free_memory()
                return self._compute_in_workers(job, is_second=True)
            if (answered := faults.as_answer(error)) is not error:
                raise answered from error
            raise
        note_launch(job.operator.name, gradient=job.gradient, rows=job.layout.rows)
        answer.compute_seconds = time.perf_counter() - started
        return answer

    def _compute_in_workers(self, job: Job, *, is_second: bool = False) -> Answer:
        member = Member(job, self._ticket_for(0))
        self.start_workers()
        Launch(self, member, is_second=is_second).start()
        return member.ended.result()

    def _ticket_for(self, size: int) -> Ticket:
        """Return a place in the queue for work that nobody had to admit."""
        seconds = self.backlog.predicted(None, size)
        return Ticket(seconds, due(time.perf_counter(), seconds))

    def _launch(self, member: Member) -> Launch | StackedLaunch:
        """Start a launch for a job, or take it into one that waits for a worker."""
        self.start_workers()
        if member.job.first.numel() > MOST_ELEMENTS or (key := stack_key(member.job)) is None:
            launch = Launch(self, member)
            launch.start()
            return launch
        stack = self._open_stacks.get(key)
        if stack is not None and stack.join(member):
            return stack

        def close() -> None:
            if self._open_stacks.get(key) is stack:
                del self._open_stacks[key]

        stack = self._open_stacks[key] = StackedLaunch(self, member.ticket.due, close)
        stack.join(member)
        stack.start()
        return stack

    def check_alive(self) -> None:
        """Raise EngineRestarting when the device is lost."""
        if self._failure is not None:
            raise faults.as_answer(self._failure)

    def free_memory(self) -> None:
        """Let go of memory that nobody uses: pooled buffers, and what allocators keep."""
        self.buffers.drop_unused(0.0)
        trim()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def note_failure(self, error: BaseException) -> None:
        """Take note of what a job failed with: once the device is lost, nothing is computed any more."""
        if self._failure is None and faults.is_device_lost(error):
            self._failure = error
            self.on_failure()

    def answer_to(self, error: BaseException) -> BaseException:
        """Return what a request is told that met with `error`, having done what it asks for."""
        self.note_failure(error)
        if faults.is_out_of_memory(error):
            self.free_memory()
        return faults.as_answer(error)

    def note_state(self) -> None:
        """Tell the metrics what waits, and how much GPU memory is in use."""
        metrics.QUEUE_REQUESTS.set(len(self.backlog))
        metrics.QUEUE_SECONDS.set(self.backlog.seconds)
        if self.device.type == "cuda" and self._failure is None:
            metrics.note_gpu_memory(
                str(self.device),
                allocated=torch.cuda.memory_allocated(self.device),
                cached=torch.cuda.memory_reserved(self.device),
            )

    def close(self) -> None:
        """Stop the workers after what they have been given; not waiting for those that hang on a lost device."""
        self.queue.close()
        for worker in self._workers if self._failure is None else ():
            worker.join()


async def _outcome(ended: Future[T], give_up: Callable[[], None], discard: Callable[[T], object]) -> T:
    """Await the end of something that workers do; when cancelled, give it up and await its end all the same."""
    waiting = asyncio.wrap_future(ended)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        give_up()
        while not waiting.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([waiting])
        if waiting.exception() is None:
            discard(waiting.result())
        raise
