"""One request and its answer, as far as they are known: what the log line and the counters tell of it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.types import Scope

from service import metrics
from service.http.formats import Format

_ACCEPTED_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

_random = random.Random()  # noqa: S311  # an id is no secret, and the system's own randomness costs a system call

_SCOPE_KEY = "service.exchange"


@dataclass(slots=True)
class Timing:
    """Seconds spent in the phases of a request."""

    decode: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    encode: float = 0.0

    def header(self) -> tuple[bytes, bytes]:
        """Return the `Server-Timing` header, in milliseconds."""
        return b"server-timing", (
            f"decode;dur={self.decode * 1e3:.3f}, queue;dur={self.queue * 1e3:.3f}, "
            f"compute;dur={self.compute * 1e3:.3f}, encode;dur={self.encode * 1e3:.3f}"
        ).encode()


@dataclass(slots=True)
class Exchange:
    """What is known of a request so far.

    Attributes:
        request_id: the caller's, or one that was made.
        code: `ok`, or the code of the problem that was answered.
        status: HTTP status of the answer, 0 before there is one.
        received: bytes of the body read.
        sent: bytes of the answer's body.
        operator: the operator asked for, `/gradient` appended for its gradient; None on other paths.
        format: the format of the request.
        rows: how many rows were computed.
        trace_id: the trace that it belongs to, in hexadecimal; None where nobody traces.
    """

    request_id: str
    code: str = metrics.OK
    status: int = 0
    received: int = 0
    sent: int = 0
    operator: str | None = None
    rows: int = 0
    trace_id: str | None = None
    format: Format = "json"
    timing: Timing = field(default_factory=Timing)
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self.started


def path_of(scope: Scope) -> str:
    """Return the path of a request without the prefix that a proxy in front strips, as the router sees it."""
    path: str = scope["path"]
    stripped = path.removeprefix(scope.get("root_path", ""))
    return stripped if stripped[:1] in ("/", "") else path


def request_id_in(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id that a request brings, or a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _ACCEPTED_ID.fullmatch(value):
            return str(value, "ascii")
    return f"{_random.getrandbits(64):016x}"


def put_exchange(scope: Scope, exchange: Exchange) -> None:
    """Make an exchange known to whoever handles the scope."""
    scope[_SCOPE_KEY] = exchange


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange that a scope belongs to."""
    exchange: Exchange = scope[_SCOPE_KEY]
    return exchange
