"""More is sent at once than there is memory for: nothing is killed, everybody is answered."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.faults.conftest import Tell
from tests.support.binary import cross_entropy_request
from tests.support.memory_group import MemoryGroup, memory_group
from tests.support.raw_http import read_answer
from tests.support.running import RunningService, running_service

MEBIBYTE = 1 << 20
LIMIT = 1 << 30

SHAPE = (390, 32_000)
"""50 MB of float32."""

PATHS = ("/v1/cross-entropy", "/v1/cross-entropy/gradient")


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    made = memory_group(LIMIT)
    try:
        limited = made.__enter__()
    except OSError as error:
        pytest.skip(f"no control group for memory can be made here: {error}")
    yield limited
    made.__exit__(None, None, None)


@pytest.mark.parametrize("count", [18, pytest.param(64, marks=pytest.mark.faults)], ids=["short", "long"])
def test_large_requests_at_once_in_a_memory_cgroup_are_answered(group: MemoryGroup, count: int, tell: Tell) -> None:
    requests = [cross_entropy_request(*SHAPE, path=path) for path in PATHS]
    outcomes: Counter[str] = Counter()
    with running_service("--device=cpu", "--log-level=warning", "--drain-seconds=1", program=group.program) as service:
        service.wait_until_ready()
        askers = [threading.Thread(target=_count, args=(service, requests[n % 2], outcomes)) for n in range(count)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        used, kills = group.most_used(), group.kills()
        tell(f"{dict(outcomes)}; most used {used / MEBIBYTE:.0f} of {LIMIT / MEBIBYTE:.0f} MiB, {kills} killed")

        assert set(outcomes) <= {"200", "503 overloaded", "503 memory-budget"}, service.log()
        assert outcomes["200"] > 0, service.log()
        assert kills == 0
        assert service.stop() == 0


def _count(service: RunningService, request: bytes, outcomes: Counter[str]) -> None:
    """Send a request on a connection of its own, and count how it ended."""
    try:
        with socket.create_connection(("127.0.0.1", service.port), 60) as connection:
            sender = threading.Thread(target=_send, args=(connection, request))
            sender.start()
            answer = read_answer(connection)
            sender.join()
    except (OSError, AssertionError) as error:
        outcomes[f"no answer ({type(error).__name__})"] += 1
        return
    if answer.status == 200:
        outcomes["200"] += 1
    else:
        is_timed = answer.headers.get("retry-after", "").isdigit()
        code = json.loads(answer.body)["code"]
        outcomes[f"{answer.status} {code}" + ("" if is_timed else " without Retry-After")] += 1


def _send(connection: socket.socket, request: bytes) -> None:
    with suppress(OSError):  # the reader says what became of the connection
        connection.sendall(request)


@pytest.mark.faults
def test_memory_of_large_requests_is_given_back(tell: Tell) -> None:
    command = [sys.executable, "-m", "benchmarks.memory"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    tell(result.stdout)

    assert result.returncode == 0, result.stderr
