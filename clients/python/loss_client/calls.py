"""What a call does, without doing it: generators that yield requests and waits, and are sent what came of them.

The blocking and the asynchronous client differ only in who drives them.
"""

from __future__ import annotations

import json
import logging
import math
import random
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar, cast

import httpx
import numpy as np
from numpy.typing import NDArray

from loss_client.arrays import WireArray, giver_like, to_wire
from loss_client.errors import (
    BadAnswerError,
    CallTimeoutError,
    LossClientError,
    NoAnswerError,
    Problem,
    RequestRefusedError,
    ServiceError,
    ServiceFaultError,
    UnavailableError,
)
from loss_client.operators import OPERATORS
from loss_client.options import Call, Outputs
from loss_client.problems import PROBLEMS, ContentTooLargeError
from loss_client.progress import Meter, Report
from loss_client.retries import RetryBudget, RetryPolicy
from loss_client.safetensors import MEDIA_TYPE, Body, read, write
from loss_client.splitting import Batch, Joining, Part

logger = logging.getLogger("loss_client")

T = TypeVar("T")

ASK_BYTES = 1 << 20
"""For a larger request the limits of the service are asked for before it is sent; a smaller one just tries."""

GRACE_SECONDS = 1.0
"""How much longer than its deadline a request waits, so that it is the service that says 504."""

CONNECT_SECONDS = 10.0
"""Longest wait for a connection."""

_RETRIED_STATUSES = (429, 502, 503)
_RETRIED_ERRORS = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.WriteError,
    httpx.CloseError,
    httpx.RemoteProtocolError,
)


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a request must be answered; `None` seconds: whenever."""

    seconds: float | None
    at: float

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """Return the deadline so many seconds from now."""
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


Flow = Generator[Send | Pause, Received | None, T]
"""A call: yields what is to be done, is sent what came of it (or thrown what went wrong), returns its result."""


@dataclass
class Caller:
    """What all calls of a client share."""

    policy: RetryPolicy
    budget: RetryBudget = field(default_factory=RetryBudget)
    draw: random.Random = field(default_factory=random.Random)
    most_bytes: int | None = None
    """The largest body that the service takes, once it is known."""

    def get(self, path: str, timeout: float | None) -> Flow[Received]:
        """Return the answer of a GET."""
        return (yield from self._request("GET", path, None, Deadline.after(timeout), Meter(None, rows=0)))

    def call(self, call: Call, *, timeout: float | None, report: Report | None) -> Flow[Outputs]:
        """Compute an operator, in as many requests as it needs; returns outputs by name, and the requests' ids.

        Raises ValueError for an operator or a tensor that is not known, TypeError for what is not an array.
        """
        if (operator := OPERATORS.get(call.operator)) is None:
            raise ValueError(f"there is no operator '{call.operator}'; there are {', '.join(OPERATORS)}")
        given = {name: tensor for name, tensor in call.tensors.items() if tensor is not None}
        for name in given:
            if name not in operator.inputs:
                raise ValueError(f"{operator.name} takes no tensor '{name}'; it takes {', '.join(operator.inputs)}")
        if operator.first not in given:
            raise ValueError(f"{operator.name} needs the tensor '{operator.first}'")
        arrays = {name: to_wire(name, tensor) for name, tensor in given.items()}
        options = {name: value for name, value in call.options.items() if value is not None}
        batch = Batch(operator, arrays, options, gradient=call.gradient)
        give = giver_like(given[operator.first])
        meter = Meter(report, rows=batch.rows)
        most_bytes = yield from self._most_bytes(batch, timeout)
        outputs, ids = yield from self._compute(batch, most_bytes, timeout, meter)
        return {name: give(outputs[name]) for name in operator.outputs if name in outputs}, ids

    def _most_bytes(self, batch: Batch, timeout: float | None) -> Flow[int | None]:
        if batch.nbytes > ASK_BYTES and self.most_bytes is None:
            answer = yield from self.get("/v1/limits", timeout)
            self.most_bytes = int(answer.json()["max_body_bytes"])
        return self.most_bytes

    def _compute(
        self, batch: Batch, most_bytes: int | None, timeout: float | None, meter: Meter
    ) -> Flow[tuple[dict[str, WireArray], tuple[str, ...]]]:
        """Compute a batch in parts of at most so many bytes, in smaller ones when the service says they are too large.

        One after another: a service that is sent its limit has enough to do.
        """
        while True:
            fits = most_bytes is None or batch.nbytes <= most_bytes or not batch.can_be_cut
            most_rows = batch.rows if fits else batch.rows_within(most_bytes or 0)
            try:
                if fits:
                    return (yield from self._compute_whole(batch, timeout, meter))
                return (yield from self._compute_parts(batch, most_rows, timeout, meter))
            except ContentTooLargeError as error:
                if not batch.can_be_cut or most_rows == 1:
                    raise
                sent = min(batch.nbytes, most_bytes or batch.nbytes)
                if error.limit is not None and error.limit < sent:
                    most_bytes = self.most_bytes = error.limit
                else:
                    most_bytes = sent // 2

    def _compute_whole(
        self, batch: Batch, timeout: float | None, meter: Meter
    ) -> Flow[tuple[dict[str, WireArray], tuple[str, ...]]]:
        part = batch.whole()
        meter.begin(batch.nbytes)
        received = yield from self._post(batch, part, timeout, meter)
        meter.finish_part(part.rows)
        return read(received.body), tuple(filter(None, [received.request_id]))

    def _compute_parts(
        self, batch: Batch, most_rows: int, timeout: float | None, meter: Meter
    ) -> Flow[tuple[dict[str, WireArray], tuple[str, ...]]]:
        boxes = batch.cut(most_rows)
        meter.begin(batch.nbytes)
        joining, ids = Joining(batch), []
        for part in batch.parts(boxes):
            try:
                received = yield from self._post(batch, part, timeout, meter)
            except ServiceError as error:
                raise type(error)(batch.problem_in(part, error.problem)) from error
            joining.add(part, read(received.body))
            ids.append(received.request_id)
            meter.finish_part(part.rows)
        return joining.finished(), tuple(filter(None, ids))

    def _post(self, batch: Batch, part: Part, timeout: float | None, meter: Meter) -> Flow[Received]:
        path = f"/v1/{batch.operator.name}" + ("/gradient" if batch.gradient else "")
        body = write(part.arrays, part.options)
        received = yield from self._request("POST", path, body, Deadline.after(timeout), meter)
        if received.media_type != MEDIA_TYPE:
            raise BadAnswerError(f"the answer to POST {path} is {received.media_type or 'of no type'}")
        return received

    def _request(self, method: str, path: str, body: Body | None, deadline: Deadline, meter: Meter) -> Flow[Received]:
        """Send a request until it is answered, or until nothing speaks for another try."""
        headers = {} if body is None else {"Content-Type": MEDIA_TYPE, "Content-Length": str(body.nbytes)}
        failures = 0
        while True:
            failure: LossClientError
            try:
                send = Send(method, path, {**headers, **deadline.headers()}, body, deadline, meter)
                received = cast(Received, (yield send))
                if received.status == 200:
                    self.budget.put_back()
                    return received
                failure = _error_of(received)
                is_passing = received.status in _RETRIED_STATUSES
            except httpx.TransportError as error:
                failure = _failure_of(error, deadline)
                failure.__cause__ = error
                is_passing = isinstance(error, _RETRIED_ERRORS) and not _is_about_certificate(error)
            failures += 1
            retry_after = failure.retry_after if isinstance(failure, ServiceError) else None
            pause = self.policy.pause(failures, retry_after, self.draw)
            if not is_passing or failures >= self.policy.attempts or pause >= deadline.left or not self.budget.take():
                raise failure
            logger.debug("%s %s failed (%s); trying again in %.2f s", method, path, failure, pause)
            meter.restart_part()
            yield Pause(pause)


def _failure_of(error: httpx.TransportError, deadline: Deadline) -> LossClientError:
    if isinstance(error, httpx.TimeoutException) and deadline.left <= 0:
        return deadline.passed()
    return NoAnswerError(f"the service gave no answer: {error or type(error).__name__}")


def _is_about_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _error_of(received: Received) -> LossClientError:
    """Return the error that an answer other than 200 stands for."""
    status = received.status
    if status < 400:
        return BadAnswerError(f"the answer has status {status}, which the service never gives")
    problem = _problem_of(received)
    return PROBLEMS.get(problem.code, _kind_of(status))(problem)


def _kind_of(status: int) -> type[ServiceError]:
    """Return the exception for a status alone, as a proxy between us and the service may give it."""
    if status in _RETRIED_STATUSES:
        return UnavailableError
    if status == ContentTooLargeError.STATUS:
        return ContentTooLargeError
    return ServiceFaultError if status >= 500 else RequestRefusedError


def _problem_of(received: Received) -> Problem:
    """Return the problem in an answer, or what is known of one that does not come from the service itself."""
    members: dict[str, Any] = {}
    if received.media_type == "application/problem+json":
        found = received.json()
        members = found if isinstance(found, dict) else {}
    text = received.body[:200].tobytes().decode("utf-8", "replace").strip()
    return Problem(
        status=received.status,
        code=str(members.get("code", "")),
        title=str(members.get("title", "")),
        detail=str(members.get("detail") or text or f"The answer has status {received.status}."),
        pointer=members.get("pointer"),
        expected=members.get("expected"),
        got=members.get("got"),
        limit=members.get("limit"),
        request_id=members.get("request_id") or received.request_id,
        retry_after=_seconds(received.headers.get("retry-after")),
    )


def _seconds(retry_after: str | None) -> float | None:
    """Return what `Retry-After` says, seconds or a date (RFC 9110, 10.2.3), as seconds from now."""
    if not retry_after:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None


def report_of(progress: bool | Report, bar: Callable[[], Report]) -> Report | None:
    """Return the function that is told how far a call has come, if any."""
    if callable(progress):
        return progress
    return bar() if progress else None
