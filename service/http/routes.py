"""`POST /v1/{operator}` and its gradient, as plain ASGI: on small requests every layer in between is felt."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.engine.batch import Answer
from service.engine.scheduler import Engine
from service.errors import ContentTooLarge, RequestError
from service.http.body import JSON, ClientDisconnectedError, RequestBody, check_formats, refuse_unread, send_reply
from service.http.problems import Reply, problem, request_id_of
from service.ops.bind import Job, bind, fields_of
from service.ops.spec import Operator
from service.settings import Settings
from service.wire import json_codec

INLINE_BYTES = 1 << 18
"""Bodies and answers up to this size are decoded and encoded on the event loop; larger ones in a thread."""


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


class OperatorEndpoint:
    """One operator, or its gradient, over HTTP: decode, bind, submit, encode."""

    def __init__(self, operator: Operator, engine: Engine, settings: Settings, *, gradient: bool) -> None:
        self._operator = operator
        self._engine = engine
        self._settings = settings
        self._gradient = gradient
        self._fields = fields_of(operator, gradient=gradient)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = RequestBody(scope, receive)
        try:
            timing = Timing()
            reply = await self._answer(body, timing)
            await send_reply(send, reply, [timing.header()])
        except RequestError as error:
            reply = problem(error, request_id_of(scope))
            await (refuse_unread(send, reply, body) if body.must_close else send_reply(send, reply))
        except ClientDisconnectedError:
            return

    async def _answer(self, body: RequestBody, timing: Timing) -> Reply:
        check_formats(body.headers)
        content = await body.read(self._settings.max_json_bytes)
        started = time.perf_counter()
        if len(content) <= INLINE_BYTES:
            job = self._prepare(content)
        else:
            job = await asyncio.to_thread(self._prepare, content)
        timing.decode = time.perf_counter() - started
        answer = await self._engine.submit(job)
        timing.queue, timing.compute = answer.queue_seconds, answer.compute_seconds
        started = time.perf_counter()
        if self._largest_answer(job) <= INLINE_BYTES:
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


def operator_routes(operators: dict[str, Operator], engine: Engine, settings: Settings) -> list[Route]:
    """Return two routes for every operator."""
    return [
        Route(
            f"/v1/{operator.name}" + ("/gradient" if gradient else ""),
            OperatorEndpoint(operator, engine, settings, gradient=gradient),
            methods=["POST"],
        )
        for operator in operators.values()
        for gradient in (False, True)
    ]
