"""What a call does, without doing it: generators that yield requests and waits, and are sent what came of them.

The blocking and the asynchronous client differ only in who drives them.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TypeVar, cast

import httpx

from loss_client.arrays import WireArray, giver_like, to_wire
from loss_client.errors import BadAnswerError, LossClientError, ServiceError
from loss_client.exchange import Deadline, Pause, Received, Send
from loss_client.failures import PASSING_STATUSES, error_of, failure_of, is_passing
from loss_client.joining import Joining
from loss_client.operators import OPERATORS
from loss_client.options import Call, Outputs
from loss_client.problems import ContentTooLargeError
from loss_client.progress import Meter, Report
from loss_client.retries import RetryBudget, RetryPolicy
from loss_client.safetensors import MEDIA_TYPE, Body, read, write
from loss_client.splitting import Batch, Part

logger = logging.getLogger("loss_client")

T = TypeVar("T")

ASK_BYTES = 1 << 20
"""For a larger request the limits of the service are asked for before it is sent; a smaller one just tries."""

Flow = Generator[Send | Pause, Received | None, T]
"""A call: yields what is to be done, is sent what came of it (or thrown what went wrong), returns its result."""


@dataclass
class Caller:
    """What all calls of a client share."""

    url: str
    """Where the service is, for what people read."""
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
        arrays = {
            name: to_wire(name, tensor, is_index=operator.inputs[name] in ("indices", "target"))
            for name, tensor in given.items()
        }
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
            raise BadAnswerError(
                f"the answer to POST {self.url}{path} is {received.media_type or 'of no type'}; "
                "something else may be listening at this address"
            )
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
                failure = error_of(received, self.url)
                may_pass = received.status in PASSING_STATUSES
            except httpx.TransportError as error:
                failure = failure_of(error, deadline, self.url)
                failure.__cause__ = error
                may_pass = is_passing(error)
            failures += 1
            retry_after = failure.retry_after if isinstance(failure, ServiceError) else None
            pause = self.policy.pause(failures, retry_after, self.draw)
            if not may_pass or failures >= self.policy.attempts or pause >= deadline.left or not self.budget.take():
                raise failure
            logger.debug("%s %s failed (%s); trying again in %.2f s", method, path, failure, pause)
            meter.restart_part()
            yield Pause(pause)


def report_of(progress: bool | Report, bar: Callable[[], Report]) -> Report | None:
    """Return the function that is told how far a call has come, if any."""
    if callable(progress):
        return progress
    return bar() if progress else None
