"""What went wrong: from an answer, or from a transport that has none, to the exception that says so."""

from __future__ import annotations

import re
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from loss_client.errors import (
    BadAnswerError,
    LossClientError,
    NoAnswerError,
    Problem,
    RequestRefusedError,
    ServiceError,
    ServiceFaultError,
    UnavailableError,
)
from loss_client.exchange import Deadline, Received
from loss_client.problems import PROBLEMS, ContentTooLargeError

PASSING_STATUSES = (429, 502, 503)
"""Statuses that say: not now."""

PROBLEM_TYPE = "application/problem+json"

_STRANGE_STATUSES = (404, 405, 501)
"""Statuses for a path or a method that is not there, which proxies pass on but do not give by themselves: unless they
come as a problem of the service, something else has answered."""

_TAG = re.compile(r"<[^>]*(?:>|$)")

_PASSING_ERRORS = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.WriteError,
    httpx.CloseError,
    httpx.RemoteProtocolError,
)


def is_passing(error: httpx.TransportError) -> bool:
    """Return whether another try may succeed."""
    return isinstance(error, _PASSING_ERRORS) and not _is_about_certificate(error)


def failure_of(error: httpx.TransportError, deadline: Deadline, url: str) -> LossClientError:
    """Return the error for an answer that did not come from this address."""
    if isinstance(error, httpx.TimeoutException) and deadline.left <= 0:
        return deadline.passed()
    return NoAnswerError(f"the service at {url} gave no answer: {error or type(error).__name__}")


def _is_about_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def error_of(received: Received, url: str) -> LossClientError:
    """Return the error that an answer other than 200 from this address stands for."""
    status = received.status
    if status < 400:
        return BadAnswerError(f"the answer of {url} has status {status}, which the service never gives")
    if status in _STRANGE_STATUSES and received.media_type != PROBLEM_TYPE:
        return BadAnswerError(
            f"{url} knows nothing of Loss Service: the answer has status {status} and is "
            f"{received.media_type or 'of no type'}; something else may be listening at this address"
        )
    problem = _problem_of(received)
    return PROBLEMS.get(problem.code, _kind_of(status))(problem)


def _kind_of(status: int) -> type[ServiceError]:
    """Return the exception for a status alone, as a proxy between us and the service may give it."""
    if status in PASSING_STATUSES:
        return UnavailableError
    if status == ContentTooLargeError.STATUS:
        return ContentTooLargeError
    return ServiceFaultError if status >= 500 else RequestRefusedError


def _problem_of(received: Received) -> Problem:
    """Return the problem in an answer, or what is known of one that does not come from the service itself."""
    members: dict[str, Any] = {}
    if received.media_type == PROBLEM_TYPE:
        found = received.json()
        members = found if isinstance(found, dict) else {}
    text = received.body[:200].tobytes().decode("utf-8", "replace").strip()
    if received.media_type == "text/html":
        text = " ".join(_TAG.sub(" ", text).split())
    return Problem(
        status=received.status,
        code=str(members.get("code", "")),
        title=str(members.get("title", "")),
        detail=str(members.get("detail") or text or f"The answer has status {received.status}."),
        pointer=members.get("pointer"),
        expected=members.get("expected"),
        got=members.get("got"),
        limit=members.get("limit"),
        request_id=members.get("request_id") or received.request_id,
        retry_after=_seconds(received.headers.get("retry-after")),
    )


def _seconds(retry_after: str | None) -> float | None:
    """Return what `Retry-After` says, seconds or a date (RFC 9110, 10.2.3), as seconds from now."""
    if not retry_after:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None
