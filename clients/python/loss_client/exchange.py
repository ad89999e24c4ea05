"""One request and its answer: what is sent, by when, and the buffer that the answer is received into."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any, cast

import httpx
import numpy as np
from numpy.typing import NDArray

from loss_client.errors import BadAnswerError, CallTimeoutError
from loss_client.progress import Meter
from loss_client.safetensors import Body

GRACE_SECONDS = 1.0
"""How much longer than its deadline a request waits, so that it is the service that says 504."""

CONNECT_SECONDS = 10.0
"""Longest wait for a connection."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a request must be answered; `None` seconds: whenever."""

    seconds: float | None
    at: float

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """Return the deadline so many seconds from now."""
        if seconds is not None and not isinstance(seconds, Real):
            raise TypeError(f"a timeout must be a number of seconds or None, but is {seconds!r}")
        if seconds is not None and not seconds > 0:
            raise ValueError(f"a timeout must be more than 0 seconds, but is {seconds}")
        return cls(seconds, math.inf if seconds is None else time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self.at - time.monotonic()

    def check(self) -> None:
        """Raise CallTimeoutError when it has passed, and the service has had its chance to say so."""
        if self.left < -GRACE_SECONDS:
            raise self.passed()

    def passed(self) -> CallTimeoutError:
        """Return the error for it."""
        return CallTimeoutError(f"there was no complete answer within {self.seconds:g} s")

    def headers(self) -> dict[str, str]:
        """Return the header that tells the service."""
        return {} if self.seconds is None else {"X-Request-Timeout-Ms": str(max(1, math.ceil(self.left * 1e3)))}

    def timeout(self) -> httpx.Timeout:
        """Return what the transport may take."""
        if self.seconds is None:
            return httpx.Timeout(None, connect=CONNECT_SECONDS)
        left = max(self.left, 0.001)
        return httpx.Timeout(left + GRACE_SECONDS, connect=min(left, CONNECT_SECONDS), pool=left)


@dataclass(slots=True)
class Send:
    """Send a request and receive its answer."""

    method: str
    path: str
    headers: dict[str, str]
    body: Body | None
    deadline: Deadline
    meter: Meter

    def slices(self) -> Iterator[bytes]:
        """Yield the body, counted."""
        for piece in self.body.slices() if self.body else ():
            self.deadline.check()
            yield piece
            self.meter.sent(len(piece))


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for so many seconds."""

    seconds: float


@dataclass(slots=True)
class Received:
    """An answer: its status, its headers, and its body in one buffer."""

    status: int
    headers: httpx.Headers
    body: NDArray[np.uint8]

    @property
    def media_type(self) -> str:
        return str(self.headers.get("content-type", "")).partition(";")[0].strip().lower()

    @property
    def request_id(self) -> str | None:
        return cast("str | None", self.headers.get("x-request-id"))

    def json(self) -> Any:
        """Return the body read as JSON; raises BadAnswerError when it is not."""
        try:
            return json.loads(self.body.tobytes())
        except ValueError as error:
            raise BadAnswerError(f"the answer with status {self.status} is not JSON") from error


class Inbox:
    """Where the body of an answer is received: one buffer of its declared length."""

    def __init__(self, response: httpx.Response, send: Send) -> None:
        self._response = response
        self._send = send
        length = response.headers.get("content-length", "")
        self._buffer = np.empty(int(length) if length.isdecimal() else 0, np.uint8)
        self._end = 0

    def add(self, chunk: bytes) -> None:
        """Put the next bytes in their place."""
        end = self._end + len(chunk)
        if end > len(self._buffer):  # without a length, or compressed on the way
            grown = np.empty(max(end, 2 * len(self._buffer)), np.uint8)
            grown[: self._end] = self._buffer[: self._end]
            self._buffer = grown
        self._buffer[self._end : end] = np.frombuffer(chunk, np.uint8)
        self._end = end
        self._send.deadline.check()
        self._send.meter.received(len(chunk))

    def received(self) -> Received:
        """Return the complete answer."""
        return Received(self._response.status_code, self._response.headers, self._buffer[: self._end])
