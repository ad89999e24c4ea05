"""When memory runs out or the device is lost: orderly answers, and a process that ends for another to be started."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from service.app import create_app
from service.http import server
from service.http.server import EXIT_DEVICE_LOST
from service.ops import OPERATORS
from service.ops.spec import Operator
from service.settings import Settings
from tests.http.calling import JSON, check_problem, client_of
from tests.support.running import RunningService, running_service

SOFTMAX = OPERATORS["softmax"]
GOOD, BAD = b'{"logits": [[1.0, 2.0]]}', b'{"logits": [[666.0, 2.0]]}'


def softmax_that(act: Callable[[Any], None]) -> dict[str, Operator]:
    def forward(rows: Any, options: Any, out: Any) -> None:
        act(rows)
        SOFTMAX.forward(rows, options, out)

    return {"softmax": dataclasses.replace(SOFTMAX, forward=forward)}


def lose_the_device(rows: Any) -> None:
    if (rows["logits"] == 666.0).any():
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")


def run_out_of_memory(rows: Any) -> None:
    if (rows["logits"] == 666.0).any():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")


@pytest.mark.anyio
async def test_memory_that_runs_out_is_an_orderly_answer_and_hits_nobody_else() -> None:
    app = create_app(Settings(threads=1, device="cpu"), softmax_that(run_out_of_memory))
    async with client_of(app) as client:
        answers = [await client.post("/v1/softmax", content=body, headers=JSON) for body in (GOOD, BAD, GOOD)]

    assert [answer.status_code for answer in answers] == [200, 503, 200]
    problem = check_problem(answers[1], code="memory-budget")
    assert problem["detail"].startswith("Memory ran out while this request was worked on; send it again in ")
    assert 1 <= int(answers[1].headers["Retry-After"]) <= 5
    assert app.state.budget.reserved == 0


@pytest.mark.anyio
async def test_memory_that_runs_out_in_the_decoder_is_not_a_malformed_body(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("service.wire.json_codec.scan", fail)
    async with client_of(create_app(Settings(threads=1, device="cpu"))) as client:
        for body in (GOOD, GOOD + b" " * (1 << 19)):
            check_problem(await client.post("/v1/softmax", content=body, headers=JSON), code="memory-budget")


@pytest.mark.anyio
async def test_a_lost_device_is_answered_to_all_and_turns_readiness_off() -> None:
    app = create_app(Settings(threads=1, device="cpu"), softmax_that(lose_the_device))
    async with app.router.lifespan_context(app), client_of(app) as client:
        bad = await client.post("/v1/softmax", content=BAD, headers=JSON)
        await asyncio.sleep(0.05)
        later = await client.post("/v1/softmax", content=GOOD, headers=JSON)
        ready, live = await client.get("/health/ready"), await client.get("/health/live")

    for answer in (bad, later):
        problem = check_problem(answer, code="engine-restarting")
        assert problem["detail"].startswith("The device failed, and the service is starting anew; send it again in ")
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.headers["Connection"] == "close"
    assert (ready.status_code, ready.json()) == (503, {"status": "restarting"})
    assert live.status_code == 200


def create_losing_app(settings: Settings) -> Any:
    return create_app(settings, softmax_that(lose_the_device))


def main() -> None:
    """Serve with the table whose softmax loses the device: `python -m tests.http.test_engine_faults serve FLAGS`."""
    settings = Settings.from_command_line("test", sys.argv[2:])
    server.run(create_losing_app, settings, lambda address: print(f"API documentation: {address}/docs", flush=True))


LOSING = ("-m", "tests.http.test_engine_faults")


def until_ready(service: RunningService) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if httpx.get(service.address + "/health/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(service.log())


def test_the_process_answers_and_ends_when_the_device_is_lost() -> None:
    with running_service(program=LOSING) as service:
        until_ready(service)
        bad = httpx.post(service.address + "/v1/softmax", content=BAD, headers=JSON, timeout=30)

        assert check_problem(bad, code="engine-restarting")["status"] == 503
        assert service.process.wait(30) == EXIT_DEVICE_LOST
        assert "the device is lost" in service.log()


@pytest.mark.faults
def test_the_supervisor_replaces_a_worker_whose_device_is_lost_and_one_that_is_killed() -> None:
    with running_service("--workers", "2", "--log-format", "json", program=LOSING) as service:
        until_ready(service)
        bad = httpx.post(service.address + "/v1/softmax", content=BAD, headers=JSON, timeout=30)
        check_problem(bad, code="engine-restarting")
        end = time.monotonic() + 60
        while len(started(service)) < 3:
            assert time.monotonic() < end, service.log()
            time.sleep(0.1)
        killed = next(pid for pid in reversed(started(service)) if Path(f"/proc/{pid}").exists())
        os.kill(killed, signal.SIGKILL)
        while len(started(service)) < 4:
            assert time.monotonic() < end + 60, service.log()
            time.sleep(0.1)

        good = httpx.post(service.address + "/v1/softmax", content=GOOD, headers=JSON, timeout=30)
        assert good.status_code == 200
        assert service.stop() == 0


@pytest.mark.faults
def test_workers_end_when_their_supervisor_is_killed() -> None:
    with running_service("--workers", "2", "--drain-seconds", "1", program=LOSING) as service:
        until_ready(service)
        end = time.monotonic() + 60
        while len(started(service)) < 2:
            assert time.monotonic() < end, service.log()
            time.sleep(0.1)
        service.process.kill()
        service.process.wait(30)

        while any(Path(f"/proc/{pid}").exists() for pid in started(service)):
            assert time.monotonic() < end, service.log()
            time.sleep(0.1)


def started(service: RunningService) -> list[int]:
    """Return the processes that have begun to serve, in their order."""
    marker = "Started server process ["
    return [int(line.split(marker)[1].split("]")[0]) for line in service.log().splitlines() if marker in line]


if __name__ == "__main__":
    main()
