"""The Open Inference Protocol below `/v2`, but for inference itself: what there is, how it is, shared memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Scope

from service import __version__, describe, metrics
from service.errors import MalformedRequest, NotFound, RequestError, clip, quoted
from service.http.body import RequestBody
from service.http.exchange import exchange_of
from service.http.paths import unknown_model
from service.http.problems import is_open_inference, refusal
from service.http.state import State
from service.metrics import ANSWERED, REFUSED, Totals
from service.ops.spec import Operator
from service.settings import Settings
from service.tensors import Fields
from service.wire import json_codec, json_values
from service.wire.json_structure import scan
from service.wire.oip_codec import VERSION
from service.wire.shared_memory import SharedMemory

MAX_REGISTRATION_BYTES = 1 << 12
"""Longest body that describes a region."""

EXTENSIONS = ("binary_tensor_data", "model_configuration", "parameters", "statistics")

_REGION = Fields("The region", (), ("key", "offset", "byte_size"))

Handler = Callable[[Request], Awaitable[Response]]


class OpenInference:
    """What the service says of itself to a Triton or KServe client."""

    def __init__(
        self, operators: Mapping[str, Operator], settings: Settings, state: State, regions: SharedMemory
    ) -> None:
        self._operators = operators
        self._settings = settings
        self._state = state
        self._regions = regions
        self._models = {describe.model_name(*model): model for model in describe.models(operators)}

    def routes(self) -> list[BaseRoute]:
        """Return the routes; `HEAD` works wherever `GET` does, as starlette has it."""
        found: list[BaseRoute] = [
            _route("/v2", self._server),
            _route("/v2/health/live", self._live),
            _route("/v2/health/ready", self._ready),
            _route("/v2/models/stats", self._all_statistics),
            _route("/v2/repository/index", self._index, "POST"),
            _route("/v2/models/{model}/infer", self._unknown, "POST"),
            _route("/v2/models/{model}/versions/{version}/infer", self._unknown, "POST"),
        ]
        for about, handler in (
            ("", self._metadata),
            ("/ready", self._model_ready),
            ("/config", self._config),
            ("/stats", self._statistics),
        ):
            found.append(_route("/v2/models/{model}" + about, handler))
            found.append(_route("/v2/models/{model}/versions/{version}" + about, handler))
        for kind, status, register, unregister in (
            ("system", self._shared_memory, self._register, self._unregister),
            ("cuda", self._no_cuda_memory, self._refuse_cuda_memory, self._forget_nothing),
        ):
            folder = f"/v2/{kind}sharedmemory"
            for path in (folder, folder + "/region/{region}"):
                found.append(_route(path + "/status", status))
                found.append(_route(path + "/unregister", unregister, "POST"))
            found.append(_route(folder + "/region/{region}/register", register, "POST"))
        return found

    async def _server(self, _: Request) -> Response:
        extensions = [*EXTENSIONS, *(["system_shared_memory"] if self._settings.shared_memory else [])]
        return _json({"name": "loss-service", "version": __version__, "extensions": extensions})

    async def _live(self, _: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, _: Request) -> Response:
        is_ready = self._state.readiness == "ok"
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    async def _model_ready(self, request: Request) -> Response:
        operator, gradient = self._model(request)
        is_ready = self._state.readiness == "ok"
        answer = {"name": describe.model_name(operator, gradient), "ready": is_ready}
        return _json(answer, 200 if is_ready else 503)

    async def _metadata(self, request: Request) -> Response:
        return _json(describe.model_metadata(*self._model(request)))

    async def _config(self, request: Request) -> Response:
        return _json(describe.model_config(*self._model(request)))

    async def _statistics(self, request: Request) -> Response:
        operator, gradient = self._model(request)
        return _json(self._model_stats({describe.model_name(operator, gradient): (operator, gradient)}))

    async def _all_statistics(self, _: Request) -> Response:
        return _json(self._model_stats(self._models))

    @staticmethod
    def _model_stats(models: Mapping[str, tuple[Operator, bool]]) -> dict[str, Any]:
        totals = metrics.totals()
        return {
            "model_stats": [
                statistics(name, totals.get((operator.name, gradient), Totals()))
                for name, (operator, gradient) in models.items()
            ]
        }

    async def _index(self, _: Request) -> Response:
        state = "READY" if self._state.readiness == "ok" else "UNAVAILABLE"
        reason = "" if state == "READY" else self._state.readiness
        return _json([{"name": name, "version": VERSION, "state": state, "reason": reason} for name in self._models])

    async def _unknown(self, request: Request) -> Response:
        self._model(request)
        raise NotFound("path")

    def _model(self, request: Request) -> tuple[Operator, bool]:
        """Return the model that a path names; raises NotFound."""
        name, version = request.path_params["model"], request.path_params.get("version", VERSION)
        if name not in self._models:
            raise unknown_model(name, self._operators)
        if version != VERSION:
            raise NotFound("version", owner=name, name=clip(version))
        return self._models[name]

    async def _shared_memory(self, request: Request) -> Response:
        regions = self._regions.regions(request.path_params.get("region"))
        return _json(
            [
                {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.size}
                for region in regions
            ]
        )

    async def _register(self, request: Request) -> Response:
        if not self._settings.shared_memory:
            raise NotFound("shared-memory")
        body = await RequestBody(request.scope, request.receive).read(MAX_REGISTRATION_BYTES, "body")
        json_codec.check_utf8(body)
        described = {name: raw for name, (raw, _) in json_codec.split(body, scan(body), _REGION).items()}
        values = {name: json_values.option(name, raw) for name, raw in described.items()}
        self._regions.register(
            request.path_params["region"], values.get("key"), values.get("offset", 0), values.get("byte_size")
        )
        return Response()

    async def _unregister(self, request: Request) -> Response:
        self._regions.unregister(request.path_params.get("region"))
        return Response()

    async def _no_cuda_memory(self, request: Request) -> Response:
        if "region" in request.path_params:
            raise NotFound("region", name=clip(request.path_params["region"]))
        return _json([])

    async def _refuse_cuda_memory(self, _: Request) -> Response:
        raise NotFound("cuda-memory")

    async def _forget_nothing(self, _: Request) -> Response:
        return Response()


def refuse_other_pages(scope: Scope) -> None:
    """Raise MalformedRequest for a request below `/v2` that a page of another origin makes.

    A browser sends it without asking, since it needs no Content-Type; with shared memory it could do harm even though
    the page never sees the answer.
    """
    if not is_open_inference(scope):
        return
    headers = dict(scope["headers"])
    origin: bytes | None = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
        raise MalformedRequest("origin", got=quoted(origin.decode("latin-1")))


def statistics(model: str, totals: Totals) -> dict[str, Any]:
    """Return what a model has done, as the statistics extension has it: `inference_count` counts rows."""

    def part(name: str, count: int) -> dict[str, int]:
        return {"count": count, "ns": round(totals.seconds.get(name, 0.0) * 1e9)}

    nothing = {"count": 0, "ns": 0}
    return {
        "name": model,
        "version": VERSION,
        "inference_count": totals.rows,
        "execution_count": totals.launches,
        "inference_stats": {
            "success": part(ANSWERED, totals.answered),
            "fail": part(REFUSED, totals.refused),
            "queue": part("queue", totals.answered),
            "compute_input": part("decode", totals.answered),
            "compute_infer": part("compute", totals.answered),
            "compute_output": part("encode", totals.answered),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [],
    }


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type=json_codec.MEDIA_TYPE)


def _route(path: str, handler: Handler, method: str = "GET") -> Route:
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except RequestError as error:
            exchange_of(request.scope).code = error.code
            reply = refusal(error, request.scope)
            headers = {name.decode(): value.decode() for name, value in reply.headers}
            return Response(b"".join(reply.pieces), reply.status, headers, reply.media_type)

    return Route(path, answer, methods=[method])
