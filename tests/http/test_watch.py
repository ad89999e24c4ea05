"""The look at all connections, part by part."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.server import ServerState

from service.http.limits import Limits
from service.http.watch import Watch


class Looked:
    """A connection that notes when it is looked at."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def look(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def silent_descriptor(self) -> int | None:
        return None

    def lose(self) -> None:
        """Nothing is to be lost."""


def test_every_connection_is_looked_at_once_a_round_and_no_time_is_lost() -> None:
    async def watch() -> tuple[list[Looked], Watch]:
        state = ServerState()
        watching = Watch(state, Limits(look_seconds=0.05))
        connections = [Looked() for _ in range(250)]
        for connection in connections:
            cast("set[Any]", state.connections).add(connection)
            watching.enter(connection)
        await asyncio.sleep(0.5)
        return connections, watching

    connections, watching = asyncio.run(watch())

    counts = [len(connection.seconds) for connection in connections]
    assert min(counts) >= 2
    assert max(counts) - min(counts) <= 1
    longest = max(max(connection.seconds) for connection in connections)
    for connection in connections:
        assert watching.now - 2 * longest <= sum(connection.seconds) <= watching.now


def test_a_connection_that_is_gone_is_not_looked_at() -> None:
    async def watch() -> tuple[Looked, Looked]:
        state = ServerState()
        watching = Watch(state, Limits(look_seconds=0.02))
        here, gone = Looked(), Looked()
        for connection in (here, gone):
            cast("set[Any]", state.connections).add(connection)
            watching.enter(connection)
        state.connections.discard(cast(Any, gone))
        await asyncio.sleep(0.2)
        return here, gone

    here, gone = asyncio.run(watch())

    assert here.seconds
    assert not gone.seconds
