"""What a caller writes stays what he wrote: no line of the log, no header and no series of metrics is made of it."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from service import metrics
from service.app import create_app
from service.http.logs import JsonFormatter, LogFormat, TextFormatter
from service.settings import Settings
from tests.faults.conftest import Tell
from tests.http.calling import ENDPOINTS, REQUEST_ID, safetensors_file
from tests.support.raw_http import Listening, read_to_the_end, request
from tests.support.straight import ask_straight

AS_JSON = "Content-Type: application/json"

VECTORS = [
    '\n{"level": "info", "message": "forged"}', "\r\nforged: line", "\x1b[31mred\x1b[0m", "\x00", "\x07\x08\x7f",
    "\u2028", "\u2029", "\x85", "%n%s%(message)s{0}{message}", "${jndi:ldap://x}", "\\n", '"', "'; --", "<script>",
    "\ud7ff", "é" * 300, "x" * 100_000, "\u202e\u2066", "\n" * 50, "../../etc/passwd",
]  # fmt: skip


@pytest.fixture(params=["json", "text"])
def log(request: pytest.FixtureRequest) -> Iterator[tuple[LogFormat, io.StringIO]]:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter() if request.param == "json" else TextFormatter())
    logger = logging.getLogger("service")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield request.param, written
    logger.setLevel(before)
    logger.removeHandler(handler)


def smuggling(vector: str) -> Iterator[bytes]:
    """Yield requests that carry a text everywhere a text can stand."""
    data = vector.encode()
    escaped = json.dumps(vector)
    yield request("POST", f"/v1/{quote(vector)}"[:4000], AS_JSON, body=b"{}")
    yield request("POST", f"/v1/softmax?{quote(vector)}"[:4000], AS_JSON, body=b'{"logits": [1.0]}')
    yield request("POST", "/v1/softmax", AS_JSON, body=f"{{{escaped}: [1.0]}}".encode())
    yield request("POST", "/v1/softmax", AS_JSON, body=f'{{"logits": [1.0], "reduction": {escaped}}}'.encode())
    yield request("POST", "/v1/softmax", AS_JSON, body=f'{{"logits": [1.0], "outputs": [{escaped}]}}'.encode())
    header = f'{{{escaped}: {{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}}}'
    yield request("POST", "/v1/softmax", "Content-Type: application/x-safetensors", body=safetensors_file(header))
    for name in (b"Content-Type", b"Accept", b"X-Request-Id", b"Host", b"X-Request-Timeout-Ms", b"User-Agent"):
        plain = request("POST", "/v1/softmax", body=b"{}")
        yield plain.replace(b"\r\n", b"\r\n" + name + b": " + data.replace(b"\r\n", b" ") + b"\r\n", 1)


@pytest.mark.anyio
async def test_every_request_is_one_line_of_the_log(log: tuple[LogFormat, io.StringIO], tell: Tell) -> None:
    form, written = log
    app = create_app(Settings(device="cpu", threads=1))
    asked = 0
    for vector in VECTORS:
        for each in smuggling(vector):
            await ask_straight(app, each)
            asked += 1
    lines = written.getvalue().split("\n")[:-1]
    tell(f"{asked} requests, {len(lines)} lines of {form}, the longest of {max(map(len, lines))} characters")

    assert len(lines) == asked
    assert all(len(line) < 1000 for line in lines)
    if form == "json":
        assert {json.loads(line)["message"] for line in lines} == {"request"}
        assert all(line.isascii() and line.isprintable() for line in lines)
    else:
        assert all(line.isprintable() for line in lines)


HEADERS = {
    "accept-encoding", "allow", "connection", "content-length", "content-type", "date", "retry-after", "server-timing",
    "www-authenticate", "x-request-id",
}  # fmt: skip
"""All that an answer to a program may have."""


def test_nothing_that_was_sent_becomes_a_header_of_the_answer(service: Listening) -> None:
    for vector in [
        *VECTORS,
        "a\r\nSet-Cookie: b=c",
        "a\rSet-Cookie: b=c",
        "a\nSet-Cookie: b=c",
        "%0d%0aSet-Cookie: b=c",
    ]:
        for each in smuggling(vector):
            with service.connect() as connection:
                connection.sendall(each.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                answer = read_to_the_end(connection)
            head, _, body = answer.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            names = [line.partition(": ")[0].lower() for line in lines]
            request_id = dict(line.partition(": ")[::2] for line in lines).get("x-request-id", "none")

            assert first.startswith("HTTP/1.1 "), each[:300]
            assert set(names) <= HEADERS, each[:300]
            assert len(names) == len(set(names))
            assert all(set(line) <= set(string.printable) - set("\r\n\t\x0b\x0c") for line in lines)
            assert b"HTTP/1.1" not in body
            assert REQUEST_ID.fullmatch(request_id)


@pytest.mark.anyio
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.faults)], ids=["short", "long"])
async def test_series_of_metrics_stay_as_many_as_they_were(count: int, tmp_path: Path, tell: Tell) -> None:
    keys = tmp_path / "keys"
    keys.write_text("the-key-0123456789\n")
    app = create_app(Settings(device="cpu", threads=1, api_keys=keys))
    before = _series()
    for number in range(count):
        key = f"made-up-key-{number:010}" if number % 2 else "the-key-0123456789"
        lines = (f"Authorization: Bearer {key}", f"Content-Type: application/x-{number}", f"X-Request-Id: {number}")
        path = f"/v1/made-up-{number}" if number % 3 else ENDPOINTS[number % 8].path
        await ask_straight(app, request("POST", path, *lines, body=f'{{"made-up-{number}": 1}}'.encode()))
    after = _series()
    tell(f"{count} paths, keys, types and names; {before} series before, {after} after")

    assert after == before


def _series() -> int:
    return sum(not line.startswith("#") for line in metrics.exposition().decode().splitlines())


@pytest.mark.faults
def test_the_service_works_where_there_is_no_network(tell: Tell) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("a network of its own needs root, unshare and ip")
    inside = (
        f"ip link set lo up && exec {sys.executable} -m pytest -q tests/http/test_server.py -k 'log_line or metrics'"
    )
    result = subprocess.run(
        ["unshare", "--net", "sh", "-c", inside], capture_output=True, text=True, timeout=300, check=False
    )
    tell(result.stdout.strip().rpartition("\n")[2])

    assert result.returncode == 0, result.stdout
