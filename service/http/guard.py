"""The HTTP protocol of a connection: uvicorn's, and beside it a way for bodies straight into memory of our own.

uvicorn hands a body over in pieces of up to 64 KiB, each parsed and copied. Here, an endpoint that wants a large body
in one buffer lends the connection a protocol that does nothing but receive into that buffer, until the last byte; then
the HTTP protocol, with a new parser, takes the connection back. Another server, or the tests' in-process transport, has
no such extension: then bodies come the ordinary way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import is_ssl

EXTENSION = "service.connection"
"""Name of the ASGI extension."""


logger = logging.getLogger("service")


class ClientDisconnectedError(Exception):
    """The caller has left; there is nobody to answer."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with the extension in every scope."""

    _body_bytes = 0
    """Bytes of the current request's body that went through the parser."""
    _answered: Connection | None = None
    """The request being answered: with pipelining it is not always the one read last."""
    receiver: BodyReceiver | None = None
    """Who has the connection while a body comes that the parser does not see."""

    def on_message_begin(self) -> None:
        """Start a request."""
        super().on_message_begin()
        self._body_bytes = 0

    def on_headers_complete(self) -> None:
        """Start answering a request; the endpoint finds its connection in the scope."""
        connection = Connection(self)
        cast("dict[str, Any]", self.scope)["extensions"] = {EXTENSION: connection}
        super().on_headers_complete()
        connection.cycle = self.cycle

    def on_body(self, body: bytes) -> None:
        """Count what the parser has seen."""
        self._body_bytes += len(body)
        super().on_body(body)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = connection_of(cast(Scope, cycle.scope))
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Go on to the next request; nobody wants to know of a disconnect any longer."""
        self._answered = None
        super().on_response_complete()

    def eof_received(self) -> None:
        """Take a caller who closes his side for one who has left: the connection closes, and nobody is answered."""
        self._tell_of_disconnect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request being answered, too; uvicorn tells only the one read last."""
        super().connection_lost(exc)
        self._tell_of_disconnect()

    def _tell_of_disconnect(self) -> None:
        if self._answered is not None:
            self._answered.note_disconnect()
        # A TLS transport may choose whom it tells before the receiver has taken over, and tell afterwards.
        if self.receiver is not None:
            self.receiver.abandon()

    @property
    def body_bytes(self) -> int:
        """How much of the current request's body has come through the parser."""
        return self._body_bytes

    def take_back(self) -> None:
        """Go on with the connection after a body that the parser never saw."""
        self.receiver = None
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.transport.set_protocol(self)


class Connection:
    """The connection of one request, as an endpoint sees it."""

    def __init__(self, protocol: GuardedProtocol) -> None:
        self._protocol = protocol
        self.cycle: RequestResponseCycle = cast(RequestResponseCycle, None)
        self._receiver: BodyReceiver | None = None
        self._on_disconnect: list[Callable[[], object]] = []

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

    @property
    def has_company(self) -> bool:
        """Whether other requests to this process are being worked on, or are about to be."""
        return len(self._protocol.tasks) > 1

    async def receive_into(self, buffer: memoryview, body_bytes: int) -> None:
        """Fill `buffer` with the next bytes of a body of `body_bytes` in all.

        Raises ClientDisconnectedError when the caller leaves before.
        """
        cycle = self.cycle
        if cycle.disconnected:
            raise ClientDisconnectedError
        if cycle.waiting_for_100_continue:
            cycle.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        at_hand = min(len(buffer), len(cycle.body))
        buffer[:at_hand] = cycle.body[:at_hand]
        del cycle.body[:at_hand]
        if at_hand == len(buffer):
            return
        if self._receiver is None:
            self._receiver = BodyReceiver(self._protocol, cycle, body_bytes - self._protocol.body_bytes)
        await self._receiver.receive_into(buffer[at_hand:])

    async def discard(self, most: int) -> None:
        """Throw away up to `most` more bytes of a body that `receive_into` has begun."""
        if self._receiver is not None:
            await self._receiver.discard(most)

    @property
    def is_receiving(self) -> bool:
        """Whether a body is on its way that the parser does not see."""
        return self._receiver is not None and self._receiver.remaining > 0

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


NOWHERE = memoryview(b"")
"""Where bytes go when none are wanted; even an empty part of a buffer would keep all of it."""


class BodyReceiver(asyncio.BufferedProtocol):
    """Receives the rest of one body; the connection belongs to the HTTP protocol before and after."""

    def __init__(self, protocol: GuardedProtocol, cycle: RequestResponseCycle, remaining: int) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self.remaining = remaining
        self._buffer = NOWHERE
        self._filled: asyncio.Future[None] | None = None
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
            if self.remaining:
                self._protocol.flow.pause_reading()

    async def discard(self, most: int) -> None:
        """Receive up to `most` bytes and throw them away."""
        scratch = memoryview(bytearray(1 << 16))
        while self.remaining and most > 0:
            part = scratch[: min(len(scratch), self.remaining, most)]
            await self.receive_into(part)
            most -= len(part)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where the next bytes go: never further than the body reaches."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Note what has come."""
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

    def eof_received(self) -> None:
        """Let the connection close: a body that ends early is never answered."""
        self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass the transport's word on to the HTTP protocol."""
        self._protocol.connection_lost(exc)

    def abandon(self) -> None:
        """Tell the endpoint that no more will come."""
        if self._filled is not None and not self._filled.done():
            self._filled.set_exception(ClientDisconnectedError())

    def pause_writing(self) -> None:
        """Pass the transport's word on to the answer."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass the transport's word on to the answer."""
        self._protocol.resume_writing()


def connection_of(scope: Scope) -> Connection | None:
    """Return the connection of a request; None under a server that is not ours."""
    extensions = scope.get("extensions") or {}
    return extensions.get(EXTENSION)
