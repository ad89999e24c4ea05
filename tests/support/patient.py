"""Callers that do what the contract asks of them: wait as `Retry-After` says, and send again what got no answer."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

LONGEST_WAIT_SECONDS = 60.0
"""How long one request may go unanswered before it counts as lost."""

PAUSE_SECONDS = 0.2
"""How long to wait after an error of the connection."""


@dataclass
class Tally:
    """How the requests of some callers went."""

    answered: int = 0
    again: collections.Counter[str] = field(default_factory=collections.Counter)
    """Why requests were sent again, and how often."""
    lost: list[str] = field(default_factory=list)
    """How requests ended that got no answer that a patient caller can use."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __str__(self) -> str:
        again = ", ".join(f"{reason} x {count}" for reason, count in sorted(self.again.items())) or "none"
        return f"{self.answered} answered, {len(self.lost)} lost; sent again: {again}"


@contextmanager
def patient_callers(address: str, number: int, request: httpx.Request, expected: bytes) -> Iterator[Tally]:
    """Let some callers send a request over and over, on connections that they keep, until the block ends.

    Every answer must be `expected` to the byte.
    """
    tally, stop = Tally(), threading.Event()
    callers = [
        threading.Thread(target=_call, args=(address, request, expected, tally, stop.is_set)) for _ in range(number)
    ]
    for caller in callers:
        caller.start()
    try:
        yield tally
    finally:
        stop.set()
        for caller in callers:
            caller.join(LONGEST_WAIT_SECONDS + 10)
        assert not any(caller.is_alive() for caller in callers)


def _call(address: str, request: httpx.Request, expected: bytes, tally: Tally, stopped: Callable[[], bool]) -> None:
    with httpx.Client(base_url=address, timeout=LONGEST_WAIT_SECONDS) as client:
        while not stopped():
            end = time.monotonic() + LONGEST_WAIT_SECONDS
            while (wait := _send(client, request, expected, tally)) is not None:
                if time.monotonic() + wait > end:
                    with tally.lock:
                        tally.lost.append("no answer in time")
                    break
                time.sleep(wait)


def _send(client: httpx.Client, request: httpx.Request, expected: bytes, tally: Tally) -> float | None:
    """Send a request; return after how many seconds to send it again, None when it has come to an end."""
    try:
        answer = client.request(request.method, request.url.path, content=request.content, headers=request.headers)
    except httpx.TransportError as error:
        with tally.lock:
            tally.again[type(error).__name__] += 1
        return PAUSE_SECONDS
    with tally.lock:
        if answer.status_code == 200 and answer.content == expected:
            tally.answered += 1
        elif answer.status_code in (429, 503) and "retry-after" in answer.headers:
            tally.again[f"{answer.status_code} {answer.json()['code']}"] += 1
            return float(answer.headers["retry-after"])
        else:
            tally.lost.append(f"{answer.status_code} {answer.text[:200]}")
    return None
