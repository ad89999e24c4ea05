"""How far a call has come, told to a function or drawn as a bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

SECONDS_BETWEEN = 0.1
"""Least time between two reports; the last one always comes."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call has come.

    Attributes:
        rows_done: rows whose results are there.
        rows: all rows of the call.
        bytes_sent: bytes of the tensors on their way to the service.
        bytes_received: bytes of results that have come back.
        nbytes: all bytes that are to be sent.
        seconds: since the call began.
    """

    rows_done: int
    rows: int
    bytes_sent: int
    bytes_received: int
    nbytes: int
    seconds: float

    @property
    def is_done(self) -> bool:
        """Whether this is the last report."""
        return self.rows_done == self.rows

    @property
    def fraction(self) -> float:
        """What part of the call is done, from 0 to 1: sending takes it to 0.95 of each part, its results to the end."""
        if self.is_done:
            return 1.0
        sent = self.bytes_sent / self.nbytes if self.nbytes else 0.0
        return 0.95 * sent + 0.05 * self.rows_done / self.rows


Report = Callable[[Progress], None]


class ProgressBar:
    """Draws a bar on a terminal, from the second second of a call on; nothing where there is no terminal."""

    WIDTH = 30

    def __init__(self, stream: TextIO | None = None, *, after_seconds: float = 1.0) -> None:
        self._stream = stream or sys.stderr
        self._after_seconds = after_seconds
        self._is_drawn = False

    def __call__(self, progress: Progress) -> None:
        if not self._stream.isatty() or (not self._is_drawn and progress.seconds < self._after_seconds):
            return
        filled = round(progress.fraction * self.WIDTH)
        bar = "#" * filled + "." * (self.WIDTH - filled)
        rate = (progress.bytes_sent + progress.bytes_received) / max(progress.seconds, 1e-9) / 1e6
        self._stream.write(f"\r[{bar}] {progress.fraction:4.0%}  {rate:.0f} MB/s  {progress.seconds:.0f} s\x1b[K")
        self._stream.write("\n" if progress.is_done else "")
        self._stream.flush()
        self._is_drawn = not progress.is_done


class Meter:
    """Counts what a call sends and receives, and reports it."""

    def __init__(self, report: Report | None, *, rows: int) -> None:
        self._report = report
        self._rows = rows
        self._started = time.monotonic()
        self._reported = -SECONDS_BETWEEN
        self.begin(0)

    def begin(self, nbytes: int) -> None:
        """Note how many bytes the call is going to send in all; it starts over when its parts are cut anew."""
        self._nbytes = nbytes
        self._rows_done = self._sent = self._received = self._sent_before = self._received_before = 0

    def restart_part(self) -> None:
        """Forget what was sent and received of the current part: it is tried again."""
        self._sent, self._received = self._sent_before, self._received_before

    def sent(self, count: int) -> None:
        """Count bytes that were sent."""
        self._sent += count
        self._tell()

    def received(self, count: int) -> None:
        """Count bytes that came."""
        self._received += count
        self._tell()

    def finish_part(self, rows: int) -> None:
        """Count the rows of a part whose results are there."""
        self._rows_done += rows
        self._sent_before, self._received_before = self._sent, self._received
        self._tell(is_last=self._rows_done == self._rows)

    def _tell(self, *, is_last: bool = False) -> None:
        if self._report is None:
            return
        seconds = time.monotonic() - self._started
        if is_last or seconds - self._reported >= SECONDS_BETWEEN:
            self._reported = seconds
            sent = min(self._sent, self._nbytes)
            self._report(Progress(self._rows_done, self._rows, sent, self._received, self._nbytes, seconds))
