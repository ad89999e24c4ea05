"""Workers are killed at work: nobody hangs, no answer is wrong, and soon there are as many workers as before."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections import Counter

import pytest

from tests.faults.conftest import Tell
from tests.support.binary import cross_entropy_request
from tests.support.raw_http import Listening, listening, read_answer

WORKERS = 2
CLIENTS = 6
LONGEST_ANSWER_SECONDS = 15.0
LONGEST_GAP_SECONDS = 10.0


@pytest.mark.parametrize(
    ("kills", "interval"), [(1, 0.5), pytest.param(20, 2.0, marks=pytest.mark.faults)], ids=["short", "long"]
)
def test_killing_workers_under_load_loses_only_what_they_held(kills: int, interval: float, tell: Tell) -> None:
    requests = [cross_entropy_request(rows, 1000, path="/v1/cross-entropy/gradient") for rows in (1, 64, 1024)]
    outcomes: Counter[str] = Counter()
    gaps: list[float] = []
    draw = random.Random(0)
    stop = threading.Event()
    with listening("tcp", f"--workers={WORKERS}", "--device=cpu", "--log-level=error", "--drain-seconds=1") as running:
        expected = [running.ask(request).body for request in requests]
        clients = [
            threading.Thread(target=_ask_until, args=(stop, running, requests, expected, outcomes))
            for _ in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        try:
            for _ in range(kills):
                victim = draw.choice(running.service.workers())
                os.kill(victim, signal.SIGKILL)
                killed = time.monotonic()
                gaps.append(_seconds_until_replaced(running, victim, killed))
                time.sleep(max(0.0, killed + interval - time.monotonic()))
        finally:
            stop.set()
            for client in clients:
                client.join()
        assert running.service.stop() == 0
    tell(f"{kills} workers killed, replaced after at most {max(gaps):.1f} s; {dict(outcomes)}")

    assert set(outcomes) <= {"200", "503", "lost with its worker"}
    assert outcomes["200"] > 20 * kills
    assert outcomes["lost with its worker"] <= CLIENTS * kills


def _seconds_until_replaced(running: Listening, victim: int, killed: float) -> float:
    """Wait until there are as many workers as before, and each of them is ready."""
    while True:
        now = running.service.workers()
        if victim not in now and len(now) == WORKERS:
            break
        assert time.monotonic() - killed < LONGEST_GAP_SECONDS
        time.sleep(0.02)
    return time.monotonic() - killed


def _ask_until(
    stop: threading.Event,
    running: Listening,
    requests: list[bytes],
    expected: list[bytes],
    outcomes: Counter[str],
) -> None:
    number = 0
    connection: socket.socket | None = None
    while not stop.is_set():
        number += 1
        which = number % len(requests)
        started = time.monotonic()
        try:
            connection = connection or running.connect()
            connection.sendall(requests[which])
            answer = read_answer(connection)
        except TimeoutError:
            outcome = "hung"
        except (OSError, AssertionError):  # read_answer asserts that there is an answer
            outcome = "lost with its worker"
        else:
            is_right = answer.status != 200 or answer.body == expected[which]
            outcome = str(answer.status) if is_right else "wrong"
        if time.monotonic() - started > LONGEST_ANSWER_SECONDS:
            outcome = "late"
        if outcome not in ("200", "503") and connection is not None:
            connection.close()
            connection = None
        outcomes[outcome] += 1
    if connection is not None:
        connection.close()
