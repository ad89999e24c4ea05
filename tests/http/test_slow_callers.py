"""Who sends or reads too slowly, sends what nobody wants, or keeps too many connections, over real connections."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import pytest

from service.wire import safetensors_codec
from tests.http.test_connections import MB_8, question
from tests.support.raw_http import (
    PATIENCE_SECONDS,
    Answer,
    Listening,
    as_problem,
    listening,
    read_answer,
    read_to_the_end,
    request,
)

SECONDS = 0.6
"""Every limit of time of the service these tests ask."""

LATEST_SECONDS = 8.0
"""Until when what takes SECONDS must have happened, on a machine that others use too."""

RATE = 1 << 17

LIMITS = {
    "first_byte_seconds": SECONDS,
    "head_seconds": SECONDS,
    "idle_seconds": 3 * SECONDS,
    "body_grace_seconds": SECONDS,
    "stall_seconds": 2 * SECONDS,
    "look_seconds": 0.05,
}

JSON = "Content-Type: application/json"
BINARY = f"Content-Type: {safetensors_codec.MEDIA_TYPE}"
CHUNKED = "Transfer-Encoding: chunked"
PATH = "/v1/softmax"


@pytest.fixture(scope="module", params=["tcp", "tls-asyncio", "uds"])
def service(request: pytest.FixtureRequest) -> Iterator[Listening]:
    flags = ("--threads=1", "--device=cpu", f"--body-bytes-per-second={RATE}")
    with listening(request.param, *flags, limits=LIMITS) as running:
        yield running
        assert "Traceback" not in running.service.log()


def drip(connection: socket.socket, piece: bytes, pause: float = 0.05) -> float:
    """Send `piece` again and again until the other side has had enough; return after how many seconds it had."""
    started = time.monotonic()
    connection.settimeout(pause)
    while time.monotonic() - started < PATIENCE_SECONDS:
        try:
            connection.sendall(piece)
            if connection.recv(1, 0 if hasattr(connection, "context") else socket.MSG_PEEK):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    connection.settimeout(PATIENCE_SECONDS)
    return time.monotonic() - started


HEAD = request("POST", PATH, JSON, length=5000)
BIG = 1 << 20

DRIPS = {
    "nothing": (b"", b""),
    "empty lines": (b"", b"\r\n"),
    "a method": (b"G", b""),
    "an address": (b"GET /", b"a"),
    "a name": (b"GET / HTTP/1.1\r\n", b"a"),
    "a value": (b"GET / HTTP/1.1\r\nX:", b"a"),
    "fields": (b"GET / HTTP/1.1\r\n", b"X: 1\r\n"),
    "a JSON body": (HEAD, b" "),
    "a large JSON body": (request("POST", PATH, JSON, length=BIG), b" "),
    "chunks": (request("POST", PATH, JSON, CHUNKED), b"1\r\n \r\n"),
    "an extension": (request("POST", PATH, JSON, CHUNKED) + b"12;", b"a"),
    "a trailer": (request("POST", PATH, JSON, CHUNKED) + b"1\r\n \r\n0\r\n", b"T: 1\r\n"),
    "the beginning of a binary body": (request("POST", PATH, BINARY, length=BIG) + b"\x10", b""),
    "a binary body": (request("POST", PATH, BINARY, length=BIG) + (1000).to_bytes(8, "little"), b"a"),
}


@dataclass(frozen=True)
class Outcome:
    """The answer to who drips, and after how many seconds the connection was closed."""

    answer: Answer
    seconds: float


def _drip(service: Listening, name: str) -> Outcome:
    beginning, piece = DRIPS[name]
    started = time.monotonic()
    with service.connect() as connection:
        connection.sendall(beginning)
        if piece and not service.is_tls:  # a peek is not to be had there: the answer is waited for
            drip(connection, piece)
        answer = read_answer(connection)
        with suppress(ConnectionError):
            assert read_to_the_end(connection) == b""
    return Outcome(answer, time.monotonic() - started)


@pytest.fixture(scope="module")
def dripped(service: Listening) -> dict[str, Outcome]:
    """All of them at once."""
    with ThreadPoolExecutor(len(DRIPS)) as pool:
        return dict(zip(DRIPS, pool.map(lambda name: _drip(service, name), DRIPS), strict=True))


@pytest.mark.parametrize("name", DRIPS)
def test_who_drips_is_told_and_the_connection_closes(dripped: dict[str, Outcome], name: str) -> None:
    outcome = dripped[name]

    assert as_problem(outcome.answer) == (408, "request-timeout")
    assert outcome.answer.headers["connection"] == "close"
    assert SECONDS - 0.1 < outcome.seconds < LATEST_SECONDS


def test_a_slow_body_behind_another_request_is_refused_after_the_answer(service: Listening) -> None:
    with service.connect() as connection:
        connection.sendall(request("GET", "/health/live") + b"GET / HTTP/1.1\r\n")
        received = bytearray()

        assert read_answer(connection, received=received).status == 200
        assert as_problem(read_answer(connection, received=received)) == (408, "request-timeout")


@pytest.mark.parametrize("kind", [JSON, BINARY])
def test_a_body_that_keeps_the_pace_may_take_its_time(service: Listening, kind: str) -> None:
    body = b" " * (RATE * 3) if kind == JSON else question((96, 1024), path=PATH).body
    with service.connect() as connection:
        connection.sendall(request("POST", "/v1/cross-entropy", kind, length=len(body)))
        for start in range(0, len(body), RATE // 2):
            connection.sendall(body[start : start + RATE // 2])
            time.sleep(0.25)
        answer = read_answer(connection)

    assert answer.status == (400 if kind == JSON else 200)


def test_a_connection_between_two_requests_closes_without_a_word(service: Listening) -> None:
    with service.connect() as connection:
        connection.sendall(request("GET", "/health/live"))
        assert read_answer(connection).status == 200
        started = time.monotonic()

        assert read_to_the_end(connection) == b""

        assert 3 * SECONDS - 0.2 < time.monotonic() - started < LATEST_SECONDS


GRADIENT = question(MB_8, path="/v1/cross-entropy/gradient")


@pytest.mark.parametrize("reads", [0, 1000], ids=["nothing", "slowly"])
def test_who_does_not_take_the_answer_is_cut_off_and_its_memory_is_free(service: Listening, reads: int) -> None:
    before = service.metric('loss_connections_ended_total{reason="slow-reader"}')
    with service.connect() as connection:
        connection.sendall(GRADIENT.request())
        connection.recv(1)
        end = time.monotonic() + LATEST_SECONDS
        while service.metric('loss_connections_ended_total{reason="slow-reader"}') == before:
            assert time.monotonic() < end
            if reads:
                connection.recv(reads)
            time.sleep(0.05)

    service.wait_until_idle()


def test_who_takes_the_answer_steadily_gets_all_of_it(service: Listening) -> None:
    with service.connect() as connection:
        connection.sendall(GRADIENT.request())
        received = bytearray()
        while len(received) < 3 << 20:
            received += connection.recv(RATE)
            time.sleep(0.05)

        GRADIENT.check(read_answer(connection, received=received))


REFUSED = {
    "a method that is not taken": (request("PUT", "/v1/limits", "Content-Length: 1000000000"), 405),
    "a path that is not there": (request("POST", "/nothing", JSON, length=10**9), 404),
    "a page": (request("GET", "/v1/limits", "Content-Length: 1000000000"), 200),
    "a body too large": (request("POST", PATH, JSON, length=10**9), 413),
    "a method for one request": (request("PUT", "/v1/limits", "Connection: close", "Content-Length: 1000000000"), 405),
    "chunks": (request("PUT", "/v1/limits", CHUNKED) + b"3b9aca00\r\n", 405),
}


def _send_blindly(service: Listening, name: str) -> tuple[int, int]:
    """Send a body without end; return the status of the answer, and how many bytes went out."""
    head, _ = REFUSED[name]
    piece, sent = bytes(1 << 16), 0
    with service.connect() as connection:
        connection.sendall(head)
        answer = None if service.is_tls else read_answer(connection)
        end = time.monotonic() + PATIENCE_SECONDS
        with suppress(OSError):
            while time.monotonic() < end:
                connection.sendall(piece)
                sent += len(piece)
        answer = answer or read_answer(connection)
    return answer.status, sent


def _send_nothing(service: Listening, name: str) -> tuple[int, float]:
    """Send no body; return the status of the answer, and the seconds until the connection was closed."""
    with service.connect() as connection:
        connection.sendall(REFUSED[name][0])
        started = time.monotonic()
        status = read_answer(connection).status
        with suppress(ConnectionError):
            read_to_the_end(connection)
        return status, time.monotonic() - started


def test_of_a_body_that_nobody_wants_little_is_read_and_the_answer_is_seen(service: Listening) -> None:
    with ThreadPoolExecutor(len(REFUSED)) as pool:
        outcomes = dict(zip(REFUSED, pool.map(lambda name: _send_blindly(service, name), REFUSED), strict=True))

    assert {name: status for name, (status, _) in outcomes.items()} == {name: s for name, (_, s) in REFUSED.items()}
    assert max(sent for _, sent in outcomes.values()) < 40 << 20  # 8 MiB, and what the system holds on both sides


def test_a_body_that_nobody_wants_and_that_does_not_come_is_not_waited_for(service: Listening) -> None:
    with ThreadPoolExecutor(len(REFUSED)) as pool:
        outcomes = dict(zip(REFUSED, pool.map(lambda name: _send_nothing(service, name), REFUSED), strict=True))

    assert {name: status for name, (status, _) in outcomes.items()} == {name: s for name, (_, s) in REFUSED.items()}
    assert max(seconds for _, seconds in outcomes.values()) < LATEST_SECONDS


def test_thousands_of_pipelined_requests_are_answered_in_order(service: Listening) -> None:
    count = 1000
    texts = [request("GET", "/health/live", f"X-Request-Id: {number}") for number in range(count)]
    with service.connect() as connection, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(connection.sendall, b"".join(texts))
        if service.is_tls:
            sending.result()
        received = bytearray()

        answers = [read_answer(connection, received=received) for _ in range(count)]

    assert [answer.headers["x-request-id"] for answer in answers] == list(map(str, range(count)))


MOST = 24


@pytest.fixture(scope="module")
def small_service() -> Iterator[Listening]:
    limits = {"connections": MOST, "first_byte_seconds": 60.0, "head_seconds": 60.0, "idle_seconds": 60.0}
    with listening("tcp", "--threads=1", "--device=cpu", limits=limits) as running:
        yield running


def _is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.settimeout(PATIENCE_SECONDS)


def _ask_live(service: Listening) -> Answer:
    return service.ask(request("GET", "/health/live"))


def test_beyond_the_most_connections_the_oldest_idle_ones_are_closed(small_service: Listening) -> None:
    with ExitStack() as stack:
        busy = stack.enter_context(small_service.connect())
        busy.sendall(request("POST", PATH, JSON, length=18))
        silent = [stack.enter_context(small_service.connect()) for _ in range(3 * MOST)]

        for _ in range(10):
            assert _ask_live(small_service).status == 200
        time.sleep(0.3)
        still_open = [_is_open(connection) for connection in silent]
        busy.sendall(b'{"logits": [1, 2]}')

        assert read_answer(busy).status == 200
        assert sum(still_open) < MOST
        assert still_open == sorted(still_open)
        assert still_open[-1]


def test_without_descriptors_the_service_lives_and_recovers(small_service: Listening) -> None:
    pid = small_service.service.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (MOST + 8, before[1]))  # some are taken by the process itself
        with suppress(OSError):
            for _ in range(6 * MOST):
                stack.enter_context(small_service.connect())
        time.sleep(0.3)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    _until(lambda: _ask_live(small_service).status == 200)
    assert small_service.service.process.poll() is None


def _until(claim: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        with suppress(OSError, AssertionError):
            if claim():
                return
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_refusal_by_the_protocol_is_logged_and_counted(small_service: Listening) -> None:
    answer = small_service.ask(b"GET /a HTTP/1.1\r\nX-Request-Id: mine\r\nContent-Length: -1\r\n\r\n")

    assert answer.headers["x-request-id"] == "mine"
    _until(lambda: '"code": "malformed-request"' in _line_with(small_service, '"request_id": "mine"'))
    assert small_service.metric('loss_connections_ended_total{reason="malformed-request"}') >= 1


def _line_with(service: Listening, text: str) -> str:
    return next((line for line in service.service.log().splitlines() if text in line), "")
