"""HTTP written and read by hand, byte for byte, over a socket."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.running import RunningService, running_service

PATIENCE_SECONDS = 20.0


def _program(*, has_uvloop: bool, limits: Mapping[str, float]) -> tuple[str, ...]:
    """Return how to start the service, without uvloop or with other limits on connections than a user can set."""
    lines = ["import functools, sys"]
    if not has_uvloop:
        lines.append("sys.modules['uvloop'] = None")
    lines += [
        "from service.http import server",
        f"server.Limits = functools.partial(server.Limits, **{dict(limits)!r})",
    ]
    return "-c", "\n".join([*lines, "from service.__main__ import main", "sys.exit(main(sys.argv[1:]))"])


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Listening:
    """A service, and how to reach it."""

    service: RunningService
    connect: Callable[[], socket.socket]
    is_tls: bool

    def ask(self, request: bytes) -> Answer:
        """Send one request on a connection of its own."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_answer(connection)

    def metric(self, name: str) -> float:
        """Return a number of /metrics that has no labels."""
        text = self.ask(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").body.decode()
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith(name + " ")))

    def wait_until_idle(self) -> None:
        """Wait until no request is being worked on and no memory is held by one."""
        end = time.monotonic() + PATIENCE_SECONDS
        while self.metric("loss_in_flight_requests") or self.metric("loss_memory_reserved_bytes"):
            assert time.monotonic() < end
            time.sleep(0.02)


@contextmanager
def listening(way: str, *flags: str, limits: Mapping[str, float] | None = None) -> Iterator[Listening]:
    """Start a service: `tcp`, `tls` or `uds`, each with `-asyncio` appended to do without uvloop."""
    transport, _, loop = way.partition("-")
    program = ("-m", "service")
    if loop == "asyncio" or limits:
        program = _program(has_uvloop=loop != "asyncio", limits=limits or {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "socket")
        own: tuple[str, ...] = ()
        if transport == "tls":
            own = _certificate(Path(folder))
        elif transport == "uds":
            own = ("--uds", str(path))
        with running_service(*own, *flags, program=program) as service:

            def connect() -> socket.socket:
                if transport == "uds":
                    connection = socket.socket(socket.AF_UNIX)
                    connection.settimeout(PATIENCE_SECONDS)
                    connection.connect(str(path))
                    return connection
                connection = socket.create_connection(("127.0.0.1", service.port), PATIENCE_SECONDS)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return trusting.wrap_socket(connection) if transport == "tls" else connection

            trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
            running = Listening(service, connect, transport == "tls")
            _wait_until_ready(running)
            yield running


def _wait_until_ready(running: Listening) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while running.ask(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n").status != 200:
        assert time.monotonic() < end, running.service.log()
        time.sleep(0.05)


def _certificate(folder: Path) -> tuple[str, ...]:
    """Make a certificate that signs itself, and return the flags that use it."""
    certificate, key = str(folder / "certificate.pem"), str(folder / "key.pem")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    command = ["openssl", "req", "-x509", *kind, "-days", "1", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    return "--tls-cert", certificate, "--tls-key", key


def request(method: str, path: str, *lines: str, body: bytes = b"", length: int | None = None) -> bytes:
    """Write a request; `Content-Length` is that of the body unless given."""
    size = len(body) if length is None else length
    start = [f"{method} {path} HTTP/1.1", "Host: localhost", *lines]
    if method == "POST" and not any(line.startswith("Transfer-Encoding") for line in lines):
        start.append(f"Content-Length: {size}")
    return "\r\n".join([*start, "", ""]).encode() + body


def read_answer(connection: socket.socket, *, received: bytearray | None = None, is_head: bool = False) -> Answer:
    """Read one answer; what came after it stays in `received`, where the next one is looked for first."""
    received = bytearray() if received is None else received
    while (end := received.find(b"\r\n\r\n")) < 0:
        _receive_more(connection, received)
    first, *lines = received[:end].decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    del received[: end + 4]
    size = 0 if is_head else int(headers.get("content-length", 0))
    while len(received) < size:
        _receive_more(connection, received)
    body = bytes(received[:size])
    del received[:size]
    return Answer(int(first.split()[1]), headers, body)


def _receive_more(connection: socket.socket, received: bytearray) -> None:
    piece = connection.recv(1 << 20)
    assert piece, f"the connection ended after {bytes(received[:500])!r}"
    received += piece


def read_to_the_end(connection: socket.socket) -> bytes:
    """Read until the connection is closed."""
    received = bytearray()
    while piece := connection.recv(1 << 16):
        received += piece
    return bytes(received)


def reset(connection: socket.socket) -> None:
    """Close a connection with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def resident_bytes(service: RunningService) -> int:
    """Return how much memory the process of a service holds."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))) * 1024


def as_problem(answer: Answer) -> tuple[int, str]:
    """Return status and code of a refusal."""
    assert answer.headers["content-type"] == "application/problem+json", answer.body[:200]
    code: str = httpx.Response(200, content=answer.body).json()["code"]
    return answer.status, code
