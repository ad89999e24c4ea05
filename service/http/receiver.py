"""Who has a connection in place of the HTTP protocol, to receive into memory of ours.

The `Inlet` hands over what comes; a `BodyReceiver` has the connection for the rest of one body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class ClientDisconnectedError(Exception):
    """The caller has left; there is nobody to answer."""


NOWHERE = memoryview(b"")
"""Where bytes go when none are wanted; even an empty part of a buffer would keep all of it."""


class Lender(Protocol):
    """The HTTP protocol, as far as it lends its connection."""

    transport: asyncio.Transport
    receiver: BodyReceiver | None

    @property
    def flow(self) -> FlowControl: ...

    @property
    def is_in_body(self) -> bool:
        """Whether a body is on its way."""

    def data_received(self, data: bytes) -> None: ...

    def take_back(self) -> None:
        """Go on with the connection after the body."""

    def eof_received(self) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


HEAD_BYTES = 1 << 14
"""Most that is read at once where a header may begin; what is read of a body together with it must be copied."""

PIECE_BYTES = 1 << 18
"""Most that is read at once of a body."""

LARGE_PIECE_BYTES = 1 << 20
"""Most that is read at once into memory of its own: more would keep the other connections waiting."""


class StandIn(asyncio.BufferedProtocol):
    """Stands before the HTTP protocol, and passes on to it all but what comes."""

    def __init__(self, protocol: Lender) -> None:
        self._protocol = protocol

    def eof_received(self) -> None:
        """Pass the transport's word on: the connection closes, and a body that ends early is never answered."""
        self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass the transport's word on to the HTTP protocol."""
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass the transport's word on to the answer."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass the transport's word on to the answer."""
        self._protocol.resume_writing()


class Inlet(StandIn):
    """Has the connection while headers and short bodies come, and hands them over.

    Every connection of an event loop may read into the same scratch memory: what comes is handed over at once.
    """

    def __init__(self, protocol: Lender, scratch: memoryview) -> None:
        super().__init__(protocol)
        self._whole = scratch
        self._beginning = scratch[:HEAD_BYTES]

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where the next bytes go: little of a body is to come with its header."""
        return self._whole if self._protocol.is_in_body else self._beginning

    def buffer_updated(self, nbytes: int) -> None:
        """Hand over what has come."""
        self._protocol.data_received(bytes(self._whole[:nbytes]))


class BodyReceiver(StandIn):
    """Receives the rest of one body; the connection belongs to the HTTP protocol before and after."""

    def __init__(
        self, protocol: Lender, cycle: RequestResponseCycle, remaining: int, note: Callable[[int], None] | None = None
    ) -> None:
        super().__init__(protocol)
        self._note = note
        self._cycle = cycle
        self.remaining = remaining
        self._whole = remaining
        self._buffer = NOWHERE
        self._filled: asyncio.Future[None] | None = None
        self._is_abandoned = False
        protocol.receiver = self
        protocol.transport.set_protocol(self)

    async def receive_into(self, buffer: memoryview) -> None:
        """Fill `buffer`, at most what remains of the body."""
        if self._cycle.disconnected:
            raise ClientDisconnectedError
        self._buffer = buffer
        self._filled = asyncio.get_running_loop().create_future()
        self._protocol.flow.resume_reading()
        try:
            await self._filled
        finally:
            self._filled = None
            self._buffer = NOWHERE
            if self.remaining and not self._is_abandoned:
                self._protocol.flow.pause_reading()

    @property
    def received(self) -> int:
        """How many bytes have come."""
        return self._whole - self.remaining

    async def discard(self, most: int) -> None:
        """Receive up to `most` bytes and throw them away."""
        scratch = memoryview(bytearray(1 << 16))
        while self.remaining and most > 0:
            part = scratch[: min(len(scratch), self.remaining, most)]
            await self.receive_into(part)
            most -= len(part)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where the next bytes go: never further than the body reaches."""
        return self._buffer[:LARGE_PIECE_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """Note what has come."""
        if self._note is not None:
            self._note(nbytes)
        self._buffer = self._buffer[nbytes:]
        self.remaining -= nbytes
        if len(self._buffer):
            return
        if self.remaining:
            self._protocol.flow.pause_reading()
        else:
            self._cycle.more_body = False
            self._cycle.message_event.set()
            self._protocol.take_back()
        if self._filled is not None and not self._filled.done():
            self._filled.set_result(None)

    def abandon(self, reason: Exception) -> None:
        """Tell the endpoint that no more will come."""
        self._is_abandoned = True
        if self._filled is not None and not self._filled.done():
            self._filled.set_exception(reason)
