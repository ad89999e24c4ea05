"""The application without a server: a request goes in as bytes, the answer comes out, and nothing lies in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI

from tests.support.raw_http import Answer


async def ask_straight(app: FastAPI, request: bytes, *, headers: list[tuple[bytes, bytes]] | None = None) -> Answer:
    """Return the answer to a request as it would stand on the wire; `headers` replace those that stand there."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    method, target, _ = first.split(b" ", 2)
    path, _, query = target.partition(b"?")
    if headers is None:
        headers = [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines)]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method.decode(),
        "scheme": "http",
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    received = [{"type": "http.request", "body": body, "more_body": False}]
    status = 0
    answered: dict[str, str] = {}
    pieces: list[bytes] = []

    async def receive() -> dict[str, Any]:
        if not received:
            await asyncio.Event().wait()  # who asked stays
        return received.pop()

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            answered.update({name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]})
        else:
            pieces.append(bytes(message.get("body", b"")))

    await app(scope, receive, send)
    return Answer(status, answered, b"".join(pieces))


@contextlib.asynccontextmanager
async def started(app: FastAPI) -> AsyncIterator[FastAPI]:
    """Run the application's own start and end around a block."""
    async with app.router.lifespan_context(app):
        yield app
