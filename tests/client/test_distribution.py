"""The client is a distribution of its own: current, complete, and without the server's packages."""

from __future__ import annotations

import runpy
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx
import numpy as np
import pytest
from loss_client import LossClient
from loss_client.arrays import to_wire
from loss_client.progress import Progress, ProgressBar
from loss_client.safetensors import MEDIA_TYPE, read, write

from tests.client.conftest import KEY
from tests.support.running import RunningService

ROOT = Path(__file__).parents[2] / "clients" / "python"

ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "fastapi", "starlette", "pydantic", "service", "ml_dtypes"}:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Blocked())

import numpy as np
import loss_client

with loss_client.LossClient(sys.argv[1], api_key=sys.argv[2]) as client:
    print(client.cross_entropy_gradient(np.eye(3, dtype="float32"), np.arange(3)).loss)
try:
    loss_client.RemoteCrossEntropyLoss
except ModuleNotFoundError as error:
    print(error)

from loss_client import *
print(LossClient.__name__)
"""


def test_generated_files_are_current() -> None:
    rendered = runpy.run_path(str(ROOT / "generate.py"))["rendered"]()

    for name, text in rendered.items():
        assert (ROOT / "loss_client" / name).read_text() == text, f"{name} is stale: make client"


def test_the_client_works_without_torch_and_without_the_server(service: RunningService) -> None:
    command = [sys.executable, "-c", ALONE, service.address, KEY]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.splitlines() == ["0.5514447", "torch is not installed", "LossClient"]


def test_the_wheel_holds_the_package_its_types_and_its_licence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as wheel:
        packed = set(wheel.namelist())
        (licence,) = (name for name in packed if name.endswith("/licenses/LICENSE"))
        assert wheel.read(licence) == (ROOT.parents[1] / "LICENSE").read_bytes()
        (metadata,) = (name for name in packed if name.endswith("/METADATA"))
        needed = [line for line in wheel.read(metadata).decode().splitlines() if line.startswith("Requires-Dist")]

    files = {f"loss_client/{path.name}" for path in (ROOT / "loss_client").iterdir() if path.is_file()}
    assert files <= packed
    assert "loss_client/py.typed" in packed
    assert [line.split()[1].partition("<")[0].partition(">")[0] for line in needed] == ["httpx", "numpy"]


def test_bodies_are_views_of_the_arrays_and_answers_views_of_one_buffer() -> None:
    arrays = {"logits": np.zeros((1000, 100), "float32"), "target": np.zeros(1000, "int64")}

    body = write({name: to_wire(name, array) for name, array in arrays.items()}, {"reduction": "sum"})
    slices = [np.frombuffer(piece, np.uint8) for piece in body.slices()]
    buffer = np.concatenate(slices)
    answer = read(buffer)

    assert sum(len(piece) for piece in slices) == body.nbytes
    for array in arrays.values():
        assert any(np.shares_memory(piece, array) for piece in slices)
    assert all(np.shares_memory(array.values, buffer) for array in answer.values())
    assert {name: array.shape for name, array in answer.items()} == {"logits": (1000, 100), "target": (1000,)}


def test_a_call_takes_no_more_memory_than_its_answer() -> None:
    logits = np.zeros((8192, 1024), "float32")
    answer = write({"probs": to_wire("probs", logits)}, {})

    class Streaming(httpx.BaseTransport):
        """A transport as a socket is: the body goes by in pieces, and the answer comes in pieces of its own."""

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            sent = sum(len(piece) for piece in cast("Iterator[bytes]", request.stream))
            assert sent == int(request.headers["content-length"])
            headers = {"content-type": MEDIA_TYPE, "content-length": str(answer.nbytes)}
            pieces = (bytes(piece[at : at + 65536]) for piece in answer.slices() for at in range(0, len(piece), 65536))
            return httpx.Response(200, headers=headers, content=pieces)

    with httpx.Client(transport=Streaming()) as http:
        client = LossClient(http=http)
        client._caller.most_bytes = 1 << 30
        tracemalloc.start()
        probs = client.softmax(logits).probs
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    np.testing.assert_array_equal(probs, logits)
    assert logits.nbytes < peak < 1.05 * logits.nbytes


class Terminal:
    """Something that can be written to, and says whether it is a terminal."""

    def __init__(self, is_terminal: bool) -> None:
        self._is_terminal = is_terminal
        self.text = ""

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("is_terminal", "seconds", "expected"), [(True, 2.0, True), (True, 0.5, False), (False, 2.0, False)]
)
def test_a_bar_is_drawn_on_terminals_and_for_long_work(is_terminal: bool, seconds: float, expected: bool) -> None:
    terminal = Terminal(is_terminal)
    bar = ProgressBar(terminal)  # type: ignore[arg-type]

    bar(Progress(rows_done=5, rows=10, bytes_sent=600, bytes_received=100, nbytes=1000, seconds=seconds))
    bar(Progress(rows_done=10, rows=10, bytes_sent=1000, bytes_received=200, nbytes=1000, seconds=seconds + 1))

    assert bool(terminal.text) == (expected or (is_terminal and seconds + 1 > 1))
    if expected:
        first, last = terminal.text.split("\r")[1:]
        assert first.startswith("[##################............]  60%")
        assert last.startswith("[##############################] 100%")
        assert last.endswith("\n")
