"""The statuses that the OpenAPI document lists for a path are those that requests bring about there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from service.app import create_app
from service.http.limits import HEADER_FIELDS, URL_BYTES
from service.settings import Settings
from tests.http.calling import client_of
from tests.support.raw_http import listening, read_answer

ABOUT = [
    ("GET", "/v1/operators"),
    ("GET", "/v1/limits"),
    ("GET", "/metrics"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("GET", "/v2/models/stats"),
    ("GET", "/v2/models/{model_name}"),
    ("GET", "/v2/models/{model_name}/ready"),
    ("POST", "/v2/repository/index"),
]
OPERATORS = [("POST", "/v1/softmax"), ("POST", "/v1/cross-entropy/gradient"), ("POST", "/v2/models/softmax/infer")]

OF_CONNECTIONS = {"400", "408", "414", "431"}
"""What is answered before anybody knows what is asked for."""

UNPROVOKED = {"200", "500"}
"""An answer, and a bug in the service."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A service on which each key may be used once."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("".join(f"{key}\n" for key in some_keys()))
    return Settings(threads=1, device="cpu", api_keys=path, rate_per_key=0.001)


@pytest.fixture(scope="module")
def document(settings: Settings) -> dict[str, Any]:
    return create_app(settings).openapi()


def some_keys() -> Iterator[str]:
    return (f"one-key-of-many-{number}" for number in range(10))


async def provoked(settings: Settings, method: str, path: str) -> set[str]:
    """Return the statuses of requests to a path that are good or go wrong in one way each."""
    app, keys = create_app(settings), some_keys()
    there, nowhere = path.replace("{model_name}", "softmax"), path.replace("{model_name}", "nothing")
    async with client_of(app) as client:

        async def ask(method: str, path: str, key: str, **headers: str) -> str:
            answer = await client.request(method, path, headers={"Authorization": f"Bearer {key}", **headers})
            return str(answer.status_code)

        used = next(keys)
        found = {
            await ask(method, there, used),
            await ask(method, there, used),
            await ask(method, there, "no-key-that-is-known"),
            await ask(method, there, next(keys), Host="example.org"),
            await ask(method, nowhere, next(keys)),
            await ask("DELETE", there, next(keys)),
        }
        app.state.service.is_refusing = True
        return found | {await ask(method, there, next(keys))}


@pytest.mark.anyio
@pytest.mark.parametrize(("method", "path"), ABOUT)
async def test_a_path_about_the_service_lists_what_can_happen_and_nothing_else(
    settings: Settings, document: dict[str, Any], method: str, path: str
) -> None:
    listed = set(document["paths"][path][method.lower()]["responses"])

    assert listed - UNPROVOKED == (await provoked(settings, method, path) | OF_CONNECTIONS) - UNPROVOKED


@pytest.mark.anyio
@pytest.mark.parametrize(("method", "path"), OPERATORS)
async def test_an_operator_lists_what_can_happen(
    settings: Settings, document: dict[str, Any], method: str, path: str
) -> None:
    listed = set(document["paths"][path][method.lower()]["responses"])

    assert await provoked(settings, method, path) | OF_CONNECTIONS <= listed
    assert "404" not in listed


def test_every_path_answers_what_a_connection_can_do_wrong() -> None:
    starts = [f"{method} {path.replace('{model_name}', 'softmax')}" for method, path in ABOUT + OPERATORS]
    fields = "x: y\r\n" * HEADER_FIELDS
    wrong = [
        *(f"{start} HTTP/1.1\r\n\r\n" for start in starts),
        *(f"{start} HTTP/1.1\r\nHost: local" for start in starts),
        *(f"{start}?{'x' * URL_BYTES} HTTP/1.1\r\nHost: localhost\r\n\r\n" for start in starts),
        *(f"{start} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n" for start in starts),
    ]
    limits = {"head_seconds": 0.3, "look_seconds": 0.05}

    with listening("tcp", "--threads=1", "--device=cpu", limits=limits) as service, ExitStack() as stack:
        connections = [stack.enter_context(service.connect()) for _ in wrong]
        for connection, request in zip(connections, wrong, strict=True):
            connection.sendall(request.encode())
        statuses = [str(read_answer(connection).status) for connection in connections]

    assert statuses == [status for status in sorted(OF_CONNECTIONS) for _ in starts]


@pytest.mark.parametrize(
    ("has_keys", "rate", "never"), [(False, None, {"401", "429"}), (True, None, {"429"}), (True, 1.0, set())]
)
def test_keys_and_rates_are_documented_only_where_there_are_any(
    settings: Settings, has_keys: bool, rate: float | None, never: set[str]
) -> None:
    keys = settings.api_keys if has_keys else None
    document = create_app(Settings(device="cpu", api_keys=keys, rate_per_key=rate)).openapi()

    def statuses(path: str) -> set[str]:
        (operation,) = document["paths"][path].values()
        return set(operation["responses"])

    for path in ("/v1/softmax", "/v1/limits", "/metrics", "/v2", "/v2/models/softmax/infer", "/v2/health/live"):
        assert {"401", "429"} - statuses(path) == never
    assert not {"401", "429"} & statuses("/health/live")
    assert ("`/v2`" in document["info"]["description"].partition("API keys")[2]) == has_keys


def test_codes_of_a_request_with_a_body_are_not_documented_where_there_is_none() -> None:
    document = create_app(Settings(device="cpu")).openapi()

    def codes(path: str, status: str) -> Any:
        reference = document["paths"][path]["get"]["responses"][status]["$ref"]
        return document["components"]["responses"][reference.rpartition("/")[2]]["description"]

    assert "`malformed-json`" not in codes("/v1/limits", "400") + codes("/v2", "400")
    assert "`overloaded`" not in codes("/v1/limits", "503") + codes("/v2", "503")
