"""The bytes of a request and its answer: what formats are spoken, how much is read, how much is thrown away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.types import Receive, Scope, Send

from service.errors import ContentTooLarge, NotAcceptable, UnsupportedEncoding, UnsupportedMediaType, clip
from service.http.problems import Reply

JSON = "application/json"

KEPT_BYTES = 1 << 16
"""An unwanted body up to this size is left to the server to skip, and the connection stays open."""

DRAIN_BYTES = 8 << 20
"""Most that is read and thrown away after a refusal, so that the caller sees the answer and not a reset."""
DRAIN_SECONDS = 1.0
"""Longest time for that."""

SLICE_BYTES = 1 << 20
"""Largest piece of an answer that is handed to the server at once."""


class ClientDisconnectedError(Exception):
    """The caller has left; there is nobody to answer."""


class RequestBody:
    """The body of one request, read under a limit."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self.headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            self.headers[name] = self.headers[name] + b", " + value if name in self.headers else value
        length = self.headers.get(b"content-length", b"")
        self._declared = int(length) if length.isdigit() else None
        self.received = 0
        self._is_complete = False
        self._is_too_large = False
        self._waits_for_continue = self.headers.get(b"expect", b"").lower() == b"100-continue"

    @property
    def must_close(self) -> bool:
        """Whether to close the connection rather than read the rest: when there is much, or it was too large."""
        if self._is_complete or self._is_too_large:
            return not self._is_complete
        return b"transfer-encoding" in self.headers if self._declared is None else self._declared > KEPT_BYTES

    async def read(self, limit: int) -> bytes:
        """Return the whole body; raises ContentTooLarge as soon as it is known to be over `limit` bytes."""
        if self._declared is not None and self._declared > limit:
            self._is_too_large = True
            raise ContentTooLarge("body", limit=limit)
        chunks: list[bytes] = []
        more = True
        while more:
            chunk, more = await self._next()
            self.received += len(chunk)
            if self.received > limit:
                self._is_too_large = True
                raise ContentTooLarge("body", limit=limit)
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def drain(self) -> None:
        """Read on and throw away, up to DRAIN_BYTES or for DRAIN_SECONDS."""
        if self._waits_for_continue:
            return
        dropped = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._is_complete and dropped < DRAIN_BYTES:
                    dropped += len((await self._next())[0])
        except (TimeoutError, ClientDisconnectedError):
            return

    async def _next(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        more = message.get("more_body", False)
        self._is_complete = not more
        self._waits_for_continue = False
        return message.get("body", b""), more


def check_formats(headers: dict[bytes, bytes]) -> None:
    """Raise unless the body is in a format that is read and the answer in one that the caller takes."""
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding.strip().lower() not in (b"identity", b""):
        raise UnsupportedEncoding("encoding", got=f"'{clip(encoding.decode('latin-1'))}'", expected="identity")
    _check_content_type(headers.get(b"content-type"))
    accept = headers.get(b"accept")
    if accept is not None and not _accepts_json(accept.decode("latin-1")):
        raise NotAcceptable("accept", got=f"'{clip(accept.decode('latin-1'))}'", expected=JSON)


def _check_content_type(value: bytes | None) -> None:
    if value is None:
        raise UnsupportedMediaType("missing", expected=JSON)
    if value == b"application/json":
        return
    text = value.decode("latin-1")
    media_type, *parts = (part.strip().lower() for part in text.split(";"))
    charsets = [part.partition("=")[2].strip('" ') for part in parts if part.startswith("charset")]
    if media_type != JSON or any(charset not in ("utf-8", "utf8") for charset in charsets):
        raise UnsupportedMediaType("type", got=f"'{clip(text)}'", expected=JSON)


def _accepts_json(accept: str) -> bool:
    """Return whether an Accept header takes JSON (RFC 9110, 12.5.1): the most specific range that matches decides."""
    best = (-1, False)
    for media_range in accept.lower().split(","):
        name, *parts = (part.strip() for part in media_range.split(";"))
        if name in ("*/*", "application/*", JSON):
            refused = any(part.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for part in parts)
            best = max(best, ({"*/*": 0, "application/*": 1, JSON: 2}[name], not refused))
    return best[1] or not accept.strip()


async def send_reply(send: Send, reply: Reply, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Send a whole answer."""
    await send(
        {
            "type": "http.response.start",
            "status": reply.status,
            "headers": [
                (b"content-type", reply.media_type.encode()),
                (b"content-length", b"%d" % sum(map(len, reply.pieces))),
                *reply.headers,
                *headers,
            ],
        }
    )
    pieces = list(_slices(reply.pieces))
    for piece in pieces[:-1]:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": pieces[-1] if pieces else b"", "more_body": False})


async def refuse(send: Send, reply: Reply, body: RequestBody) -> None:
    """Send an answer to a request whose body, or the rest of it, is not wanted; close the connection if it is long.

    Some of the body is still read in between: a connection closed on a caller who is still sending is reset, and the
    reset can overtake the answer.
    """
    if not body.must_close:
        await send_reply(send, reply)
        return
    if (b"connection", b"close") not in reply.headers:
        reply.headers.append((b"connection", b"close"))
    reply.headers.append((b"content-length", b"%d" % sum(map(len, reply.pieces))))
    headers = [(b"content-type", reply.media_type.encode()), *reply.headers]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"".join(reply.pieces), "more_body": True})
    await body.drain()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _slices(pieces: list[bytes]) -> Iterable[bytes]:
    """Join small pieces and cut large ones."""
    if sum(map(len, pieces)) <= SLICE_BYTES:
        yield b"".join(pieces)
        return
    for piece in pieces:
        for start in range(0, len(piece), SLICE_BYTES):
            yield piece[start : start + SLICE_BYTES]
