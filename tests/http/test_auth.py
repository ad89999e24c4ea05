"""API keys: nothing but the pages and probes is answered without one, and none may be used too often."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import get_route_path

from service import explorer
from service.__main__ import EXIT_CONFIGURATION, greeting, main
from service.app import create_app
from service.engine.scheduler import Engine
from service.errors import RateLimited, Unauthorized
from service.http.auth import MOST_KEYS, OPEN_PATHS, Bucket, Keys, KeysUnusableError, read_keys
from service.http.exchange import path_of
from service.http.pages import ASSETS
from service.settings import Settings
from tests.http.calling import ENDPOINTS, JSON, body_of, check_problem, client_of
from tests.support.running import running_service

anyio = pytest.mark.anyio

KEY, OTHER = "first-key-of-the-test", "second-key-of-the-test!"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# who: alice\n\n  {KEY}\r\n{OTHER}\n{KEY}\n")
    return path


@pytest.fixture(scope="module")
def closed(key_file: Path) -> FastAPI:
    """A service with two keys."""
    return create_app(Settings(threads=1, device="cpu", api_keys=key_file))


@pytest.fixture
async def stranger(closed: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody without a key."""
    async with client_of(closed) as client:
        yield client


def scope_of(
    raw_path: str, method: str = "GET", *headers: tuple[bytes, bytes], root_path: str = "", body: bytes = b""
) -> dict[str, Any]:
    """Return what uvicorn tells an application of a request whose target is `raw_path`."""
    return {
        "type": "http",
        "method": method,
        "path": root_path + unquote(raw_path),
        "raw_path": (root_path + raw_path).encode(),
        "root_path": root_path,
        "query_string": b"",
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *headers,
        ],
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
        "asgi": {"version": "3.0"},
    }


async def status_of(app: FastAPI, scope: dict[str, Any], body: bytes = b"") -> int:
    statuses: list[int] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, send)
    assert len(statuses) == 1
    return statuses[0]


def mutations(path: str) -> list[str]:
    """Return ways to write a path that something in between may take for the path itself, or for an open one."""
    head, _, tail = path.rpartition("/")
    encoded = "".join(f"%{ord(character):02x}" for character in path[1:])
    return [
        path,
        path + "/",
        path + "//",
        path + "/.",
        path + "/..",
        path + "%2f",
        path + "%2F",
        path + "%00",
        path + "%0a",
        path + "%0d%0a",
        path + "%20",
        path + "%09",
        path + "%3f",
        path + "%23",
        path + ";",
        path + ";/docs",
        path + "/../docs",
        path + "%2f..%2fdocs",
        path + "\\..\\docs",
        path + "%ff",
        path.upper(),
        path.title(),
        "/" + path,
        "//" + path,
        "/." + path,
        "/.." + path,
        "/x/.." + path,
        "/%2e" + path,
        "/%2e%2e" + path,
        "/docs/.." + path,
        "/docs" + path,
        "/docs/..%2f" + path[1:],
        "/docs/%2e%2e" + path,
        "/docs/%2e%2e%2f" + path[1:],
        "/problems/.." + path,
        "/problems/%2e%2e/" + path[1:],
        "/health/live/.." + path,
        "/health/live" + path,
        "/explore/.." + path,
        "/loss" + path,
        "/" + encoded,
        "/%2f" + path[1:],
        "%2f" + path[1:],
        f"{head}/%{ord(tail[0]):02x}{tail[1:]}",
        f"{head}/%25{ord(tail[0]):02x}{tail[1:]}",
        f"{head}//{tail}",
        f"{head}/./{tail}",
        f"{head}%2f{tail}",
        path[1:],
        "",
        "*",
        "http://127.0.0.1" + path,
    ]


INFER = "/v2/models/cross_entropy/infer"
ROUTES = sorted(
    {*(endpoint.path for endpoint in ENDPOINTS), "/v1/operators", "/v1/limits", "/metrics", "/v1/nothing", INFER}
)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "post", "BREW", ""]


def test_the_routes_below_are_all_that_are_closed(closed: FastAPI) -> None:
    documented = {path for path in closed.openapi()["paths"] if not path.startswith("/v2")}

    assert documented - OPEN_PATHS == set(ROUTES) - {"/v1/nothing", INFER}
    assert len(mutations("/v1/softmax")) > 40


@anyio
async def test_nothing_below_v2_is_open(closed: FastAPI) -> None:
    paths = [path for path in closed.openapi()["paths"] if path.startswith("/v2")]

    for path in ("/v2/nothing", "/v2/health/nothing", *(path.replace("{model_name}", "softmax") for path in paths)):
        for method in ("GET", "POST"):
            assert await status_of(closed, scope_of(path, method)) == 401, path


@anyio
@pytest.mark.parametrize("root_path", ["", "/loss"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", ROUTES)
async def test_no_way_to_write_a_path_gets_past_the_keys(
    closed: FastAPI, monkeypatch: pytest.MonkeyPatch, path: str, method: str, root_path: str
) -> None:
    monkeypatch.setattr(Engine, "submit", lambda *_: pytest.fail("it is computed"))
    found = [endpoint for endpoint in ENDPOINTS if endpoint.path == path]
    body = body_of(found[0].valid()) if found else b""

    for raw_path in mutations(path):
        for headers in ((), ((b"authorization", b"Bearer " + b"x" * 20),)):
            scope = scope_of(raw_path, method, *headers, root_path=root_path, body=body)
            assert await status_of(closed, scope, body) in (401, 404, 405), raw_path


@anyio
@pytest.mark.parametrize("path", [*OPEN_PATHS, "/docs/docs.js", "/problems/unauthorized"])
async def test_an_open_path_written_otherwise_is_not_open(closed: FastAPI, path: str) -> None:
    for raw_path in mutations(path if path != "/" else "/docs"):
        if raw_path not in (path, "/docs", "/docs/..", path + "/", "/docs" + path):
            assert await status_of(closed, scope_of(raw_path)) in (401, 404, 405), raw_path


@anyio
@pytest.mark.parametrize(
    "path",
    [
        *sorted(OPEN_PATHS),
        *(f"/docs/{name}" for name in ASSETS),
        *(f"/explore/{name}" for name in explorer.ASSETS),
        "/problems/unauthorized",
    ],
)
async def test_pages_and_probes_need_no_key(stranger: httpx.AsyncClient, path: str) -> None:
    got, head = await stranger.get(path), await stranger.head(path)

    assert got.status_code == head.status_code == (503 if path == "/health/ready" else 200)


@anyio
async def test_what_is_open_but_not_there_is_not_found(stranger: httpx.AsyncClient) -> None:
    for path in ("/docs/nothing", "/problems/nothing", "/explore/nothing", "/health/nothing"):
        check_problem(await stranger.get(path), code="not-found")
    for path in ("/docs/a/b", "/problems/a/b", "/explore/a/b", "/health/a/b", "/docsearch", "/nothing"):
        check_problem(await stranger.get(path), code="unauthorized")


@anyio
@pytest.mark.parametrize("raw_path", [b"", b"/v1/softmax", None])
async def test_a_server_that_does_not_tell_how_a_path_was_written_opens_nothing(
    closed: FastAPI, raw_path: bytes | None
) -> None:
    scope = scope_of("/docs") | {"raw_path": raw_path}

    assert await status_of(closed, scope) == 401


@pytest.mark.parametrize("root_path", ["", "/loss", "/a/b"])
def test_paths_are_judged_as_the_router_sees_them(root_path: str) -> None:
    for path in ("/docs", "/loss", "/loss/docs", "/lossdocs", "/loss/", "/a/bc", "/a/b/c", "", "/a/b"):
        for scope in ({"path": path, "root_path": root_path}, {"path": root_path + path, "root_path": root_path}):
            assert path_of(scope) == get_route_path(scope)


@anyio
@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {OTHER}", f"BEARER   {KEY} ", f"bEaReR {OTHER}"])
async def test_a_key_opens_everything(stranger: httpx.AsyncClient, header: str) -> None:
    headers = {**JSON, "Authorization": header}

    assert (await stranger.post("/v1/softmax", json={"logits": [1.0]}, headers=headers)).status_code == 200
    assert (await stranger.get("/metrics", headers=headers)).status_code == 200
    check_problem(await stranger.get("/nothing", headers=headers), code="not-found")
    check_problem(await stranger.delete("/v1/softmax", headers=headers), code="method-not-allowed")


@anyio
@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ([], "This path needs an API key; send it as Authorization: Bearer KEY."),
        ([""], "The API key must come in one Authorization header, as Bearer KEY."),
        ([KEY], "The API key must come in one Authorization header, as Bearer KEY."),
        (["Bearer"], "The API key must come in one Authorization header, as Bearer KEY."),
        (["Bearer  "], "The API key must come in one Authorization header, as Bearer KEY."),
        ([f"Basic {KEY}"], "The API key must come in one Authorization header, as Bearer KEY."),
        ([f"Bearer {KEY}", f"Bearer {KEY}"], "The API key must come in one Authorization header, as Bearer KEY."),
        ([f"Bearer {KEY}x"], "The API key is not one that this service knows."),
        ([f"Bearer {KEY[:-1]}"], "The API key is not one that this service knows."),
        ([f"Bearer {KEY.upper()}"], "The API key is not one that this service knows."),
        ([f"Bearer {KEY}, {OTHER}"], "The API key is not one that this service knows."),
        ([f"Bearer {sha256(KEY.encode()).hexdigest()}"], "The API key is not one that this service knows."),
        (["Bearer # who: alice"], "The API key is not one that this service knows."),
        (["Bearer " + "x" * 5000], "The API key is not one that this service knows."),
        (["Bearer \xe9\xff"], "The API key is not one that this service knows."),
    ],
)
async def test_whoever_brings_no_key_is_told_how(stranger: httpx.AsyncClient, headers: list[str], detail: str) -> None:
    authorization = [(b"Authorization", value.encode("latin-1")) for value in headers]

    response = await stranger.post(
        "/v1/softmax", content=b"{", headers=[(b"Content-Type", b"application/json"), *authorization]
    )

    problem = check_problem(response, code="unauthorized")
    assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert problem["detail"] == detail
    assert KEY[:8] not in response.text


def test_every_key_is_compared_with_and_the_comparison_tells_no_time() -> None:
    body = ast.parse(textwrap.dedent(inspect.getsource(Keys._place_of))).body[0]
    (loop,) = [node for node in ast.walk(body) if isinstance(node, ast.For)]

    assert not [node for node in ast.walk(loop) if isinstance(node, (ast.Return, ast.Break, ast.Raise, ast.Continue))]
    assert "hmac.compare_digest" in ast.unparse(loop)
    assert "==" not in ast.unparse(body)


def test_only_digests_are_kept(key_file: Path) -> None:
    assert read_keys(key_file) == [sha256(key.encode()).digest() for key in (KEY, OTHER)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no key"),
        (b"\n # nothing\n", "holds no key"),
        (b"# one\nshort-key\n", "line 2 of the file that LOSS_API_KEYS names is not a key: 16 to 256 printable"),
        (b"x" * 257, "line 1 of"),
        (b"sixteen and a space", "line 1 of"),
        (b"sixteen-and-a-tab\tx", "line 1 of"),
        ("sixteen-and-an-\u00e9".encode(), "line 1 of"),
        (b"sixteen-and-a-null\0", "line 1 of"),
        (b"\xef\xbb\xbfa-key-after-a-mark", "line 1 of"),
        (b"".join(b"one-of-many-keys-%d\n" % number for number in range(MOST_KEYS + 1)), "holds more than 1000 keys"),
    ],
)
def test_a_file_that_is_no_good_is_a_refusal_to_start_in_one_line_without_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    monkeypatch.setattr("service.http.server.run", lambda *_: pytest.fail("it starts"))
    path = tmp_path / "keys"
    path.write_bytes(content)

    status = main(["serve", "--api-keys", str(path)])

    output = capsys.readouterr().err
    assert status == EXIT_CONFIGURATION
    assert said in output
    assert output.count("\n") == 1
    assert "sixteen" not in output
    assert "one-of-many" not in output


def test_the_longest_and_the_shortest_key_and_the_most_keys_will_do(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"x" * 256 + b"\n" + b"!" * 16 + b"\n")

    assert len(read_keys(path)) == 2


def test_a_key_given_in_place_of_the_file_is_not_repeated() -> None:
    for name in (KEY, "k" * 300):
        with pytest.raises(KeysUnusableError) as refused:
            read_keys(Path(name))
        assert name not in str(refused.value)


def test_a_file_that_is_gone_later_lets_nobody_in(tmp_path: Path) -> None:
    with pytest.raises(KeysUnusableError, match="there is no such file"):
        create_app(Settings(device="cpu", api_keys=tmp_path / "gone"))


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("rate", "burst"), [(0.1, 1), (1.0, 1), (2.5, 2), (100.0, 100)])
def test_a_second_of_requests_may_come_at_once_and_then_as_many_as_the_rate(rate: float, burst: int) -> None:
    bucket = Bucket(rate, 0.0)

    at_once = sum(bucket.take(0.0) == 0.0 for _ in range(1000))
    later = sum(bucket.take(step / (rate * 10)) == 0.0 for step in range(1, 1001))

    assert at_once == burst
    assert later in (99, 100, 101)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.7, 1.0, 3.0, 7.0, 99.0])
def test_whoever_waits_as_long_as_told_is_let_in(rate: float) -> None:
    bucket, now = Bucket(rate, 0.0), 0.0
    for _ in range(1000):
        if wait := bucket.take(now):
            now += wait
            assert bucket.take(now) == 0.0


def test_a_rate_holds_for_each_key_alone_and_unknown_keys_use_up_nothing() -> None:
    clock = Clock()
    keys = Keys([sha256(key.encode()).digest() for key in (KEY, OTHER)], 0.4, clock)
    first, second, unknown = (
        scope_of("/v1/softmax", "POST", (b"authorization", b"Bearer " + key.encode())) for key in (KEY, OTHER, "x" * 20)
    )
    keys.check(first)
    with pytest.raises(RateLimited) as refused:
        keys.check(first)
    with pytest.raises(Unauthorized):
        keys.check(unknown)
    keys.check(second)
    clock.now += 2.5
    keys.check(first)

    assert refused.value.seconds == 3


@anyio
async def test_too_many_requests_are_told_when_to_come_again(key_file: Path) -> None:
    app = create_app(Settings(threads=1, device="cpu", api_keys=key_file, rate_per_key=0.25))
    async with client_of(app) as client:
        first = await client.post("/v1/softmax", json={"logits": [1.0]}, headers=BEARER)
        second = await client.post("/v1/softmax", json={"logits": [1.0]}, headers=BEARER)
        page = await client.get("/docs", headers=BEARER)

    assert (first.status_code, page.status_code) == (200, 200)
    problem = check_problem(second, code="rate-limited")
    assert second.status_code == 429
    assert second.headers["Retry-After"] == "4"
    assert problem["detail"] == (
        "There are more requests with this API key than the 0.25 a second that it may send; send this one again in 4 s."
    )


def test_each_worker_holds_its_share_of_the_rate(key_file: Path) -> None:
    share = Settings(api_keys=key_file, rate_per_key=10, workers=4).share()
    keys = Keys(read_keys(key_file), share.rate_per_key, Clock(), workers=share.workers)
    scope = scope_of("/v1/softmax", "POST", (b"authorization", b"Bearer " + KEY.encode()))

    keys.check(scope)
    keys.check(scope)
    with pytest.raises(RateLimited, match="than the 10 a second") as refused:
        keys.check(scope)

    assert (share.rate_per_key, refused.value.seconds) == (2.5, 1)
    assert Settings(api_keys=key_file, workers=4).share().rate_per_key is None


@anyio
async def test_refusals_are_counted_at_the_operator_they_were_for(stranger: httpx.AsyncClient) -> None:
    async def refused() -> list[str]:
        text = (await stranger.get("/metrics", headers=BEARER)).text
        return [
            line.rpartition(" ")[2]
            for line in text.splitlines()
            if line.startswith("loss_requests_total{")
            and all(word in line for word in ('"unauthorized"', '"softmax"', 'gradient="true"', '"json"'))
        ]

    (before,) = await refused()
    await stranger.post("/v1/softmax/gradient", content=b"{}")
    await stranger.get("/v1/softmax/gradient")
    await stranger.post("/v1/nothing", content=b"{}")
    (after,) = await refused()

    assert float(after) == float(before) + 1


def test_no_key_gets_into_the_log_or_the_pages(key_file: Path) -> None:
    presented = "a-key-that-nobody-knows"
    with running_service(f"--api-keys={key_file}", "--log-level=debug", "--drain-seconds=1", "--threads=1") as service:
        service.wait_until_ready()
        for key in (KEY, presented):
            headers = {"Authorization": f"Bearer {key}"}
            pages = [
                httpx.get(service.address + path, headers=headers).text for path in ("/", "/openapi.json", "/metrics")
            ]
            httpx.post(f"{service.address}/v1/softmax?key={key}", json={"logits": [1]}, headers=headers)
        long = httpx.post(service.address + "/v1/softmax", content=b" " * 1_000_000)
        assert service.stop() == 0
        seen = service.log() + "".join(pages)

    assert (long.status_code, long.headers["connection"]) == (401, "close")
    for key in (KEY, OTHER, presented):
        assert key not in seen
        assert sha256(key.encode()).hexdigest() not in seen
    assert '"code": "unauthorized"' in seen


@anyio
async def test_with_keys_the_document_says_so_and_without_it_does_not(
    stranger: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    document = (await stranger.get("/openapi.json")).json()
    plain = (await client.get("/openapi.json")).json()

    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["security"] == [{"key": []}]
    for path, item in document["paths"].items():
        for operation in item.values():
            assert operation.get("security") == ([] if path in OPEN_PATHS else None)
            assert ("401" in operation["responses"]) == (path not in OPEN_PATHS)
    assert "securitySchemes" not in plain["components"]
    assert "security" not in plain


@anyio
async def test_with_keys_what_is_there_to_be_pasted_has_a_place_for_one(
    stranger: httpx.AsyncClient, client: httpx.AsyncClient, key_file: Path
) -> None:
    assert "-H &#x27;Authorization: Bearer KEY&#x27;" in (await stranger.get("/")).text
    assert "Authorization" not in (await client.get("/")).text
    assert "-H 'Authorization: Bearer KEY' -H" in greeting("http://a", Settings(api_keys=key_file))
    assert "Authorization" not in greeting("http://a", Settings())
