"""What the service counts, in the Prometheus text format; all names start with `loss_`.

With several workers every process writes its numbers to files in `PROMETHEUS_MULTIPROC_DIR` (set by the supervisor),
and whichever process is asked adds them up.

What a request or a launch has to tell is noted, and counted together with what follows in the next moments: so counting
costs a busy service next to nothing. The process that is asked for its numbers counts before it answers.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

import numpy as np
from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

OK = "ok"
"""The `code` of a request that was answered; any other code is that of its problem."""

CLIENT_CLOSED = "client-closed"
"""The `code` of a request whose caller left before the answer."""

PHASES = ("decode", "queue", "compute", "encode")

ANSWERED, REFUSED = "answered", "refused"
"""Parts of the seconds of an operator that are whole requests."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every first one, of no use here

for _collector in (GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR):
    REGISTRY.unregister(_collector)  # what the library counts unasked, by names of its own
ProcessCollector(namespace="loss")

MOST_NOTED = 256
"""So many requests are counted at once, at most."""

COUNTED_AFTER_SECONDS = 0.01
"""How soon a request is counted of which other processes are to know."""


MANY = 8
"""From so many numbers on they are sorted into buckets together."""


class ManyHistogram(Histogram):
    """A histogram that takes many numbers at once."""

    def observe_all(self, amounts: list[float]) -> None:
        """Observe each of the amounts."""
        if len(amounts) < MANY:
            for amount in amounts:
                self.observe(amount)
            return
        places = np.searchsorted(self._upper_bounds, amounts)
        self._sum.inc(sum(amounts))
        for place, count in enumerate(np.bincount(places).tolist()):
            if count:
                self._buckets[place].inc(count)


_PHASE_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

REQUESTS = Counter(
    "loss_requests", "Requests to operators, by problem code or ok.", ["operator", "gradient", "format", "code"]
)
REQUEST_BYTES = Counter("loss_request_bytes", "Bytes of request bodies read.", ["operator", "gradient", "format"])
ANSWER_BYTES = Counter("loss_answer_bytes", "Bytes of answers to operators.", ["operator", "gradient", "format"])
ROWS = Counter("loss_rows", "Rows computed.", ["operator", "gradient"])
SECONDS = Counter(
    "loss_operator_seconds",
    "Seconds of requests to operators: all of those answered and of those refused, and each phase of those answered.",
    ["operator", "gradient", "part"],
)
LAUNCHES = Counter("loss_launches", "Launches of the engine.", ["operator", "gradient"])
PHASE_SECONDS = ManyHistogram(
    "loss_phase_seconds", "Seconds that answered requests spent in a phase.", ["phase"], buckets=_PHASE_SECONDS
)
IN_FLIGHT = Gauge("loss_in_flight_requests", "Requests to operators being worked on.", multiprocess_mode="livesum")
MEMORY_RESERVED = Gauge(
    "loss_memory_reserved_bytes",
    "Bytes held by requests being worked on: bodies and results.",
    multiprocess_mode="livesum",
)
BATCH_ROWS = ManyHistogram(
    "loss_batch_rows", "Rows computed in one launch.", buckets=(1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
)
BATCH_REQUESTS = Histogram(
    "loss_batch_requests",
    "Requests that shared one launch; those computed alone are not in it.",
    buckets=(2, 4, 8, 16, 32, 64, 128, 256),
)
QUEUE_REQUESTS = Gauge(
    "loss_queue_requests", "Requests whose work was admitted and is not done.", multiprocess_mode="livesum"
)
QUEUE_SECONDS = Gauge(
    "loss_queue_seconds", "Seconds predicted until the work admitted is done.", multiprocess_mode="livemax"
)
MEMORY_BUDGET = Gauge("loss_memory_budget_bytes", "Bytes that requests may hold at once.", multiprocess_mode="livesum")
DRAINING = Gauge("loss_draining", "Processes that are draining before they stop.", multiprocess_mode="livesum")
_CONNECTIONS_ENDED = Counter(
    "loss_connections_ended",
    "Connections that the service ended, by why: the code of the problem, or slow-reader, too-many.",
    ["reason"],
)
CONNECTIONS_ENDED = {
    reason: _CONNECTIONS_ENDED.labels(reason)
    for reason in (
        "malformed-request",
        "request-timeout",
        "uri-too-long",
        "headers-too-large",
        "internal",
        "slow-reader",
        "too-many",
    )
}
"""Counters of connections that the service ended, by reason."""
GPU_MEMORY = Gauge(
    "loss_gpu_memory_bytes", "GPU memory held by the engine.", ["device", "kind"], multiprocess_mode="livesum"
)


class Counted(Protocol):
    """What is counted of a request."""

    @property
    def format(self) -> str: ...

    code: str
    received: int
    sent: int
    rows: int

    @property
    def seconds(self) -> float: ...

    @property
    def timing(self) -> Timed: ...


class Timed(Protocol):
    """Seconds of each phase."""

    decode: float
    queue: float
    compute: float
    encode: float


Sums = defaultdict[Counter, float]
"""By how much counters are to grow."""


class EndpointMetrics:
    """The counters of one operator's endpoint, their labels bound once."""

    def __init__(self, operator: str, *, gradient: bool, formats: Iterable[str], codes: Iterable[str]) -> None:
        labels = (operator, str(gradient).lower())
        formats = list(formats)
        # Every series exists from the start, so that a rate over it sees the first event.
        self._requests = {
            (name, code): REQUESTS.labels(*labels, name, code)
            for name in formats
            for code in (OK, CLIENT_CLOSED, *codes)
        }
        self._request_bytes = {name: REQUEST_BYTES.labels(*labels, name) for name in formats}
        self._answer_bytes = {name: ANSWER_BYTES.labels(*labels, name) for name in formats}
        self._rows = ROWS.labels(*labels)
        self._seconds = {part: SECONDS.labels(*labels, part) for part in (ANSWERED, REFUSED, *PHASES)}
        LAUNCHES.labels(*labels)

    def note(self, request: Counted) -> None:
        """Take note of a request that has come to its end; to be called on the event loop."""
        _ended.append((self, request, request.seconds))
        if len(_ended) == 1:
            asyncio.get_running_loop().call_later(COUNTED_AFTER_SECONDS, count_noted)
        elif len(_ended) >= MOST_NOTED:
            count_noted()

    def count(self, request: Counted, seconds: float, sums: Sums) -> None:
        """Add a request to the sums by which the counters are to grow."""
        sums[self._requests[request.format, request.code]] += 1
        sums[self._request_bytes[request.format]] += request.received
        sums[self._answer_bytes[request.format]] += request.sent
        sums[self._rows] += request.rows
        if request.code != OK:
            sums[self._seconds[REFUSED]] += seconds
            return
        sums[self._seconds[ANSWERED]] += seconds
        for phase in PHASES:
            sums[self._seconds[phase]] += getattr(request.timing, phase)


_ended: deque[tuple[EndpointMetrics, Counted, float]] = deque()
_launched: deque[tuple[str, bool, int]] = deque()
_counting = threading.Lock()
_PHASE = {phase: PHASE_SECONDS.labels(phase) for phase in PHASES}


def note_launch(operator: str, *, gradient: bool, rows: int) -> None:
    """Take note of rows of an operator that were computed in one go."""
    _launched.append((operator, gradient, rows))


def count_noted() -> None:
    """Count what has been noted."""
    with _counting:
        ended = [_ended.popleft() for _ in range(len(_ended))]
        launched = [_launched.popleft() for _ in range(len(_launched))]
    if not (ended or launched):
        return
    sums: Sums = defaultdict(float)
    for endpoint, request, seconds in ended:
        endpoint.count(request, seconds, sums)
    for operator, gradient, _ in launched:
        sums[_launches_of(operator, gradient)] += 1
    for counter, amount in sums.items():
        counter.inc(amount)
    if answered := [request.timing for _, request, _ in ended if request.code == OK]:
        for phase, histogram in _PHASE.items():
            histogram.observe_all([getattr(timing, phase) for timing in answered])
    if launched:
        BATCH_ROWS.observe_all([rows for _, _, rows in launched])


def note_gpu_memory(device: str, *, allocated: int, cached: int) -> None:
    """Note how much GPU memory the engine uses, and how much its allocator keeps."""
    GPU_MEMORY.labels(device, "allocated").set(allocated)
    GPU_MEMORY.labels(device, "cached").set(cached)


@cache
def _launches_of(operator: str, gradient: bool) -> Counter:
    return LAUNCHES.labels(operator, str(gradient).lower())


@dataclass(slots=True)
class Totals:
    """What an operator, or its gradient, has done since the service started, in every format.

    Attributes:
        answered, refused: requests.
        seconds: of the requests answered and refused, and of each phase of the answered.
    """

    answered: int = 0
    refused: int = 0
    rows: int = 0
    launches: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((ANSWERED, REFUSED, *PHASES), 0.0))


def totals() -> dict[tuple[str, bool], Totals]:
    """Return the totals by operator and gradient, those of every worker added up."""
    count_noted()
    found: dict[tuple[str, bool], Totals] = defaultdict(Totals)
    for sample in (sample for metric in _registry().collect() for sample in metric.samples):
        if "operator" not in sample.labels:
            continue
        of = found[sample.labels["operator"], sample.labels["gradient"] == "true"]
        if sample.name == "loss_requests_total" and sample.labels["code"] == OK:
            of.answered += int(sample.value)
        elif sample.name == "loss_requests_total":
            of.refused += int(sample.value)
        elif sample.name == "loss_rows_total":
            of.rows = int(sample.value)
        elif sample.name == "loss_launches_total":
            of.launches = int(sample.value)
        elif sample.name == "loss_operator_seconds_total":
            of.seconds[sample.labels["part"]] = sample.value
    return found


def exposition() -> bytes:
    """Return all numbers in the Prometheus text format, those of every worker added up."""
    count_noted()
    return generate_latest(_registry())


def _registry() -> CollectorRegistry:
    if MULTIPROCESS_VARIABLE not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library's own way
    return registry
