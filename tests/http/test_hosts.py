"""By what names the service may be called, and that no other name gets an answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from tests.http.calling import check_problem, client_of
from tests.support.running import RunningService, running_service

anyio = pytest.mark.anyio

OWN = ["localhost", "LOCALHOST:8000", "localhost.", "a.b.localhost", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000"]
FOREIGN = [
    "",
    "example.org",
    "localhost.example.org",
    "localhost@example.org",
    "notlocalhost",
    "127.0.0.1.example.org",
    "127.0.0.1:80:80",
    "127.0.0.1:x",
    "::1",
    "[::1",
    "[::2]",
    "[::1]x",
    "127.0.0.2",
    "localhost\xe9",
    "localhost, example.org",
    "localhost\n",
]


async def ask(app: FastAPI, *hosts: str, version: str = "1.1", path: str = "/v1/limits") -> httpx.Response:
    """Return what is answered to a request with exactly these Host headers."""
    started: dict[str, Any] = {}
    body = b""

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal body
        started.update(message if message["type"] == "http.response.start" else {})
        body += message.get("body", b"")

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", host.encode("latin-1")) for host in hosts],
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "http_version": version,
        "asgi": {"version": "3.0"},
    }
    await app(scope, receive, send)
    return httpx.Response(started["status"], headers=started["headers"], content=body)


def app_for(**settings: Any) -> FastAPI:
    return create_app(Settings(threads=1, device="cpu", **settings))


@anyio
@pytest.mark.parametrize("host", OWN)
async def test_on_loopback_its_names_are_answered(app: FastAPI, host: str) -> None:
    assert (await ask(app, host)).status_code == 200


@anyio
@pytest.mark.parametrize("path", ["/", "/v1/limits", "/nothing", "/health/live", "/metrics"])
@pytest.mark.parametrize("host", FOREIGN)
async def test_on_loopback_no_other_name_is_answered_anywhere(app: FastAPI, host: str, path: str) -> None:
    answer = await ask(app, host, path=path)

    problem = check_problem(answer, code="malformed-request")
    assert answer.status_code == 421
    assert problem["detail"].isprintable()


@anyio
async def test_names_that_are_given_are_the_only_ones() -> None:
    app = app_for(allowed_hosts="Example.org,*.wide.example, [2001:db8:0::1]")

    allowed = ["example.org", "example.org:443", "a.wide.example", "a.b.wide.example", "[2001:DB8::1]:80"]
    refused = ["localhost", "www.example.org", "wide.example", "awide.example", "[2001:db8::2]"]
    assert [(await ask(app, host)).status_code for host in allowed] == [200] * len(allowed)
    assert [(await ask(app, host)).status_code for host in refused] == [421] * len(refused)


@anyio
@pytest.mark.parametrize(
    "settings", [{"host": "0.0.0.0"}, {"host": "::"}, {"uds": Path("s")}, {"allowed_hosts": "*"}], ids=str
)
async def test_elsewhere_any_name_will_do(settings: dict[str, Any]) -> None:
    app = app_for(**settings)

    for host in ("example.org", "[", "a b", ""):
        assert (await ask(app, host)).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost", "LocalHost", "a.localhost"])
def test_a_loopback_address_answers_to_itself(host: str) -> None:
    names = Settings(host=host).host_names

    assert {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host.lower()} <= set(names)
    assert "*" not in names


@anyio
@pytest.mark.parametrize("settings", [{}, {"allowed_hosts": "*"}])
async def test_one_host_is_needed(settings: dict[str, Any]) -> None:
    app = app_for(**settings)

    none, two = await ask(app), await ask(app, "localhost", "localhost")

    assert (none.status_code, two.status_code) == (400, 400)
    assert check_problem(none, code="malformed-request")["detail"] == (
        "The request has no Host header, but HTTP/1.1 needs one."
    )
    assert check_problem(two, code="malformed-request")["detail"] == (
        "The request has 2 Host headers, but must have one."
    )
    assert (await ask(app, version="1.0")).status_code == 200


@anyio
async def test_a_refused_host_is_counted_where_it_was_going(app: FastAPI) -> None:
    async with client_of(app) as client:
        before = (await client.get("/metrics")).text
        await client.post("/v1/softmax", headers={"Host": "example.org"}, content=b"{}")
        after = (await client.get("/metrics")).text

    assert refused(after) == refused(before) + 1


def refused(metrics: str) -> float:
    """Return how many requests for a softmax were refused as malformed."""
    for line in metrics.splitlines():
        words = ("loss_requests_total{", 'code="malformed-request"', 'gradient="false"', 'operator="softmax"')
        if all(word in line for word in words):
            return float(line.rpartition(" ")[2])
    return 0.0


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service("--threads=1", "--drain-seconds=1") as running:
        yield running


def test_over_a_connection_a_missing_host_is_a_problem_too(service: RunningService) -> None:
    with socket.create_connection(("127.0.0.1", service.port), 10) as connection:
        connection.sendall(b"GET /v1/limits HTTP/1.1\r\nConnection: close\r\n\r\n")
        received = b""
        while piece := connection.recv(65536):
            received += piece

    assert received.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"malformed-request"' in received
