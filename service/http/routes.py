"""`POST /v1/{operator}` and its gradient, and the flow that all formats share.

Plain ASGI: on small requests every layer in between is felt.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from functools import lru_cache, partial
from typing import ClassVar, Generic, ParamSpec, TypeVar, cast
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send
from torch import Tensor

from service import metrics
from service.engine.batch import Answer
from service.engine.buffers import BufferPool
from service.engine.scheduler import Engine
from service.errors import ERRORS, ContentTooLarge, Internal, RequestError, UnknownField
from service.http.arrival import LEAST_BODY_BYTES, Arrival
from service.http.body import RequestBody, refuse, send_borrowed, send_reply
from service.http.exchange import Exchange, exchange_of, path_of
from service.http.formats import MEDIA_TYPES, Format, answer_format, request_format
from service.http.intake import LEAST_TURN_BYTES
from service.http.permits import SMALL_BODY_BYTES, Gate, Permit
from service.http.problems import Reply, refusal
from service.http.receiver import ClientDisconnectedError
from service.http.state import State
from service.ops.bind import MOST_KNOWN_PLANS, Job, Plan, bind, fields_of
from service.ops.spec import Operator
from service.settings import Settings
from service.wire import json_codec, safetensors_codec

P = ParamSpec("P")
T = TypeVar("T")
Wanted = TypeVar("Wanted")

INLINE_BYTES: dict[Format, int] = {"json": 1 << 18, "safetensors": 1 << 26}
"""Bodies and answers up to this size are decoded and encoded on the event loop; larger ones in a thread.

Of a binary body only the class indices are looked at.
"""


class Endpoint(ABC, Generic[Wanted]):
    """One operator, or its gradient, over HTTP: decode, bind, submit, encode, in whatever formats a subclass speaks.

    `Wanted` is what is known of how the answer is to be written, and whatever else of the request's form matters.
    """

    formats: ClassVar[tuple[Format, ...]]
    """Formats of requests."""

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
        self.metrics = metrics.EndpointMetrics(operator.name, gradient=gradient, formats=self.formats, codes=ERRORS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        exchange.operator, exchange.format = self._name, self.formats[0]
        body = RequestBody(scope, receive)
        self._state.in_flight += 1
        try:
            await self._serve(scope, send, body, exchange)
        except RequestError as error:
            await self._refuse(error, scope, send, body)
        except asyncio.CancelledError:
            if not self._state.is_draining or exchange.status:
                raise
            await self._refuse(self._state.refusal(), scope, send, body)
        except ClientDisconnectedError:
            exchange.code = metrics.CLIENT_CLOSED
        except Exception as error:
            answered = self._engine.answer_to(error)
            if isinstance(answered, RequestError) and not exchange.status:
                await self._refuse(answered, scope, send, body)
            else:
                exchange.code = Internal.code
                raise
        finally:
            exchange.received = body.received
            self._state.in_flight -= 1
            self._state.handled_bytes += exchange.received + exchange.sent
            self.metrics.note(exchange)

    @staticmethod
    async def _refuse(error: RequestError, scope: Scope, send: Send, body: RequestBody) -> None:
        exchange_of(scope).code = error.code
        await refuse(send, refusal(error, scope), body)

    async def _serve(self, scope: Scope, send: Send, body: RequestBody, exchange: Exchange) -> None:
        """Answer a request; raises what it is refused with."""
        if query := scope["query_string"]:
            self._check_query(query)
        exchange.format, wanted = self._formats_of(body.headers)
        permit = self._gate.permit(body.headers, exchange.started, scope, body.receive)
        memory = Borrowed(self._engine.buffers)
        try:
            if body.declared is not None and body.declared >= LEAST_BODY_BYTES:
                content, job = await self._computed_on_arrival(body, exchange, wanted, permit, memory)
            else:
                content = await self._receive(body, exchange, wanted, permit, memory)
                job = await self._computed(content, body, exchange, wanted, permit, memory=memory)
            size = self._largest_answer(job, wanted)
            timing, started = exchange.timing, time.perf_counter()
            permit.deadline.check_at(started)
            exchange.rows = job.layout.rows
            answer = cast(Answer, memory.answer)
            timing.queue, timing.compute = answer.queue_seconds, answer.compute_seconds
            if self._is_encoded_at_once(size, wanted):
                reply = self._encode(job, answer, wanted)
            else:
                reply = await self._in_a_worker(permit, self._encode, job, answer, wanted)
            timing.encode = time.perf_counter() - started
            permit.note_done()
            if not reply.is_borrowed:
                memory.give_back()
                await send_reply(send, reply, [timing.header()])
            elif await send_borrowed(send, reply, [timing.header()], scope):
                del job, reply, content, answer
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

    def _check_query(self, query: bytes) -> None:
        """Raise UnknownField when the address holds an option or a tensor: without it the answer would be another."""
        for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
            if name in self._fields.options or name in self._fields.tensors:
                raise UnknownField("query", pointer="/" + name, name=name)

    async def _computed(
        self,
        content: bytes | memoryview,
        body: RequestBody,
        exchange: Exchange,
        wanted: Wanted,
        permit: Permit,
        *,
        memory: Borrowed,
    ) -> Job:
        """Decode, bind and compute: a tiny job where it is, with those that came with it, any other in the workers."""
        job = await self._bound(content, wanted, exchange, permit)
        if not permit.may_compute(job, len(content), self._largest_answer(job, wanted), self._answered_like(wanted)):
            await permit.wait_for()
        if not self._engine.is_tiny(job):
            permit.enter((self._name, exchange.format), len(content))
            memory.answer = await self._engine.submit(job, permit.ticket)
        elif body.connection is not None and body.connection.has_company:
            memory.answer = await self._engine.compute_together(job)
        else:
            memory.answer = self._engine.compute(job)
        return job

    async def _computed_on_arrival(
        self, body: RequestBody, exchange: Exchange, wanted: Wanted, permit: Permit, memory: Borrowed
    ) -> tuple[bytes | memoryview, Job]:
        """Receive a large body and compute it, where possible while the rest of it arrives."""

        def may_compute(job: Job, content: memoryview) -> bool:
            return permit.may_compute(job, len(content), self._largest_answer(job, wanted), self._answered_like(wanted))

        arrival = Arrival(
            self._engine,
            permit.ticket_for((self._name, exchange.format), cast(int, body.declared)),
            lambda content: self._prepare(content, exchange.format, wanted),
            lambda content, there: self._last_tensor(content, there, exchange.format, wanted),
            may_compute,
        )
        body.note = arrival.note
        try:
            content = await self._receive(body, exchange, wanted, permit, memory)
            if arrival.job is None:
                return content, await self._computed(content, body, exchange, wanted, permit, memory=memory)
            permit.enter_begun(arrival.ticket)
            self._note_deadline(permit, exchange, wanted)
            memory.answer = await arrival.answer()
            return content, arrival.job
        finally:
            await arrival.drop()

    async def _receive(
        self, body: RequestBody, exchange: Exchange, wanted: Wanted, permit: Permit, memory: Borrowed
    ) -> bytes | memoryview:
        """Read the body, once there is memory for it."""
        body.check_declared(*self._limit_of(exchange.format, wanted))
        like, declared = self._read_like(exchange.format, wanted, body)
        kind = (self._name, exchange.format)
        needs_turn = declared is not None and declared >= LEAST_TURN_BYTES and like == "safetensors"
        if needs_turn:
            permit.let_in(kind, cast(int, declared), asks_first=body.waits_for_continue)
        if not permit.may_read(declared, like):
            await permit.wait_for()
        if declared is None:
            body.cover = permit.cover if like == "safetensors" else permit.cover_twice
        if needs_turn:
            await permit.wait_for_turn(kind, cast(int, declared), asks_first=body.waits_for_continue)
        task = self._state.begin_reading()
        try:
            return await self._read(body, exchange.format, wanted, memory)
        finally:
            self._state.end_reading(task)
            permit.end_turn()

    async def _bound(
        self,
        content: bytes | memoryview,
        wanted: Wanted,
        exchange: Exchange,
        permit: Permit,
    ) -> Job:
        """Decode and bind: a large body in a worker, once it has a place among the work and memory for it."""
        started = time.perf_counter()
        permit.deadline.check_at(started)
        is_small = self._is_decoded_at_once(content, exchange.format, wanted)
        if not is_small:
            permit.enter((self._name, exchange.format), len(content))
        text = self._json_in(content, exchange.format, wanted)
        if len(text) > SMALL_BODY_BYTES:
            if is_small:
                size = json_codec.decoding_bytes(text)
            else:
                size = await self._in_a_worker(permit, json_codec.decoding_bytes, text)
            if not permit.may_decode(size + len(content) - len(text)):
                await permit.wait_for()
        if is_small:
            job = self._prepare(content, exchange.format, wanted)
        else:
            job = await self._in_a_worker(permit, self._prepare, content, exchange.format, wanted)
        self._note_deadline(permit, exchange, wanted)
        exchange.timing.decode = time.perf_counter() - started
        return job

    async def _in_a_worker(
        self, permit: Permit, function: Callable[P, T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Call a function for something large in a worker, in the request's turn."""
        return await self._engine.call(partial(function, *arguments, **options), permit.ticket)

    def _note_deadline(self, permit: Permit, exchange: Exchange, wanted: Wanted) -> None:
        """Bring a deadline forward that the body, and not a header, has named."""

    @abstractmethod
    def _limit_of(self, request: Format, wanted: Wanted) -> tuple[int, str]:
        """Return how long the body may be, and the sentence for one that is longer."""

    @abstractmethod
    def _read_like(self, request: Format, wanted: Wanted, body: RequestBody) -> tuple[Format, int | None]:
        """Return as which format the memory for reading a body is reckoned, and its length where that is known."""

    @abstractmethod
    def _json_in(self, content: bytes | memoryview, request: Format, wanted: Wanted) -> bytes:
        """Return the part of a body that is JSON, for reckoning the memory of its decoding."""

    @abstractmethod
    def _answered_like(self, wanted: Wanted) -> Format:
        """Return as which format the memory of an answer is reckoned."""

    @abstractmethod
    def _formats_of(self, headers: dict[bytes, bytes]) -> tuple[Format, Wanted]:
        """Return the format of a request, and how the answer is wanted as far as the headers tell."""

    @abstractmethod
    async def _read(
        self, body: RequestBody, request: Format, wanted: Wanted, memory: Borrowed
    ) -> bytes | memoryview: ...

    @abstractmethod
    def _last_tensor(self, content: memoryview, there: int, request: Format, wanted: Wanted) -> int | None:
        """Return where the data of a body's last tensor begins, None while the `there` bytes that came do not tell."""

    @abstractmethod
    def _is_decoded_at_once(self, content: bytes | memoryview, request: Format, wanted: Wanted) -> bool:
        """Return whether a body is small enough for the event loop."""

    @abstractmethod
    def _prepare(self, content: bytes | memoryview, request: Format, wanted: Wanted) -> Job:
        """Decode and bind, and see that the answer is not too large before anything is computed."""

    @abstractmethod
    def _largest_answer(self, job: Job, wanted: Wanted) -> int:
        """Return how many bytes the answer can take at most."""

    @abstractmethod
    def _is_encoded_at_once(self, size: int, wanted: Wanted) -> bool:
        """Return whether an answer is small enough for the event loop."""

    @abstractmethod
    def _encode(self, job: Job, answer: Answer, wanted: Wanted) -> Reply: ...


class OperatorEndpoint(Endpoint[Format]):
    """An operator, or its gradient, below `/v1`: JSON and safetensors, each in and out."""

    formats = tuple(MEDIA_TYPES)

    def _formats_of(self, headers: dict[bytes, bytes]) -> tuple[Format, Format]:
        request = request_format(headers)
        return request, answer_format(headers, request)

    def _is_decoded_at_once(self, content: bytes | memoryview, request: Format, wanted: Format) -> bool:
        return len(content) <= INLINE_BYTES[request]

    def _is_encoded_at_once(self, size: int, wanted: Format) -> bool:
        return size <= INLINE_BYTES[wanted]

    def _largest_answer(self, job: Job, wanted: Format) -> int:
        return largest_answer(job.plan, wanted)

    def _limit_of(self, request: Format, wanted: Format) -> tuple[int, str]:
        return self._limits[request]

    def _read_like(self, request: Format, wanted: Format, body: RequestBody) -> tuple[Format, int | None]:
        return request, body.declared

    def _json_in(self, content: bytes | memoryview, request: Format, wanted: Format) -> bytes:
        return cast(bytes, content) if request == "json" else b""

    def _answered_like(self, wanted: Format) -> Format:
        return wanted

    def _last_tensor(self, content: memoryview, there: int, request: Format, wanted: Format) -> int | None:
        return safetensors_codec.last_tensor(self._fields, content, there)

    async def _read(self, body: RequestBody, request: Format, wanted: Format, memory: Borrowed) -> bytes | memoryview:
        if request == "json":
            return await body.read(*self._limits["json"])
        return await body.read_into_buffer(
            *self._limits["safetensors"],
            memory.take,
            safetensors_codec.PREFIX_BYTES,
            safetensors_codec.padding_before,
        )

    def _prepare(self, content: bytes | memoryview, request: Format, wanted: Format) -> Job:
        if request == "json":
            message = json_codec.decode(cast(bytes, content), self._fields)
        else:
            message = safetensors_codec.decode(cast(memoryview, content), self._fields)
        job = bind(self._operator, message, gradient=self._gradient)
        limit = self._most_answer_bytes
        if wanted == "json" and (size := largest_answer(job.plan, wanted)) > limit:
            raise ContentTooLarge("answer", limit=limit, got=size)
        return job

    def _encode(self, job: Job, answer: Answer, wanted: Format) -> Reply:
        if wanted == "json":
            return Reply(200, MEDIA_TYPES[wanted], [*json_codec.encode(answer.tensors, job.options.encoding)])
        return Reply(200, MEDIA_TYPES[wanted], safetensors_codec.encode(answer.tensors), is_borrowed=True)


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


@lru_cache(maxsize=MOST_KNOWN_PLANS)
def largest_answer(plan: Plan, wanted: Format) -> int:
    """Return how many bytes the answer can take at most, in a format."""
    outputs = [(plan.shapes[output.name], plan.dtypes[output.name]) for output in plan.outputs]
    if wanted == "json":
        return json_codec.largest_answer(outputs, plan.options.encoding)
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


class OnlyPost(BaseRoute):
    """What other methods than POST get at the paths of endpoints."""

    def __init__(self, paths: Collection[str]) -> None:
        self._paths = frozenset(paths)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Say whether there is an endpoint at a path."""
        is_there = scope["type"] == "http" and path_of(scope) in self._paths
        return (Match.FULL if is_there else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request."""
        raise HTTPException(405, headers={"Allow": "POST"})
