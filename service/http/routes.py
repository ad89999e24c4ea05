"""`POST /v1/{operator}` and its gradient, as plain ASGI: on small requests every layer in between is felt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import ParamSpec, TypeVar, cast

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send
from torch import Tensor

from service import metrics
from service.engine.batch import Answer
from service.engine.buffers import BufferPool
from service.engine.scheduler import Engine
from service.errors import ERRORS, ContentTooLarge, Internal, RequestError
from service.http.body import RequestBody, refuse, send_borrowed, send_reply
from service.http.exchange import Exchange, exchange_of, path_of
from service.http.formats import MEDIA_TYPES, Format, answer_format, request_format
from service.http.permits import SMALL_BODY_BYTES, Gate, Permit
from service.http.problems import Reply, problem
from service.http.receiver import ClientDisconnectedError
from service.http.state import State
from service.ops.bind import Job, bind, fields_of
from service.ops.spec import Operator
from service.settings import Settings
from service.wire import json_codec, safetensors_codec

P = ParamSpec("P")
T = TypeVar("T")

INLINE_BYTES: dict[Format, int] = {"json": 1 << 18, "safetensors": 1 << 26}
"""Bodies and answers up to this size are decoded and encoded on the event loop; larger ones in a thread.

Of a binary body only the class indices are looked at.
"""


class OperatorEndpoint:
    """One operator, or its gradient, over HTTP: decode, bind, submit, encode."""

    def __init__(
        self, operator: Operator, engine: Engine, gate: Gate, settings: Settings, state: State, *, gradient: bool
    ) -> None:
        self._operator = operator
        self._engine = engine
        self._gate = gate
        self._limits: dict[Format, tuple[int, str]] = {
            "json": (settings.max_json_bytes, "json"),
            "safetensors": (settings.max_body_bytes, "body"),
        }
        self._most_answer_bytes = settings.max_json_answer_bytes
        self._state = state
        self._gradient = gradient
        self._fields = fields_of(operator, gradient=gradient)
        self._name = operator.name + ("/gradient" if gradient else "")
        self.metrics = metrics.EndpointMetrics(operator.name, gradient=gradient, formats=MEDIA_TYPES, codes=ERRORS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        exchange.operator = self._name
        body = RequestBody(scope, receive)
        metrics.IN_FLIGHT.inc()
        self._state.in_flight += 1
        try:
            await self._serve(scope, send, body, exchange)
            metrics.observe_phases(exchange.timing)
        except RequestError as error:
            await self._refuse(error, send, body, exchange)
        except asyncio.CancelledError:
            if not self._state.is_draining or exchange.status:
                raise
            await self._refuse(self._state.refusal(), send, body, exchange)
        except ClientDisconnectedError:
            exchange.code = metrics.CLIENT_CLOSED
        except Exception as error:
            answered = self._engine.answer_to(error)
            if isinstance(answered, RequestError) and not exchange.status:
                await self._refuse(answered, send, body, exchange)
            else:
                exchange.code = Internal.code
                raise
        finally:
            metrics.IN_FLIGHT.dec()
            exchange.received = body.received
            self._state.in_flight -= 1
            self._state.handled_bytes += exchange.received + exchange.sent
            self.metrics.count(exchange)

    @staticmethod
    async def _refuse(error: RequestError, send: Send, body: RequestBody, exchange: Exchange) -> None:
        exchange.code = error.code
        await refuse(send, problem(error, exchange.request_id), body)

    async def _serve(self, scope: Scope, send: Send, body: RequestBody, exchange: Exchange) -> None:
        """Answer a request; raises what it is refused with."""
        exchange.format = request_format(body.headers)
        wanted = answer_format(body.headers, exchange.format)
        permit = self._gate.permit(body.headers, exchange.started, scope, body.receive)
        memory = Borrowed(self._engine.buffers)
        try:
            content = await self._receive(body, exchange, permit, memory)
            job = await self._bound(content, wanted, exchange, permit)
            size = largest_answer(job, wanted)
            if not permit.may_compute(job, len(content), size, wanted):
                await permit.wait_for()
            if self._engine.is_tiny(job):
                has_company = body.connection is not None and body.connection.has_company
                compute = self._engine.compute_together(job) if has_company else None
                memory.answer = self._engine.compute(job) if compute is None else await compute
            else:
                permit.enter((self._name, exchange.format), len(content))
                memory.answer = await self._engine.submit(job, permit.ticket)
            timing, started = exchange.timing, time.perf_counter()
            permit.deadline.check_at(started)
            exchange.rows = job.layout.rows
            timing.queue, timing.compute = memory.answer.queue_seconds, memory.answer.compute_seconds
            pieces = await self._where_it_fits(
                permit, size <= INLINE_BYTES[wanted], self._encode, job, memory.answer, wanted
            )
            timing.encode = time.perf_counter() - started
            permit.note_done()
            reply = Reply(200, MEDIA_TYPES[wanted], pieces)
            if wanted == "json":
                memory.give_back()
                await send_reply(send, reply, [timing.header()])
            elif await send_borrowed(send, reply, [timing.header()], scope):
                del job, pieces, reply, content
                memory.give_back()
        except RequestError:
            memory.give_back()
            raise
        except asyncio.CancelledError:
            if not exchange.status:
                memory.give_back()  # nothing of it has been sent, and no worker touches it any longer
            permit.check_left()
            raise
        finally:
            permit.close()

    async def _receive(
        self, body: RequestBody, exchange: Exchange, permit: Permit, memory: Borrowed
    ) -> bytes | memoryview:
        """Read the body, once there is memory for it."""
        body.check_declared(*self._limits[exchange.format])
        if not permit.may_read(body.declared, exchange.format):
            await permit.wait_for()
        if body.declared is None:
            body.cover = permit.cover if exchange.format == "safetensors" else permit.cover_twice
        with self._state.reading():
            return await self._read(body, exchange.format, memory)

    async def _bound(
        self,
        content: bytes | memoryview,
        wanted: Format,
        exchange: Exchange,
        permit: Permit,
    ) -> Job:
        """Decode and bind: a large body in a worker, once it has a place among the work and memory for it."""
        started = time.perf_counter()
        permit.deadline.check_at(started)
        is_small = len(content) <= INLINE_BYTES[exchange.format]
        if not is_small:
            permit.enter((self._name, exchange.format), len(content))
        if exchange.format == "json" and len(content) > SMALL_BODY_BYTES:
            size = await self._where_it_fits(permit, is_small, json_codec.decoding_bytes, cast(bytes, content))
            if not permit.may_decode(size):
                await permit.wait_for()
        job = await self._where_it_fits(permit, is_small, self._prepare, content, exchange.format, wanted)
        exchange.timing.decode = time.perf_counter() - started
        return job

    async def _read(self, body: RequestBody, request: Format, memory: Borrowed) -> bytes | memoryview:
        if request == "json":
            return await body.read(*self._limits["json"])
        return await body.read_into_buffer(
            *self._limits["safetensors"],
            memory.take,
            safetensors_codec.PREFIX_BYTES,
            safetensors_codec.padding_before,
        )

    def _prepare(self, content: bytes | memoryview, request: Format, wanted: Format) -> Job:
        """Decode and bind, and see that the answer is not too large before anything is computed."""
        if request == "json":
            message = json_codec.decode(cast(bytes, content), self._fields)
        else:
            message = safetensors_codec.decode(cast(memoryview, content), self._fields)
        job = bind(self._operator, message, gradient=self._gradient)
        limit = self._most_answer_bytes
        if wanted == "json" and (size := largest_answer(job, wanted)) > limit:
            raise ContentTooLarge("answer", limit=limit, got=size)
        return job

    async def _where_it_fits(
        self, permit: Permit, is_small: bool, function: Callable[P, T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Call a function: for something small on the event loop, else in a worker, in the request's turn."""
        if is_small:
            return function(*arguments, **options)
        return await self._engine.call(partial(function, *arguments, **options), permit.ticket)

    @staticmethod
    def _encode(job: Job, answer: Answer, wanted: Format) -> list[bytes | memoryview]:
        if wanted == "json":
            return [*json_codec.encode(answer.tensors, job.options.encoding)]
        return safetensors_codec.encode(answer.tensors)


class Borrowed:
    """The pooled memory that one request uses: its body's, and its answer's."""

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._buffers: list[Tensor] = []
        self.answer: Answer | None = None

    def take(self, size: int) -> Tensor:
        """Lend a uint8 tensor of at least `size` bytes."""
        self._buffers.append(self._pool.take(size))
        return self._buffers[-1]

    def give_back(self) -> None:
        """Give all of it back; nobody may hold a view of it any longer."""
        if self.answer is not None:
            self.answer.release()
        while self._buffers:
            self._pool.give_back(self._buffers.pop())


def largest_answer(job: Job, wanted: Format) -> int:
    """Return how many bytes the answer can take at most, in a format."""
    plan = job.plan
    outputs = [(plan.shapes[output.name], plan.dtypes[output.name]) for output in plan.outputs]
    if wanted == "json":
        return json_codec.largest_answer(outputs, job.options.encoding)
    return safetensors_codec.answer_bytes(outputs)


def operator_endpoints(
    operators: dict[str, Operator], engine: Engine, gate: Gate, settings: Settings, state: State
) -> dict[str, OperatorEndpoint]:
    """Return two endpoints for every operator, by path."""
    return {
        f"/v1/{operator.name}" + ("/gradient" if gradient else ""): OperatorEndpoint(
            operator, engine, gate, settings, state, gradient=gradient
        )
        for operator in operators.values()
        for gradient in (False, True)
    }


class OperatorRoute(BaseRoute):
    """The way to all endpoints, by exact path: one look-up, however many operators there are."""

    def __init__(self, endpoints: Mapping[str, OperatorEndpoint]) -> None:
        self._endpoints = endpoints

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Say whether there is an endpoint at a path."""
        endpoint = self._endpoints.get(path_of(scope)) if scope["type"] == "http" else None
        if endpoint is None:
            return Match.NONE, {}
        return Match.FULL if scope["method"] == "POST" else Match.PARTIAL, {"endpoint": endpoint}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to its endpoint."""
        if scope["method"] != "POST":
            raise HTTPException(405, headers={"Allow": "POST"})
        await scope["endpoint"](scope, receive, send)
