"""Which connections have been silent, slow or idle for too long: a look at each of them, a few times a second.

No request has a timer of its own: a connection notes when it began to wait, by the clock of the last look, and the look
finds those whose time is over.
"""

from __future__ import annotations

import asyncio
import math
import select
import sys
from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol
from weakref import WeakKeyDictionary

from uvicorn.server import ServerState

from service import metrics
from service.http.limits import Limits
from service.http.receiver import PIECE_BYTES

if sys.platform != "win32":
    import resource

FILES_PART = 0.8
"""Part of the files that a process may open which connections may take."""


LONGEST_LOOK_SECONDS = 1.0
"""Most time that may pass, for a caller, between two looks."""

ROUND_PARTS = 100
"""In so many parts all connections are looked at, with pauses: requests must not wait for a look at thousands, nor for
all those callers who come again because they were closed at once."""


class Watched(Protocol):
    """A connection, as the watch sees it."""

    def look(self, seconds: float) -> None:
        """Act on a time that is over, `seconds` after the last look."""

    def silent_descriptor(self) -> int | None:
        """Return the descriptor of a connection that is not read from, so that nobody would notice its end."""

    def lose(self) -> None:
        """Give the connection up."""


class Watch:
    """The connections of one server. `now` is its clock, in seconds, which stands still while the service is busy."""

    def __init__(self, server_state: ServerState, limits: Limits) -> None:
        self._connections: set[Watched] = server_state.connections  # type: ignore[assignment]  # all are GuardedProtocol
        self.limits = limits
        self.now = 0.0
        self.idle: OrderedDict[Watched, None] = OrderedDict()
        """Connections without a request that is being answered, those who have waited longest first."""
        self.scratch = memoryview(bytearray(PIECE_BYTES))
        """What comes is read into this, by whichever connection it comes on."""
        self._next: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._unseen: list[Watched] = []
        self._at_once = 1
        self._pause = limits.look_seconds
        self._round_seconds = self._since_round = 0.0

    def enter(self, connection: Watched) -> None:
        """Watch a new connection, in place of the oldest idle one when there are too many."""
        self.idle[connection] = None
        if len(self._connections) > self._most():
            oldest, _ = self.idle.popitem(last=False)
            if oldest is not connection:
                metrics.CONNECTIONS_ENDED["too-many"].inc()
                oldest.lose()
            else:
                self.idle[connection] = None
        if self._next is None:
            loop = asyncio.get_running_loop()
            self._looked, self._since_round = loop.time(), 0.0
            self._next = loop.call_later(self.limits.look_seconds, self._look, loop)

    def _most(self) -> int:
        if sys.platform == "win32":
            return self.limits.connections
        return min(self.limits.connections, int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * FILES_PART))

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at the next few connections; at all of them once in the time between two looks."""
        time = loop.time()
        # That the service itself was kept from looking does not count against a caller.
        seconds = min(time - self._looked, LONGEST_LOOK_SECONDS)
        self._looked = time
        self.now += seconds
        self._since_round += seconds
        if not self._unseen:
            if not self._connections:
                self._next = None
                return
            self._unseen = list(self._connections)
            self._at_once = math.ceil(len(self._unseen) / ROUND_PARTS)
            self._pause = self.limits.look_seconds * self._at_once / len(self._unseen)
            self._round_seconds, self._since_round = self._since_round, 0.0
        seen, self._unseen = self._unseen[: self._at_once], self._unseen[self._at_once :]
        here = [connection for connection in seen if connection in self._connections]
        for connection in here:
            connection.look(self._round_seconds)
        self._look_for_the_gone(here)
        self._next = loop.call_later(self._pause, self._look, loop)

    @staticmethod
    def _look_for_the_gone(connections: Iterable[Watched]) -> None:
        """Find callers who have left connections that are not read from; the event loop does not tell of those."""
        silent = {}
        for connection in connections:
            if (descriptor := connection.silent_descriptor()) is not None:
                silent[descriptor] = connection
        if not silent or not hasattr(select, "POLLRDHUP"):
            return
        poll = select.poll()
        for descriptor in silent:
            poll.register(descriptor, select.POLLRDHUP)
        for descriptor, events in poll.poll(0):
            if events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR):
                silent[descriptor].lose()


_WATCHES: WeakKeyDictionary[ServerState, Watch] = WeakKeyDictionary()


def watch_of(server_state: ServerState, limits: Limits) -> Watch:
    """Return the watch over a server's connections, made at the first of them."""
    watch = _WATCHES.get(server_state)
    if watch is None:
        watch = _WATCHES[server_state] = Watch(server_state, limits)
    return watch
