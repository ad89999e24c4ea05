"""Rows of a large body are computed while the rest arrives: nobody can tell, but by the clock."""

from __future__ import annotations

import http.client
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import numpy as np
import orjson
import pytest
import torch
from fastapi import FastAPI
from safetensors.torch import load
from torch import Tensor

from service.engine.admission import Deadline
from service.engine.launch import ArrivingLaunch
from service.http.arrival import LEAST_BODY_BYTES
from service.ops.bind import Job
from service.wire import safetensors_codec
from tests.support.asking import ask
from tests.support.batches import same_bits
from tests.support.running import RunningService, running_service

ROWS, CLASSES = 400, 8000
GRADIENT = "/v1/cross-entropy/gradient"


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service("--drain-seconds", "1", "--threads", "2") as running:
        running.wait_until_ready()
        yield running


def tensors() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, CLASSES, generator=random) * 3
    return {"logits": logits, "target": torch.randint(CLASSES, (ROWS,), generator=random)}


def body_of(tensors: dict[str, Tensor]) -> bytes:
    """Return a safetensors body, targets before logits."""
    body = b"".join(safetensors_codec.encode(tensors))
    assert len(body) > LEAST_BODY_BYTES
    return body


def head_of(path: str, length: int) -> bytes:
    kind = safetensors_codec.MEDIA_TYPE
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def sent_in_pieces(service: RunningService, path: str, body: bytes) -> tuple[int, bytes]:
    """Send a body a megabyte at a time, with time between them; return status and body of the answer."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as sock:
        sock.sendall(head_of(path, len(body)))
        for start in range(0, len(body), 1 << 20):
            sock.sendall(body[start : start + (1 << 20)])
            time.sleep(0.005)
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        return answer.status, answer.read()


def gauge(service: RunningService, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", httpx.get(service.address + "/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_a_body_that_comes_slowly_gets_the_bits_of_one_that_is_there(service: RunningService) -> None:
    fields = tensors()
    status, content = sent_in_pieces(service, GRADIENT, body_of(fields))
    answer, expected = load(content), ask("cross-entropy", gradient=True, **fields)

    assert status == 200
    assert all(same_bits(answer[name], tensor) for name, tensor in expected.items())


def test_a_body_without_its_last_rows_is_refused_as_ever(service: RunningService) -> None:
    status, content = sent_in_pieces(service, GRADIENT, body_of(tensors())[: -(1 << 16)])

    assert (status, orjson.loads(content)["code"]) == (400, "malformed-tensor")


def test_the_open_inference_protocol_does_the_same(service: RunningService) -> None:
    fields = tensors()
    arrays = {name: fields[name].numpy() for name in ("target", "logits")}
    head = orjson.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": list(array.shape),
                    "datatype": {"target": "INT64", "logits": "FP32"}[name],
                    "parameters": {"binary_data_size": array.nbytes},
                }
                for name, array in arrays.items()
            ],
            "parameters": {"binary_data_output": True},
        }
    )
    body = head + b"".join(array.tobytes() for array in arrays.values())
    answer = httpx.post(
        service.address + "/v2/models/cross_entropy_gradient/infer",
        content=body,
        headers={"Inference-Header-Content-Length": str(len(head))},
        timeout=60,
    )
    size = int(answer.headers["inference-header-content-length"])
    outputs, data = orjson.loads(answer.content[:size])["outputs"], answer.content[size:]
    expected = ask("cross-entropy", gradient=True, **fields)

    assert [output["name"] for output in outputs] == ["loss", "total_weight", "grad_logits"]
    assert np.frombuffer(data[8:], np.float32).tobytes() == expected["grad_logits"].numpy().tobytes()


@pytest.mark.parametrize(
    ("changed", "code"),
    [("target", "target-out-of-range"), ("logits", "non-finite")],
)
def test_what_is_wrong_is_said_as_ever(service: RunningService, changed: str, code: str) -> None:
    fields = tensors()
    if changed == "target":
        fields["target"][37] = CLASSES
    else:
        fields["logits"][37, 5] = torch.nan

    status, content = sent_in_pieces(service, GRADIENT, body_of(fields))

    assert (status, orjson.loads(content)["code"]) == (422, code)


def test_logits_that_do_not_come_last_are_computed_when_all_is_there(service: RunningService) -> None:
    fields = tensors()
    fields["target"] = fields["target"].to(torch.int32).to(torch.int16)  # narrower than the logits: behind them

    status, content = sent_in_pieces(service, GRADIENT, body_of(fields))

    assert status == 200
    expected = ask("cross-entropy", gradient=True, **fields)
    assert same_bits(load(content)["grad_logits"], expected["grad_logits"])


def test_who_leaves_while_his_rows_are_computed_leaves_no_memory_behind(service: RunningService) -> None:
    body = body_of(tensors())
    for part in (0.3, 0.6, 0.99):
        with socket.create_connection(("127.0.0.1", service.port), timeout=30) as sock:
            sock.sendall(head_of(GRADIENT, len(body)))
            sock.sendall(body[: int(part * len(body))])
            time.sleep(0.05)
    end = time.monotonic() + 10
    while gauge(service, "loss_memory_reserved_bytes") or gauge(service, "loss_in_flight_requests"):
        assert time.monotonic() < end
        time.sleep(0.05)

    status, content = sent_in_pieces(service, GRADIENT, body)

    assert status == 200
    assert same_bits(load(content)["grad_logits"], ask("cross-entropy", gradient=True, **tensors())["grad_logits"])


@pytest.mark.anyio
async def test_rows_are_begun_with_before_the_last_chunk_whatever_the_server(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = tensors()
    body = body_of(fields)
    engine, sent, begun_after = app.state.engine, 0, []
    begin = engine.begin

    def note(job: Job, deadline: Deadline) -> ArrivingLaunch | None:
        begun_after.append(sent)
        return begin(job, deadline)

    monkeypatch.setattr(engine, "begin", note)

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for start in range(0, len(body), 1 << 16):
            sent = start + (1 << 16)
            yield body[start : start + (1 << 16)]

    answer = await client.post(
        GRADIENT,
        content=chunks(),
        headers={"Content-Type": safetensors_codec.MEDIA_TYPE, "Content-Length": str(len(body))},
    )

    assert answer.status_code == 200
    expected = ask("cross-entropy", gradient=True, **fields)
    assert same_bits(load(answer.content)["grad_logits"], expected["grad_logits"])
    assert len(begun_after) == 1
    assert begun_after[0] < len(body) / 2
