"""How much and how slowly a connection may send and be sent to."""

from __future__ import annotations

from dataclasses import dataclass

HEADER_BYTES = 32 << 10
"""Largest header block, and largest trailer of a chunked body."""
HEADER_FIELDS = 64
"""Most header fields."""
URL_BYTES = 4 << 10
"""Longest target of a request."""

HELD_BYTES = 8 << 10
"""So much of the next requests may have come while one is answered; then no more is read."""

KEPT_BYTES = 1 << 16
"""An unwanted body up to this size is skipped, and the connection stays open."""
DRAIN_BYTES = 8 << 20
"""Most that is read and thrown away of what nobody wants, so that the caller sees the answer and not a reset."""
DRAIN_SECONDS = 1.0
"""Longest time for that."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of time and number, in seconds where nothing else is said; tests use shorter ones."""

    bytes_per_second: float = 16384
    """Slowest that a body may come, and an answer be taken."""
    first_byte_seconds: float = 5.0
    """How long a new connection may be silent."""
    head_seconds: float = 5.0
    """How long a request may take up to the end of its header."""
    idle_seconds: float = 5.0
    """How long a connection is kept between two requests."""
    body_grace_seconds: float = 5.0
    """How long a body may come more slowly."""
    body_seconds: float = 900.0
    """How long a body may take in all; the largest JSON needs 512 s at the slowest."""
    saved_seconds: float = 30.0
    """How much of its time a fast body saves for a pause at most."""
    stall_seconds: float = 10.0
    """How long an answer may be taken more slowly, or not at all."""
    connections: int = 2000
    """Most connections of a process, or four fifths of the files it may open; beyond, the idle ones are closed."""
    look_seconds: float = 0.25
    """How often the connections are looked at; every other time is kept to within two of these."""


class Pace:
    """Whether bytes move as fast as they must: time runs out, and every byte buys some more."""

    __slots__ = ("_left", "_most", "_moved", "_rate")

    def __init__(self, rate: float, grace: float, most: float, moved: int) -> None:
        """Begin with `grace` seconds; never are there more than `most`. `moved` is the first count of bytes."""
        self._rate, self._left, self._most, self._moved = rate, grace, most, moved

    def is_kept(self, moved: int, seconds: float) -> bool:
        """Return whether there is time left after `seconds` more, with `moved` bytes in all."""
        earned = max(0, moved - self._moved) / self._rate
        self._moved = moved
        self._left = min(self._left + earned, self._most) - seconds
        return self._left > 0
