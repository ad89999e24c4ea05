"""What pages of other origins may do, and what they are told when they ask for more."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import MalformedRequest, quoted
from service.http.body import send_reply
from service.http.exchange import exchange_of
from service.http.problems import refusal

METHODS = ("GET", "HEAD", "POST")
"""Methods that pages of other origins may use."""

TAKEN_HEADERS = ("Authorization", "X-Request-Id", "X-Request-Timeout-Ms")
"""Headers that they may send, beside those that anyone may."""

SHOWN_HEADERS = ("X-Request-Id", "Server-Timing", "Retry-After")
"""Headers of answers that they may read."""

_OF_TEXT = (b"content-type", b"content-length")


class Cors(CORSMiddleware):
    """Lets pages of `origins` call the service; a preflight that it refuses is answered like any other refusal."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=TAKEN_HEADERS,
            expose_headers=SHOWN_HEADERS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the answer to a preflight."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        reasons = bytes(response.body).decode().removeprefix("Disallowed CORS ").replace(", ", " and ")
        error = MalformedRequest("preflight", got=quoted(request_headers["origin"]), reasons=reasons)
        return _RefusedPreflight(error, [header for header in response.raw_headers if header[0] not in _OF_TEXT])


class _RefusedPreflight(Response):
    """The refusal, in the form of the path that the preflight is for."""

    def __init__(self, error: MalformedRequest, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__()
        self._error = error
        self._headers_of_cors = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).code = self._error.code
        await send_reply(send, refusal(self._error, scope), self._headers_of_cors)
