"""Under load every request gets an answer in time or an orderly refusal, and all that it held is given back."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.engine.scheduler import Engine
from service.http.permits import BUFFER_SLACK_BYTES
from service.ops import OPERATORS
from service.settings import Settings
from tests.http.calling import JSON, SAFETENSORS, check_problem, client_of, safetensors_file
from tests.support.raw_http import read_answer
from tests.support.running import running_service

MB = 1 << 20
SOFTMAX = OPERATORS["softmax"]

pytestmark = pytest.mark.anyio


def tensor_body(rows: int, classes: int = 1024) -> bytes:
    """Return softmax logits of zeros as safetensors, 4 KiB a row of 1024 classes."""
    size = rows * classes * 4
    header = f'{{"logits":{{"dtype":"F32","shape":[{rows},{classes}],"data_offsets":[0,{size}]}}}}'
    return safetensors_file(header, bytes(size))


LARGE = tensor_body(1024)
"""4 MiB: computed by a worker, in two blocks."""


class Held:
    """A softmax whose blocks wait until they are let through."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.open = threading.Event()
        self.blocks = 0

    def forward(self, rows: Any, options: Any, out: Any) -> None:
        if rows.count > 100:
            self.blocks += 1
            self.begun.release()
            assert self.open.wait(30)
        SOFTMAX.forward(rows, options, out)

    async def wait_until_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=30)


@pytest.fixture
async def held() -> AsyncIterator[Held]:
    held = Held()
    yield held
    held.open.set()


@pytest.fixture
def app_with(held: Held) -> Callable[..., FastAPI]:
    def create(**settings: Any) -> FastAPI:
        operator = dataclasses.replace(SOFTMAX, forward=held.forward)
        return create_app(Settings(threads=1, device="cpu", **settings), {"softmax": operator})

    return create


async def ask(app: FastAPI, body: bytes = LARGE, **headers: str) -> httpx.Response:
    async with client_of(app) as client:
        return await client.post("/v1/softmax", content=body, headers=SAFETENSORS | headers)


def assert_at_rest(app: FastAPI) -> None:
    engine: Engine = app.state.engine
    assert (app.state.budget.reserved, app.state.budget.waiting) == (0, 0)
    assert len(engine.backlog) == 0
    assert app.state.service.in_flight == 0


async def metric(app: FastAPI, name: str) -> float:
    async with client_of(app) as client:
        text = (await client.get("/metrics")).text
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name + " ")))


def teach(app: FastAPI, seconds: float, body: bytes = LARGE) -> None:
    """Let the service have learnt that a body takes so many seconds."""
    backlog = app.state.engine.backlog
    ticket = backlog.admit(("softmax", "safetensors"), len(body))
    ticket.spent = seconds
    backlog.leave(ticket, is_done=True)


async def test_work_beyond_the_queue_is_refused_at_once_and_the_rest_is_answered(
    app_with: Callable[..., FastAPI], held: Held
) -> None:
    app = app_with(queue_seconds=1.0)
    teach(app, 0.4)
    tasks = [asyncio.create_task(ask(app)) for _ in range(3)]
    await held.wait_until_begun()
    assert await metric(app, "loss_queue_requests") == 3
    assert await metric(app, "loss_queue_seconds") > 0

    refused = await ask(app)
    held.open.set()
    answers = await asyncio.gather(*tasks)

    problem = check_problem(refused, code="overloaded")
    assert problem["status"] == 503
    assert problem["detail"].startswith("The work ahead of this request would take longer than 1 s; send it again in ")
    assert 1 <= int(refused.headers["Retry-After"]) <= 5
    assert [answer.status_code for answer in answers] == [200] * 3
    assert_at_rest(app)


async def test_what_would_miss_its_callers_deadline_is_refused_at_once(
    app_with: Callable[..., FastAPI], held: Held
) -> None:
    app = app_with(queue_seconds=100.0)
    teach(app, 2.0)
    task = asyncio.create_task(ask(app))
    await held.wait_until_begun()

    started = time.monotonic()
    refused = await ask(app, **{"X-Request-Timeout-Ms": "3000"})
    seconds = time.monotonic() - started
    held.open.set()

    problem = check_problem(refused, code="overloaded")
    assert problem["detail"].startswith("This request would not be answered within its 3000 ms")
    assert problem["limit"] == 3000
    assert seconds < 2.0
    assert (await task).status_code == 200
    assert_at_rest(app)


async def test_past_its_deadline_a_request_is_given_up_between_blocks(
    app_with: Callable[..., FastAPI], held: Held
) -> None:
    app = app_with()
    task = asyncio.create_task(ask(app, **{"X-Request-Timeout-Ms": "2000"}))
    await held.wait_until_begun()
    await asyncio.sleep(2.1)
    held.open.set()

    late = await task

    assert check_problem(late, code="deadline-exceeded")["status"] == 504
    assert late.json()["detail"] == "The request was not answered within its 2000 ms, and has been given up."
    assert held.blocks == 1
    assert_at_rest(app)


async def test_the_services_own_deadline_holds_for_those_who_name_none(
    app_with: Callable[..., FastAPI], held: Held
) -> None:
    app = app_with(deadline_seconds=0.1)
    task = asyncio.create_task(ask(app))
    await asyncio.sleep(0.2)
    held.open.set()

    check_problem(await task, code="deadline-exceeded")


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "soon", "", " ", "1e3", "\u0661", "86400001", "9" * 19])
async def test_a_deadline_that_is_no_number_of_milliseconds_is_refused(client: httpx.AsyncClient, text: str) -> None:
    headers = {**JSON, "X-Request-Timeout-Ms": text.encode()}

    problem = check_problem(
        await client.post("/v1/softmax", content=b'{"logits": [1, 2]}', headers=headers), code="invalid-option"
    )

    assert "X-Request-Timeout-Ms" in problem["detail"]
    assert "pointer" not in problem


@pytest.mark.parametrize("text", ["60000", "060000", "86400000"])
async def test_a_long_deadline_is_taken(client: httpx.AsyncClient, text: str) -> None:
    headers = JSON | {"X-Request-Timeout-Ms": text}

    assert (await client.post("/v1/softmax", content=b'{"logits": [1, 2]}', headers=headers)).status_code == 200


async def test_requests_wait_for_memory_and_are_answered_when_there_is_some(
    app_with: Callable[..., FastAPI], held: Held
) -> None:
    app = app_with(memory_budget=16 * MB, queue_seconds=30.0)
    tasks = [asyncio.create_task(ask(app)) for _ in range(8)]
    await held.wait_until_begun()
    reserved = await metric(app, "loss_memory_reserved_bytes")
    assert 3 * len(LARGE) <= reserved <= 16 * MB == await metric(app, "loss_memory_budget_bytes")
    assert app.state.budget.waiting == 5

    held.open.set()

    assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [200] * 8
    assert await metric(app, "loss_memory_reserved_bytes") == 0
    assert_at_rest(app)


async def test_who_finds_no_memory_in_time_is_told_when_to_come_again(
    app_with: Callable[..., FastAPI], held: Held
) -> None:
    app = app_with(memory_budget=16 * MB, queue_seconds=0.2)
    body = tensor_body(3 * 1024)
    task = asyncio.create_task(ask(app, body))
    await held.wait_until_begun()

    refused = await ask(app, body)
    small = await ask(app, tensor_body(1))
    held.open.set()

    problem = check_problem(refused, code="memory-budget")
    assert problem["status"] == 503
    assert problem["detail"].startswith("Other requests hold the memory that this one needs; send it again in ")
    assert 1 <= int(refused.headers["Retry-After"]) <= 5
    assert small.status_code == 200
    assert (await task).status_code == 200
    assert_at_rest(app)


async def test_a_body_is_not_read_while_its_request_waits_for_memory(
    app_with: Callable[..., FastAPI], held: Held
) -> None:
    app = app_with(memory_budget=16 * MB, queue_seconds=30.0)
    read: list[int] = []

    async def watched() -> AsyncIterator[bytes]:
        for start in range(0, len(LARGE), 1 << 16):
            read.append(start)
            yield LARGE[start : start + (1 << 16)]

    first = asyncio.create_task(ask(app, tensor_body(3 * 1024)))
    await held.wait_until_begun()
    async with client_of(app) as client:
        headers = SAFETENSORS | {"Content-Length": str(len(LARGE))}
        second = asyncio.create_task(client.post("/v1/softmax", content=watched(), headers=headers))
        await asyncio.sleep(0.1)
        assert not read
        held.open.set()
        assert (await second).status_code == 200
    assert (await first).status_code == 200
    assert_at_rest(app)


async def test_a_body_without_a_length_takes_memory_as_it_comes(app_with: Callable[..., FastAPI], held: Held) -> None:
    app = app_with(memory_budget=16 * MB)
    held.open.set()
    seen: list[int] = []

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(LARGE), 1 << 18):
            yield LARGE[start : start + (1 << 18)]
            seen.append(app.state.budget.reserved)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    async with client_of(app) as client:
        answer = await client.post("/v1/softmax", content=pieces(), headers=SAFETENSORS)
        refused = await client.post("/v1/softmax", content=endless(), headers=SAFETENSORS)

    assert answer.status_code == 200
    assert all(
        (number + 1) << 18 <= reserved + BUFFER_SLACK_BYTES <= ((number + 1) << 18) + 2 * MB + BUFFER_SLACK_BYTES
        for number, reserved in enumerate(seen)
    )
    assert check_problem(refused, code="content-too-large")["limit"] == 16 * MB
    assert_at_rest(app)


async def test_json_is_reckoned_by_its_numbers_before_it_is_decoded(app_with: Callable[..., FastAPI]) -> None:
    app = app_with(memory_budget=64 * MB)
    dense = b'{"logits":[' + b",".join([b"0"] * (1 << 20)) + b"]}"

    async with client_of(app) as client:
        refused = await client.post("/v1/softmax", content=dense + b" " * (4 * MB), headers=JSON)
        sparse = await client.post("/v1/softmax", content=b'{"logits":[0, 1]' + b" " * (6 * MB) + b"}", headers=JSON)

    problem = check_problem(refused, code="content-too-large")
    assert problem["limit"] == 64 * MB
    assert "all requests together may hold" in problem["detail"]
    assert sparse.status_code == 200
    assert_at_rest(app)


@pytest.mark.parametrize("body", [b"{", b'{"logits": "x"}', b'{"logits": [[1, 2], [3]]}', b'{"logits": ["NaN"]}'])
async def test_a_refused_request_gives_back_what_it_held(app_with: Callable[..., FastAPI], body: bytes) -> None:
    app = app_with()
    async with client_of(app) as client:
        for padding in (0, MB):
            answer = await client.post("/v1/softmax", content=body + b" " * padding, headers=JSON)
            assert 400 <= answer.status_code < 500

    assert_at_rest(app)


async def test_health_and_metrics_answer_whatever_the_load(app_with: Callable[..., FastAPI], held: Held) -> None:
    app = app_with(memory_budget=16 * MB, queue_seconds=0.5)
    tasks = [asyncio.create_task(ask(app)) for _ in range(20)]
    await held.wait_until_begun()

    async with client_of(app) as client:
        for path in ("/health/live", "/metrics", "/v1/limits", "/health/live"):
            started = time.monotonic()
            assert (await client.get(path)).status_code == 200
            assert time.monotonic() - started < 1.0

    await asyncio.sleep(0.7)
    held.open.set()
    assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200, 503}
    assert_at_rest(app)


async def test_the_limits_say_what_a_client_needs_to_know(client: httpx.AsyncClient) -> None:
    limits = (await client.get("/v1/limits")).json()

    assert limits["queue_seconds"] == 1.0
    assert limits["deadline_seconds"] == 60.0
    assert limits["memory_budget_bytes"] > 0


async def test_a_caller_who_leaves_stops_his_work_at_the_next_block(
    app_with: Callable[..., FastAPI], held: Held
) -> None:
    app = app_with()
    left = asyncio.Event()
    sent = [{"type": "http.request", "body": LARGE, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if sent:
            return sent.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(_: object) -> None:
        raise AssertionError("nobody is there to be answered")

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/x-safetensors")]
    headers.append((b"content-length", b"%d" % len(LARGE)))
    scope = {"type": "http", "method": "POST", "path": "/v1/softmax", "headers": headers, "query_string": b""}
    scope |= {"http_version": "1.1", "root_path": "", "asgi": {"version": "3.0"}, "scheme": "http"}
    answered = asyncio.create_task(app(scope, receive, send))
    await held.wait_until_begun()
    left.set()
    await asyncio.sleep(0.05)
    assert app.state.budget.reserved > 0, "a worker is still in the memory"
    held.open.set()
    await answered

    assert held.blocks == 1
    assert_at_rest(app)


def test_who_is_refused_for_want_of_memory_keeps_his_connection_however_long_his_body_is() -> None:
    body = tensor_body(3 * 1024)
    head = (
        "POST /v1/softmax HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-safetensors\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    flags = ("--threads", "1", "--memory-budget", str(16 * MB), "--queue-seconds", "0.3")
    with running_service(*flags) as service:
        service.wait_until_ready()
        with socket.create_connection(("127.0.0.1", service.port), 30) as holder:
            holder.sendall(head + body[:MB])
            time.sleep(0.5)
            with socket.create_connection(("127.0.0.1", service.port), 30) as refused:
                refused.sendall(head + body)
                received = bytearray()
                first = read_answer(refused, received=received)
                holder.close()
                time.sleep(0.5)
                refused.sendall(head + body)
                second = read_answer(refused, received=received)

    assert (first.status, second.status) == (503, 200)
    assert b'"code":"memory-budget"' in first.body
