"""What attacks cost those who do not attack: long trials, each of which prints its figures."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.support.attackers import KINDS
from tests.support.raw_http import Listening, listening, read_answer, request, resident_bytes

pytestmark = pytest.mark.faults

MEBIBYTE = 1 << 20

LIVE = request("GET", "/health/live")
ASKED = request(
    "POST", "/v1/cross-entropy", "Content-Type: application/json", body=b'{"logits": [[0, 0]], "target": [1]}'
)


@pytest.fixture
def service() -> Iterator[Listening]:
    with listening("tcp", "--threads=1", "--device=cpu", "--log-level=error") as running:
        yield running


def milliseconds(service: Listening, text: bytes, seconds: float) -> list[float]:
    """Ask again and again on one connection, a hundred times a second; return how long each answer took."""
    taken = []
    end = time.monotonic() + seconds
    with service.connect() as connection:
        while time.monotonic() < end:
            started = time.perf_counter()
            connection.sendall(text)
            assert read_answer(connection).status == 200
            taken.append((time.perf_counter() - started) * 1e3)
            time.sleep(0.01)
    return taken


def p99(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=100)[98]


@contextmanager
def probing(service: Listening) -> Iterator[list[float]]:
    """Ask for the health all the while, in a process of its own; the list is filled at the end."""
    script = (
        "import socket, sys, time\n"
        "connection = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "while True:\n"
        "    started = time.perf_counter()\n"
        f"    connection.sendall({LIVE!r})\n"
        "    answer = b''\n"
        "    while not answer.endswith(b'}'):\n"
        "        answer += connection.recv(65536)\n"
        "    assert answer.startswith(b'HTTP/1.1 200')\n"
        "    print((time.perf_counter() - started) * 1e3, flush=True)\n"
        "    time.sleep(0.002)\n"
    )
    taken: list[float] = []
    with subprocess.Popen(
        [sys.executable, "-c", script, str(service.service.port)], stdout=subprocess.PIPE, text=True
    ) as process:
        time.sleep(0.5)
        yield taken
        process.terminate()
        assert process.stdout is not None
        taken += map(float, process.stdout.read().split())


def test_a_thousand_slow_attackers_are_closed_and_hardly_felt(service: Listening) -> None:
    each, seconds = 250, 60.0
    milliseconds(service, ASKED, 2.0)
    alone = [p99(milliseconds(service, ASKED, 20.0))]
    before = resident_bytes(service.service)
    command = [sys.executable, "-m", "tests.support.attackers", str(service.service.port), str(each), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attackers:
        time.sleep(3.0)
        attacked, most = [], 0
        for _ in range(11):
            attacked += milliseconds(service, ASKED, 5.0)
            most = max(most, resident_bytes(service.service))
        outcome = json.loads(attackers.communicate()[0])
    alone.append(p99(milliseconds(service, ASKED, 20.0)))

    print(
        f"\n{4 * each} slow attackers for {seconds:.0f} s: p99 {p99(attacked):.2f} ms,"
        f" alone {alone[0]:.2f} before and {alone[1]:.2f} after, ratio {p99(attacked) / max(alone):.2f};"
        f" memory +{(most - before) / MEBIBYTE:.1f} MiB; {outcome}"
    )
    assert outcome["left"] == 0
    limits = {"silent": 5, "header drip": 5, "body drip": 5, "slow reader": 10}
    for kind in KINDS:  # a second for those who are still sending; times are kept to half a second, and seen in another
        assert outcome[kind]["longest"] <= limits[kind] + 1.0 + 0.5 + 0.5
    assert most - before <= 64 * MEBIBYTE
    assert p99(attacked) <= 1.5 * max(alone)


FLOODS = {
    "fields": (b"GET / HTTP/1.1\r\n", b"X: 1\r\n" * 10_000),
    "one value": (b"GET / HTTP/1.1\r\nX: ", b"a" * 60_000),
    "one name": (b"GET / HTTP/1.1\r\n", b"a" * 60_000),
    "an address": (b"GET /", b"a" * 60_000),
    "empty lines": (b"", b"\r\n" * 30_000),
    "a trailer": (request("POST", "/v1/softmax", "Transfer-Encoding: chunked") + b"0\r\nX: ", b"a" * 60_000),
    "an extension": (request("POST", "/v1/softmax", "Transfer-Encoding: chunked") + b"1;", b"a" * 60_000),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_200_megabytes_takes_no_memory(service: Listening, name: str) -> None:
    beginning, piece = FLOODS[name]
    for _ in range(20):
        service.ask(LIVE)
    before = resident_bytes(service.service)
    most = sent = 0
    while sent < 200 * MEBIBYTE:  # whoever is thrown out comes again
        with service.connect() as connection, suppress(OSError):
            connection.sendall(beginning)
            while sent < 200 * MEBIBYTE:
                connection.sendall(piece)
                sent += len(piece)
                most = max(most, resident_bytes(service.service))

    print(f"\nflood of {sent >> 20} MiB, {name}: memory +{(most - before) / MEBIBYTE:.2f} MiB")
    assert most - before <= 8 * MEBIBYTE


def test_50_000_pipelined_requests_hold_nobody_up(service: Listening) -> None:
    count = 50_000
    with probing(service) as alone:
        time.sleep(5.0)
    before = resident_bytes(service.service)
    with probing(service) as taken, service.connect() as connection:
        sender = threading.Thread(target=connection.sendall, args=(LIVE * count,))
        sender.start()
        received, most, answers = 0, 0, 0
        started = time.monotonic()
        tail = b""
        while answers < count:
            piece = tail + connection.recv(1 << 16)
            answers += piece.count(b"HTTP/1.1 200 OK\r\n")
            tail = piece[-16:] if b"HTTP/1.1 200 OK\r\n" not in piece[-16:] else b""
            received += 1
            if received % 50 == 0:
                most = max(most, resident_bytes(service.service))
        seconds = time.monotonic() - started
        sender.join()

    print(
        f"\n{count} pipelined requests in {seconds:.1f} s: health p99 {p99(taken):.1f}, max {max(taken):.1f} ms"
        f" (alone p99 {p99(alone):.1f}, max {max(alone):.1f}); memory +{(most - before) / MEBIBYTE:.1f} MiB"
    )
    assert max(taken) < max(50.0, 2 * max(alone))
    assert most - before <= 16 * MEBIBYTE


@pytest.fixture
def patient_service() -> Iterator[Listening]:
    limits = {"first_byte_seconds": 60.0}
    with listening("tcp", "--threads=1", "--device=cpu", "--log-level=error", limits=limits) as running:
        yield running


@pytest.mark.parametrize("count", [1000, 5000])
def test_idle_connections_cost_nothing(patient_service: Listening, count: int) -> None:
    service = patient_service
    milliseconds(service, ASKED, 1.0)
    alone = milliseconds(service, ASKED, 4.0)
    before = resident_bytes(service.service)
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(service.connect())
        service.ask(LIVE)
        crowded = milliseconds(service, ASKED, 4.0)
        most = resident_bytes(service.service)
    again = milliseconds(service, ASKED, 4.0)

    print(
        f"\n{count} idle connections: p50 {statistics.median(crowded):.2f}, p99 {p99(crowded):.2f} ms; alone p50"
        f" {statistics.median(alone):.2f}, p99 {p99(alone):.2f} before and {p99(again):.2f} after;"
        f" memory +{(most - before) / MEBIBYTE:.1f} MiB"
    )
    assert p99(crowded) <= 1.5 * max(p99(alone), p99(again))
    assert most - before <= 64 * MEBIBYTE
