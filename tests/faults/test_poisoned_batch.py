"""One request of a batch fails in the engine: it alone is told so, and the others do not notice."""

from __future__ import annotations

import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch

from tests.faults.conftest import Tell
from tests.support.binary import binary_request
from tests.support.programs import listening_as
from tests.support.raw_http import Answer, Listening, as_problem, read_answer, request

MEMBERS = 32
SHAPE = (8, 10)
POISON = 666.0

POISONED = f"""
import dataclasses, os, sys
import service.__main__ as command
from service.app import create_app
from service.ops import OPERATORS

real = OPERATORS["log-softmax"]

def forward(rows, options, out):
    if (rows["logits"][:, 0] == {POISON}).any():
        os.write(2, b"\\nPOISON %d\\n" % len(rows["logits"]))
        raise ValueError("poison")
    real.forward(rows, options, out)

table = {{**OPERATORS, "log-softmax": dataclasses.replace(real, forward=forward)}}
command.create_app = lambda settings: create_app(settings, table)
sys.exit(command.main(sys.argv[1:]))
"""
"""A service whose log-softmax fails on rows that begin with the poison, and writes how many rows failed with them."""

BUSY = request(
    "POST",
    "/v1/softmax",
    "Content-Type: application/json",
    body=json.dumps({"logits": [[0.5] * 100] * 400, "outputs": ["logsumexp"]}).encode(),
)
"""Takes the event loop some milliseconds, in which the others arrive, so that all of them are there at once."""


@pytest.fixture
def poisoned() -> Iterator[Listening]:
    with listening_as(POISONED, "--device=cpu", "--threads=1", "--log-level=error") as running:
        yield running


@pytest.mark.parametrize("rounds", [40, pytest.param(1000, marks=pytest.mark.faults)], ids=["short", "long"])
def test_the_neighbours_of_a_poisoned_request_are_answered_as_if_alone(
    poisoned: Listening, rounds: int, tell: Tell
) -> None:
    random = torch.Generator().manual_seed(0)
    logits = [torch.randn(SHAPE, generator=random) for _ in range(MEMBERS)]
    requests = [request_of(each) for each in logits]
    expected = [poisoned.ask(each).body for each in requests]
    outcomes: Counter[str] = Counter()
    with ExitStack() as stack:
        busy, *connections = [stack.enter_context(poisoned.connect()) for _ in range(MEMBERS + 1)]
        for number in range(rounds):
            guilty = number % MEMBERS
            bad = logits[guilty].clone()
            bad[number % SHAPE[0], 0] = POISON

            answers = together(busy, connections, [*requests[:guilty], request_of(bad), *requests[guilty + 1 :]])

            for place, answer in enumerate(answers):
                if place == guilty:
                    outcomes["guilty: {} {}".format(*as_problem(answer))] += 1
                else:
                    outcomes["as alone" if answer.body == expected[place] else f"not as alone: {answer.status}"] += 1
    company = [int(rows) // SHAPE[0] for rows in re.findall(r"^POISON (\d+)$", poisoned.service.log(), re.MULTILINE)]
    shared = [members for members in company if members > 1]
    tell(
        f"{rounds} rounds of {MEMBERS}: {dict(outcomes)}; the poison was in {len(shared)} shared launches, of "
        f"{sum(shared) / max(1, len(shared)):.0f} requests on average"
    )

    assert outcomes == {"guilty: 500 internal": rounds, "as alone": rounds * (MEMBERS - 1)}
    assert len(shared) >= rounds / 10


def request_of(logits: torch.Tensor) -> bytes:
    return binary_request("/v1/log-softmax", {"logits": logits})


def together(busy: socket.socket, connections: list[socket.socket], requests: list[bytes]) -> list[Answer]:
    """Send everything while the service is busy, then read all answers."""
    busy.sendall(BUSY)
    for connection, each in zip(connections, requests, strict=True):
        connection.sendall(each)
    answers = [read_answer(connection) for connection in connections]
    read_answer(busy)
    return answers
