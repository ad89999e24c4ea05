"""What surrounds every request: its id, its log line, and a last resort when the service itself fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Internal, RequestError
from service.http.body import RequestBody, refuse, send_reply
from service.http.connection import connection_of
from service.http.cors import Cors
from service.http.exchange import Exchange, exchange_of, path_of, put_exchange, request_id_in
from service.http.logs import log_request
from service.http.problems import refusal
from service.http.routes import Endpoint
from service.http.state import State
from service.http.telemetry import tell_span

logger = logging.getLogger("service")

ALWAYS_ANSWERED = ("/health/", "/metrics", "/v2/health/")
"""Paths that are answered while everything else is refused."""


class Envelope:
    """ASGI middleware: `X-Request-Id`, the request's log line, who is refused at the door, and 500 for the unforeseen.

    Pages of `origins` may call the service, and read all of that: a preflight comes without a key, a refusal with CORS
    headers.

    Each of `checks` raises a RequestError for a request that must not come in. What is posted to a path of `endpoints`
    goes there straight, all else to `app`; what never gets to its endpoint is counted there all the same.
    With `is_traced`, what is known of a request is told its span.
    """

    def __init__(
        self,
        app: ASGIApp,
        state: State,
        endpoints: Mapping[str, Endpoint[Any]],
        checks: Sequence[Callable[[Scope], None]] = (),
        origins: Sequence[str] = (),
        *,
        is_traced: bool = False,
    ) -> None:
        self._app = app
        self._state = state
        self._checks = checks
        self._endpoints = endpoints
        self._is_traced = is_traced
        self._turns = asyncio.Lock()
        """Lets one page through in each turn of the event loop, so that hundreds at once hold no endpoint up."""
        self._inner: ASGIApp = self._answer
        if origins:
            self._inner = Cors(self._answer, origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(request_id_in(scope["headers"]))
        put_exchange(scope, exchange)
        headers = [(b"x-request-id", exchange.request_id.encode())]
        head_of = None if scope["method"] == "HEAD" else connection_of(scope)

        async def send_enveloped(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                if head_of is not None:
                    head_of.join_head()
                if self._is_traced:
                    tell_span(scope, exchange)
                message["headers"] = [*message.get("headers", ()), *headers]
                if self._state.is_draining and not _closes(message):
                    message["headers"].append((b"connection", b"close"))
            else:
                exchange.sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._inner(scope, receive, send_enveloped)
        finally:
            log_request(scope, exchange)
            if (connection := connection_of(scope)) is not None:
                connection.forget(scope)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        try:
            if error := self._refusal(scope):
                await self._refuse(error, scope, receive, send, exchange)
            elif endpoint := self._endpoint_of(scope):
                await endpoint(scope, receive, send)
            else:
                if not path_of(scope).startswith(ALWAYS_ANSWERED):
                    async with self._turns:
                        await asyncio.sleep(0)
                await self._app(scope, receive, send)
        except Exception:
            logger.exception("request %s failed", exchange.request_id)
            exchange.code = Internal.code
            if exchange.status:
                raise
            await send_reply(send, refusal(Internal("bug", request_id=exchange.request_id), scope))

    def _refusal(self, scope: Scope) -> RequestError | None:
        """Return why a request must not come in, if so."""
        try:
            for check in self._checks:
                check(scope)
        except RequestError as error:
            return error
        if self._state.is_refusing and not path_of(scope).startswith(ALWAYS_ANSWERED):
            return self._state.refusal()
        return None

    async def _refuse(
        self, error: RequestError, scope: Scope, receive: Receive, send: Send, exchange: Exchange
    ) -> None:
        exchange.code = error.code
        await refuse(send, refusal(error, scope), RequestBody(scope, receive))
        if endpoint := self._endpoint_of(scope):
            exchange.format = endpoint.formats[0]
            endpoint.metrics.note(exchange)

    def _endpoint_of(self, scope: Scope) -> Endpoint[Any] | None:
        return self._endpoints.get(path_of(scope)) if scope["method"] == "POST" else None


def _closes(message: Message) -> bool:
    return (b"connection", b"close") in message["headers"]
