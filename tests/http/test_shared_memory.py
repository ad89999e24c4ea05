"""Tensors in the system's shared memory: registered, used in place, bounded, and let go."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import tritonclient.http as triton
import tritonclient.utils.shared_memory as shm
from torch.nn import functional
from tritonclient.utils import InferenceServerException

from service.app import create_app
from service.settings import Settings
from service.wire.shared_memory import SharedMemory
from tests.http.calling import check_refusal, client_of
from tests.support.running import RunningService, running_service

pytestmark = [
    pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory objects are files on Linux only"),
]

ROWS, CLASSES = 300, 1000
LOGITS = np.random.default_rng(0).normal(size=(ROWS, CLASSES)).astype("float32")
TARGET = np.random.default_rng(1).integers(CLASSES, size=ROWS)


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service("--threads=1", "--device=cpu", LOSS_SHARED_MEMORY="true") as running:
        running.wait_until_ready()
        yield running


@pytest.fixture
def client(service: RunningService) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.address.removeprefix("http://")) as client:
        yield client
        client.unregister_system_shared_memory()


class Memory:
    """A shared memory object of the test's own, as an array of bytes."""

    def __init__(self, size: int) -> None:
        self.key = f"/loss-test-{uuid.uuid4().hex}"
        self._handle = shm.create_shared_memory_region("test", self.key, size)
        self.size = size

    def put(self, array: np.ndarray[Any, Any], offset: int = 0) -> None:
        shm.set_shared_memory_region(self._handle, [array], offset=offset)

    def get(self, dtype: str, shape: tuple[int, ...], offset: int = 0) -> np.ndarray[Any, Any]:
        return np.array(shm.get_contents_as_numpy(self._handle, dtype, shape, offset=offset))

    def free(self) -> None:
        shm.destroy_shared_memory_region(self._handle)


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory(4 << 20)
    yield memory
    memory.free()


def placed(name: str, array: np.ndarray[Any, Any], datatype: str, offset: int = 0) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_shared_memory("r", array.nbytes, offset=offset)
    return tensor


def wanted(name: str, size: int, offset: int) -> triton.InferRequestedOutput:
    output = triton.InferRequestedOutput(name)
    output.set_shared_memory("r", size, offset=offset)
    return output


def reference() -> tuple[float, np.ndarray[Any, Any]]:
    leaf = torch.from_numpy(LOGITS.copy()).requires_grad_()
    loss = functional.cross_entropy(leaf, torch.from_numpy(TARGET))
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return loss.item(), leaf.grad.numpy()


GRADIENT = {
    "elsewhere": LOGITS.nbytes + TARGET.nbytes,
    "elsewhere, askew": LOGITS.nbytes + TARGET.nbytes + 2,
    "over the logits": 0,
    "over a part of the logits": 4000,
    "over the target": LOGITS.nbytes - 4000,
}


@pytest.mark.parametrize("place", GRADIENT)
def test_inputs_and_outputs_may_lie_anywhere(client: triton.InferenceServerClient, memory: Memory, place: str) -> None:
    client.register_system_shared_memory("r", memory.key, memory.size)
    memory.put(LOGITS)
    memory.put(TARGET, LOGITS.nbytes)
    offset, end = GRADIENT[place], 3 << 20
    inputs = [placed("logits", LOGITS, "FP32"), placed("target", TARGET, "INT64", LOGITS.nbytes)]
    outputs = [wanted("grad_logits", LOGITS.nbytes, offset), wanted("loss", 4, end)]

    answer = client.infer("cross_entropy_gradient", inputs, outputs=outputs)

    loss, gradient = reference()
    assert answer.get_response()["outputs"] == [
        {"name": "grad_logits", "datatype": "FP32", "shape": [ROWS, CLASSES]},
        {"name": "loss", "datatype": "FP32", "shape": []},
    ]
    assert memory.get("float32", (), end) == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(memory.get("float32", (ROWS, CLASSES), offset), gradient, rtol=2e-5, atol=1e-9)


def test_a_region_whose_object_was_shortened_is_refused(client: triton.InferenceServerClient, memory: Memory) -> None:
    client.register_system_shared_memory("r", memory.key, memory.size)
    os.truncate(f"/dev/shm{memory.key}", LOGITS.nbytes - 1)

    with pytest.raises(InferenceServerException, match="may use 1199999 bytes"):
        client.infer("softmax", [placed("logits", LOGITS, "FP32")])
    assert client.is_server_live()


def test_inputs_stay_as_they_are_when_the_answer_goes_elsewhere(
    client: triton.InferenceServerClient, memory: Memory
) -> None:
    client.register_system_shared_memory("r", memory.key, memory.size)
    memory.put(LOGITS)

    answer = client.infer("softmax", [placed("logits", LOGITS, "FP32")])

    np.testing.assert_allclose(answer.as_numpy("probs"), torch.softmax(torch.from_numpy(LOGITS), 1), rtol=1e-5)
    assert (memory.get("float32", (ROWS, CLASSES)) == LOGITS).all()


def test_an_offset_of_the_region_counts_from_the_object(client: triton.InferenceServerClient, memory: Memory) -> None:
    client.register_system_shared_memory("r", memory.key, 1 << 20, offset=100)
    memory.put(LOGITS[:2], 104)

    answer = client.infer("softmax", [placed("logits", LOGITS[:2], "FP32", 4)])

    np.testing.assert_allclose(answer.as_numpy("probs"), torch.softmax(torch.from_numpy(LOGITS[:2]), 1), rtol=1e-5)
    assert client.get_system_shared_memory_status("r") == [
        {"name": "r", "key": memory.key, "offset": 100, "byte_size": 1 << 20}
    ]


@pytest.mark.parametrize(
    ("offset", "size", "usable"),
    [(4 << 20, 24, 0), ((4 << 20) - 23, 24, 23), (0, 23, 23), (2**62, 24, 0)],
)
def test_nothing_beyond_a_region_is_touched(
    client: triton.InferenceServerClient, memory: Memory, offset: int, size: int, usable: int
) -> None:
    client.register_system_shared_memory("r", memory.key, memory.size)
    tensor = triton.InferInput("logits", [2, 3], "FP32")
    tensor.set_shared_memory("r", size, offset=offset)
    said = (
        f"needs 24 bytes from byte {offset} of the shared memory region 'r', "
        f"but may use {usable} byte{'' if usable == 1 else 's'}."
    )

    with pytest.raises(InferenceServerException) as caught:
        client.infer("softmax", [tensor])
    assert caught.value.message() == f"'logits' {said}"

    given = triton.InferInput("logits", [2, 3], "FP32").set_data_from_numpy(LOGITS[:2, :3].copy())
    with pytest.raises(InferenceServerException) as caught:
        client.infer("softmax", [given], outputs=[wanted("probs", size, offset)])
    assert caught.value.message() == f"'probs' {said}"
    assert caught.value.status() == "400"


def test_a_region_is_let_go_when_it_is_unregistered(
    service: RunningService, client: triton.InferenceServerClient, memory: Memory
) -> None:
    def is_mapped() -> bool:
        return memory.key[1:] in Path(f"/proc/{service.process.pid}/maps").read_text()

    client.register_system_shared_memory("r", memory.key, memory.size)
    memory.put(LOGITS)
    client.infer("softmax", [placed("logits", LOGITS, "FP32")], outputs=[wanted("probs", LOGITS.nbytes, 0)])
    assert is_mapped()
    client.unregister_system_shared_memory("r")

    assert not is_mapped()
    assert client.get_system_shared_memory_status() == []
    with pytest.raises(InferenceServerException, match="which is not registered"):
        client.infer("softmax", [placed("logits", LOGITS, "FP32")])
    client.unregister_system_shared_memory("r")


def test_a_name_is_registered_once(client: triton.InferenceServerClient, memory: Memory) -> None:
    client.register_system_shared_memory("r", memory.key, 100)

    with pytest.raises(InferenceServerException, match="'region' must be a name that is not registered yet"):
        client.register_system_shared_memory("r", memory.key, 100)


@pytest.fixture
def page() -> Iterator[Path]:
    """A shared memory object of 4096 bytes."""
    path = Path(f"/dev/shm/loss-test-{uuid.uuid4().hex}")
    path.write_bytes(bytes(4096))
    yield path
    path.unlink()


OFFERED: dict[str, Any] = {
    "another folder": {"key": "../etc/passwd"},
    "a path": {"key": "/a/b"},
    "a path from the root": {"key": "//etc/passwd"},
    "the folder": {"key": "."},
    "the folder above": {"key": ".."},
    "a hidden file": {"key": "/.x"},
    "nothing": {"key": ""},
    "a null byte": {"key": "x\0y"},
    "a number": {"key": 5},
    "no key": {"key": None},
    "an object that is not there": {"key": "/loss-test-none"},
    "a negative offset": {"offset": -1},
    "an offset beyond": {"offset": 2**62},
    "no size": {"byte_size": None},
    "a size of nothing": {"byte_size": 0},
    "more than there is": {"byte_size": 4097},
    "far more than there is": {"byte_size": 2**63 - 1},
    "a size in words": {"byte_size": "100"},
}


@pytest.mark.anyio
@pytest.mark.parametrize("offered", OFFERED.values(), ids=OFFERED)
async def test_only_a_whole_part_of_an_object_with_a_plain_name_is_registered(
    page: Path, offered: dict[str, Any]
) -> None:
    body = {"key": f"/{page.name}", "offset": 0, "byte_size": 4096} | offered
    async with client_of(create_app(Settings(threads=1, device="cpu", shared_memory=True))) as client:
        response = await client.post("/v2/systemsharedmemory/region/r/register", content=json.dumps(body))
        status = await client.get("/v2/systemsharedmemory/status")

    assert response.status_code == 422
    check_refusal(response, code="invalid-option")
    assert status.json() == []


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_is_no_shared_memory_object_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = Path(f"/dev/shm/loss-test-{uuid.uuid4().hex}")
    target = tmp_path / "secret"
    target.write_bytes(bytes(4096))
    if kind == "link":
        path.symlink_to(target)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    try:
        with pytest.raises(Exception, match="'key' must be the name of a shared memory object"):
            SharedMemory().register("r", path.name, 0, 10)
    finally:
        path.rmdir() if kind == "folder" else path.unlink()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "x" * 129, "a\nb", "a b"])
def test_a_region_has_a_plain_name(name: str) -> None:
    with pytest.raises(Exception, match="'region' must be 1 to 128 letters"):
        SharedMemory().register(name, "/x", 0, 10)


@pytest.mark.anyio
async def test_without_the_setting_nothing_is_registered_but_all_is_unregistered(client_off: httpx.AsyncClient) -> None:
    for kind in ("system", "cuda"):
        for path in (f"/v2/{kind}sharedmemory", f"/v2/{kind}sharedmemory/region/r"):
            response = await client_off.post(path + "/unregister")
            assert (response.status_code, response.content) == (200, b"")
        assert (await client_off.get(f"/v2/{kind}sharedmemory/status")).json() == []
        response = await client_off.post(f"/v2/{kind}sharedmemory/region/r/register", content=b"{}")
        assert response.status_code == 404
        check_refusal(response, code="not-found")
    assert "system_shared_memory" not in (await client_off.get("/v2")).json()["extensions"]


@pytest.fixture
async def client_off(app: Any) -> Any:
    async with client_of(app) as client:
        yield client


@pytest.mark.anyio
async def test_the_services_own_pages_may_ask_and_others_only_where_there_is_no_shared_memory(
    client_off: httpx.AsyncClient,
) -> None:
    body = json.dumps({"inputs": [{"name": "logits", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})
    path, other = "/v2/models/softmax/infer", {"Origin": "http://example.org"}

    assert (await client_off.post(path, content=body, headers=other)).status_code == 200
    async with client_of(create_app(Settings(threads=1, device="cpu", shared_memory=True))) as client:
        own = await client.post(path, content=body, headers={"Origin": "http://127.0.0.1"})
        foreign = await client.post(path, content=body, headers=other)
        elsewhere = await client.get("/v1/limits", headers=other)

    assert (own.status_code, foreign.status_code, elsewhere.status_code) == (200, 400, 200)


def test_a_region_belongs_to_one_process_so_there_may_be_one_only() -> None:
    with pytest.raises(ValueError, match="LOSS_SHARED_MEMORY needs LOSS_WORKERS to be 1"):
        Settings(shared_memory=True, workers=2)
