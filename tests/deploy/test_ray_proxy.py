"""What callers see of Ray's own answers; runs without Ray."""

from __future__ import annotations

from pathlib import Path

import httpx
import loss_on_ray_proxy as proxy
import pytest
import yaml
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.app import create_app
from service.settings import Settings

RAY = Path(__file__).parents[2] / "deploy" / "ray"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def _answering(status: int, content_type: str, body: bytes, *more: tuple[bytes, bytes]) -> ASGIApp:
    """Return an application that answers everything so, with a request id of its own."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", content_type.encode()), (b"X-Request-ID", b"ray's own"), *more]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


async def _ask(app: ASGIApp, path: str = "/v1/softmax", **headers: str) -> httpx.Response:
    (middleware,) = proxy.middlewares()
    wrapped = middleware.cls(app, *middleware.args, **middleware.kwargs)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(wrapped), base_url="http://localhost") as client:
        return await client.post(path, json={"logits": [1.0]}, headers=headers)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "seen", "code"),
    [(503, 503, "overloaded"), (429, 503, "overloaded"), (408, 504, "deadline-exceeded")],
)
async def test_a_refusal_of_rays_becomes_a_problem(status: int, seen: int, code: str) -> None:
    app = _answering(status, "text/plain; charset=utf-8", b"Request dropped due to backpressure")

    answer = await _ask(app, **{"X-Request-Id": "mine"})

    assert answer.status_code == seen == answer.json()["status"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["code"], answer.json()["type"]) == (code, f"/problems/{code}")
    assert answer.json()["request_id"] == "mine"
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert ("retry-after" in answer.headers) == (seen == 503)


@pytest.mark.anyio
async def test_the_retry_after_of_rays_config_is_kept() -> None:
    answer = await _ask(_answering(503, "text/plain", b"", (b"retry-after", b"7")))

    assert answer.headers.get_list("retry-after") == ["7"]


@pytest.mark.anyio
async def test_a_request_that_died_with_its_replica_may_be_sent_again() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """Do as Ray's proxy does when the replica is gone: nothing."""

    answer = await _ask(app)

    assert (answer.status_code, answer.json()["code"]) == (503, "engine-restarting")
    assert answer.headers["retry-after"] == "1"


@pytest.mark.anyio
async def test_an_answer_cut_short_is_not_made_whole() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    await proxy.Problems(app)({"type": "http", "path": "/", "headers": []}, receive, send)

    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[-1]["more_body"]


@pytest.mark.anyio
async def test_rays_own_paths_are_left_alone() -> None:
    answer = await _ask(_answering(503, "text/plain", b"draining"), path="/-/healthz")

    assert (answer.status_code, answer.content) == (503, b"draining")


@pytest.mark.anyio
@pytest.mark.parametrize("given", ["mine", "not accepted", None])
async def test_the_services_answers_pass_with_one_request_id(given: str | None) -> None:
    app = create_app(Settings(device="cpu", threads=1))
    headers = {} if given is None else {"X-Request-Id": given}
    wrong = await _ask(app, path="/v1/softmaxx", **headers)
    right = await _ask(app, **headers)

    (request_id,) = wrong.headers.get_list("x-request-id")

    assert right.json() == {"probs": [1.0]}
    assert (request_id == "mine") == (given == "mine")
    assert wrong.json()["request_id"] == request_id
    assert proxy.ACCEPTED_ID.fullmatch(request_id.encode())


@pytest.mark.anyio
async def test_its_problems_have_the_form_of_the_services_own() -> None:
    own = create_app(Settings(device="cpu", threads=1))
    own.state.service.begin_draining()
    own.state.service.begin_refusing()
    by_the_service = await _ask(own)
    by_the_proxy = await _ask(_answering(503, "text/plain", b""))

    assert list(by_the_proxy.json()) == list(by_the_service.json())
    assert by_the_proxy.headers["content-type"] == by_the_service.headers["content-type"]


def test_the_config_names_what_exists_and_bodies_fit_into_the_memory() -> None:
    config = yaml.safe_load((RAY / "serve.yaml").read_text())
    (application,) = config["applications"]
    (deployment,) = application["deployments"]
    options = deployment["ray_actor_options"]
    variables = options["runtime_env"]["env_vars"]
    callback = config["controller_options"]["runtime_env"]["env_vars"]["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]

    assert int(variables["LOSS_MAX_BODY_BYTES"]) * 2 <= 0.3 * options["memory"]
    assert variables["LOSS_HOST"] == config["http_options"]["host"]
    assert callback == f"{proxy.__name__}.{proxy.middlewares.__name__}"
    module, _, name = application["import_path"].partition(":")
    assert f"\n{name} = " in (RAY / f"{module}.py").read_text()
