"""The whole service over loopback beside a bare uvicorn application that moves as many bytes.

A third yardstick, the *floor*, is no HTTP server at all: bytes in, one compiled call, bytes out.

The bare application starts anew for every round, and there are two of it: as it is, and with glibc told to keep freed
memory (`MALLOC_MMAP_THRESHOLD_`). glibc hands a megabyte back to the kernel each time it is freed, until it has seen a
larger piece freed: at that size the two differ by a factor of two to four, and which one a long-lived process comes to
resemble depends on what it has answered before.
"""

from __future__ import annotations

import base64
import json
import os
import re
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson
import torch

from service.http.formats import MEDIA_TYPES
from service.ops import native
from service.wire import safetensors_codec

START_SECONDS = 60.0
GRADIENT = "/v1/cross-entropy/gradient"
LOSS = "/v1/cross-entropy"


@dataclass(frozen=True)
class Workload:
    """What is asked of both servers."""

    format: str
    shape: tuple[int, int]
    path: str
    connections: tuple[int, ...]


WORKLOADS = (
    Workload("json", (8, 10), GRADIENT, (1, 8)),
    Workload("json", (256, 1000), GRADIENT, (1, 8)),
    Workload("safetensors", (8, 10), LOSS, (1, 32)),
    Workload("safetensors", (8, 10), GRADIENT, (1, 32)),
    Workload("safetensors", (256, 1000), LOSS, (1, 8)),
    Workload("safetensors", (256, 1000), GRADIENT, (1, 8)),
    Workload("safetensors", (1024, 32000), LOSS, (1,)),
    Workload("safetensors", (1024, 32000), GRADIENT, (1,)),
)


WARM_UP_SECONDS = 0.1

SERVERS = ("bare", "keeping", "floor", "ours")


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m ...` until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def port_of(server: subprocess.Popen[str]) -> int:
    """Return the port that a server prints once it listens."""
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            port = urlsplit(found[0]).port
            assert port is not None
            return port
    raise RuntimeError(f"{server.args!r} ended before it listened")


def _body(workload: Workload) -> bytes:
    torch.manual_seed(0)
    rows, classes = workload.shape
    tensors = {"logits": torch.randn(rows, classes) * 3, "target": torch.randint(classes, (rows,))}
    if workload.format == "safetensors":
        return b"".join(safetensors_codec.encode(tensors))
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return orjson.dumps(arrays, option=orjson.OPT_SERIALIZE_NUMPY)


def _media_type(workload: Workload) -> str:
    return MEDIA_TYPES["safetensors" if workload.format == "safetensors" else "json"]


def _answer_bytes(port: int, workload: Workload, body: bytes) -> int:
    headers = {"Content-Type": _media_type(workload)}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{workload.path}", body, headers)
    with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
        return len(answer.read())


def _request(workload: Workload, body: bytes, answer_bytes: int) -> str:
    head = (
        f"POST {workload.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {_media_type(workload)}\r\n"
        f"Content-Length: {len(body)}\r\nX-Answer-Bytes: {answer_bytes}\r\n\r\n"
    )
    return base64.b64encode(head.encode() + body).decode()


class _Load:
    """The load generator's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def rate(self, port: int, request: str, connections: int, seconds: float) -> float:
        """Return requests per second of one round."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"port": port, "request": request, "connections": connections, "seconds": seconds}
        self._process.stdin.write(json.dumps(order) + "\n")
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the load generator failed; its message is above")
        result = json.loads(line)
        return float(result["requests"] / result["seconds"])


KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
"""Environment in which glibc keeps what is freed."""


def measure(device: torch.device, *, quick: bool) -> None:
    """Print requests per second of all servers, and which part of the bare ones' the service reaches."""
    rounds, seconds = (5, 0.5) if quick else (9, 1.0)
    print(
        f"{'over loopback':55}{'body':>12}{'answer':>12}{'bare':>12}{'keeping':>12}{'floor':>12}{'ours':>12}"
        f"{'of bare':>9}{'keeping':>9}{'floor':>9}{'its time':>10}"
    )
    with ExitStack() as stack:
        arguments = ("service", "serve", "--port", "0", "--device", str(device), "--log-level", "warning")
        ours = port_of(stack.enter_context(process(*arguments)))
        load = _Load(stack.enter_context(process("benchmarks.load")))
        for workload in WORKLOADS:
            body = _body(workload)
            answer_bytes = _answer_bytes(ours, workload, body)
            request = _request(workload, body, answer_bytes)
            for connections in workload.connections:
                rates = _rates(load, workload, request, connections, ours, rounds=rounds, seconds=seconds)
                what = "loss" if workload.path == LOSS else "loss and gradient"
                title = f"{workload.format} {list(workload.shape)} {what}, {connections} at once"
                rate = rates["ours"]
                shown = "".join(f"{rates[name]:>10.1f}/s" if name in rates else f"{'-':>12}" for name in SERVERS)
                parts = "".join(
                    f"{rate / rates[name]:>8.2f}x" if name in rates else f"{'-':>9}" for name in SERVERS[:-1]
                )
                print(
                    f"{title:55}{len(body):>10} B{answer_bytes:>10} B{shown}{parts}{rates['bare'] / rate:>9.2f}x",
                    flush=True,
                )


def _rates(
    load: _Load, workload: Workload, request: str, connections: int, ours: int, *, rounds: int, seconds: float
) -> dict[str, float]:
    """Return the median rates of the yardsticks, started anew for every round, and of the service at a port."""
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        with ExitStack() as stack:
            ports = {
                "bare": port_of(stack.enter_context(process("benchmarks.bare"))),
                "keeping": port_of(stack.enter_context(process("benchmarks.bare", **KEEPING))),
            }
            if workload.format == "safetensors" and native.computes(torch.empty(0)):
                gradient = ["gradient"] if workload.path == GRADIENT else []
                ports["floor"] = port_of(stack.enter_context(process("benchmarks.floor", *gradient)))
            ports["ours"] = ours
            for name, port in ports.items():
                load.rate(port, request, connections, WARM_UP_SECONDS)
                rates.setdefault(name, []).append(load.rate(port, request, connections, seconds))
    return {name: statistics.median(values) for name, values in rates.items()}
