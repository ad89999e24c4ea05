"""What is stopped when a caller leaves: the task that works on his request."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Receive, Scope

from service.http.connection import connection_of


class Departure:
    """Cancels the current task when the caller of its request leaves; begun once the body has been read.

    Attributes:
        has_happened: whether it did.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.has_happened = False
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._watching: asyncio.Task[None] | None = None
        if (connection := connection_of(scope)) is not None:
            connection.on_disconnect(self._happen)
        else:
            self._watching = asyncio.create_task(self._watch(receive))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._happen()

    def _happen(self) -> None:
        if self._task is not None:
            self.has_happened = True
            self._task.cancel()

    def forget(self) -> None:
        """Cancel nothing from now on."""
        self._task = None
        if self._watching is not None:
            self._watching.cancel()
