"""Health probes from a process of its own, while something else is going on.

`python -m tests.support.probing PORT new 10 PATH` opens ten connections a second, as a load balancer does;
`... PORT kept 500 PATH` asks five hundred times a second on one connection, so that the slowest answer is the longest
time for which the event loop did not turn. Both go on until standard input ends, then write to PATH what came.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

REQUEST = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
PATIENCE_SECONDS = 5.0


@dataclass
class Probes:
    """What came of them; latencies in seconds."""

    latencies: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def slowest(self) -> float:
        return max(self.latencies, default=float("inf"))


@contextmanager
def probing(port: int, kind: Literal["new", "kept"], rate: float) -> Iterator[Probes]:
    """Probe while the block runs; afterwards the object holds what came of it."""
    probes = Probes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probes")
        command = [sys.executable, "-S", "-m", "tests.support.probing", str(port), kind, str(rate), str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
            try:
                yield probes
            finally:
                process.stdin.close()
                process.wait(4 * PATIENCE_SECONDS)
        probes.__dict__.update(json.loads(path.read_text()))


def _probe(connection: socket.socket) -> bool:
    connection.sendall(REQUEST)
    answer = b""
    while not answer.endswith(b"}"):
        if not (piece := connection.recv(1 << 16)):
            return False
        answer += piece
    return answer.startswith(b"HTTP/1.1 200 ")


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def main() -> None:
    """Probe until standard input ends."""
    port, kind, rate = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    probes = Probes()
    with suppress(PermissionError):
        os.nice(-10)  # where it may: a prober that waits for a processor measures its own wait
    kept: socket.socket | None = None
    print("begun", flush=True)
    while not select.select([sys.stdin], [], [], 1 / rate)[0]:
        started = time.perf_counter()
        try:
            connection = kept if kept is not None else _connect(port)
            probes.failures += not _probe(connection)
            probes.latencies.append(time.perf_counter() - started)
            if kind == "kept":
                kept = connection
            else:
                connection.close()
        except OSError:
            probes.failures += 1
            kept = None
    Path(sys.argv[4]).write_text(json.dumps(asdict(probes)))


if __name__ == "__main__":
    main()
