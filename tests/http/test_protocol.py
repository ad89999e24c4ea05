"""What HTTP says around a body: formats, methods, sizes, ids, and what an option may be."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI

from service.app import create_app
from service.errors import ERRORS
from service.http.pages import ASSETS
from service.settings import Settings
from tests.http.calling import ENDPOINTS, JSON, REQUEST_ID, Endpoint, body_of, check_problem, client_of

pytestmark = pytest.mark.anyio

BODY = b'{"logits": [1, 2]}'


@pytest.mark.parametrize(
    "value",
    [
        "application/json",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "Application/JSON ; Charset=utf8",
        "application/json; version=1",
        "application/json;",
    ],
)
async def test_json_in_utf8_is_read_however_it_is_spelt(client: httpx.AsyncClient, value: str) -> None:
    response = await client.post("/v1/softmax", content=BODY, headers={"Content-Type": value})

    assert response.status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        "",
        "json",
        "text/json",
        "text/plain; charset=utf-8",
        "application/jsonp",
        "application/safetensors",
        "application/x-safetensors; charset=latin-1",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json, application/json",
        "application/" + "x" * 5000,
    ],
)
async def test_every_other_content_type_is_unsupported(client: httpx.AsyncClient, value: str) -> None:
    response = await client.post("/v1/softmax", content=BODY, headers={"Content-Type": value})

    problem = check_problem(response, code="unsupported-media-type")
    assert problem["expected"] == "application/json or application/x-safetensors"


@pytest.mark.parametrize("value", ["gzip", "br", "zstd", "deflate", "identity, gzip", "gzip, identity", "x" * 5000])
async def test_a_compressed_body_is_unsupported_and_the_answer_says_what_is(
    client: httpx.AsyncClient, value: str
) -> None:
    response = await client.post("/v1/softmax", content=BODY, headers={**JSON, "Content-Encoding": value})

    check_problem(response, code="unsupported-encoding")
    assert response.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("value", ["identity", "Identity", " identity ", ""])
async def test_identity_is_no_compression(client: httpx.AsyncClient, value: str) -> None:
    response = await client.post("/v1/softmax", content=BODY, headers={**JSON, "Content-Encoding": value})

    assert response.status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        "*/*",
        "application/*",
        "application/json",
        "APPLICATION/JSON",
        "text/html, application/json;q=0.1",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "text/html;q=0, application/*",
        "*/*;q=0, application/json",
        "",
        " ",
    ],
)
async def test_whoever_accepts_json_gets_it(client: httpx.AsyncClient, value: str) -> None:
    response = await client.post("/v1/softmax", content=BODY, headers={**JSON, "Accept": value})

    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    "value",
    [
        "text/html",
        "application/safetensors",
        "application/xml, text/*",
        "application/json;q=0",
        "*/*;q=0",
        "application/*; q=0, */*",
        ", text/html",
        "json",
        "x" * 5000,
    ],
)
async def test_whoever_accepts_no_format_is_told(client: httpx.AsyncClient, value: str) -> None:
    response = await client.post("/v1/softmax", content=BODY, headers={**JSON, "Accept": value})

    check_problem(response, code="not-acceptable")


GET_PATHS = [
    "/",
    "/docs",
    "/openapi.json",
    "/v1/operators",
    "/v1/limits",
    "/health/live",
    "/health/ready",
    "/metrics",
    *(f"/docs/{name}" for name in ASSETS),
    *(f"/problems/{code}" for code in ERRORS),
]


@pytest.mark.parametrize("path", GET_PATHS)
async def test_head_answers_as_get_does_without_the_body(client: httpx.AsyncClient, path: str) -> None:
    got, head = await client.get(path), await client.head(path)

    assert head.status_code == got.status_code
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert head.content == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", GET_PATHS[:8])
async def test_pages_and_probes_take_get_and_head_only(client: httpx.AsyncClient, path: str, method: str) -> None:
    response = await client.request(method, path)

    problem = check_problem(response, code="method-not-allowed")
    assert response.headers["Allow"] == "GET, HEAD"
    assert problem["detail"] == f"This path takes GET or HEAD, not {method}."


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "post", "X" * 200])
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
async def test_operators_take_post_only(app: FastAPI, endpoint: Endpoint, method: str) -> None:
    async with client_of(app) as client:
        request = client.build_request("POST", endpoint.path, content=b"{}", headers=JSON)
        request.method = method
        response = await client.send(request)

    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"
    if method != "HEAD":
        check_problem(response, code="method-not-allowed")


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/v1",
        "/v1/",
        "/v1/softmax/",
        "/v1/softmax/gradients",
        "/V1/softmax",
        "//v1/softmax",
        "/v1/%73oftmax%00",
        "/v1/../v1/softmax/..",
        "/v1/" + "x" * 3000,
        "/v1/%F0%9F%98%80%0A%1B[31m",
        "/problems/nothing",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_unknown_paths_are_not_found(client: httpx.AsyncClient, path: str, method: str) -> None:
    response = await client.request(method, path)

    problem = check_problem(response)
    assert problem["code"] in ("not-found", "method-not-allowed")
    assert problem["code"] == "not-found" or path == "/problems/nothing"
    assert problem["detail"].isprintable()


@pytest.fixture
async def any_host() -> AsyncIterator[httpx.AsyncClient]:
    """A service that is answered for by any name."""
    async with client_of(create_app(Settings(threads=1, device="cpu", allowed_hosts="*"))) as client:
        yield client


@pytest.mark.parametrize("host", ["[", "]", "a:b:c", "x" * 500, "[::1", "\xe9"])
async def test_a_strange_host_is_no_reason_to_fail(any_host: httpx.AsyncClient, host: str) -> None:
    response = await any_host.get("/nothing", headers={"Host": host.encode("latin-1")})  # type: ignore[dict-item]

    check_problem(response, code="not-found")


@pytest.mark.parametrize("value", ["a", "A-b_c.9", "x" * 64])
async def test_a_request_id_of_the_right_form_is_echoed(client: httpx.AsyncClient, value: str) -> None:
    answered = await client.post("/v1/softmax", content=BODY, headers={**JSON, "X-Request-Id": value})
    refused = await client.post("/v1/softmax", content=b"{", headers={**JSON, "X-Request-Id": value})

    assert answered.headers.get_list("X-Request-Id") == [value]
    assert refused.headers.get_list("X-Request-Id") == [value]
    assert refused.json()["request_id"] == value


@pytest.mark.parametrize("value", ["", "x" * 65, "a b", "a\n", "a,b", "é", "a/b", '"a"', None])
async def test_any_other_request_id_is_replaced(client: httpx.AsyncClient, value: str | None) -> None:
    headers: dict[str, Any] = dict(JSON) if value is None else {**JSON, "X-Request-Id": value.encode()}

    first, second = [await client.post("/v1/softmax", content=BODY, headers=headers) for _ in range(2)]

    made = first.headers["X-Request-Id"], second.headers["X-Request-Id"]
    assert made[0] != made[1]
    assert value not in made
    assert all(REQUEST_ID.fullmatch(name) for name in made)


@pytest.mark.parametrize("path", GET_PATHS[:8])
async def test_every_answer_has_a_request_id(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path, headers={"X-Request-Id": "mine"})

    assert response.headers["X-Request-Id"] == "mine"


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
async def test_an_answer_tells_where_its_time_went(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
    response = await client.post(endpoint.path, content=body_of(endpoint.valid()), headers=JSON)

    assert response.status_code == 200
    phase = r"=\d+\.\d{3}"
    assert re.fullmatch(
        f"decode;dur{phase}, queue;dur{phase}, compute;dur{phase}, encode;dur{phase}", response.headers["Server-Timing"]
    )


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
async def test_null_is_the_same_as_leaving_away_where_none_is_the_default(
    client: httpx.AsyncClient, endpoint: Endpoint
) -> None:
    nulls = ["outputs", "class_dim", *(["normalizer"] if endpoint.is_loss else [])]
    plain = await client.post(endpoint.path, content=body_of(endpoint.valid()), headers=JSON)

    nulled = await client.post(endpoint.path, content=body_of(endpoint.valid() | dict.fromkeys(nulls)), headers=JSON)

    assert nulled.json() == plain.json()


@pytest.mark.parametrize("name", ["weight", "grad_output"])
async def test_null_is_not_a_tensor_even_where_none_is_needed(client: httpx.AsyncClient, name: str) -> None:
    response = await client.post("/v1/cross-entropy/gradient", json={"logits": [[1, 2]], "target": [0], name: None})

    assert check_problem(response, code="dtype-mismatch")["pointer"] == f"/{name}"


async def test_shapes_that_fit_with_the_classes_last_say_so(client: httpx.AsyncClient) -> None:
    wrong = {"logits": [[[0.5] * 5] * 3] * 2, "target": [[0] * 3] * 2}

    refused = await client.post("/v1/cross-entropy", json=wrong)
    mended = await client.post("/v1/cross-entropy", json={**wrong, "class_dim": -1})

    assert check_problem(refused, code="shape-mismatch")["detail"] == (
        "'target' has shape [2, 3], but for 'logits' of shape [2, 3, 5] it must have shape [2, 5]; "
        "it would fit with class_dim -1."
    )
    assert mended.status_code == 200


SOFT = {"logits": [[[0.5] * 5] * 3] * 2, "target": [[[0.2] * 5] * 3] * 2}


@pytest.mark.parametrize(
    ("path", "further", "expected"),
    [
        ("/v1/cross-entropy", {"weight": [1] * 5}, [3]),
        ("/v1/cross-entropy/gradient", {"grad_output": [[1] * 3] * 2, "reduction": "none"}, [2, 5]),
    ],
)
async def test_so_do_those_of_weights_and_upstream_gradients(
    client: httpx.AsyncClient, path: str, further: dict[str, Any], expected: list[int]
) -> None:
    refused = await client.post(path, json=SOFT | further)
    mended = await client.post(path, json=SOFT | further | {"class_dim": -1})

    problem = check_problem(refused, code="shape-mismatch")
    assert problem["expected"] == expected
    assert problem["detail"].endswith("it would fit with class_dim -1.")
    assert mended.status_code == 200


async def test_outputs_come_in_the_order_of_the_table_and_only_those_asked_for(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/v1/cross-entropy/gradient",
        json={"logits": [[1, 2]], "target": [0], "outputs": ["grad_logits", "logsumexp", "loss"]},
    )

    assert list(response.json()) == ["loss", "logsumexp", "grad_logits"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
async def test_a_base64_answer_holds_the_same_numbers(client: httpx.AsyncClient, dtype: str) -> None:
    request = {
        "logits": [[1.5, -2.0, "-Infinity"], [0.25, 3.0, 1.0]],
        "outputs": ["probs", "logsumexp"],
        "dtype": dtype,
    }

    plain = (await client.post("/v1/softmax", json=request)).json()
    compact = (await client.post("/v1/softmax", json={**request, "encoding": "base64"})).json()

    assert compact["probs"]["dtype"] == dtype
    assert compact["logsumexp"]["dtype"] == ("float64" if dtype == "float64" else "float32")
    for name, tensor in compact.items():
        data = bytearray(base64.b64decode(tensor["base64"], validate=True))
        values = torch.frombuffer(data, dtype=getattr(torch, tensor["dtype"])).reshape(tensor["shape"])
        assert torch.equal(values, torch.tensor(plain[name], dtype=values.dtype))


async def test_an_infinite_loss_is_an_answer(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/cross-entropy", json={"logits": [["-Infinity", 0.5]], "target": [0]})

    assert response.json() == {"loss": "Infinity", "total_weight": 1.0}


def scope_of(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    """Return what a server tells an application of a request for a softmax."""
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/softmax",
        "raw_path": b"/v1/softmax",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), *headers],
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
        "asgi": {"version": "3.0"},
    }


@pytest.fixture
async def small() -> AsyncIterator[httpx.AsyncClient]:
    """A service of small limits, whose engine must not be asked."""
    app = create_app(Settings(threads=1, device="cpu", max_json_bytes=4096, max_json_answer_bytes=1024))
    async with client_of(app) as client:
        yield client


async def test_a_declared_body_over_the_limit_is_refused_before_any_of_it_is_read(app: FastAPI) -> None:
    events: list[str] = []

    async def send(message: Any) -> None:
        events.append(message["type"])

    async def receive() -> Any:
        events.append("read")
        return {"type": "http.request", "body": b" " * 1024, "more_body": len(events) < 20}

    await app(scope_of((b"content-length", b"8388609")), receive, send)

    assert events[:3] == ["http.response.start", "http.response.body", "read"]


async def test_a_body_of_unknown_length_is_refused_once_over_the_limit(small: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield b" " * 1024

    response = await small.post("/v1/softmax", content=chunks(), headers=JSON)

    assert check_problem(response, code="content-too-large")["limit"] == 4096
    assert response.headers["Connection"] == "close"


async def test_a_body_of_exactly_the_limit_is_read(small: httpx.AsyncClient) -> None:
    response = await small.post("/v1/softmax", content=BODY.ljust(4096), headers=JSON)

    assert response.status_code == 200


@pytest.mark.parametrize("options", [{}, {"encoding": "base64"}, {"dtype": "float64"}])
async def test_an_answer_over_the_limit_is_refused_before_computing(
    small: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    monkeypatch.setattr("service.engine.scheduler.Engine.compute", lambda *_: pytest.fail("it is computed"))

    response = await small.post("/v1/softmax", json={"logits": [0] * 300, **options})

    problem = check_problem(response, code="content-too-large")
    assert problem["limit"] == 1024
    assert problem["got"] > 1024
    assert "Connection" not in response.headers


async def test_a_caller_who_leaves_while_sending_is_not_answered(app: FastAPI) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        await asyncio.sleep(0)
        return messages.pop(0)

    await app(scope_of(), receive, send)

    assert sent == []
