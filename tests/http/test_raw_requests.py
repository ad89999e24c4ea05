"""What is HTTP and what is not: every request of a list, byte for byte, against a real service."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import h11
import pytest

from tests.http.raw_vectors import VECTORS, Vector
from tests.support.raw_http import Answer, Listening, listening, read_answer, request

LAST = request("GET", "/v1/limits", "Connection: close")
"""Sent after what is not refused: that it is answered shows that nobody lost count of the bytes."""

PROBLEM_MEMBERS = {"type", "title", "status", "detail", "code", "request_id"}


@dataclass(frozen=True)
class Heard:
    """The answers on one connection, and how it ended."""

    answers: list[Answer]
    is_reset: bool


@pytest.fixture(scope="module", params=["tcp", "tcp-asyncio"])
def heard(request: pytest.FixtureRequest) -> Iterator[dict[str, Heard]]:
    """Everything sent, each on a connection of its own, many at once."""
    with listening(request.param, "--threads=1", "--device=cpu") as service, ThreadPoolExecutor(32) as pool:
        heard = pool.map(lambda vector: _try(service, vector), VECTORS)
        yield {vector.name: answers for vector, answers in zip(VECTORS, heard, strict=True)}
        log = service.service.log()
    assert "Traceback" not in log
    assert '"level": "error"' not in log
    assert '"level": "warning"' not in log


def _try(service: Listening, vector: Vector) -> Heard:
    with service.connect() as connection:
        with suppress(OSError):  # whoever is refused may find the door closed before he has done
            connection.sendall(vector.sent)
            if not vector.is_refused_by_the_protocol:
                connection.sendall(LAST)
        received, answers = bytearray(), []
        try:
            while received or _is_more(connection):
                answers.append(read_answer(connection, received=received))
        except ConnectionError:
            return Heard(answers, is_reset=True)
    return Heard(answers, is_reset=False)


def _is_more(connection: socket.socket) -> bool:
    return bool(connection.recv(1, socket.MSG_PEEK))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_a_request_is_answered_with_its_status_and_the_next_is_found(heard: dict[str, Heard], vector: Vector) -> None:
    answers = heard[vector.name].answers
    statuses = tuple(answer.status for answer in answers)

    closes = answers[-1].headers.get("connection") == "close"
    goes_on = not vector.is_refused_by_the_protocol and not (closes and len(statuses) == len(vector.statuses))
    assert statuses == (*vector.statuses, *([200] if goes_on else []))
    assert closes
    assert not heard[vector.name].is_reset
    last = answers[len(vector.statuses) - 1]
    if vector.code is not None:
        problem = json.loads(last.body)
        assert last.headers["content-type"] == "application/problem+json"
        assert problem.keys() >= PROBLEM_MEMBERS
        assert (problem["code"], problem["status"]) == (vector.code, last.status)
        assert problem["type"] == f"/problems/{vector.code}"
        assert problem["request_id"] == last.headers["x-request-id"]
        assert len(last.body) <= 4096


MORE_LENIENT = {"empty lines before a request"}
"""What h11 does not take, and RFC 9112 (2.2) asks servers to."""


def _requests_by_h11(sent: bytes) -> int | None:
    """Return how many requests another parser, h11, finds in bytes; None when it refuses them."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 24)
    parser.receive_data(sent)
    count = 0
    try:
        while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            count += isinstance(event, h11.Request)
            if isinstance(event, h11.EndOfMessage):
                parser.send(h11.Response(status_code=404, headers=[("Content-Length", "0")]))
                parser.send(h11.EndOfMessage())
                if parser.our_state is h11.MUST_CLOSE:
                    return count
                parser.start_next_cycle()
    except h11.RemoteProtocolError:
        return None
    return count


TAKEN = [
    v
    for v in VECTORS
    if v.code != "malformed-request" and not v.is_refused_by_the_protocol and v.name not in MORE_LENIENT
]


@pytest.mark.parametrize("vector", TAKEN, ids=lambda vector: vector.name)
def test_another_parser_finds_the_same_requests_in_what_is_taken(vector: Vector) -> None:
    assert _requests_by_h11(vector.sent) == len(vector.statuses)


def test_there_are_enough_requests_and_each_has_a_name_of_its_own() -> None:
    assert len({vector.name for vector in VECTORS}) == len(VECTORS) >= 150
