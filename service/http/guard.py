"""The HTTP protocol of a connection: uvicorn's, with limits on what a caller may send and how slowly.

uvicorn hands a body over in pieces of up to 64 KiB, each parsed and copied. Here, an endpoint that wants a large body
in one buffer lends the connection a protocol that does nothing but receive into that buffer, until the last byte; then
the HTTP protocol, with a new parser, takes the connection back.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service import metrics
from service.errors import HeadersTooLarge, Internal, MalformedRequest, RequestError, RequestTimeout, UriTooLong
from service.http.connection import EXTENSION, Connection, connection_of
from service.http.exchange import Exchange, request_id_in
from service.http.limits import (
    DRAIN_BYTES,
    DRAIN_SECONDS,
    HEADER_BYTES,
    HEADER_FIELDS,
    QUEUED_REQUESTS,
    URL_BYTES,
    Limits,
    Pace,
)
from service.http.logs import log_request
from service.http.problems import problem
from service.http.receiver import BodyReceiver, ClientDisconnectedError
from service.http.watch import watch_of

logger = logging.getLogger("service")

END_OF_HEAD = b"\r\n\r\n"

CHUNKS_BYTES = 1 << 10
"""A chunked body is parsed in parts of at least this size."""

_BYTES_ACKNOWLEDGED = 120
"""Where Linux tells, in its TCP_INFO, how many bytes of a connection have arrived (64 bits)."""


class RefusedError(Exception):
    """Stops the parser; what the request is refused with has been noted."""


class GuardedFlow(FlowControl):
    """uvicorn's flow control: while requests are held back no more is read, whatever one of them would like."""

    is_holding = False
    pauses = 0
    """How often reading has been paused."""

    def pause_reading(self) -> None:
        """Read no more for now."""
        self.pauses += 1
        super().pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless requests are held back."""
        if not self.is_holding:
            super().resume_reading()


class LastingTransport:
    """A transport whose `close` lets the protocol read on for a while, where a caller is still sending."""

    def __init__(self, transport: asyncio.Transport, protocol: GuardedProtocol) -> None:
        self._protocol = protocol
        self.close_now = transport.close
        self.close = protocol.close
        for name in (
            "write",
            "is_closing",
            "abort",
            "write_eof",
            "can_write_eof",
            "get_extra_info",
            "pause_reading",
            "resume_reading",
            "set_protocol",
            "set_write_buffer_limits",
            "get_write_buffer_size",
        ):
            setattr(self, name, getattr(transport, name))


class Muted:
    """Passes what a parser finds on to a protocol, once `is_muted` is taken away."""

    def __init__(self, protocol: GuardedProtocol) -> None:
        self.is_muted = True
        for name in (
            "on_message_begin",
            "on_url",
            "on_header",
            "on_headers_complete",
            "on_chunk_header",
            "on_body",
            "on_message_complete",
        ):
            setattr(self, name, functools.partial(self._pass_on, getattr(protocol, name)))

    def _pass_on(self, callback: Callable[..., None], *arguments: bytes) -> None:
        if not self.is_muted:
            callback(*arguments)


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with the limits, and with a `Connection` in every scope."""

    receiver: BodyReceiver | None = None
    """Who has the connection while a body comes that the parser does not see."""
    is_drained = False
    """Whether enough of an unwanted body has been thrown away."""
    flow: GuardedFlow

    _steps = 0
    """Counts beginnings, ends of headers, and pieces of bodies."""
    _unfinished = 0
    """Bytes since the last of these."""
    _is_in_head = False
    _is_in_body = False
    _head_bytes = 0
    """Bytes of the header, or trailer, so far."""
    _is_upgrade = False
    """Whether a header with a body asked for an upgrade."""
    _trailer_fields = 0
    _is_in_trailer = False
    _transfer_encoding: bytes | None = None
    _left = 0
    """Bytes still to come of a body with a declared length."""
    _body_bytes = 0
    """Bytes of the current request's body that went through the parser."""
    _thrown_away = 0
    _held = b""
    """What came behind as many requests as may wait."""
    _answered: Connection | None = None
    """The request being answered: with pipelining it is not always the one read last."""
    _refusal: RequestError | None = None
    """What a parser's callback found wrong."""
    _is_over = False
    """Whether nothing that comes is parsed any more."""
    _last_word: RequestError | None = None
    """What is said once the requests before have been answered."""
    _since = 0.0
    """When what the caller owes began to be waited for, by the watch."""
    _closes_at: float | None = None
    """When a caller who is still sending has seen enough of his answer."""
    _answers = 0
    _body_pace: Pace | None = None
    _write_pace: Pace | None = None
    _seen_pauses = 0

    # -- The connection ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin to watch a connection."""
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, LastingTransport(transport, self))
        self.flow = GuardedFlow(transport)
        self._watch = watch_of(self.server_state, getattr(self.config, "limits", None) or Limits())
        self._since = self._watch.now
        self._watch.enter(self)

    def eof_received(self) -> None:
        """Take a caller who closes his side for one who has left: the connection closes, and nobody is answered."""
        self._tell_of_disconnect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request being answered, too; uvicorn tells only the one read last."""
        self._watch.idle.pop(self, None)
        self._is_over, self._held = True, b""
        super().connection_lost(exc)
        self._tell_of_disconnect()
        self.transport.close = self.close_now  # type: ignore[method-assign]  # or each would keep the other alive

    def _tell_of_disconnect(self) -> None:
        if self._answered is not None:
            self._answered.note_disconnect()
        # A TLS transport may choose whom it tells before the receiver has taken over, and tell afterwards.
        if self.receiver is not None:
            self.receiver.abandon(ClientDisconnectedError())

    def lose(self) -> None:
        """Give the connection up."""
        if self.transport.get_write_buffer_size() or not self._is_idle:
            self.transport.abort()
        else:
            self.close_now()

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

    # -- What comes ----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what comes, unless it is not wanted, or not yet."""
        if self._is_over:
            self._throw_away(len(data))
        elif self.flow.is_holding:
            self._held += data
        else:
            self._parse(data)

    def _throw_away(self, size: int) -> None:
        self._thrown_away += size
        if self._thrown_away > DRAIN_BYTES:
            if self._is_lasting:
                self.close_now()
            else:
                self.flow.pause_reading()

    def _parse(self, data: bytes) -> None:
        """Parse up to the end of each request, so that it is known whether the next may be begun."""
        start, size = 0, len(data)
        while start < size and not self._is_over:
            if len(self.pipeline) >= QUEUED_REQUESTS and not self._is_in_body:
                self._hold(data[start:])
                return
            end = self._end_of_part(data, start)
            steps = self._steps
            try:
                self.parser.feed_data(data if end - start == size else data[start:end])
            except httptools.HttpParserUpgrade as upgrade:
                end = start + upgrade.args[0]
                self._ignore_upgrade()
            except httptools.HttpParserError as error:
                self._refuse(self._reason(error))
                return
            if steps != self._steps:
                self._unfinished = 0
            else:
                self._unfinished += end - start
                if self._unfinished > HEADER_BYTES:
                    self._refuse(self._flood())
            start = end

    def _end_of_part(self, data: bytes, start: int) -> int:
        if self._is_in_body and self._left:
            return min(start + self._left, len(data))
        end = data.find(END_OF_HEAD, start + CHUNKS_BYTES if self._is_in_body else start)
        return len(data) if end < 0 else end + len(END_OF_HEAD)

    def _hold(self, data: bytes) -> None:
        self._held = data
        self.flow.pause_reading()
        self.flow.is_holding = True

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _ignore_upgrade(self) -> None:
        """Go on after a header that asks for an upgrade which is not taken.

        httptools takes what follows for the other protocol. So a new parser is shown a header without the wish.
        """
        if not self._is_in_body:
            self._renew_parser()
            return
        self._is_upgrade = False
        repeated = Muted(self)
        self.parser = httptools.HttpRequestParser(repeated)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        framing = b"Content-Length: %d" % self._left if self._left else b"Transfer-Encoding: chunked"
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + END_OF_HEAD)
        repeated.is_muted = False

    def _reason(self, error: httptools.HttpParserError) -> RequestError:
        """Return what a request is refused with, of which the parser could make nothing."""
        if self._refusal is not None:
            return self._refusal
        if not isinstance(error, httptools.HttpParserCallbackError):
            return MalformedRequest("syntax", got=str(error) or "the method is unknown")
        cause = error.__context__ or error.__cause__
        if isinstance(cause, httptools.HttpParserInvalidURLError | UnicodeDecodeError):
            return MalformedRequest("target")
        logger.error("a request could not be taken", exc_info=cause)
        return Internal("bug", request_id=request_id_in(self.headers))

    def _flood(self) -> RequestError:
        """Return what is wrong with a request of which so much is no progress."""
        if self._is_in_head:
            return HeadersTooLarge("bytes", limit=HEADER_BYTES)
        if self._is_in_trailer:
            return HeadersTooLarge("trailer", limit=HEADER_BYTES)
        if self._is_in_body:
            return MalformedRequest("chunks", limit=HEADER_BYTES)
        return MalformedRequest("syntax", got="Nothing but line ends")

    def _stop(self, refusal: RequestError) -> None:
        self._refusal = refusal
        raise RefusedError

    # -- What the parser finds -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._steps += 1
        super().on_message_begin()
        self._is_in_head = True
        self._since = self._watch.now
        self._head_bytes = self._body_bytes = self._left = 0
        self._transfer_encoding = None

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        if len(self.url) + len(url) > URL_BYTES:
            self._stop(UriTooLong("target", limit=URL_BYTES))
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the header; those of a trailer are counted and forgotten."""
        self._head_bytes += len(name) + len(value) + 4
        if not self._is_in_head:
            self._trailer_fields += 1
            if self._head_bytes > HEADER_BYTES or self._trailer_fields > HEADER_FIELDS:
                self._stop(HeadersTooLarge("trailer", limit=HEADER_BYTES))
            return
        name = name.lower()
        self.headers.append((name, value.rstrip(b" \t")))
        if self._head_bytes > HEADER_BYTES:
            self._stop(HeadersTooLarge("bytes", limit=HEADER_BYTES))
        if len(self.headers) > HEADER_FIELDS:
            self._stop(HeadersTooLarge("fields", limit=HEADER_FIELDS))
        if name == b"content-length":
            self._left = int(value)
        elif name == b"transfer-encoding":
            self._transfer_encoding = value if self._transfer_encoding is None else b"several"
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        """Start answering a request, or let it wait; the endpoint finds its connection in the scope."""
        self._steps += 1
        self._check_head()
        connection = Connection(self)
        cast("dict[str, Any]", self.scope)["extensions"] = {EXTENSION: connection}
        self._is_in_head, self._is_in_body = False, True
        self._watch.idle.pop(self, None)
        self._body_pace = None
        super().on_headers_complete()
        connection.cycle = self.cycle
        self._is_upgrade = self.parser.should_upgrade() and bool(self._left or self._transfer_encoding)
        if self.pipeline and len(self.pipeline) < QUEUED_REQUESTS:
            # uvicorn has paused reading; but then nobody would notice when the caller leaves.
            self.flow.resume_reading()

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._stop(MalformedRequest("version", got=version))
        if self.parser.get_method() == b"CONNECT":
            self._stop(MalformedRequest("connect"))
        if b"#" in self.url:
            self._stop(MalformedRequest("target"))
        if self._transfer_encoding is not None and (
            self._transfer_encoding.lower().strip(b" \t") != b"chunked" or version == "1.0"
        ):
            self._stop(MalformedRequest("transfer-encoding"))
        if self.parser.should_upgrade() and self._get_upgrade() == b"websocket":
            self._stop(MalformedRequest("websocket"))

    def on_chunk_header(self) -> None:
        """Expect a piece of the body or, after the last, a trailer."""
        self._steps += 1
        self._is_in_trailer = True
        self._head_bytes = self._trailer_fields = 0

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._steps += 1
        self._is_in_trailer = False
        size = len(body)
        self._body_bytes += size
        if self._left:
            self._left -= size
        if self.cycle.response_complete:
            self._throw_away_of_body(size)
        else:
            super().on_body(body)

    def _throw_away_of_body(self, size: int) -> None:
        self._thrown_away += size
        if self._thrown_away > DRAIN_BYTES:
            self._is_over = True
            self.close_now()

    def on_message_complete(self) -> None:
        """End a request."""
        if self._is_upgrade:  # its body is still to come
            return
        self._is_in_body = self._is_in_trailer = False
        self._since = self._watch.now
        super().on_message_complete()

    @property
    def body_bytes(self) -> int:
        """How much of the current request's body has come through the parser."""
        return self._body_bytes

    def take_back(self) -> None:
        """Go on with the connection after a body that the parser never saw."""
        self.receiver = None
        self._is_in_body = False
        self._left = 0
        self._since = self._watch.now
        self._renew_parser()
        self.transport.set_protocol(self)

    # -- Answers -------------------------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = connection_of(cast(Scope, cycle.scope))
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Go on to the next request, if there is one."""
        self.server_state.total_requests += 1
        self._answers += 1
        self._answered = None
        if self._is_lasting or self.transport.is_closing():
            return
        self._since = self._watch.now
        self._thrown_away = 0
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._last_word is not None:
            self._say(self._last_word)
        else:
            self._watch.idle[self] = None
        if self._held and len(self.pipeline) <= QUEUED_REQUESTS // 2:  # parsing on costs a copy of what is held
            held, self._held = self._held, b""
            self.flow.is_holding = False
            self._parse(held)
        self.flow.resume_reading()

    def shutdown(self) -> None:
        """Close the connection, after the answers to what has been read."""
        self._is_over, self._held = not self._is_in_body, b""
        super().shutdown()

    def _refuse(self, error: RequestError) -> None:
        """Take no more from this connection, and say why: after the requests before, or in place of the one begun."""
        self._is_over, self._held = True, b""
        self._thrown_away = 0
        self.is_drained = isinstance(error, RequestTimeout)  # who is slow has nothing on its way
        cycle = self.cycle
        if cycle is None or (cycle.response_complete and not self._is_in_body):
            self._say(error)
        elif not self._is_in_body:
            self._last_word = error
        elif cycle.response_complete:
            self.close_now()
        else:
            cycle.keep_alive = False
            cast(Connection, connection_of(cast(Scope, cycle.scope))).fail(error)
            if self.receiver is not None:
                self.receiver = None
                self.transport.set_protocol(self)
        self.flow.resume_reading()

    def _say(self, error: RequestError) -> None:
        """Refuse what was no request, and end the connection."""
        exchange = Exchange(request_id_in(self.headers or ()), code=error.code)
        reply = problem(error, exchange.request_id)
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

    # -- Time ----------------------------------------------------------------------------------------------------------

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
        transport = self.transport
        is_closing = transport.is_closing()
        if is_closing or self.flow.write_paused or transport.get_write_buffer_size():
            if not self._is_taken(seconds):
                metrics.CONNECTIONS_ENDED["slow-reader"].inc()
                transport.abort()
                return
            self._since += seconds
        else:
            self._write_pace = None
        if is_closing:
            return
        if self._closes_at is not None:
            if self._watch.now >= self._closes_at:
                self.close_now()
        elif self.flow.read_paused:
            self._since += seconds
        elif not self._is_over:
            self._look_at_reading(seconds)

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
        if self.cycle.response_complete:
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
