"""One request of a batch fails in the engine: it alone is told so, and the others do not notice."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections import Counter
from typing import Any

import pytest
import torch

from service.app import create_app
from service.ops import OPERATORS
from service.ops.spec import Operator
from service.settings import Settings
from tests.faults.conftest import Tell
from tests.support.binary import binary_request
from tests.support.raw_http import Answer
from tests.support.straight import ask_straight

MEMBERS = 32
SHAPE = (20, 1000)
"""More than what is computed right where it is submitted, little enough that many share a launch."""

POISON = 666.0


def poisoned(operator: Operator, busy: threading.Event, free: threading.Event) -> Operator:
    """Return an operator that fails on rows that begin with the poison; a row of zeros keeps its worker busy."""

    def forward(rows: Any, options: Any, out: Any) -> None:
        first = rows["logits"][:, 0]
        if (first == POISON).any():
            raise ValueError("poison")
        if not rows["logits"].any():
            busy.set()
            free.wait(10)
        operator.forward(rows, options, out)

    return dataclasses.replace(operator, forward=forward)


def request_of(logits: torch.Tensor) -> bytes:
    return binary_request("/v1/log-softmax", {"logits": logits})


@pytest.mark.anyio
@pytest.mark.parametrize("rounds", [25, pytest.param(1000, marks=pytest.mark.faults)], ids=["short", "long"])
async def test_the_neighbours_of_a_poisoned_request_are_answered_as_if_alone(
    rounds: int, tell: Tell, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    busy, free = threading.Event(), threading.Event()
    table = {**OPERATORS, "log-softmax": poisoned(OPERATORS["log-softmax"], busy, free)}
    app = create_app(Settings(device="cpu", threads=1, queue_seconds=60.0), table)
    plain = create_app(Settings(device="cpu", threads=1, queue_seconds=60.0))
    random = torch.Generator().manual_seed(0)
    codes: Counter[str] = Counter()
    shared = 0
    logits = [torch.randn(SHAPE, generator=random) for _ in range(MEMBERS)]
    requests = [request_of(each) for each in logits]
    expected = [(await ask_straight(plain, each)).body for each in requests]
    for number in range(rounds):
        guilty = number % MEMBERS
        bad = logits[guilty].clone()
        bad[number % SHAPE[0], 0] = POISON
        before = _shared_launches()

        answers = await _together(app, [*requests[:guilty], request_of(bad), *requests[guilty + 1 :]], busy, free)

        shared += _shared_launches() - before
        for place, answer in enumerate(answers):
            if place == guilty:
                codes[f"guilty {answer.status}"] += 1
            else:
                codes["neighbours as alone" if answer.body == expected[place] else f"other {answer.status}"] += 1
    tell(f"{rounds} rounds of {MEMBERS}, {shared} launches shared: {dict(codes)}")

    assert codes == {"guilty 500": rounds, "neighbours as alone": rounds * (MEMBERS - 1)}
    assert shared >= rounds


async def _together(app: Any, requests: list[bytes], busy: threading.Event, free: threading.Event) -> list[Answer]:
    """Ask while the only worker is busy, so that all of it is there when it looks for what is next."""
    busy.clear()
    free.clear()
    stall = asyncio.create_task(ask_straight(app, request_of(torch.zeros(300, 1000))))
    await asyncio.to_thread(busy.wait, 10)
    asked = [asyncio.create_task(ask_straight(app, each)) for each in requests]
    while app.state.engine.backlog and len(app.state.engine.backlog) <= len(requests):
        await asyncio.sleep(0.001)
    free.set()
    await stall
    return await asyncio.gather(*asked)


def _shared_launches() -> float:
    from service.metrics import BATCH_REQUESTS

    return next(sample.value for sample in BATCH_REQUESTS.collect()[0].samples if sample.name.endswith("_count"))
