"""Compressed bodies, below `/v2`: gzip and deflate, undone as a stream and done when asked for."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Literal

from service.errors import MalformedRequest, UnsupportedEncoding, quoted

Compression = Literal["gzip", "deflate"]

PIECE_BYTES = 1 << 20
"""Most bytes that are inflated in one go."""

MOST_PARTS = 16
"""Most parts of a gzip file: each costs time of its own, even where it holds nothing."""

LEVEL = 1
"""Random mantissas hardly shrink, whatever the effort."""

_NAMES: dict[str, Compression] = {"gzip": "gzip", "deflate": "deflate"}

_WINDOW_BITS: dict[Compression, int] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""Which wrapping zlib expects; `deflate` is that of RFC 1950 (RFC 9110, 8.4.1.2)."""


def compression_of(headers: dict[bytes, bytes]) -> Compression | None:
    """Return how a body is compressed, None when it is not; raises UnsupportedEncoding."""
    encoding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding in _NAMES:
        return _NAMES[encoding]
    raise UnsupportedEncoding("encoding", got=quoted(encoding), expected="'gzip', 'deflate' or 'identity'")


def compression_wanted(headers: dict[bytes, bytes]) -> Compression | None:
    """Return how the answer is to be compressed: only when exactly one of the two is accepted.

    Clients that list several do so out of habit, and not all of them undo it.
    """
    return _NAMES.get(headers.get(b"accept-encoding", b"").decode("latin-1").strip().lower())


class Inflater:
    """Undoes the compression of a body that comes in chunks; raises MalformedRequest when it is not valid."""

    def __init__(self, compression: Compression) -> None:
        self._compression = compression
        self._parts = 0
        self._stream = self._new_stream()

    def _new_stream(self) -> zlib._Decompress:
        self._parts += 1
        return zlib.decompressobj(_WINDOW_BITS[self._compression])

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what a chunk holds, in pieces of at most PIECE_BYTES."""
        is_full = False
        while chunk or is_full:
            if self._stream.eof:
                if self._compression != "gzip":
                    raise self._invalid()
                if self._parts == MOST_PARTS:
                    raise MalformedRequest("parts", limit=MOST_PARTS)
                self._stream = self._new_stream()  # a gzip file may have several parts
            try:
                piece = self._stream.decompress(chunk, PIECE_BYTES)
            except zlib.error as error:
                raise self._invalid() from error
            is_full = len(piece) == PIECE_BYTES and not self._stream.eof
            chunk = self._stream.unconsumed_tail or self._stream.unused_data
            if piece:
                yield piece

    def finish(self) -> None:
        """See that the compressed data has come to its end."""
        if not self._stream.eof:
            raise self._invalid()

    def _invalid(self) -> MalformedRequest:
        return MalformedRequest("compression", expected=self._compression)


def deflated(pieces: Iterable[bytes | memoryview], compression: Compression) -> list[bytes | memoryview]:
    """Compress an answer."""
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, _WINDOW_BITS[compression])
    return [*filter(None, map(stream.compress, pieces)), stream.flush()]
