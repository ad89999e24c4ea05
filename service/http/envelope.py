"""What surrounds every request: its id, its log line, and a last resort when the service itself fails."""

from __future__ import annotations

import logging
import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Draining, Internal
from service.http.body import send_reply
from service.http.exchange import Exchange, path_of, put_exchange
from service.http.logs import log_request
from service.http.problems import problem
from service.http.state import State

logger = logging.getLogger("service")

_ACCEPTED_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

ALWAYS_ANSWERED = ("/health/", "/metrics")
"""Paths that are answered while everything else is refused."""


class Envelope:
    """ASGI middleware: `X-Request-Id`, the request's log line, refusal while stopping, and 500 for the unforeseen."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(_request_id(scope))
        put_exchange(scope, exchange)
        headers = [(b"x-request-id", exchange.request_id.encode())]

        async def send_enveloped(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *headers]
                if self._state.is_draining and not _closes(message):
                    message["headers"].append((b"connection", b"close"))
            else:
                exchange.sent += len(message.get("body", b""))
            await send(message)

        try:
            if self._state.is_refusing and not path_of(scope).startswith(ALWAYS_ANSWERED):
                exchange.code = Draining.code
                await send_reply(send_enveloped, problem(Draining("draining"), exchange.request_id))
            else:
                await self._app(scope, receive, send_enveloped)
        except Exception:
            logger.exception("request %s failed", exchange.request_id)
            exchange.code = Internal.code
            if exchange.status:
                raise
            error = Internal("bug", request_id=exchange.request_id)
            await send_reply(send_enveloped, problem(error, exchange.request_id))
        finally:
            log_request(scope, exchange)


def _closes(message: Message) -> bool:
    return (b"connection", b"close") in message["headers"]


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ACCEPTED_ID.fullmatch(value):
            return str(value, "ascii")
    return secrets.token_hex(8)
