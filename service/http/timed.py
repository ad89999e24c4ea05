"""How long a connection may take: for its first byte, a header, a body, the next request, and to take an answer."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import sys
from contextlib import suppress
from typing import Any, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service import metrics
from service.errors import RequestError, RequestTimeout
from service.http.connection import Connection, connection_of
from service.http.exchange import Exchange, request_id_in
from service.http.flow import GuardedFlow, LastingTransport
from service.http.limits import DRAIN_BYTES, DRAIN_SECONDS, Limits, Pace
from service.http.logs import log_request
from service.http.problems import refusal_at
from service.http.receiver import BodyReceiver, ClientDisconnectedError, Inlet, Lender
from service.http.watch import watch_of

UNSENT_BYTES = 1 << 18
"""Most of an answer that the system holds before it is sent: for a caller who takes nothing it would hold megabytes."""

_BYTES_ACKNOWLEDGED = 120
"""Where Linux tells, in its TCP_INFO, how many bytes of a connection have arrived (64 bits)."""


class TimedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which closes in good order, and ends connections whose time is over."""

    receiver: BodyReceiver | None = None
    """Who has the connection while a body comes that the parser does not see."""
    is_drained = False
    """Whether enough of an unwanted body has been thrown away."""
    flow: GuardedFlow

    _is_in_head = False
    _is_in_body = False
    _body_bytes = 0
    """Bytes of the current request's body that went through the parser."""
    _thrown_away = 0
    most_skipped_bytes = DRAIN_BYTES
    """How much of a body is thrown away after its answer, before the connection is closed on it."""
    is_patient = False
    """Whether that may take as long as a body that is wanted."""
    _answered: Connection | None = None
    """The request being answered: with pipelining it is not always the one read last."""
    _answers = 0
    _is_over = False
    """Whether nothing that comes is parsed any more."""
    _since = 0.0
    """When what the caller owes began to be waited for, by the watch."""
    _closes_at: float | None = None
    """When a caller who is still sending has seen enough of his answer."""
    _body_pace: Pace | None = None
    _write_pace: Pace | None = None
    _seen_pauses = 0

    def _refuse(self, error: RequestError) -> None:
        """Take no more from this connection, and say why."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin to watch a connection."""
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, LastingTransport(transport, self.close))
        self.flow = GuardedFlow(transport)
        self._watch = watch_of(self.server_state, getattr(self.config, "limits", None) or Limits())
        self._since = self._watch.now
        self._watch.enter(self)
        with suppress(AttributeError, OSError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self.have_connection()

    def have_connection(self) -> None:
        """Take the connection, or take it back: while headers and short bodies come, it is this protocol's."""
        # On Windows a transport reads ahead into the buffer it was given.
        inlet = self if sys.platform == "win32" else Inlet(cast(Lender, self), self._watch.scratch)
        self.transport.set_protocol(inlet)

    def eof_received(self) -> None:
        """Take a caller who closes his side for one who has left: the connection closes, and nobody is answered."""
        self._tell_of_disconnect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request being answered, too; uvicorn tells only the one read last."""
        self._watch.idle.pop(self, None)
        self._is_over = True
        super().connection_lost(exc)
        self._tell_of_disconnect()
        cast(LastingTransport, self.transport).forget()
        # Whoever keeps the other alive waits for the garbage collector, with much else.
        for cycle, _ in self.pipeline:
            scope = cast(Scope, cycle.scope)
            cast(Connection, connection_of(scope)).forget(scope)
            cycle.on_response = _nothing
        self.pipeline.clear()
        self._answered = self.receiver = None

    def _tell_of_disconnect(self) -> None:
        if self._answered is not None:
            self._answered.note_disconnect()
        # A TLS transport may choose whom it tells before the receiver has taken over, and tell afterwards.
        if self.receiver is not None:
            self.receiver.abandon(ClientDisconnectedError())

    def lose(self) -> None:
        """Give the connection up."""
        if self.transport.get_write_buffer_size() or not self._is_idle:
            self._reset()
        else:
            self.close_now()

    def _reset(self) -> None:
        """Close the connection and forget what was to be sent; the system, too, would go on trying for minutes."""
        with suppress(AttributeError, OSError):
            never = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, never)
        self.transport.abort()

    def close_now(self) -> None:
        """Close the connection once everything is written, and read no more."""
        cast(Any, self.transport).close_now()

    def close(self) -> None:
        """Close the connection; while the caller is still sending, read on for a while.

        A connection closed on a caller who is still sending is reset, and the reset can overtake the answer.
        """
        if self._is_in_body and not (self.is_drained or self._is_lasting) and self.parser is not None:
            self._last()
        else:
            self.close_now()

    @property
    def _is_lasting(self) -> bool:
        return self._closes_at is not None

    def _last(self) -> None:
        """Say that nothing more will be said, and throw away what comes until the time is over."""
        if self.transport.is_closing():
            return
        self._is_over = True
        self._closes_at = self._watch.now + DRAIN_SECONDS
        self._thrown_away = 0
        self.flow.is_holding = False
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _say(self, error: RequestError) -> None:
        """Refuse what was no request, and end the connection."""
        exchange = Exchange(request_id_in(self.headers or ()), code=error.code)
        path = getattr(self, "url", b"").partition(b"?")[0].decode("latin-1")
        reply = refusal_at(path.removeprefix(self.root_path), error, exchange.request_id)
        body = b"".join(reply.pieces)
        exchange.status, exchange.sent = reply.status, len(body)
        head = b"content-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\nconnection: close\r\n\r\n" % (
            reply.media_type.encode(),
            len(body),
            exchange.request_id.encode(),
        )
        self.transport.write(STATUS_LINE[reply.status] + head + body)
        metrics.CONNECTIONS_ENDED[error.code].inc()
        log_request({"method": "-", "path": "-", **(self.scope or {})}, exchange)
        if self.is_drained:
            self.close_now()
        else:
            self._last()

    @property
    def is_in_body(self) -> bool:
        """Whether a body is on its way."""
        return self._is_in_body

    @property
    def _is_idle(self) -> bool:
        return not self._is_in_body and (self.cycle is None or self.cycle.response_complete)

    def silent_descriptor(self) -> int | None:
        """Return the descriptor of a connection that is not read from, so that nobody would notice its end."""
        if not self.flow.read_paused or self.transport.is_closing():
            return None
        return cast(int, self.transport.get_extra_info("socket").fileno())

    def look(self, seconds: float) -> None:
        """Act on a time that is over, `seconds` after the last look."""
        if self._has_written and not self._look_at_writing(seconds):
            return
        if self._closes_at is not None:
            if self._watch.now >= self._closes_at:
                self.close_now()
        elif self.flow.read_paused:
            self._since += seconds
        elif not self._is_over:
            self._look_at_reading(seconds)

    @property
    def _has_written(self) -> bool:
        return self._answers > 0 or self._is_over or (self.cycle is not None and self.cycle.response_started)

    def _look_at_writing(self, seconds: float) -> bool:
        """Reset a connection whose answers are taken too slowly; return whether there is more to look at."""
        transport = self.transport
        is_closing = transport.is_closing()
        if is_closing or self.flow.write_paused or transport.get_write_buffer_size():
            if not self._is_taken(seconds):
                metrics.CONNECTIONS_ENDED["slow-reader"].inc()
                self._reset()
                return False
            self._since += seconds
        else:
            self._write_pace = None
        return not is_closing

    def _look_at_reading(self, seconds: float) -> None:
        limits = self._watch.limits
        waited = self._watch.now - self._since
        if self._is_in_head:
            if waited >= limits.head_seconds:
                self._refuse(RequestTimeout("head", limit=math.ceil(limits.head_seconds)))
        elif self._is_in_body:
            self._look_at_body(seconds, waited)
        elif self.cycle is None:
            if waited >= limits.first_byte_seconds:
                self._refuse(RequestTimeout("silent", limit=math.ceil(limits.first_byte_seconds)))
        elif self.cycle.response_complete and waited >= limits.idle_seconds:
            self.close_now()

    def _look_at_body(self, seconds: float, waited: float) -> None:
        limits = self._watch.limits
        if self.cycle.response_complete and not self.is_patient:
            if waited >= DRAIN_SECONDS:
                self._is_over = True
                self.close_now()
            return
        came = self._body_bytes + (0 if self.receiver is None else self.receiver.received)
        if self._body_pace is None or self.cycle.waiting_for_100_continue:
            self._body_pace = Pace(limits.bytes_per_second, limits.body_grace_seconds, limits.saved_seconds, came)
        has_paused, self._seen_pauses = self._seen_pauses != self.flow.pauses, self.flow.pauses
        if not self._body_pace.is_kept(came, 0.0 if has_paused else seconds):
            self._refuse(RequestTimeout("body", limit=int(limits.bytes_per_second)))
        elif waited >= limits.body_seconds:
            self._refuse(RequestTimeout("whole", limit=math.ceil(limits.body_seconds)))

    def _is_taken(self, seconds: float) -> bool:
        """Return whether the caller takes the answer fast enough."""
        limits = self._watch.limits
        taken = self._bytes_taken()
        if self._write_pace is None:
            self._write_pace = Pace(limits.bytes_per_second, limits.stall_seconds, limits.stall_seconds, taken)
            return True
        return self._write_pace.is_kept(taken, seconds)

    def _bytes_taken(self) -> int:
        """Return a count that grows by every byte that arrives.

        Where the system does not tell, all that is left of the answer is counted, backwards; a new answer counts as
        progress then.
        """
        try:
            information = self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
            (taken,) = struct.unpack_from("Q", information, _BYTES_ACKNOWLEDGED)
        except (AttributeError, OSError, struct.error):
            left = self.transport.get_write_buffer_size()
            if self.cycle is not None:
                left += self.cycle.expected_content_length
            return (self._answers << 40) - left
        return cast(int, taken)


def _nothing() -> None:
    """Stand for what a request that is never answered would have done in the end."""
