"""How a connection is read from and closed: uvicorn's ways, with a hold on what comes and a last look at who sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl


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


Piece = bytes | bytearray | memoryview

JOINED_BYTES = 1 << 16
"""Up to this size a piece of an answer is copied behind the header, so that both leave at once."""


class LastingTransport:
    """A transport whose `close` lets the protocol read on for a while, where a caller is still sending."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        """Take a transport, and what is done in place of its `close`; that is still there, as `close_now`."""
        self.close_now = transport.close
        self._close = close
        self._write: Callable[[Piece], None] = transport.write
        self.write: Callable[[Piece], None] = self._write
        self._head: Piece = b""
        for name in (
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

    def close(self) -> None:
        """Write what is held back, and do what takes the place of closing."""
        if self._head:
            self._write_with_head(b"")
        self._close()

    def forget(self) -> None:
        """Let go of the protocol, when nothing is left to read."""
        self._close = self.close_now

    def join_head(self) -> None:
        """Hold the next piece that is written back, which must be a header, to write it with the one after it."""
        self.write = self._hold_head

    def _hold_head(self, head: Piece) -> None:
        self._head = head
        self.write = self._write_with_head

    def _write_with_head(self, piece: Piece) -> None:
        head, self._head = self._head, b""
        self.write = self._write
        if len(piece) > JOINED_BYTES:
            self._write(head)
            self._write(piece)
        else:
            self._write(b"".join((head, piece)))
