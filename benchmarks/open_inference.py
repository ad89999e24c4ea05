"""The Open Inference Protocol over loopback: the Triton client beside other formats, and shared memory beside torch."""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import tritonclient.http as triton
import tritonclient.utils.shared_memory as shm
from torch.nn import functional

from benchmarks.loopback import GRADIENT, port_of, process
from benchmarks.rounds import duration, medians

MODEL = "cross_entropy_gradient"
FORMAT_SHAPES = ((8, 10), (256, 1000), (1024, 32000))
SHARED_SHAPES = ((256, 1000), (1024, 32000))
LARGEST_JSON_ELEMENTS = 1 << 18

Array = np.ndarray[Any, Any]
Run = Callable[[], object]


def arrays_of(shape: tuple[int, int]) -> tuple[Array, Array]:
    """Return logits and class indices."""
    random = np.random.default_rng(0)
    return random.normal(size=shape).astype("float32") * 3, random.integers(shape[1], size=shape[0])


def _given(name: str, array: Array, datatype: str) -> triton.InferInput:
    return triton.InferInput(name, list(array.shape), datatype)


def _client(port: int) -> triton.InferenceServerClient:
    """Return a client that has no connection yet: it does not get over one that idled too long, with a large body."""
    return triton.InferenceServerClient(f"127.0.0.1:{port}")


def _triton_binary(client: triton.InferenceServerClient, logits: Array, target: Array) -> Run:
    def run() -> Array:
        inputs = [_given("logits", logits, "FP32"), _given("target", target, "INT64")]
        for tensor, array in zip(inputs, (logits, target), strict=True):
            tensor.set_data_from_numpy(array)
        gradient: Array = client.infer(MODEL, inputs).as_numpy("grad_logits")
        return gradient

    return run


def _posted(port: int, media_type: str, write: Callable[[], bytes], read: Callable[[bytes], object]) -> Run:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(body: bytes) -> bytes:
        connection.request("POST", GRADIENT, body, {"Content-Type": media_type})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(content[:200])
        return content

    def run() -> object:
        body = write()
        try:
            return read(ask(body))
        except (ConnectionError, http.client.HTTPException):  # closed while the others had their turn
            connection.close()
            return read(ask(body))

    return run


def _contestants(port: int, client: triton.InferenceServerClient, shape: tuple[int, int]) -> dict[str, Run]:
    logits, target = arrays_of(shape)
    tensors = {"logits": logits, "target": target}
    lists = {name: array.tolist() for name, array in tensors.items()}
    contestants = {
        "triton": _triton_binary(client, logits, target),
        "safetensors": _posted(
            port,
            "application/x-safetensors",
            lambda: safetensors.numpy.save(tensors),
            lambda content: safetensors.numpy.load(content)["grad_logits"],
        ),
    }
    if logits.size <= LARGEST_JSON_ELEMENTS:
        contestants["json"] = _posted(
            port,
            "application/json",
            lambda: json.dumps(lists).encode(),
            lambda content: np.array(json.loads(content)["grad_logits"], "float32"),
        )
    return contestants


@contextmanager
def _region(client: triton.InferenceServerClient, name: str, size: int) -> Iterator[Any]:
    """Make a shared memory object that the service knows, too."""
    key = f"/loss-bench-{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region(name, key, size)
    client.register_system_shared_memory(name, key, size)
    try:
        yield handle
    finally:
        client.unregister_system_shared_memory(name)
        shm.destroy_shared_memory_region(handle)


def _in_shared_memory(client: triton.InferenceServerClient, logits: Array, target: Array) -> Run:
    inputs = [_given("logits", logits, "FP32"), _given("target", target, "INT64")]
    inputs[0].set_shared_memory("in", logits.nbytes)
    inputs[1].set_shared_memory("in", target.nbytes, offset=logits.nbytes)
    outputs = [triton.InferRequestedOutput("grad_logits"), triton.InferRequestedOutput("loss", binary_data=False)]
    outputs[0].set_shared_memory("out", logits.nbytes)
    return lambda: client.infer(MODEL, inputs, outputs=outputs)


def _torch(logits: Array, target: Array, threads: int) -> Run:
    leaf, classes = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(target)

    def run() -> None:
        torch.set_num_threads(threads)
        leaf.grad = None
        functional.cross_entropy(leaf, classes).backward()  # type: ignore[no-untyped-call]

    return run


def _measure_shared(client: triton.InferenceServerClient, shape: tuple[int, int], threads: int, seconds: float) -> None:
    logits, target = arrays_of(shape)
    with (
        _region(client, "in", logits.nbytes + target.nbytes) as given,
        _region(client, "out", logits.nbytes) as wanted,
    ):
        shm.set_shared_memory_region(given, [logits, target])
        contestants = {
            "torch": _torch(logits, target, threads),
            "ours": _in_shared_memory(client, logits, target),
        }
        taken = medians(contestants, seconds=seconds)
        gradient = shm.get_contents_as_numpy(wanted, "float32", shape)
        leaf = torch.from_numpy(logits).requires_grad_()
        functional.cross_entropy(leaf, torch.from_numpy(target)).backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-4, atol=1e-8)
        del gradient
    print(
        f"{f'{list(shape)} loss and gradient, {threads} threads each':55}{duration(taken['torch']):>12}"
        f"{duration(taken['ours']):>12}{taken['torch'] / taken['ours']:>8.2f}x",
        flush=True,
    )


def measure(device: torch.device, *, quick: bool) -> None:
    """Print what a caller waits, in every format, and over shared memory beside the caller's own torch."""
    threads, seconds = torch.get_num_threads(), 2.0 if quick else 8.0
    flags = ("--port", "0", "--device", str(device), "--threads", str(threads), "--log-level", "warning")
    with process("service", "serve", *flags, "--shared-memory", "true") as service:
        port = port_of(service)
        print(f"{'what a caller in Python waits':55}{'triton':>12}{'safetensors':>12}{'json':>12}{'of s.t.':>9}")
        for shape in FORMAT_SHAPES:
            taken = medians(_contestants(port, _client(port), shape), seconds=seconds)
            shown = duration(taken["json"]) if "json" in taken else "-"
            print(
                f"{f'{list(shape)} loss and gradient':55}{duration(taken['triton']):>12}"
                f"{duration(taken['safetensors']):>12}{shown:>12}{taken['triton'] / taken['safetensors']:>8.2f}x",
                flush=True,
            )
        print(f"\n{'in shared memory, beside F.cross_entropy + backward':55}{'torch':>12}{'ours':>12}{'faster':>9}")
        for shape in SHARED_SHAPES:
            _measure_shared(_client(port), shape, threads, seconds)
        torch.set_num_threads(threads)
