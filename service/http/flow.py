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


class LastingTransport:
    """A transport whose `close` lets the protocol read on for a while, where a caller is still sending."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        """Take a transport, and what is done in place of its `close`; that is still there, as `close_now`."""
        self.close_now = transport.close
        self.close = close
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
