"""A bar on the terminal for what takes longer than a moment."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

WIDTH = 30
SECONDS_BETWEEN = 0.1


class Bar:
    """Shows which part of a computation is done, from its second second on, if there is a terminal.

    `show` may be called from any thread. `close` wipes it away: what it stood for is there.
    """

    def __init__(self, stream: TextIO | None = None, *, after_seconds: float = 1.0) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._started = time.monotonic()
        self._next = self._started + after_seconds
        self._is_drawn = False
        self._lock = threading.Lock()

    def show(self, fraction: float) -> None:
        """Draw what part is done, from 0 to 1, unless it was drawn a moment ago."""
        now = time.monotonic()
        with self._lock:
            if not self._is_terminal or now < self._next:
                return
            self._next = now + SECONDS_BETWEEN
            self._is_drawn = True
            filled = round(fraction * WIDTH)
            bar = "#" * filled + "." * (WIDTH - filled)
            self._stream.write(f"\r[{bar}] {fraction:4.0%}  {now - self._started:.0f} s\x1b[K")
            self._stream.flush()

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._is_drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
