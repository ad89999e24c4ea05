"""The same request has the same answer to the last bit: alone, among others, cut, on any threads, after a restart."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence

import pytest
import torch

from service.app import create_app
from service.settings import Settings
from tests.faults.conftest import Tell
from tests.support.batches import VARIANTS, batch_of, operator_of
from tests.support.binary import binary_request
from tests.support.raw_http import Listening, listening, read_answer
from tests.support.straight import ask_straight

CONNECTIONS = 16
DTYPE = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

LARGE_EVERY = 100
"""One request in so many is larger than a block, so that it is cut."""


def generated(count: int) -> list[bytes]:
    """Return requests of every operator, formula, type and size."""
    draw = random.Random(count)
    return [_one(draw, number) for number in range(count)]


def _one(draw: random.Random, number: int) -> bytes:
    variant = VARIANTS[number % len(VARIANTS)]
    classes = draw.choice([1, 2, 3, 7, 10, 10, 10, 17, 64, 100, 513, 1000])
    rows = draw.choice([1, 1, 2, 3, 8, 8, 33])
    if number % LARGE_EVERY == 0:
        rows, classes = draw.choice([(300, 4096), (16, 50257), (9000, 70)])
    fields = batch_of(variant, rows, classes, dtype=draw.choice(DTYPE), seed=number)
    fields["reduction" if "reduction" in fields else "accuracy"] = draw.choice(
        ["none", "sum", "mean"] if "reduction" in fields else ["fast", "accurate"]
    )
    if fields.get("reduction", "none") != "none":
        del fields["grad_output"]
    tensors = {name: value for name, value in fields.items() if isinstance(value, torch.Tensor)}
    options = {name: value for name, value in fields.items() if name not in tensors}
    outputs = "[" + ",".join(f'"{name}"' for name in options.pop("outputs")) + "]"
    texts = {name: str(value) for name, value in options.items()}
    path = f"/v1/{operator_of(variant)}/gradient"
    return binary_request(path, tensors, outputs=outputs, non_finite="propagate", **texts)


def digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


async def alone(requests: Sequence[bytes]) -> list[bytes]:
    """Return what one thread answers that gets one request after the other, without a network."""
    app = create_app(Settings(device="cpu", threads=1))
    answers = [await ask_straight(app, request) for request in requests]
    assert {answer.status for answer in answers} == {200}, next(a.body for a in answers if a.status != 200)
    return [digest(answer.body) for answer in answers]


def together(running: Listening, requests: Sequence[bytes], order: Sequence[int]) -> list[bytes]:
    """Return what a service answers that gets many requests at a time, in some order."""
    answers: list[bytes] = [b""] * len(requests)
    left = list(order)

    def ask() -> None:
        with running.connect() as connection:
            while left:
                number = left.pop()
                connection.sendall(requests[number])
                answer = read_answer(connection)
                assert answer.status == 200, answer.body
                answers[number] = digest(answer.body)

    async def everybody() -> None:
        await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(CONNECTIONS)))

    asyncio.run(everybody())
    return answers


def test_answers_among_others_have_the_bits_they_have_alone(service: Listening, tell: Tell) -> None:
    requests = generated(420)

    expected = asyncio.run(alone(requests))
    got = together(service, requests, range(len(requests)))

    tell(f"{len(requests)} requests alone and {CONNECTIONS} at a time, {_differing(expected, got)} differ")
    assert got == expected


@pytest.mark.faults
def test_ten_thousand_answers_have_the_same_bits_whatever_happens_around_them(tell: Tell) -> None:
    requests = generated(10_000)
    expected = asyncio.run(alone(requests))
    order = list(range(len(requests)))
    for round_, flags in enumerate((["--threads=1"], ["--threads=2"], ["--threads=2"], ["--workers=2", "--threads=2"])):
        random.Random(round_).shuffle(order)
        with listening("tcp", "--device=cpu", "--log-level=error", "--queue-seconds=60", *flags) as running:
            got = together(running, requests, order)

        tell(f"{' '.join(flags)}, started anew: {_differing(expected, got)} of {len(requests)} differ")
        assert got == expected


def _differing(expected: list[bytes], got: list[bytes]) -> int:
    return sum(a != b for a, b in zip(expected, got, strict=True))
