"""Traces: off unless a collector is named; then a span a request, with what was computed and how long it took."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.app import create_app
from service.settings import Settings
from tests.http.calling import client_of
from tests.support.running import running_service

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
EXAMPLE = {"logits": [[1.1316, -0.7943, 0.1328], [0.0, 1.0, 2.0]], "target": [0, 1]}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What a provider of the process gets, for as long as the test runs."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


@pytest.mark.anyio
async def test_a_request_is_a_span_with_its_phases_as_children(spans: InMemorySpanExporter) -> None:
    async with client_of(create_app(Settings(device="cpu"))) as client:
        await client.post(
            "/v1/cross-entropy/gradient?secret=hunter2",
            json=EXAMPLE,
            headers={"traceparent": PARENT, "X-Request-Id": "traced"},
        )

    finished = spans.get_finished_spans()
    whole = next(span for span in finished if span.kind is trace.SpanKind.SERVER)
    phases = {span.name: span for span in finished if span is not whole}
    attributes = dict(whole.attributes or {})
    assert whole.name == "POST /v1/cross-entropy/gradient"
    assert whole.parent is not None
    assert whole.context.trace_id == TRACE_ID
    assert {name: value for name, value in attributes.items() if name.startswith("loss.")} == {
        "loss.code": "ok",
        "loss.request_id": "traced",
        "loss.operator": "cross-entropy",
        "loss.gradient": True,
        "loss.format": "json",
        "loss.rows": 2,
    }
    assert "hunter2" not in str(attributes)
    assert {"read", "decode", "compute", "encode"} <= set(phases) <= {"read", "decode", "queue", "compute", "encode"}
    assert all(span.parent is not None and span.parent.span_id == whole.context.span_id for span in phases.values())
    assert _follow_each_other(
        [phases[name] for name in ("read", "decode", "queue", "compute", "encode") if name in phases]
    )


def _follow_each_other(phases: list[ReadableSpan]) -> bool:
    return all(first.end_time == second.start_time for first, second in itertools.pairwise(phases))


@pytest.mark.anyio
async def test_the_span_of_a_refusal_has_its_code(spans: InMemorySpanExporter) -> None:
    async with client_of(create_app(Settings(device="cpu"))) as client:
        await client.post("/v1/cross-entropy", json={**EXAMPLE, "target": [0, 3]})
        await client.post("/v1/no-such-operator", json={})

    wholes = [span for span in spans.get_finished_spans() if span.kind is trace.SpanKind.SERVER]
    assert [dict(span.attributes or {})["loss.code"] for span in wholes] == ["target-out-of-range", "not-found"]


@pytest.mark.anyio
async def test_probes_are_not_traced(spans: InMemorySpanExporter) -> None:
    async with client_of(create_app(Settings(device="cpu"))) as client:
        for path in ("/health/live", "/health/ready", "/metrics"):
            await client.get(path)

    assert spans.get_finished_spans() == ()


@pytest.mark.anyio
async def test_the_log_line_names_the_trace(spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "service.request")
    async with client_of(create_app(Settings(device="cpu"))) as client:
        await client.post("/v1/cross-entropy", json=EXAMPLE, headers={"traceparent": PARENT})

    fields = [getattr(record, "fields", {}) for record in caplog.records]
    assert [each["trace_id"] for each in fields] == [f"{TRACE_ID:032x}"]


@pytest.mark.anyio
async def test_without_a_provider_nothing_is_traced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "service.request")
    app = create_app(Settings(device="cpu"))
    async with client_of(app) as client:
        answer = await client.post("/v1/cross-entropy", json=EXAMPLE, headers={"traceparent": PARENT})

    assert answer.status_code == 200
    assert [getattr(record, "fields", {}).get("trace_id") for record in caplog.records] == [None]


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Listen as a collector does, and keep what comes."""
    exports: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            exports.append(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", exports
        finally:
            server.shutdown()
            thread.join()


def test_spans_are_sent_to_the_collector_that_the_standard_variable_names() -> None:
    with collector() as (endpoint, exports):
        with running_service("--drain-seconds=2", OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=endpoint) as service:
            service.wait_until_ready()
            httpx.post(service.address + "/v1/cross-entropy", json=EXAMPLE, headers={"X-Request-Id": "exported"})
            assert service.stop() == 0

        resources = [resource for export in exports for resource in export.resource_spans]
        sent = [
            {pair.key: pair.value for pair in span.attributes}
            for resource in resources
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    names = {
        pair.value.string_value for each in resources for pair in each.resource.attributes if pair.key == "service.name"
    }
    assert names == {"loss-service"}
    assert [each["loss.request_id"].string_value for each in sent if "loss.request_id" in each] == ["exported"]


@pytest.mark.faults
def test_a_collector_that_is_not_there_holds_nobody_up() -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    with running_service("--drain-seconds=2", "--log-format=json", **environment) as service:
        service.wait_until_ready()
        answer = httpx.post(service.address + "/v1/cross-entropy", json=EXAMPLE)

        assert answer.status_code == 200
        assert answer.elapsed.total_seconds() < 1
        assert service.stop() == 0
        assert all(map(json.loads, service.log().splitlines()))
