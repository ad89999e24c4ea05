"""What Ray's proxies refuse or lose, answered as the service answers: RFC 9457 problems that say when to try again.

Named by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH. Ray's own answers are plain text; and when a replica dies with a
request there is none at all, only a 500 that uvicorn makes up. Requests have no side effects, so any of these may be
sent again. This runs in every proxy: it imports neither the service nor torch.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

RAYS_OWN_PATHS = "/-/"
"""Where the proxies answer for themselves: health and routes."""

ACCEPTED_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""The request ids that the service echoes; it replaces others, and Ray would not."""


@dataclass(frozen=True)
class Refusal:
    """One way not to be answered by a replica."""

    status: int
    code: str
    title: str
    detail: str
    retry_after_seconds: int | None = 1

    def messages(self, request_id: str, retry_after: bytes | None) -> list[Message]:
        """Return the ASGI messages of the answer; Ray's own Retry-After goes before ours."""
        problem = {
            "type": f"/problems/{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        body = json.dumps(problem, separators=(",", ":")).encode()
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id.encode()),
        ]
        if self.retry_after_seconds is not None:
            headers.append((b"retry-after", retry_after or b"%d" % self.retry_after_seconds))
        return [
            {"type": "http.response.start", "status": self.status, "headers": headers},
            {"type": "http.response.body", "body": body, "more_body": False},
        ]


OVERLOADED = Refusal(
    503,
    "overloaded",
    "The service has more work than it can take",
    "All replicas are busy and enough requests wait already; send this one again in a moment.",
)
ENGINE_RESTARTING = Refusal(
    503,
    "engine-restarting",
    "The engine is being replaced",
    "The replica that had this request has died and is being replaced; send it again in a moment.",
)
DEADLINE_EXCEEDED = Refusal(
    504,
    "deadline-exceeded",
    "The time for the request is over",
    "The request was not answered within request_timeout_s of the proxies.",
    None,
)

BY_STATUS = {408: DEADLINE_EXCEEDED, 429: OVERLOADED, 503: OVERLOADED}
"""Which refusal each of Ray's own answers is."""


def middlewares() -> list[Middleware]:
    """Return what every proxy of the cluster puts around its requests."""
    return [Middleware(Problems)]


class Problems:
    """ASGI middleware: Ray's refusals become problems, and an answer has one X-Request-Id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(RAYS_OWN_PATHS):
            await self._app(scope, receive, send)
            return
        answer = Answer(send, put_request_id(scope))
        await self._app(scope, receive, answer.send)
        await answer.finish()


class Answer:
    """One answer on its way: the replica's as it is, Ray's as a problem."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._is_started = False
        self._is_replaced = False

    async def send(self, message: Message) -> None:
        """Pass a message on, or replace it."""
        if message["type"] == "http.response.start":
            self._is_started = True
            headers = {bytes(name): bytes(value) for name, value in message["headers"]}
            refusal = BY_STATUS.get(message["status"])
            if refusal is not None and headers.get(b"content-type", b"").startswith(b"text/plain"):
                self._is_replaced = True
                await self._send_all(refusal, headers.get(b"retry-after"))
                return
            kept = [(name, value) for name, value in message["headers"] if bytes(name).lower() != b"x-request-id"]
            message = {**message, "headers": [*kept, (b"x-request-id", self._request_id.encode())]}
        if not self._is_replaced:
            await self._send(message)

    async def finish(self) -> None:
        """Answer a request that nobody has answered: its replica died, and Ray does not send it to another."""
        if not self._is_started:
            await self._send_all(ENGINE_RESTARTING, None)

    async def _send_all(self, refusal: Refusal, retry_after: bytes | None) -> None:
        for message in refusal.messages(self._request_id, retry_after):
            await self._send(message)


def put_request_id(scope: Scope) -> str:
    """Leave exactly one X-Request-Id in a request, the caller's if it is accepted, and return it."""
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    chosen = given[0] if given and ACCEPTED_ID.fullmatch(given[0]) else secrets.token_hex(8).encode()
    others = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    scope["headers"] = [*others, (b"x-request-id", chosen)]
    return chosen.decode()
