"""The bytes of a request and of its answer: how much is read and where to, how much is thrown away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, cast

from starlette.types import Receive, Scope, Send
from torch import Tensor

from service.errors import ContentTooLarge, RequestError
from service.http.compression import PIECE_BYTES, Inflater
from service.http.connection import Connection, connection_of
from service.http.limits import DRAIN_BYTES, DRAIN_SECONDS, KEPT_BYTES
from service.http.problems import Reply
from service.http.receiver import ClientDisconnectedError
from service.tensors import array_of

SERVICE_UNAVAILABLE = 503

NOTED_BYTES = 1 << 22
"""Bytes of a body that arrive before anybody is told."""

SLICE_BYTES = 1 << 20
"""Largest piece of an answer that is handed to the server at once."""


class RequestBody:
    """The body of one request, read under a limit."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.receive = receive
        self.headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            self.headers[name] = self.headers[name] + b", " + value if name in self.headers else value
        length = self.headers.get(b"content-length", b"")
        self.declared = int(length) if length.isdigit() else None
        self.cover: Callable[[int], Awaitable[None]] | None = None
        """Reserves memory for so many bytes, before more of a body without a declared length is read."""
        self.note: Callable[[memoryview, int], None] | None = None
        """Is told, of a body that is read into a buffer, how many bytes are there: every NOTED_BYTES and in the end."""
        self.connection = connection_of(scope)
        self.received = 0
        self._is_complete = False
        self._is_too_large = False
        self.waits_for_continue = (
            self.headers.get(b"expect", b"").lower() == b"100-continue" and scope["http_version"] != "1.0"
        )

    @property
    def must_close(self) -> bool:
        """Whether to close the connection rather than read the rest: when there is much, or it was too large."""
        if self._is_complete or self._is_too_large:
            return not self._is_complete
        if self.connection is not None and self.connection.is_receiving:
            return True
        return b"transfer-encoding" in self.headers if self.declared is None else self.declared > KEPT_BYTES

    @property
    def can_be_skipped(self) -> bool:
        """Whether the server can be left to read the rest and throw it away, however long: its end is known."""
        if self.declared is None or self.waits_for_continue or self._is_too_large:
            return False
        return self.connection is None or not self.connection.is_receiving

    async def read(self, limit: int, too_large: str) -> bytes:
        """Return the whole body; raises ContentTooLarge, with the sentence named, once it is known to be too large."""
        self.check_declared(limit, too_large)
        if (whole := self._whole()) is not None:
            return bytes(whole)
        chunks: list[bytes] = []
        async for chunk in self._chunks(limit, too_large):
            chunks.append(chunk)  # noqa: PERF401  # an asynchronous comprehension is no faster
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def read_into_buffer(
        self, limit: int, too_large: str, take: Callable[[int], Tensor], prefix_bytes: int, padding: Callable[..., int]
    ) -> memoryview:
        """Return the whole body in writable memory, that of `take` when it is large.

        Once `prefix_bytes` are there, `padding(prefix, body_bytes)` says how many bytes to leave free before the body.
        A body without a declared length is read into memory that grows. Raises ContentTooLarge as `read` does.
        """
        self.check_declared(limit, too_large)
        size = self.declared
        if size is None or size <= KEPT_BYTES:
            if (whole := self._whole()) is not None:
                return memoryview(whole)
            grown = bytearray()
            async for chunk in self._chunks(limit, too_large):
                grown += chunk
            return memoryview(grown)
        prefix = memoryview(bytearray(prefix_bytes))
        chunks = self._chunks(limit, too_large)
        first = await self._receive_some(prefix, size, chunks)
        free = padding(prefix, size)
        buffer = take(free + size)
        body = memoryview(cast(Any, array_of(buffer))).cast("B")[free : free + size]
        body[:prefix_bytes] = prefix
        body[prefix_bytes : prefix_bytes + len(first)] = first
        filled = prefix_bytes + len(first)
        if self.connection is not None:
            await self._receive_rest(self.connection, body, filled)
            return body
        noted = 0
        async for chunk in chunks:
            body[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
            if self.note is not None and (filled - noted >= NOTED_BYTES or filled == size):
                self.note(body, filled)
                noted = filled
        return body

    def _whole(self) -> bytearray | None:
        """Return the body, where its length was declared and all of it is there already."""
        if self.connection is None or self.declared is None or self._is_complete:
            return None
        if (whole := self.connection.take_whole()) is not None:
            self.received = len(whole)
            self._is_complete = True
        return whole

    async def _receive_rest(self, connection: Connection, body: memoryview, filled: int) -> None:
        step = len(body) if self.note is None else NOTED_BYTES
        while filled < len(body):
            piece = body[filled : filled + step]
            await connection.receive_into(piece, len(body))
            filled = self.received = filled + len(piece)
            if self.note is not None:
                self.note(body, filled)
        self._is_complete = True

    async def read_inflated(self, limit: int, too_large: str, inflater: Inflater, free: int) -> memoryview:
        """Return the whole body, its compression undone, in writable memory with `free` bytes before it.

        Raises ContentTooLarge as soon as more than `limit` bytes have come out.
        """
        self.check_declared(limit, too_large)
        grown = bytearray(free)
        async for chunk in self._chunks(limit, too_large):
            for piece in inflater.pieces(chunk):
                if len(grown) - free + len(piece) > limit:
                    self._is_too_large = True
                    raise ContentTooLarge(too_large, limit=limit)
                if self.cover is not None:
                    await self.cover(len(grown) + len(piece))
                grown += piece
                if len(piece) == PIECE_BYTES:
                    await asyncio.sleep(0)
        inflater.finish()
        return memoryview(grown)[free:]

    async def _receive_some(self, prefix: memoryview, size: int, chunks: AsyncIterator[bytes]) -> bytes:
        """Fill `prefix` with the first bytes, and return those that had to be taken along with them."""
        if self.connection is not None:
            self.waits_for_continue = False
            await self.connection.receive_into(prefix, size)
            self.received = len(prefix)
            return b""
        got = b""
        async for chunk in chunks:
            got += chunk
            if len(got) >= len(prefix):
                break
        prefix[:] = got[: len(prefix)]
        return got[len(prefix) :]

    def check_declared(self, limit: int, too_large: str) -> None:
        """Raise ContentTooLarge, with the sentence named, when the body is too large by its own account."""
        if self.declared is not None and self.declared > limit:
            self._is_too_large = True
            raise ContentTooLarge(too_large, limit=limit)

    async def _chunks(self, limit: int, too_large: str) -> AsyncIterator[bytes]:
        """Yield the body as it comes."""
        while not self._is_complete:
            chunk = await self._next()
            self.received += len(chunk)
            if self.received > limit:
                self._is_too_large = True
                raise ContentTooLarge(too_large, limit=limit)
            if self.declared is None and self.cover is not None:
                await self.cover(self.received)
            yield chunk

    async def drain(self) -> None:
        """Read on and throw away, up to DRAIN_BYTES or for DRAIN_SECONDS, or until the service's own time is over."""
        if self._has_failed:
            return
        if self.connection is not None:
            self.connection.close_at_once()
        if self.waits_for_continue:
            return
        dropped = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                if self.connection is not None and self.connection.is_receiving:
                    await self.connection.discard(DRAIN_BYTES)
                    return
                while not self._is_complete and dropped < DRAIN_BYTES:
                    dropped += len(await self._next())
        except (TimeoutError, ClientDisconnectedError, RequestError, asyncio.CancelledError):
            return

    @property
    def _has_failed(self) -> bool:
        return self.connection is not None and self.connection.failure is not None

    async def _next(self) -> bytes:
        message = await self.receive()
        if self.connection is not None and self.connection.failure is not None:
            raise self.connection.failure
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        self._is_complete = not message.get("more_body", False)
        self.waits_for_continue = False
        chunk: bytes = message.get("body", b"")
        return chunk


async def send_reply(send: Send, reply: Reply, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Send a whole answer."""
    size = await _send_start(send, reply, headers)
    if size > KEPT_BYTES:
        *before, last = _slices(reply.pieces)
        for piece in before:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    else:
        last = b"".join(reply.pieces)
    await send({"type": "http.response.body", "body": last, "more_body": False})


async def send_borrowed(send: Send, reply: Reply, headers: Iterable[tuple[bytes, bytes]], scope: Scope) -> bool:
    """Send an answer whose pieces lie in memory that is to be used again; return whether it can be, all bytes gone.

    Raises ClientDisconnectedError when the caller leaves before.
    """
    connection = connection_of(scope)
    is_small = sum(map(len, reply.pieces)) <= KEPT_BYTES
    if connection is None or is_small:
        await send_reply(send, reply, headers)
        return is_small  # a copy was sent
    await _send_start(send, reply, headers)
    for piece in _slices(reply.pieces):
        connection.check_open()
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    connection.hold_nothing()
    try:
        # uvicorn waits, before it sends the next piece, until the transport holds no more than it may: here, nothing.
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        connection.hold_as_usual()
    return connection.is_answered


async def refuse(send: Send, reply: Reply, body: RequestBody) -> None:
    """Send an answer to a request whose body, or the rest of it, is not wanted; close the connection if it is long.

    Some of the body is still read in between: a connection closed on a caller who is still sending is reset, and the
    reset can overtake the answer. A caller who is to come again soon keeps his connection.
    """
    returns_soon = reply.status == SERVICE_UNAVAILABLE and body.can_be_skipped and not _closes(reply)
    if returns_soon or not body.must_close:
        if body.connection is not None and body.declared is not None:
            body.connection.skip(body.declared, is_patient=returns_soon)
        await send_reply(send, reply)
        return
    closing = [] if _closes(reply) else [(b"connection", b"close")]
    await _send_start(send, reply, closing)
    await send({"type": "http.response.body", "body": b"".join(reply.pieces), "more_body": True})
    await body.drain()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _closes(reply: Reply) -> bool:
    return (b"connection", b"close") in reply.headers


async def _send_start(send: Send, reply: Reply, headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Send the header of an answer; return how long its body is."""
    size = sum(map(len, reply.pieces))
    own = [(b"content-type", reply.media_type.encode()), (b"content-length", b"%d" % size)]
    await send({"type": "http.response.start", "status": reply.status, "headers": [*own, *reply.headers, *headers]})
    return size


def _slices(pieces: list[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Join small pieces and cut large ones."""
    small: list[bytes | memoryview] = []
    for piece in pieces:
        if len(piece) + sum(map(len, small)) <= KEPT_BYTES:
            small.append(piece)
            continue
        if small:
            yield b"".join(small)
            small = []
        for start in range(0, len(piece), SLICE_BYTES):
            yield piece[start : start + SLICE_BYTES]
    if small:
        yield b"".join(small)
