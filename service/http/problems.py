"""Errors as HTTP answers: the one place that knows which error is which status (RFC 9457, problem+json)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from service import errors
from service.errors import MethodNotAllowed, NotFound, RequestError, clip
from service.http.exchange import exchange_of, path_of
from service.http.paths import is_right_without_slash, not_found
from service.ops.spec import Operator

PROBLEM_MEDIA_TYPE = "application/problem+json"

STATUS: dict[type[RequestError], int] = {
    errors.MalformedRequest: 400,
    errors.MalformedJson: 400,
    errors.MalformedTensor: 400,
    errors.TooDeep: 400,
    errors.UnknownField: 400,
    errors.DuplicateField: 400,
    errors.Unauthorized: 401,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.NotAcceptable: 406,
    errors.RequestTimeout: 408,
    errors.ContentTooLarge: 413,
    errors.UriTooLong: 414,
    errors.UnsupportedMediaType: 415,
    errors.UnsupportedEncoding: 415,
    errors.MissingField: 422,
    errors.ShapeMismatch: 422,
    errors.RaggedArray: 422,
    errors.DtypeMismatch: 422,
    errors.InvalidOption: 422,
    errors.TargetOutOfRange: 422,
    errors.NonFinite: 422,
    errors.UndefinedMean: 422,
    errors.RateLimited: 429,
    errors.HeadersTooLarge: 431,
    errors.Internal: 500,
    errors.Overloaded: 503,
    errors.MemoryBudget: 503,
    errors.Draining: 503,
    errors.EngineRestarting: 503,
    errors.DeadlineExceeded: 504,
}

STATUS_OF_SENTENCE: dict[tuple[type[RequestError], str], int] = {(errors.MalformedRequest, "host"): 421}
"""Statuses of single sentences, where they are not that of their error."""

EXTRA_HEADERS: dict[type[RequestError], list[tuple[bytes, bytes]]] = {
    errors.UnsupportedEncoding: [(b"accept-encoding", b"identity")],
    errors.Unauthorized: [(b"www-authenticate", b"Bearer")],
    errors.Draining: [(b"retry-after", b"1"), (b"connection", b"close")],
    errors.EngineRestarting: [(b"connection", b"close")],
}

OPEN_INFERENCE_HEADERS = EXTRA_HEADERS | {errors.UnsupportedEncoding: [(b"accept-encoding", b"gzip, deflate")]}
"""The same below `/v2`."""


def status_of(error: type[RequestError], sentence: str) -> int:
    """Return the status that a sentence is answered with."""
    return STATUS_OF_SENTENCE.get((error, sentence), STATUS[error])


def statuses_of(error: type[RequestError]) -> list[int]:
    """Return every status that an error is answered with, its usual one first."""
    return list(dict.fromkeys(status_of(error, sentence) for sentence in error.sentences))


def request_id_of(scope: Scope) -> str:
    """Return the id of the request that a scope belongs to."""
    return exchange_of(scope).request_id


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, complete in memory."""

    status: int
    media_type: str
    pieces: list[bytes | memoryview]
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    is_borrowed: bool = False
    """Whether pieces lie in memory that is to be used again."""


def problem(error: RequestError, request_id: str) -> Reply:
    """Return the answer that tells a caller what is wrong."""
    status = status_of(type(error), error.sentence)
    members: dict[str, object] = {
        "type": f"/problems/{error.code}",
        "title": error.title,
        "status": status,
        "detail": error.detail,
        "code": error.code,
        "pointer": error.pointer,
        "expected": error.expected,
        "got": error.got,
        "limit": error.limit,
        "request_id": request_id,
    }
    body = orjson.dumps({name: value for name, value in members.items() if value is not None})
    return Reply(status, PROBLEM_MEDIA_TYPE, [body], _headers_of(error, EXTRA_HEADERS))


def refusal(error: RequestError, scope: Scope) -> Reply:
    """Return the answer that tells the caller of a request what is wrong, as the path's protocol has it."""
    return refusal_at(path_of(scope), error, request_id_of(scope))


def refusal_at(path: str, error: RequestError, request_id: str) -> Reply:
    """Return the same for a request of which no more than the path may be known."""
    if not _is_open_inference(path):
        return problem(error, request_id)
    body = orjson.dumps({"error": error.detail, "code": error.code})
    status = status_of(type(error), error.sentence)
    return Reply(status, "application/json", [body], _headers_of(error, OPEN_INFERENCE_HEADERS))


def is_open_inference(scope: Scope) -> bool:
    """Return whether a request is below `/v2`, where the Open Inference Protocol is spoken."""
    return _is_open_inference(path_of(scope))


def _is_open_inference(path: str) -> bool:
    return path == "/v2" or path.startswith("/v2/")


def _headers_of(
    error: RequestError, extra: Mapping[type[RequestError], list[tuple[bytes, bytes]]]
) -> list[tuple[bytes, bytes]]:
    headers = list(extra.get(type(error), []))
    if error.seconds is not None:
        headers.append((b"retry-after", b"%d" % error.seconds))
    return headers


def install_handlers(app: FastAPI, operators: Mapping[str, Operator]) -> None:
    """Answer unknown paths and methods with problems."""

    async def answer(request: Request, failure: Exception) -> Response:
        status = failure.status_code if isinstance(failure, HTTPException) else 500
        error: RequestError
        headers: dict[str, str] = {}
        if status == 405 and isinstance(failure, HTTPException):
            allowed = {name.strip() for name in (failure.headers or {})["Allow"].split(",")}
            # HEAD works wherever GET does, but may be a route of its own, which the framework does not name.
            allowed |= {"HEAD"} if "GET" in allowed else set()
            headers["Allow"] = ", ".join(sorted(allowed))
            error = MethodNotAllowed("method", expected=" or ".join(sorted(allowed)), got=clip(request.method))
        else:
            path = path_of(request.scope)  # not request.url: it parses the Host header too
            error = not_found(path, operators, is_right_without_slash=is_right_without_slash(request.scope, app.routes))
        exchange_of(request.scope).code = error.code
        reply = refusal(error, request.scope)
        return Response(b"".join(reply.pieces), reply.status, headers, reply.media_type)

    app.add_exception_handler(HTTPException, answer)


def check_path(scope: Scope) -> None:
    """Raise NotFound for a path that ends with a line feed: to a route's regular expression it would not be there."""
    if scope["path"].endswith("\n"):
        raise NotFound("path")
