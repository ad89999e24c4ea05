"""`POST /v1/{operator}` and its gradient, as plain ASGI: on small requests every layer in between is felt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service import metrics
from service.engine.batch import Answer
from service.engine.scheduler import Engine
from service.errors import ERRORS, ContentTooLarge, Draining, Internal, RequestError
from service.http.body import JSON, ClientDisconnectedError, RequestBody, check_formats, refuse, send_reply
from service.http.exchange import Exchange, exchange_of
from service.http.problems import Reply, problem
from service.http.state import State
from service.ops.bind import Job, bind, fields_of
from service.ops.spec import Operator
from service.settings import Settings
from service.wire import json_codec

INLINE_BYTES = 1 << 18
"""Bodies and answers up to this size are decoded and encoded on the event loop; larger ones in a thread."""


class OperatorEndpoint:
    """One operator, or its gradient, over HTTP: decode, bind, submit, encode."""

    def __init__(self, operator: Operator, engine: Engine, settings: Settings, state: State, *, gradient: bool) -> None:
        self._operator = operator
        self._engine = engine
        self._settings = settings
        self._state = state
        self._gradient = gradient
        self._fields = fields_of(operator, gradient=gradient)
        self._name = operator.name + ("/gradient" if gradient else "")
        self.metrics = metrics.EndpointMetrics(operator.name, gradient=gradient, formats=["json"], codes=ERRORS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        exchange.operator = self._name
        body = RequestBody(scope, receive)
        metrics.IN_FLIGHT.inc()
        try:
            reply = await self._answer(body, exchange)
            await send_reply(send, reply, [exchange.timing.header()])
            metrics.observe_phases(exchange.timing)
        except RequestError as error:
            await self._refuse(error, send, body, exchange)
        except asyncio.CancelledError:
            if not self._state.is_draining or exchange.status:
                raise
            await self._refuse(Draining("draining"), send, body, exchange)
        except ClientDisconnectedError:
            exchange.code = metrics.CLIENT_CLOSED
        except Exception:
            exchange.code = Internal.code
            raise
        finally:
            metrics.IN_FLIGHT.dec()
            exchange.received = body.received
            self.metrics.count("json", exchange)

    @staticmethod
    async def _refuse(error: RequestError, send: Send, body: RequestBody, exchange: Exchange) -> None:
        exchange.code = error.code
        await refuse(send, problem(error, exchange.request_id), body)

    async def _answer(self, body: RequestBody, exchange: Exchange) -> Reply:
        check_formats(body.headers)
        with self._state.reading():
            content = await body.read(self._settings.max_json_bytes)
        timing, started = exchange.timing, time.perf_counter()
        if len(content) <= INLINE_BYTES:
            job = self._prepare(content)
        else:
            job = await asyncio.to_thread(self._prepare, content)
        timing.decode = time.perf_counter() - started
        largest = self._largest_answer(job)
        with metrics.reserved(len(content) + largest):
            answer = await self._engine.submit(job)
            exchange.rows = job.layout.rows
            timing.queue, timing.compute = answer.queue_seconds, answer.compute_seconds
            started = time.perf_counter()
            if largest <= INLINE_BYTES:
                pieces = self._encode(job, answer)
            else:
                pieces = await asyncio.to_thread(self._encode, job, answer)
        timing.encode = time.perf_counter() - started
        return Reply(200, JSON, pieces)

    def _prepare(self, content: bytes) -> Job:
        """Decode and bind, and see that the answer is not too large before anything is computed."""
        job = bind(self._operator, json_codec.decode(content, self._fields), gradient=self._gradient)
        limit = self._settings.max_json_answer_bytes
        if (size := self._largest_answer(job)) > limit:
            raise ContentTooLarge("answer", limit=limit, got=size)
        return job

    @staticmethod
    def _largest_answer(job: Job) -> int:
        outputs = [(job.shape_of(output), job.dtype_of(output)) for output in job.outputs]
        return json_codec.largest_answer(outputs, job.options.encoding)

    @staticmethod
    def _encode(job: Job, answer: Answer) -> list[bytes]:
        try:
            return json_codec.encode(answer.tensors, job.options.encoding)
        finally:
            answer.release()


def operator_endpoints(
    operators: dict[str, Operator], engine: Engine, settings: Settings, state: State
) -> dict[str, OperatorEndpoint]:
    """Return two endpoints for every operator, by path."""
    return {
        f"/v1/{operator.name}" + ("/gradient" if gradient else ""): OperatorEndpoint(
            operator, engine, settings, state, gradient=gradient
        )
        for operator in operators.values()
        for gradient in (False, True)
    }


def operator_routes(endpoints: Mapping[str, OperatorEndpoint]) -> list[Route]:
    """Return the routes of the endpoints."""
    return [Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()]
