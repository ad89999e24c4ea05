"""`POST /v2/models/{model}/infer`: the Open Inference Protocol's form of a request to an operator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from service import describe
from service.engine.admission import Deadline
from service.engine.batch import Answer
from service.engine.scheduler import Engine
from service.errors import ContentTooLarge, MalformedRequest, quoted
from service.http.body import RequestBody
from service.http.compression import Compression, Inflater, compression_of, compression_wanted, deflated
from service.http.exchange import Exchange
from service.http.formats import Format
from service.http.limits import KEPT_BYTES
from service.http.permits import Gate, Permit
from service.http.problems import Reply
from service.http.routes import INLINE_BYTES, Borrowed, Endpoint
from service.http.state import State
from service.ops.bind import Job, bind
from service.ops.spec import Operator
from service.settings import Settings
from service.wire import json_codec, oip_codec
from service.wire.oip_codec import Head
from service.wire.shared_memory import SharedMemory

JSON_BYTES_HEADER = oip_codec.JSON_BYTES_HEADER.lower().encode()

COMPRESSED_INLINE_BYTES = 1 << 16
"""Answers up to this size are compressed on the event loop."""


@dataclass(slots=True)
class Inference:
    """What is known of one request's form, and of how its answer is wanted.

    Attributes:
        json_bytes: how many bytes of the body are JSON; None for all of them.
        compression: of the body.
        wanted_compression: of the answer.
        head: what the JSON says, once it has been read.
    """

    json_bytes: int | None
    compression: Compression | None
    wanted_compression: Compression | None
    head: Head = dataclasses.field(default_factory=lambda: Head((), {}))


class InferEndpoint(Endpoint[Inference]):
    """An operator, or its gradient, as a model of the Open Inference Protocol."""

    formats = ("open-inference",)

    def __init__(
        self,
        operator: Operator,
        engine: Engine,
        gate: Gate,
        settings: Settings,
        state: State,
        *,
        regions: SharedMemory,
        gradient: bool,
    ) -> None:
        super().__init__(operator, engine, gate, settings, state, gradient=gradient)
        self._most_json_bytes = settings.max_json_bytes
        self._most_bytes = settings.max_body_bytes
        self._regions = regions
        self._model = describe.model_name(operator, gradient)
        inputs = describe.inputs_of(operator, gradient=gradient)
        self._required = tuple(tensor.name for tensor in inputs if tensor.required)

    def _formats_of(self, headers: dict[bytes, bytes]) -> tuple[Format, Inference]:
        json_bytes = None
        if (stated := headers.get(JSON_BYTES_HEADER)) is not None:
            json_bytes = self._json_bytes(stated.decode("latin-1"))
        return "open-inference", Inference(json_bytes, compression_of(headers), compression_wanted(headers))

    def _json_bytes(self, stated: str) -> int:
        if not (stated.isascii() and stated.isdigit() and len(stated) < 20):
            raise MalformedRequest("json-bytes", expected="a number of bytes", got=quoted(stated))
        if int(stated) > (limit := self._most_json_bytes):
            raise ContentTooLarge("json-part", limit=limit)
        return int(stated)

    def _limit_of(self, request: Format, wanted: Inference) -> tuple[int, str]:
        return (self._most_json_bytes, "json-part") if wanted.json_bytes is None else (self._most_bytes, "body")

    def _read_like(self, request: Format, wanted: Inference, body: RequestBody) -> tuple[Format, int | None]:
        declared = None if wanted.compression else body.declared  # nobody knows how large it will be
        is_binary = wanted.compression is not None or wanted.json_bytes not in (None, declared)
        return "safetensors" if is_binary else "json", declared

    def _json_in(self, content: bytes | memoryview, request: Format, wanted: Inference) -> bytes:
        return bytes(content[: wanted.json_bytes])

    def _answered_like(self, wanted: Inference) -> Format:
        return "safetensors" if wanted.head.is_all_binary and wanted.wanted_compression is None else "json"

    def _note_deadline(self, permit: Permit, exchange: Exchange, wanted: Inference) -> None:
        if (seconds := wanted.head.timeout_seconds) is not None:
            permit.bring_forward(Deadline(exchange.started + seconds, int(seconds * 1e3)))

    def _last_tensor(self, content: memoryview, there: int, request: Format, wanted: Inference) -> int | None:
        json_bytes = wanted.json_bytes or 0
        if there < json_bytes:
            return None
        self._read_head(content, wanted)
        binary = [entry for entry in wanted.head.entries if entry.is_binary and entry.size]
        return json_bytes + max((entry.begin for entry in binary), default=0)

    async def _read(
        self, body: RequestBody, request: Format, wanted: Inference, memory: Borrowed
    ) -> bytes | memoryview:
        json_bytes, limits = wanted.json_bytes, self._limit_of(request, wanted)
        if wanted.compression is not None:
            free = -(json_bytes or 0) % oip_codec.ALIGNMENT_BYTES
            return await body.read_inflated(*limits, Inflater(wanted.compression), free)
        if json_bytes is None or json_bytes == body.declared:
            return await body.read(*limits)
        if body.declared is not None and json_bytes > body.declared:
            raise self._beyond(json_bytes, body.declared)
        prefix_bytes = json_bytes if json_bytes <= KEPT_BYTES else 0

        def padding(prefix: memoryview, _: int) -> int:
            if prefix_bytes == 0:
                return -json_bytes % oip_codec.ALIGNMENT_BYTES
            return oip_codec.padding_before(oip_codec.read_head(bytes(prefix), self._fields), json_bytes)

        return await body.read_into_buffer(*limits, memory.take, prefix_bytes, padding)

    @staticmethod
    def _beyond(json_bytes: int, body_bytes: int) -> MalformedRequest:
        return MalformedRequest("json-bytes", expected=f"at most {body_bytes}, the length of the body", got=json_bytes)

    def _is_decoded_at_once(self, content: bytes | memoryview, request: Format, wanted: Inference) -> bool:
        json_bytes = len(content) if wanted.json_bytes is None else wanted.json_bytes
        return json_bytes <= INLINE_BYTES["json"] and len(content) <= INLINE_BYTES["safetensors"]

    def _read_head(self, content: bytes | memoryview, wanted: Inference) -> None:
        """Read what the JSON of a request says."""
        if wanted.json_bytes == 0:
            wanted.head = oip_codec.raw_head(len(content), self._fields, self._required)
        else:
            wanted.head = oip_codec.read_head(bytes(content[: wanted.json_bytes]), self._fields)

    def _prepare(self, content: bytes | memoryview, request: Format, wanted: Inference) -> Job:
        json_bytes = len(content) if wanted.json_bytes is None else wanted.json_bytes
        if json_bytes > len(content):
            raise self._beyond(json_bytes, len(content))
        self._read_head(content, wanted)
        message = oip_codec.decode(wanted.head, memoryview(content)[json_bytes:], self._regions.view)
        job = bind(self._operator, message, gradient=self._gradient)
        limit = self._most_answer_bytes
        if (size := self._largest_json(job, wanted)) > limit:
            raise ContentTooLarge("json-outputs", limit=limit, got=size)
        destinations = self._destinations(job, wanted)
        return dataclasses.replace(job, destinations=destinations) if destinations else job

    def _destinations(self, job: Job, wanted: Inference) -> Mapping[str, Tensor]:
        """Return the memory of the outputs that the caller wants in shared memory; raises what is wrong with it."""
        places = {output: wanted.head.requested_as(output.name).place for output in job.outputs}
        return {
            output.name: oip_codec.memory_at(self._regions.view, place, output.name, job.bytes_of(output))
            for output, place in places.items()
            if place is not None
        }

    def _largest_answer(self, job: Job, wanted: Inference) -> int:
        sent = [output for output in job.outputs if wanted.head.requested_as(output.name).place is None]
        binary = sum(job.bytes_of(output) for output in sent if wanted.head.requested_as(output.name).is_binary)
        return binary + self._largest_json(job, wanted)

    @staticmethod
    def _largest_json(job: Job, wanted: Inference) -> int:
        """Return how many bytes the JSON of the answer can take at most."""
        requested = {output: wanted.head.requested_as(output.name) for output in job.outputs}
        written = [output for output, how in requested.items() if how.place is None and not how.is_binary]
        plan = job.plan
        outputs = [(plan.shapes[output.name], plan.dtypes[output.name]) for output in written]
        return json_codec.largest_answer(outputs, "array")

    def _is_encoded_at_once(self, size: int, wanted: Inference) -> bool:
        if wanted.wanted_compression is not None:
            return size <= COMPRESSED_INLINE_BYTES
        return size <= INLINE_BYTES["json"] or wanted.head.is_all_binary

    def _encode(self, job: Job, answer: Answer, wanted: Inference) -> Reply:
        pieces, json_bytes = oip_codec.encode(self._model, answer.tensors, wanted.head, job.destinations)
        headers = [] if json_bytes is None else [(JSON_BYTES_HEADER, b"%d" % json_bytes)]
        media_type = json_codec.MEDIA_TYPE if json_bytes is None else oip_codec.MEDIA_TYPE
        if wanted.wanted_compression is None:
            return Reply(200, media_type, pieces, headers, is_borrowed=json_bytes is not None)
        headers.append((b"content-encoding", wanted.wanted_compression.encode()))
        return Reply(200, media_type, deflated(pieces, wanted.wanted_compression), headers)


def infer_endpoints(
    operators: Mapping[str, Operator],
    engine: Engine,
    gate: Gate,
    settings: Settings,
    state: State,
    *,
    regions: SharedMemory,
) -> dict[str, InferEndpoint]:
    """Return an endpoint for every model, by its paths: with the version and without."""
    endpoints: dict[str, InferEndpoint] = {}
    for operator, gradient in describe.models(operators):
        endpoint = InferEndpoint(operator, engine, gate, settings, state, regions=regions, gradient=gradient)
        path = f"/v2/models/{describe.model_name(operator, gradient)}"
        endpoints[f"{path}/infer"] = endpoints[f"{path}/versions/{oip_codec.VERSION}/infer"] = endpoint
    return endpoints
