"""Computing the rows of a request while the rest of its body still arrives."""

from __future__ import annotations

from collections.abc import Callable

import torch

from service.engine.admission import Ticket
from service.engine.batch import Answer
from service.engine.launch import ArrivingLaunch
from service.engine.scheduler import Engine
from service.errors import RequestError
from service.ops.bind import Job

LEAST_BODY_BYTES = 1 << 23
"""A smaller body is there before the workers have woken up."""

LEAST_CLASSES = 256
"""Of shorter rows there are so many that even looking at their targets would hold the event loop."""


class Arrival:
    """What is begun with a body that has not all arrived; to be ended with `answer` or `drop`.

    Rows can be computed as they come when the tensor that they are in is the last of the body, with the classes last
    in it, and nobody else waits for the workers. Everything else is as ever: what is wrong with a request is said when
    the whole of it is there.
    """

    def __init__(
        self,
        engine: Engine,
        ticket: Ticket,
        prepare: Callable[[memoryview], Job],
        last_tensor: Callable[[memoryview, int], int | None],
        may_compute: Callable[[Job, memoryview], bool],
    ) -> None:
        """Prepare for a body.

        `prepare(body)` decodes and binds; `last_tensor(body, there)` says where the data of the last tensor begins,
        None until that can be known of the bytes that are there; `may_compute(job, body)` reserves memory.
        """
        self._engine = engine
        self.ticket = ticket
        """The place among the work that is taken once the body is there, if it has been begun with."""
        self._prepare = prepare
        self._last_tensor = last_tensor
        self._may_compute = may_compute
        self._launch: ArrivingLaunch | None = None
        self._is_hopeless = False
        self._begin = 0
        self._row_bytes = 1
        self.job: Job | None = None
        """The request, once it has been begun with."""

    def note(self, body: memoryview, there: int) -> None:
        """Take note that the first `there` bytes of a body have arrived."""
        if self._is_hopeless:
            return
        if self._launch is None:
            try:
                self._try(body, there)
            except RequestError:
                self._is_hopeless = True  # and said when the body is complete
        if self._launch is not None:
            self._launch.note_arrived((there - self._begin) // self._row_bytes)

    def _try(self, body: memoryview, there: int) -> None:
        begin = self._last_tensor(body, there)
        if begin is None or begin > there:
            return
        self._is_hopeless = True
        job = self._prepare(body)
        first = job.first
        if (
            job.layout.inner != 1
            or job.layout.classes < LEAST_CLASSES
            or first.data_ptr() != torch.frombuffer(body, dtype=torch.uint8).data_ptr() + begin
            or not self._may_compute(job, body)
        ):
            return
        self._begin, self._row_bytes = begin, job.layout.classes * first.dtype.itemsize
        self._launch = self._engine.begin(job, self.ticket)
        if self._launch is not None:
            self.job = job
            self._is_hopeless = False

    async def answer(self) -> Answer:
        """Return the answer of what was begun, all of the body having arrived."""
        launch, self._launch = self._launch, None
        assert launch is not None  # noqa: S101  # there is a job
        return await self._engine.finish(launch)

    async def drop(self) -> None:
        """End what was begun, if anything; no worker touches the body's memory afterwards."""
        if (launch := self._launch) is not None:
            self._launch = None
            await self._engine.drop(launch)
