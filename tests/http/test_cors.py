"""Pages of other origins: those that are named may call the service and read its answers, no others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.ops import OPERATORS
from service.settings import Settings
from tests.http.calling import check_problem, check_refusal, client_of

pytestmark = pytest.mark.anyio

PAGE = "https://page.example"
BODY = {"logits": [1.0, 2.0]}
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, x-request-id",
}


def serving(**settings: Any) -> httpx.AsyncClient:
    return client_of(create_app(Settings(threads=1, device="cpu", **settings)))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("a-key-of-sixteen-or-more")
    return path


async def test_unless_origins_are_named_nothing_is_said_of_them(client: httpx.AsyncClient) -> None:
    simple = await client.post("/v1/softmax", json=BODY, headers={"Origin": PAGE})
    preflight = await client.options("/v1/softmax", headers={"Origin": PAGE, **PREFLIGHT})

    assert (simple.status_code, preflight.status_code) == (200, 405)
    for answer in (simple, preflight):
        assert "vary" not in answer.headers
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("origins", "origin", "said"),
    [
        (PAGE, PAGE, PAGE),
        ("http://other.example:8080, HTTPS://Page.example", PAGE, PAGE),
        ("*", PAGE, "*"),
        ("*", "null", "*"),
    ],
)
async def test_a_page_that_is_named_may_ask_and_read(key_file: Path, origins: str, origin: str, said: str) -> None:
    async with serving(cors_origins=origins, api_keys=key_file) as client:
        preflight = await client.options("/v1/softmax", headers={"Origin": origin, **PREFLIGHT})
        headers = {"Origin": origin, "Authorization": "Bearer a-key-of-sixteen-or-more"}
        answer = await client.post("/v1/softmax", json=BODY, headers=headers)
        refused = await client.post("/v1/softmax", json=BODY, headers={"Origin": origin})

    assert (preflight.status_code, answer.status_code, refused.status_code) == (200, 200, 401)
    assert preflight.headers["access-control-allow-methods"] == "GET, HEAD, POST"
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    for response in (preflight, answer, refused):
        assert response.headers["access-control-allow-origin"] == said
        assert "access-control-allow-credentials" not in response.headers
        assert "x-request-id" in response.headers
    for response in (answer, refused):
        assert response.headers["access-control-expose-headers"] == "X-Request-Id, Server-Timing, Retry-After"
        assert "Origin" in response.headers["vary"]


@pytest.mark.parametrize(
    "origin",
    ["https://other.example", "http://page.example", "https://page.example:444", "https://page.example.evil", "null"],
)
async def test_no_other_page_may(origin: str) -> None:
    async with serving(cors_origins=PAGE) as client:
        preflight = await client.options("/v1/softmax", headers={"Origin": origin, **PREFLIGHT})
        answer = await client.post("/v1/softmax", json=BODY, headers={"Origin": origin})

    problem = check_problem(preflight, code="malformed-request")
    assert (problem["status"], problem["got"]) == (400, origin)
    assert problem["detail"] == f"The preflight of a page of '{origin}' is refused for its origin."
    assert preflight.headers["access-control-allow-methods"] == "GET, HEAD, POST"
    assert "Origin" in preflight.headers["vary"]
    assert "access-control-allow-origin" not in preflight.headers
    assert "access-control-allow-origin" not in answer.headers
    assert "x-request-id" in preflight.headers


@pytest.mark.parametrize(
    ("asked", "reasons"),
    [
        ({"Access-Control-Request-Method": "DELETE"}, "method"),
        ({"Access-Control-Request-Headers": "x-other"}, "headers"),
        ({"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x-other"}, "method and headers"),
    ],
)
async def test_a_page_may_use_only_what_the_service_knows(asked: dict[str, str], reasons: str) -> None:
    async with serving(cors_origins=PAGE) as client:
        preflight = await client.options("/v1/softmax", headers={"Origin": PAGE, **PREFLIGHT, **asked})

    problem = check_problem(preflight, code="malformed-request")
    assert problem["detail"] == f"The preflight of a page of '{PAGE}' is refused for its {reasons}."
    assert preflight.headers["access-control-allow-origin"] == PAGE


async def test_below_v2_a_refused_preflight_is_a_refusal_as_there() -> None:
    async with serving(cors_origins=PAGE) as client:
        headers = {"Origin": "https://other.example", **PREFLIGHT}
        preflight = await client.options("/v2/models/softmax/infer", headers=headers)

    assert preflight.status_code == 400
    assert "for its origin" in check_refusal(preflight, code="malformed-request")


async def test_options_that_are_no_preflight_need_a_key_as_everything_does(key_file: Path) -> None:
    async with serving(cors_origins="*", api_keys=key_file) as client:
        plain = await client.options("/v1/softmax")
        foreign = await client.options("/v1/softmax", headers={"Origin": PAGE})

    check_problem(plain, code="unauthorized")
    check_problem(foreign, code="unauthorized")


async def test_refusals_and_failures_may_be_read_too() -> None:
    def fail(*_: object) -> None:
        raise ValueError

    broken = dataclasses.replace(OPERATORS["softmax"], name="broken", forward=fail)
    app = create_app(Settings(threads=1, device="cpu", cors_origins=PAGE), {"broken": broken})
    async with client_of(app) as client:
        failed = await client.post("/v1/broken", json=BODY, headers={"Origin": PAGE})
        app.state.service.is_refusing = True
        draining = await client.post("/v1/broken", json=BODY, headers={"Origin": PAGE})

    check_problem(failed, code="internal")
    check_problem(draining, code="draining")
    assert failed.headers["access-control-allow-origin"] == draining.headers["access-control-allow-origin"] == PAGE


async def test_a_refused_preflight_is_logged_as_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(cors_origins=PAGE) as client:
        with caplog.at_level("INFO", "service.request"):
            await client.options("/v1/softmax", headers={"Origin": "https://other.example", **PREFLIGHT})

    (fields,) = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert (fields["status"], fields["code"]) == (400, "malformed-request")
