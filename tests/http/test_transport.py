"""Sizes, silence and bad HTTP, over real connections."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.http.calling import check_problem
from tests.support.raw_http import request
from tests.support.running import RunningService, running_service

PATIENCE_SECONDS = 30.0
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service(f"--max-json-bytes={LIMIT}", "--threads=1", "--device=cpu") as running:
        running.wait_until_ready()
        yield running


@pytest.fixture
def connection(service: RunningService) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE_SECONDS) as connection:
        yield connection


def head(*lines: str, path: str = "/v1/softmax") -> bytes:
    start = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*start, *lines, "", ""]).encode()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one answer and return its status, headers and body."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(1 << 16)
        assert piece, f"the connection ended after {received!r}"
        received += piece
    start, _, body = received.partition(b"\r\n\r\n")
    first, *lines = start.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(1 << 16)
    return int(first.split()[1]), headers, body


def read_to_the_end(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
    return received


def assert_too_large(connection: socket.socket) -> None:
    status, headers, body = read_answer(connection)
    problem = json.loads(body)
    assert (status, problem["code"], problem["limit"]) == (413, "content-too-large", LIMIT)
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert read_to_the_end(connection) == b""


@pytest.mark.parametrize("length", [LIMIT + 1, 10**9, 2**63 - 1, 2**64 - 1])
def test_a_declared_body_too_large_is_refused_before_it_comes_and_the_connection_closes(
    connection: socket.socket, length: int
) -> None:
    connection.sendall(head(f"Content-Length: {length}"))

    assert_too_large(connection)


def test_a_caller_who_waits_for_leave_to_send_is_refused_at_once(connection: socket.socket) -> None:
    connection.sendall(head(f"Content-Length: {LIMIT + 1}", "Expect: 100-continue"))

    assert_too_large(connection)


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: chunked"))
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    connection.sendall(chunk * (LIMIT // 0x10000) + b"1\r\n \r\n")  # no last chunk

    assert_too_large(connection)


def test_a_blind_writer_sees_the_refusal_after_all(connection: socket.socket) -> None:
    connection.sendall(head(f"Content-Length: {LIMIT * 7}"))
    piece = b" " * 65536
    for _ in range(LIMIT * 7 // len(piece)):
        connection.sendall(piece)

    assert_too_large(connection)


def test_a_blind_writer_of_20_megabytes_sees_the_refusal(connection: socket.socket) -> None:
    connection.sendall(head("Content-Length: 20000000"))
    piece = b" " * 62500
    try:
        for _ in range(320):
            connection.sendall(piece)
    except OSError:
        pass  # the service has stopped reading; its answer came before

    status, _, body = read_answer(connection)
    assert (status, json.loads(body)["code"]) == (413, "content-too-large")


def test_a_refusal_for_another_reason_keeps_the_connection_when_little_is_unread(connection: socket.socket) -> None:
    refused = head("Content-Length: 9", "Content-Encoding: gzip") + b"[1, 2, 3]"
    answered = head("Content-Length: 18") + b'{"logits": [1, 2]}'

    connection.sendall(refused)
    first = read_answer(connection)
    connection.sendall(answered)
    second = read_answer(connection)

    assert (first[0], second[0]) == (415, 200)


def test_a_refusal_with_much_unread_closes_the_connection(connection: socket.socket) -> None:
    connection.sendall(head("Content-Length: 100000", "Content-Encoding: gzip"))

    status, headers, _ = read_answer(connection)
    assert (status, headers["connection"]) == (415, "close")


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense\r\n\r\n",
        b"POST /v1/softmax HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        head("Content-Length: -1"),
        head("Content-Length: +5"),
        head("Content-Length: 0x10"),
        head("Content-Length: 5, 5"),
        head("Content-Length: 18446744073709551616"),
        head("Content-Length: " + "9" * 5000),
        head("Content-Length: 5", "Content-Length: 6"),
        head("Content-Length: 5", "Transfer-Encoding: chunked"),
        head("Transfer-Encoding: chunked") + b"xyz\r\n",
        head("Content-Length : 5"),
        head("X: a\x00b"),
        head(" folded: 1"),
    ],
    ids=str,
)
def test_what_is_not_http_is_refused_and_the_connection_closes(
    service: RunningService, connection: socket.socket, text: bytes
) -> None:
    connection.sendall(text)

    received = read_to_the_end(connection)

    assert received.startswith(b"HTTP/1.1 400 ")
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE_SECONDS) as another:
        another.sendall(head("Content-Length: 18") + b'{"logits": [1, 2]}')
        assert read_answer(another)[0] == 200


@pytest.mark.parametrize("path", ["/%", "/%zz", "/v1/%ff%fe", "*", "http://localhost/v1/softmax", "/\xff"])
def test_a_strange_target_is_no_reason_to_fail(connection: socket.socket, path: str) -> None:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1"))

    status = int(read_to_the_end(connection).split()[1])

    assert status in (400, 404, 405)


def test_a_body_in_many_small_chunks_is_read(connection: socket.socket) -> None:
    body = b'{"logits": [1, 2]}' + b" " * 20_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)

    connection.sendall(head("Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n")

    status, _, answer = read_answer(connection)
    assert (status, json.loads(answer)) == (200, {"probs": [0.26894143, 0.7310586]})


def test_a_refusal_over_the_network_is_the_same_problem(service: RunningService) -> None:
    import httpx

    response = httpx.post(service.address + "/v1/softmax", json={"logits": [1, "x"]})

    assert check_problem(response, code="dtype-mismatch")["pointer"] == "/logits/1"


OPEN_INFERENCE = {
    414: b"GET /v2?" + b"a" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    431: request("GET", "/v2/models/softmax", *["X: 1"] * 70),
    400: request("POST", "/v2/models/softmax/infer", "Content-Length: 2", "Transfer-Encoding: chunked"),
}


@pytest.mark.parametrize("status", OPEN_INFERENCE)
def test_what_the_protocol_refuses_below_v2_is_said_as_there(connection: socket.socket, status: int) -> None:
    connection.sendall(OPEN_INFERENCE[status])
    answered, headers, body = read_answer(connection)

    assert (answered, headers["content-type"]) == (status, "application/json")
    assert json.loads(body).keys() == {"error", "code"}
