"""Who waits for a caller learns at once that he has left."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.http.connection import Connection, connection_of
from service.http.guard import GuardedProtocol
from service.http.limits import Limits
from tests.support.raw_http import PATIENCE_SECONDS, read_answer, request, reset

AT_ONCE_SECONDS = 1.0
"""Bound on what takes a millisecond, on a machine that others use too."""


LATE_SECONDS = 1.2
"""How long an endpoint may be busy before it reads a body, far beyond what a body may pause."""

LIMITS = Limits(look_seconds=0.05, body_grace_seconds=0.3, saved_seconds=0.3)


class Endpoint:
    """An application that answers once it is told to, and notes when callers leave."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.left = threading.Semaphore(0)
        self.told: list[str] = []
        self.connections: list[Connection] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = connection_of(scope)
        assert connection is not None
        self.connections.append(connection)
        path: str = scope["path"]
        left = asyncio.Event()
        connection.on_disconnect(lambda: self._note(path, left))
        if path == "/late":
            await asyncio.sleep(LATE_SECONDS)
            while (await receive()).get("more_body"):
                pass
        elif path != "/at-once":
            self.arrived.release()
            await asyncio.wait_for(left.wait(), PATIENCE_SECONDS)
            connection.on_disconnect(lambda: self._note("late", left))
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def _note(self, path: str, left: asyncio.Event) -> None:
        self.told.append(path)
        left.set()
        self.left.release()


@pytest.fixture(params=["uvloop", "asyncio"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Endpoint, Callable[[], socket.socket]]]:
    """Serve the endpoint with the service's protocol, in a thread."""
    endpoint = Endpoint()
    application: Any = endpoint
    config = uvicorn.Config(
        application, port=0, http=GuardedProtocol, ws="none", lifespan="off", loop=request.param, log_config=None
    )
    config.limits = LIMITS  # type: ignore[attr-defined]
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield endpoint, lambda: socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def half_close(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("how", [socket.socket.close, reset, half_close], ids=["FIN", "RST", "half"])
@pytest.mark.parametrize("pipelined", [b"", request("GET", "/at-once")], ids=["", "pipelined"])
def test_who_waits_is_told_once_that_the_caller_has_left(
    served: tuple[Endpoint, Callable[[], socket.socket]], how: Callable[[socket.socket], None], pipelined: bytes
) -> None:
    endpoint, connect = served
    connection = connect()
    connection.sendall(request("GET", "/") + pipelined)
    assert endpoint.arrived.acquire(timeout=PATIENCE_SECONDS)
    time.sleep(0.05)

    started = time.monotonic()
    how(connection)
    assert endpoint.left.acquire(timeout=PATIENCE_SECONDS)
    seconds = time.monotonic() - started

    assert endpoint.left.acquire(timeout=PATIENCE_SECONDS)  # who asks afterwards is told as well
    assert endpoint.told == ["/", "late"]
    assert seconds < AT_ONCE_SECONDS
    connection.close()


def test_nobody_is_told_once_the_answer_is_complete(
    served: tuple[Endpoint, Callable[[], socket.socket]],
) -> None:
    endpoint, connect = served
    for _ in range(3):
        with connect() as connection:
            connection.sendall(request("GET", "/at-once"))
            assert read_answer(connection).body == b"ok"
    time.sleep(0.1)

    assert endpoint.told == []


@pytest.mark.parametrize("how", [socket.socket.close, reset, half_close], ids=["FIN", "RST", "half"])
def test_who_waits_is_told_even_while_nothing_is_read(
    served: tuple[Endpoint, Callable[[], socket.socket]], how: Callable[[socket.socket], None]
) -> None:
    endpoint, connect = served
    connection = connect()
    connection.sendall(request("POST", "/", length=1 << 20) + bytes(100_000))
    assert endpoint.arrived.acquire(timeout=PATIENCE_SECONDS)
    time.sleep(0.1)

    how(connection)

    assert endpoint.left.acquire(timeout=PATIENCE_SECONDS)
    connection.close()


def test_time_in_which_the_service_does_not_read_is_not_the_callers(
    served: tuple[Endpoint, Callable[[], socket.socket]],
) -> None:
    _, connect = served
    with connect() as connection:
        connection.sendall(request("POST", "/late", length=1 << 18) + bytes(1 << 18))

        assert read_answer(connection).body == b"ok"


def test_who_waits_for_leave_to_send_is_not_slow(served: tuple[Endpoint, Callable[[], socket.socket]]) -> None:
    _, connect = served
    with connect() as connection:
        connection.sendall(request("POST", "/late", "Expect: 100-continue", length=5))
        received = bytearray()
        assert read_answer(connection, received=received).status == 100
        connection.sendall(b"hello")

        assert read_answer(connection, received=received).body == b"ok"
