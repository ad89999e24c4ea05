"""The HTTP protocol of a connection: uvicorn's, with limits on what a caller may send and how slowly.

uvicorn hands a body over in pieces of up to 64 KiB, each parsed and copied. Here, an endpoint that wants a large body
in one buffer lends the connection a protocol that does nothing but receive into that buffer, until the last byte; then
the HTTP protocol, with a new parser, takes the connection back.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.errors import HeadersTooLarge, Internal, MalformedRequest, RequestError, RequestTimeout, UriTooLong
from service.http.connection import EXTENSION, Connection, connection_of
from service.http.exchange import request_id_in
from service.http.limits import DRAIN_BYTES, HEADER_BYTES, HEADER_FIELDS, HELD_BYTES, KEPT_BYTES, URL_BYTES
from service.http.receiver import HEAD_BYTES
from service.http.timed import TimedProtocol

logger = logging.getLogger("service")

END_OF_HEAD = b"\r\n\r\n"

END_OF_AUTHORITY = re.compile(rb"[/?]")
"""What follows the host in a whole URL."""

CHUNKS_BYTES = 1 << 10
"""A chunked body is parsed in parts of at least this size."""


class RefusedError(Exception):
    """Stops the parser; what the request is refused with has been noted."""


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


class GuardedProtocol(TimedProtocol):
    """uvicorn's protocol, with the limits, and with a `Connection` in every scope."""

    _steps = 0
    """Counts beginnings, ends of headers, and pieces of bodies."""
    _unfinished = 0
    """Bytes since the last of these."""
    _head_bytes = 0
    """Bytes of the header, or trailer, so far."""
    _is_upgrade = False
    """Whether a header with a body asked for an upgrade."""
    _trailer_fields = 0
    _is_in_trailer = False
    _transfer_encoding: bytes | None = None
    _left = 0
    """Bytes still to come of a body with a declared length."""
    _is_unparsed = False
    """Whether the parser is not shown the body: it is long, and its length is all there is to know."""
    _held = b""
    """What came behind a request that is being answered; only behind a chunked body can more have been parsed."""
    _refusal: RequestError | None = None
    """What a parser's callback found wrong."""
    _last_word: RequestError | None = None
    """What is said once the requests before have been answered."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what has come and was not yet parsed."""
        self._held = b""
        super().connection_lost(exc)

    # -- What comes ----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what comes, unless it is not wanted, or not yet."""
        if self._is_over:
            self._throw_away(len(data))
        elif self._is_answering:
            self._hold(data)
        else:
            self._parse(data)

    @property
    def _is_answering(self) -> bool:
        """Whether the last request has come as a whole and is not answered: what comes now waits for its turn."""
        cycle = self.cycle
        return cycle is not None and not (cycle.response_complete or self._is_in_body or self._is_in_head)

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
            if self._is_answering:
                self._hold(data[start:])
                return
            end = self._end_of_part(data, start)
            if self._is_unparsed:
                self._take_unparsed(memoryview(data)[start:end])
                start = end
                continue
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

    def _take_unparsed(self, piece: memoryview) -> None:
        self._unfinished = 0
        self.on_body(piece)
        if not self._left:
            self.on_message_complete()
            self._renew_parser()

    def _end_of_part(self, data: bytes, start: int) -> int:
        if self._is_in_body and self._left:
            return min(start + self._left, len(data))
        end = data.find(END_OF_HEAD, start + CHUNKS_BYTES if self._is_in_body else start)
        return len(data) if end < 0 else end + len(END_OF_HEAD)

    def _hold(self, data: bytes) -> None:
        self._held += data
        if len(self._held) >= HELD_BYTES:
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
        self.url += url
        if len(self.url) > URL_BYTES:
            self._stop(UriTooLong("target", limit=URL_BYTES))

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
        self.most_skipped_bytes, self.is_patient = DRAIN_BYTES, False
        super().on_headers_complete()
        connection.cycle = self.cycle
        self._is_upgrade = self.parser.should_upgrade() and bool(self._left or self._transfer_encoding)
        self._is_unparsed = self._left > KEPT_BYTES and not self.parser.should_upgrade()
        if self.pipeline:  # uvicorn has paused reading; but then nobody would notice when the caller leaves
            self.flow.resume_reading()

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._stop(MalformedRequest("version", got=version))
        if version == "1.0":
            self.expect_100_continue = False
        if self.parser.get_method() == b"CONNECT":
            self._stop(MalformedRequest("connect"))
        if b"#" in self.url:
            self._stop(MalformedRequest("target"))
        if not self.url.startswith((b"/", b"*")):
            self._take_host_from_target()
        if self._transfer_encoding is not None and (
            self._transfer_encoding.lower().strip(b" \t") != b"chunked" or version == "1.0"
        ):
            self._stop(MalformedRequest("transfer-encoding"))
        if self.parser.should_upgrade() and self._get_upgrade() == b"websocket":
            self._stop(MalformedRequest("websocket"))

    def _take_host_from_target(self) -> None:
        """Let the host of a whole URL count in place of the header's (RFC 9112, 3.2.2)."""
        host = END_OF_AUTHORITY.split(self.url.partition(b"://")[2], 1)[0]
        for place, (name, _) in enumerate(self.headers):
            if name == b"host":
                self.headers[place] = (name, host)

    def on_chunk_header(self) -> None:
        """Expect a piece of the body or, after the last, a trailer."""
        self._steps += 1
        self._is_in_trailer = True
        self._head_bytes = self._trailer_fields = 0

    def on_body(self, body: bytes | memoryview) -> None:
        """Take a piece of the body."""
        self._steps += 1
        self._is_in_trailer = False
        size = len(body)
        self._body_bytes += size
        if self._left:
            self._left -= size
        if self.cycle.response_complete:
            self._throw_away_of_body(size)
        elif isinstance(body, memoryview):
            self._keep(body)
        else:
            super().on_body(body)

    def _keep(self, piece: memoryview) -> None:
        """Do what uvicorn does with a piece of a body, but without a copy where an endpoint can take it from here.

        Nobody is woken for a few bytes of a long body.
        """
        cycle = self.cycle
        is_first = self._body_bytes == len(piece)
        if not cycle.body:
            cycle.body = cast(bytearray, piece)
        elif isinstance(cycle.body, memoryview):
            cycle.body = bytearray(cycle.body) + piece
        else:
            cycle.body += piece
        if (is_first and self._left) or len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()  # what comes after the first piece is to go into the endpoint's own memory
        if is_first or not self._left or len(cycle.body) >= HEAD_BYTES:
            cycle.message_event.set()

    def _throw_away_of_body(self, size: int) -> None:
        self._thrown_away += size
        if self._thrown_away > self.most_skipped_bytes:
            self._is_over = True
            self.close_now()

    def on_message_complete(self) -> None:
        """End a request."""
        if self._is_upgrade:  # its body is still to come
            return
        self._is_in_body = self._is_in_trailer = self._is_unparsed = False
        self._since = self._watch.now
        super().on_message_complete()

    @property
    def body_bytes(self) -> int:
        """How much of the current request's body has come through the parser."""
        return self._body_bytes

    def take_back(self) -> None:
        """Go on with the connection after a body that the parser never saw."""
        self.receiver = None
        self._is_in_body = self._is_unparsed = False
        self._left = 0
        self._since = self._watch.now
        self._renew_parser()
        self.have_connection()

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
        if self._held and not self._is_answering:
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
                self.have_connection()
        self.flow.resume_reading()
