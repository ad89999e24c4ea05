"""Clients that leave at any moment: their work stops, their memory is free again, others notice nothing."""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress

import pytest

from tests.faults.conftest import Tell
from tests.faults.test_overload import processor_seconds
from tests.support.binary import binary_request, cross_entropy_request
from tests.support.raw_http import Listening, request, reset, resident_bytes

MEBIBYTE = 1 << 20
AT_ONCE = 8


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.faults)], ids=["short", "long"])
def test_clients_leaving_at_random_points_leave_nothing_behind(service: Listening, count: int, tell: Tell) -> None:
    draw = random.Random(count)
    json_body = b'{"logits": [' + b", ".join([b"[0.5, -1.25, 2.0]"] * 5000) + b"]}"
    requests = [
        cross_entropy_request(400, 8000, path="/v1/cross-entropy/gradient"),  # 13 MB
        cross_entropy_request(16, 1000),
        request("POST", "/v1/softmax", "Content-Type: application/json", body=json_body),
        request("POST", "/v1/softmax", "Content-Type: application/json", body=b'{"logits": [[1.0, 2.0]]}'),
    ]
    service.ask(requests[0])
    service.wait_until_idle()
    before = resident_bytes(service.service)
    plans = [_Plan(requests[number % 4], draw) for number in range(count)]
    places = threading.Semaphore(AT_ONCE)
    leavers = [threading.Thread(target=plan.carry_out, args=(service, places)) for plan in plans]
    for leaver in leavers:
        leaver.start()
    for leaver in leavers:
        leaver.join()
    left = time.perf_counter()
    service.wait_until_idle()
    idle_after = time.perf_counter() - left
    more = _settled_growth(service, before)
    tell(
        f"{count} left ({sum(plan.by_reset for plan in plans)} by reset): nothing in flight and nothing reserved "
        f"{idle_after * 1e3:.0f} ms later, memory {more / MEBIBYTE:+.0f} MiB"
    )

    assert idle_after < 3.0
    assert more < 64 * MEBIBYTE
    assert service.ask(requests[3]).status == 200


class _Plan:
    """Where one client leaves: after some part of its request, and then after some time or some part of the answer."""

    def __init__(self, whole: bytes, draw: random.Random) -> None:
        self.by_reset = draw.random() < 0.5
        self._sent = whole[: draw.choice([draw.randrange(len(whole)), len(whole)])]
        self._wait = draw.choice([0.0, draw.random() * 0.02])
        self._read = draw.choice([0, draw.randrange(1 << 20)])

    def carry_out(self, service: Listening, places: threading.Semaphore) -> None:
        """Come and go."""
        with places, service.connect() as connection, suppress(ConnectionError):
            connection.settimeout(0.5)
            connection.sendall(self._sent)
            time.sleep(self._wait)
            left = self._read
            with suppress(TimeoutError):
                while left > 0 and (piece := connection.recv(min(left, 1 << 16))):
                    left -= len(piece)
            if self.by_reset:
                reset(connection)


def _settled_growth(service: Listening, before: int) -> int:
    """Return how much more memory is held than before, after at most five seconds."""
    end = time.monotonic() + 5
    while (more := resident_bytes(service.service) - before) >= 16 * MEBIBYTE and time.monotonic() < end:
        time.sleep(0.1)
    return more


def test_work_of_a_client_that_left_stops(service: Listening, tell: Tell) -> None:
    import torch

    tensors = {"logits": torch.randn(6_000_000, 2).half(), "target": torch.zeros(6_000_000, dtype=torch.uint8)}
    whole = binary_request("/v1/cross-entropy/gradient", tensors, temperature="2.0", label_smoothing="0.1")
    before = processor_seconds(service.service.process.pid)
    started = time.perf_counter()
    assert service.ask(whole).status == 200
    seconds = time.perf_counter() - started
    stayed = processor_seconds(service.service.process.pid) - before
    service.wait_until_idle()

    before = processor_seconds(service.service.process.pid)
    with socket.create_connection(("127.0.0.1", service.service.port)) as connection:
        connection.sendall(whole)
        time.sleep(min(0.1, seconds / 4))
        reset(connection)
    service.wait_until_idle()
    left = processor_seconds(service.service.process.pid) - before
    tell(f"{stayed:.2f} s of processor for who stays, {left:.2f} s for who leaves")

    assert left < stayed / 2
