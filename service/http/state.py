"""What the running service knows of itself: whether it is ready, and how far it has got in stopping."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal, cast

from service import metrics
from service.errors import Draining, EngineRestarting, RequestError


@dataclass(slots=True)
class State:
    """Shared by the endpoints, the probes, and the part that starts and stops the service.

    Stopping goes through three steps: *draining* (unready; requests are answered and told to close their connection),
    *refusing* (new requests get 503), and the end of bodies that are still arriving (their requests get 503).
    """

    readiness: Literal["starting", "ok", "failed", "draining", "restarting"] = "starting"
    is_draining: bool = False
    is_refusing: bool = False
    is_restarting: bool = False
    """Whether the device is lost, so that the process is to end and another to be started."""
    in_flight: int = 0
    """Requests to operators being worked on."""
    handled_bytes: int = 0
    """Bytes of bodies and answers since memory was last handed back."""
    _reading: set[asyncio.Task[object]] = field(default_factory=set)

    def begin_draining(self) -> None:
        """Turn readiness off; from now on answers close their connection."""
        self.is_draining = True
        if not self.is_restarting:
            self.readiness = "draining"
        metrics.DRAINING.set(1)

    def begin_restarting(self) -> None:
        """Turn readiness off and refuse requests, because nothing can be computed any more."""
        self.is_restarting = self.is_draining = self.is_refusing = True
        self.readiness = "restarting"

    def begin_refusing(self) -> None:
        """Refuse requests that arrive from now on."""
        self.is_refusing = True

    def refusal(self) -> RequestError:
        """Return what a request is told that comes, or is cut off, while the service stops."""
        return EngineRestarting("restarting", seconds=1) if self.is_restarting else Draining("draining")

    def cut_unfinished_bodies(self) -> None:
        """Stop waiting for bodies that are still arriving."""
        for task in list(self._reading):
            task.cancel()

    def begin_reading(self) -> asyncio.Task[object]:
        """Let `cut_unfinished_bodies` cancel the calling task, which reads a body, until `end_reading`; return it."""
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._reading.add(task)
        return task

    def end_reading(self, task: asyncio.Task[object]) -> None:
        """Undo `begin_reading`."""
        self._reading.discard(task)
