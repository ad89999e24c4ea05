"""What can be asked of the service itself: health, limits, operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, PlainTextResponse, Response

from service import __version__, describe, metrics
from service.engine.scheduler import Engine
from service.http.state import State
from service.ops.bind import bind, fields_of
from service.ops.spec import Operator
from service.settings import Settings
from service.tensors import MAX_RANK
from service.wire import json_codec
from service.wire.json_structure import MAX_DEPTH


class Limits(BaseModel):
    """The limits in force."""

    max_json_bytes: int = Field(description="Largest JSON body accepted, in bytes.")
    max_json_answer_bytes: int = Field(
        description="Largest JSON answer given, in bytes; reckoned before computing, 16 bytes a float32 (25 a float64)."
    )
    max_body_bytes: int = Field(description="Largest binary body accepted, in bytes.")
    memory_budget_bytes: int = Field(
        description="Memory that all requests together may hold, in bytes; a request that needs more is refused."
    )
    queue_seconds: float = Field(
        description="Longest predicted wait for the engine, and for memory, before a request is refused with 503."
    )
    deadline_seconds: float = Field(
        description="Time after which a request is given up, where X-Request-Timeout-Ms does not say so."
    )
    max_rank: int = Field(description="Largest number of dimensions of a tensor.")
    max_json_depth: int = Field(description="Deepest nesting of JSON, the outer object counted.")


class Operators(BaseModel):
    """The operator table."""

    version: str = Field(description="Release of the service.")
    operators: list[dict[str, Any]] = Field(description="One entry an operator: tensors, options, outputs.")


class Health(BaseModel):
    """How the service is."""

    status: str = Field(description="`ok`, or why not: `starting`, `failed`, `draining` or `restarting`.")


async def check_examples(operators: Mapping[str, Operator], engine: Engine) -> None:
    """Answer every operator's example and gradient example on the engine's device; raises what goes wrong."""
    for operator in operators.values():
        for gradient, example in ((False, operator.example), (True, operator.gradient_example)):
            message = json_codec.decode(orjson.dumps(example), fields_of(operator, gradient=gradient))
            answer = await engine.submit(bind(operator, message, gradient=gradient))
            answer.release()


def probe_router(
    operators: dict[str, Operator], note_state: Callable[[], None], settings: Settings, state: State
) -> APIRouter:
    """Return the routes of the probes; `HEAD` works wherever `GET` does. `note_state` brings gauges up to date."""
    router = APIRouter(tags=["About the service"])
    limits = Limits(
        max_json_bytes=settings.max_json_bytes,
        max_json_answer_bytes=settings.max_json_answer_bytes,
        max_body_bytes=settings.max_body_bytes,
        memory_budget_bytes=settings.memory_budget,
        queue_seconds=settings.queue_seconds,
        deadline_seconds=settings.deadline_seconds,
        max_rank=MAX_RANK,
        max_json_depth=MAX_DEPTH,
    )
    table = Operators(version=__version__, operators=describe.listing(operators))

    async def live() -> Health:
        """Whether the process answers at all."""
        return Health(status="ok")

    async def ready() -> JSONResponse:
        """Whether requests should be sent here: every operator has answered its own example on the device."""
        return JSONResponse({"status": state.readiness}, 200 if state.readiness == "ok" else 503)

    async def get_limits() -> Limits:
        """The limits in force, so that a client can cut its batches."""
        return limits

    async def get_operators() -> Operators:
        """The operators with their tensors, options and outputs."""
        return table

    async def get_metrics() -> Response:
        """Counters, histograms and gauges in the Prometheus text format; names start with `loss_`."""
        note_state()
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    router.add_api_route(
        "/metrics", get_metrics, methods=["GET"], response_class=PlainTextResponse, summary="Metrics for Prometheus"
    )
    router.add_api_route("/metrics", get_metrics, methods=["HEAD"], include_in_schema=False)
    for path, endpoint, model in (
        ("/v1/operators", get_operators, Operators),
        ("/v1/limits", get_limits, Limits),
        ("/health/live", live, Health),
        ("/health/ready", ready, Health),
    ):
        responses: dict[int | str, dict[str, Any]] = (
            {503: {"model": Health, "description": "Starting, draining, or without an engine."}}
            if endpoint is ready
            else {}
        )
        router.add_api_route(path, endpoint, methods=["GET"], response_model=model, responses=responses)
        router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    return router
