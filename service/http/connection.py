"""The connection of one request, as an endpoint sees it: an ASGI extension.

Another server, or the tests' in-process transport, has no such extension: then bodies come the ordinary way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.utils import is_ssl

from service.errors import RequestError
from service.http.flow import LastingTransport
from service.http.receiver import BodyReceiver, ClientDisconnectedError, Lender

EXTENSION = "service.connection"
"""Name of the ASGI extension."""

logger = logging.getLogger("service")


class ParsingLender(Lender, Protocol):
    """The HTTP protocol, which has parsed the beginning of a body."""

    is_drained: bool
    is_patient: bool
    most_skipped_bytes: int
    tasks: set[asyncio.Task[None]]

    @property
    def body_bytes(self) -> int:
        """How much of the current request's body has come through the parser."""


class Connection:
    """The connection of one request, as an endpoint sees it."""

    def __init__(self, protocol: ParsingLender) -> None:
        self._protocol = protocol
        self.cycle: RequestResponseCycle = cast(RequestResponseCycle, None)
        self._receiver: BodyReceiver | None = None
        self._on_disconnect: list[Callable[[], object]] = []
        self.note: Callable[[int], None] | None = None
        """What is told how many more bytes of a body have come that `receive_into` was called for."""
        self.failure: RequestError | None = None
        """Why the body will never be complete, if so: what the request is to be refused with."""

    def on_disconnect(self, callback: Callable[[], object]) -> None:
        """Have `callback()` called on the event loop, once, if the caller leaves before his answer is complete.

        If he has left already it is called before this returns. A caller who closes only his sending side has left.
        """
        if self.cycle.disconnected:
            callback()
        else:
            self._on_disconnect.append(callback)

    def note_disconnect(self) -> None:
        """Wake up who waits for the caller, and call who wanted to know; nobody, once the answer is complete."""
        if self.cycle.response_complete:
            return
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        callbacks, self._on_disconnect = self._on_disconnect, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                logger.exception("a callback failed that was to be told of a caller's leaving")

    def fail(self, failure: RequestError) -> None:
        """Let whoever reads the body raise `failure`, now and from now on."""
        self.failure = failure
        self.cycle.message_event.set()
        if self._receiver is not None and self._receiver.remaining:
            self._receiver.abandon(failure)

    def close_at_once(self) -> None:
        """Let the connection close as soon as the answer is complete, whatever of the body is still to come."""
        self._protocol.is_drained = True

    def forget(self, scope: Scope) -> None:
        """Take leave of a request that is over: else it, its scope and this would keep each other alive."""
        scope["extensions"].pop(EXTENSION, None)
        self.failure = self._receiver = self.note = None
        self._on_disconnect.clear()

    def skip(self, size: int, *, is_patient: bool) -> None:
        """Let so much of the body be thrown away after the answer, so that the connection stays open.

        `is_patient` says whether it may take as long as a body that is wanted.
        """
        self._protocol.most_skipped_bytes = max(self._protocol.most_skipped_bytes, size)
        self._protocol.is_patient = is_patient

    @property
    def has_company(self) -> bool:
        """Whether other requests to this process are being worked on, or are about to be."""
        return len(self._protocol.tasks) > 1

    def take_whole(self) -> bytearray | None:
        """Return a body that has come as a whole; None where it has not, or is asked for in some other way, too."""
        cycle = self.cycle
        if cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue or self.failure is not None:
            return None
        body, cycle.body = cycle.body, bytearray()
        cycle.message_event.clear()
        self._protocol.flow.resume_reading()
        return body

    def join_head(self) -> None:
        """Let the header of the answer leave together with the beginning of its body."""
        cast(LastingTransport, self.cycle.transport).join_head()

    async def receive_into(self, buffer: memoryview, body_bytes: int) -> None:
        """Fill `buffer` with the next bytes of a body of `body_bytes` in all.

        Raises ClientDisconnectedError when the caller leaves before, and the `failure` of the body.
        """
        cycle = self.cycle
        if self.failure is not None:
            raise self.failure
        if cycle.disconnected:
            raise ClientDisconnectedError
        if cycle.waiting_for_100_continue:
            cycle.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        at_hand = self._take_some(buffer)
        if at_hand == len(buffer):
            return
        if self._receiver is None:
            self._receiver = BodyReceiver(self._protocol, cycle, body_bytes - self._protocol.body_bytes, self.note)
        await self._receiver.receive_into(buffer[at_hand:])

    def _take_some(self, buffer: memoryview) -> int:
        """Move what has come of the body to `buffer`, as far as it fits; return how much that was."""
        cycle, size = self.cycle, min(len(buffer), len(self.cycle.body))
        if isinstance(cycle.body, memoryview):
            buffer[:size] = cycle.body[:size]
            cycle.body = cycle.body[size:] if size < len(cycle.body) else bytearray()
        else:
            with memoryview(cycle.body) as body:
                buffer[:size] = body[:size]
            del cycle.body[:size]
        return size

    async def discard(self, most: int) -> None:
        """Throw away up to `most` more bytes of a body that `receive_into` has begun."""
        if self._receiver is not None:
            await self._receiver.discard(most)

    @property
    def is_receiving(self) -> bool:
        """Whether a body is on its way that the parser does not see."""
        return self._receiver is not None and self._receiver.remaining > 0 and self.failure is None

    @property
    def is_answered(self) -> bool:
        """Whether the whole answer has been handed over, and to somebody who was still there."""
        return self.cycle.response_complete and not self.cycle.disconnected

    def check_open(self) -> None:
        """Raise ClientDisconnectedError when nothing can be sent any more."""
        if self.cycle.disconnected or self.cycle.transport.is_closing():
            self.note_disconnect()
            raise ClientDisconnectedError

    def hold_nothing(self) -> None:
        """Let each piece of the answer wait until the one before has left, so that its memory can be used again."""
        transport = self.cycle.transport
        if not transport.is_closing():
            # A TLS transport pauses its writer when it holds as much as the limit, any other when it holds more.
            transport.set_write_buffer_limits(1 if is_ssl(transport) else 0, 0)

    def hold_as_usual(self) -> None:
        """Undo `hold_nothing`."""
        if not self.cycle.transport.is_closing():
            self.cycle.transport.set_write_buffer_limits()


def connection_of(scope: Scope) -> Connection | None:
    """Return the connection of a request; None under a server that is not ours."""
    extensions = scope.get("extensions") or {}
    return extensions.get(EXTENSION)
