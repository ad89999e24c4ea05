"""Traces: whether OpenTelemetry is on, and what a request's span tells beyond what the framework says of it.

FastAPI makes the span of a request, takes `traceparent` from its headers, and sends spans to the collector that the
standard variables name. Off, it costs nothing: nobody is asked whether there is a provider.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from starlette.types import Scope

from service.http.exchange import Exchange, path_of

ENDPOINT_VARIABLES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
"""The standard variables that name a collector; where none is set, nothing is sent to anybody."""

SERVICE_NAME = "loss-service"
"""What the service is called in traces, unless the standard variables call it otherwise."""

_PHASES = ("encode", "compute", "queue", "decode")
"""From the last to the first: each ends where the one after it begins."""


def is_traced() -> bool:
    """Return whether requests are traced: a collector is named, or whoever runs the service brings a provider."""
    return _names_collector() or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _names_collector() -> bool:
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not is_disabled and any(map(os.environ.get, ENDPOINT_VARIABLES))


def configuration(unseen: Sequence[str]) -> TelemetryConfig:
    """Return the framework's settings; requests to paths that begin with one of `unseen` are not traced."""
    if _names_collector() and "service.name=" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        os.environ.setdefault("OTEL_SERVICE_NAME", SERVICE_NAME)
    return TelemetryConfig(
        tracing=is_traced(),
        metrics=is_traced(),
        logs=False,
        operation_spans=False,
        auto_configure=True,
        exclude=lambda scope: path_of(scope).startswith(tuple(unseen)),
    )


def tell_span(scope: Scope, exchange: Exchange) -> None:
    """Tell the span of a request what is known of it once its answer begins, and add a span for each phase."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    exchange.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
    span.set_attributes({"loss.code": exchange.code, "loss.request_id": exchange.request_id})
    if scope["query_string"]:
        span.set_attribute("url.query", "REDACTED")  # the service takes none, so nobody knows what it is
    if exchange.operator is None:
        return
    operator, _, gradient = exchange.operator.partition("/")
    route = f"/v1/{exchange.operator}"  # one route stands for all operators, so the framework has no name for it
    span.update_name(f"{scope['method']} {route}")
    span.set_attributes(
        {
            "http.route": route,
            "loss.operator": operator,
            "loss.gradient": bool(gradient),
            "loss.format": exchange.format,
            "loss.rows": exchange.rows,
        }
    )
    tracer = trace.get_tracer("service")
    for phase, start, end in _phases(exchange):
        tracer.start_span(phase, start_time=start).end(end)


def _phases(exchange: Exchange) -> Iterator[tuple[str, int, int]]:
    """Yield name, start and end of each phase, in nanoseconds since 1970: the phases follow each other up to now."""
    now = end = time.time_ns()
    for phase in _PHASES:
        if seconds := getattr(exchange.timing, phase):
            start = end - int(seconds * 1e9)
            yield phase, start, end
            end = start
    yield "read", now - int(exchange.seconds * 1e9), end
