"""The service on a Ray cluster of two nodes, deployed from deploy/ray/serve.yaml: `make ray-test`.

Ray listens where it likes, on every interface: run this in a network of its own, with nothing but loopback.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save

from service.ops import OPERATORS
from tests.support.batches import VARIANTS, batch_of, operator_of
from tests.support.patient import Tally, patient_callers
from tests.support.running import RunningService, running_service

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8000"
LONGEST_START_SECONDS = 120.0
LONGEST_QUEUE = 800
"""More requests than can wait in two proxies and in as many replicas as there can be."""
BINARY = {"Content-Type": "application/x-safetensors"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two nodes with the service on them; gives the file with what `serve run` says."""
    log_path = tmp_path_factory.mktemp("ray") / "serve.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "deploy" / "ray"), "RAY_USAGE_STATS_ENABLED": "0"}
    nodes_command = [sys.executable, "-m", "tests.deploy.two_nodes"]
    serve = Path(sys.executable).with_name("serve")
    with log_path.open("w") as log, ExitStack() as stack:
        nodes = stack.enter_context(
            subprocess.Popen(
                nodes_command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=ROOT,
                text=True,
            )
        )
        assert nodes.stdin is not None
        assert nodes.stdout is not None
        stack.callback(nodes.stdin.close)
        address = nodes.stdout.readline().strip()
        command = [str(serve), "run", "--address", address, str(ROOT / "deploy" / "ray" / "serve.yaml")]
        deploy = stack.enter_context(
            subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=log_path.parent)
        )
        try:
            _wait_for_replicas(2, log_path)
            yield log_path
        finally:
            deploy.kill()  # the cluster ends with everything on it


@pytest.fixture(scope="module")
def plain() -> Iterator[RunningService]:
    with running_service("--drain-seconds", "1") as service:
        service.wait_until_ready()
        yield service


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_a_replica_takes_what_ray_assigned_to_it_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    from loss_on_ray import replica_settings

    small = replica_settings({"CPU": 0.5, "memory": 1e9})
    shared_gpu = replica_settings({"CPU": 3.0, "GPU": 0.5})
    monkeypatch.setenv("LOSS_THREADS", "7")
    monkeypatch.setenv("LOSS_DEVICE", "cuda:1")
    given = replica_settings({"CPU": 3.0, "GPU": 0.5})

    assert (small.threads, small.device) == (1, "cpu")
    assert small.memory_budget == 300_000_000
    assert (shared_gpu.threads, shared_gpu.device) == (3, "cuda")
    assert (given.threads, given.device) == (7, "cuda:1")


def test_both_nodes_have_a_replica(cluster: Path) -> None:
    assert len({_parent(pid) for pid in _replicas()}) == 2


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_json_answers_are_those_of_plain_uvicorn(
    cluster: Path, plain: RunningService, operator: str, gradient: bool
) -> None:
    path = f"/v1/{operator}/gradient" if gradient else f"/v1/{operator}"
    example = OPERATORS[operator].gradient_example if gradient else OPERATORS[operator].example

    on_ray, by_uvicorn = (httpx.post(address + path, json=example) for address in (ADDRESS, plain.address))

    assert by_uvicorn.status_code == 200
    assert _essence(on_ray) == _essence(by_uvicorn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(7, 10), (256, 1000), (300, 20000)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_binary_answers_are_those_of_plain_uvicorn(
    cluster: Path, plain: RunningService, variant: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    path, body = f"/v1/{operator_of(variant)}/gradient", _body(batch_of(variant, *shape, dtype=dtype))

    on_ray, by_uvicorn = (
        httpx.post(address + path, content=body, headers=BINARY, timeout=60) for address in (ADDRESS, plain.address)
    )

    assert by_uvicorn.status_code == 200, by_uvicorn.text
    assert _essence(on_ray) == _essence(by_uvicorn)


def test_problems_are_those_of_plain_uvicorn(cluster: Path, plain: RunningService) -> None:
    wrong = {"logits": [[1.0, 2.0]], "target": [2]}
    headers = {"X-Request-Id": "the-same"}

    on_ray, by_uvicorn = (
        httpx.post(address + "/v1/cross-entropy", json=wrong, headers=headers) for address in (ADDRESS, plain.address)
    )

    assert by_uvicorn.status_code == 422
    assert _essence(on_ray) == _essence(by_uvicorn)
    assert on_ray.headers.get_list("x-request-id") == ["the-same"]


def test_probes_and_pages_answer(cluster: Path) -> None:
    for path in ("/health/live", "/health/ready", "/metrics", "/v1/limits", "/docs", "/"):
        assert httpx.get(ADDRESS + path).status_code == 200, path


def test_a_replica_has_the_threads_that_ray_gave_it(cluster: Path) -> None:
    for pid in _replicas():
        names = [(task / "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir()]
        assert sum(name.startswith("loss-engine") for name in names) <= 2, names


def test_no_request_is_lost_when_a_replica_dies_under_load(cluster: Path, plain: RunningService) -> None:
    body = _body(batch_of("cross-entropy", 256, 1000))
    request = httpx.Request("POST", ADDRESS + "/v1/cross-entropy/gradient", content=body, headers=BINARY)
    expected = httpx.post(plain.address + request.url.path, content=body, headers=BINARY).content
    gaps: list[float] = []

    with patient_callers(ADDRESS, 8, request, expected) as tally:
        time.sleep(2)
        for _ in range(3):
            before = _replicas()
            os.kill(before[0], signal.SIGKILL)
            killed = time.monotonic()
            _wait_for_replicas(len(before), cluster, without=before[0])
            gaps.append(time.monotonic() - killed)
            time.sleep(1)

    print(f"\n3 replicas killed, replaced after {[round(gap, 1) for gap in gaps]} s: {tally}")
    _assert_nothing_lost(tally)


def test_more_requests_than_may_wait_are_refused_as_problems(cluster: Path) -> None:
    """Requests whose bodies never end take all places: 16 in each replica, 64 in the queue of each proxy."""
    with ExitStack() as stack:
        for number in range(1, LONGEST_QUEUE + 1):
            stack.enter_context(_half_sent_request())
            if number % 40 == 0 and (refused := _ask_impatiently()) is not None:
                break

    assert refused is not None, "so many requests wait, and none is refused"
    assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
    assert refused.json()["code"] == "overloaded"
    assert refused.json()["request_id"] == "one-more"
    assert refused.headers["retry-after"] == "1"
    request = httpx.Request("POST", ADDRESS + "/v1/softmax", json={"logits": [1.0]})
    with patient_callers(ADDRESS, 1, request, b'{"probs":[1.0]}') as tally:
        time.sleep(2)
    _assert_nothing_lost(tally)


def _essence(answer: httpx.Response) -> tuple[int, str, bytes]:
    return answer.status_code, answer.headers["content-type"], answer.content


def _body(fields: dict[str, object]) -> bytes:
    tensors = {name: value.contiguous() for name, value in fields.items() if isinstance(value, torch.Tensor)}
    options = {name: value for name, value in fields.items() if name not in tensors}
    return save(
        tensors, {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    )


def _ask_impatiently() -> httpx.Response | None:
    """Return the answer to a small request, None when it has to wait or gets 200."""
    time.sleep(1)
    try:
        answer = httpx.post(
            ADDRESS + "/v1/softmax", json={"logits": [1.0]}, headers={"X-Request-Id": "one-more"}, timeout=2
        )
    except httpx.TimeoutException:
        return None
    return None if answer.status_code == 200 else answer


def _half_sent_request() -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", 8000))
    sock.sendall(
        b"POST /v1/softmax HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 100\r\n\r\n{"logits'
    )
    return sock


def _replicas() -> list[int]:
    """Return the replicas, those that are still starting too."""
    return _processes(b"ray::ServeReplica")


def _processes(title: bytes) -> list[int]:
    """Return the processes of this network whose title begins so."""
    network = os.readlink("/proc/self/ns/net")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_meant = folder.joinpath("cmdline").read_bytes().startswith(title)
            if is_meant and os.readlink(folder / "ns/net") == network:
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended
    return sorted(found)


def _parent(pid: int) -> int:
    status = re.search(r"^PPid:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert status is not None
    return int(status[1])


def _wait_for_replicas(number: int, log_path: Path, *, without: int | None = None) -> None:
    """Wait until so many replicas are there and one answers that it is ready."""
    end = time.monotonic() + LONGEST_START_SECONDS
    while not _is_ready() or len(set(_replicas()) - {without}) < number:
        assert time.monotonic() < end, log_path.read_text()[-5000:]
        time.sleep(0.2)


def _is_ready() -> bool:
    try:
        return httpx.get(ADDRESS + "/health/ready", timeout=LONGEST_START_SECONDS).status_code == 200
    except httpx.TransportError:
        return False


def _assert_nothing_lost(tally: Tally) -> None:
    assert not tally.lost, tally
    assert tally.answered > 20, tally
