"""Where jobs meet workers: `submit` a job, await its answer."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from service.engine.batch import Answer, Execution
from service.engine.buffers import BufferPool
from service.metrics import BATCH_ROWS, note_gpu_memory
from service.ops.bind import Job

INLINE_ELEMENTS = 1 << 18
"""A job of fewer elements is computed right where it is submitted: it takes a third of a millisecond, and a worker
would add as much in waking up."""

ROW_ELEMENTS = 16
"""A row costs about as much time as this many elements, however short it is."""

WARM_UP_BYTES = 1 << 24


class Engine:
    """Computes jobs on one device with a small pool of workers of one intra-op thread each.

    OpenMP barriers collapse when cores are shared with anything else, so torch never splits an operation: blocks of
    rows are spread over the workers instead.
    """

    def __init__(self, device: torch.device, *, threads: int, most_kept_bytes: int = 1 << 29) -> None:
        self.device = device
        self._threads = threads
        self.buffers = BufferPool(most_kept_bytes)
        torch.set_num_threads(1)
        self._workers = ThreadPoolExecutor(
            threads, thread_name_prefix="loss-engine", initializer=torch.set_num_threads, initargs=(1,)
        )
        # glibc hands freed memory of a block's size back to the kernel until it has seen a larger piece freed.
        torch.empty(WARM_UP_BYTES, dtype=torch.uint8)

    async def submit(self, job: Job) -> Answer:
        """Compute a job and return its answer, without holding the event loop for longer than a tiny job takes.

        Raises NonFinite or UndefinedMean when the values of the request allow no answer.
        """
        if job.first.numel() + ROW_ELEMENTS * job.layout.rows <= INLINE_ELEMENTS:
            return self.compute(job)
        submitted = time.perf_counter()
        return await asyncio.wrap_future(self._workers.submit(self._compute_spread, job, submitted))

    def compute(self, job: Job) -> Answer:
        """Compute a job in the calling thread, with the help of the workers when it has more than one block."""
        return self._compute_spread(job, time.perf_counter())

    def _compute_spread(self, job: Job, submitted: float) -> Answer:
        started = time.perf_counter()
        execution = Execution(job, self.buffers, self.device)
        helpers: list[Future[None]] = []
        try:
            wanted = min(self._threads, len(execution.blocks)) - 1
            helpers.extend(self._workers.submit(execution.drain) for _ in range(wanted))
            execution.drain()
            for helper in self._ended(helpers):
                helper.result()
            answer = execution.finish()
        except BaseException:
            self._ended(helpers)
            execution.abandon()
            raise
        BATCH_ROWS.observe(job.layout.rows)
        answer.queue_seconds = started - submitted
        answer.compute_seconds = time.perf_counter() - started
        return answer

    @staticmethod
    def _ended(helpers: list[Future[None]]) -> list[Future[None]]:
        """Cancel the helpers that never got a worker, wait for the others to end, and return those.

        A cancelled future counts as done only once a worker has taken it from the queue: when every worker waits here
        for its own job's helpers, waiting for those too would never end.
        """
        running = [helper for helper in helpers if not helper.cancel()]
        wait(running)
        return running

    def note_memory(self) -> None:
        """Tell the metrics how much GPU memory is in use; nothing on a CPU."""
        if self.device.type == "cuda":
            note_gpu_memory(
                str(self.device),
                allocated=torch.cuda.memory_allocated(self.device),
                cached=torch.cuda.memory_reserved(self.device),
            )

    def close(self) -> None:
        """Stop the workers after what they are computing."""
        self._workers.shutdown(wait=True, cancel_futures=True)
