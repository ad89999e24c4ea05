"""What fails in passing is tried again, after as long as the service says, as long as the caller has time."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import httpx
import numpy as np
import pytest
from loss_client import (
    AsyncLossClient,
    CallTimeoutError,
    LossClient,
    NoAnswerError,
    RetryBudget,
    RetryPolicy,
)
from loss_client.arrays import to_wire
from loss_client.problems import DrainingError, RateLimitedError
from loss_client.safetensors import MEDIA_TYPE, write

from tests.support.running import running_service

LOGITS = np.eye(3, dtype="float32")


def good(_: httpx.Request | None = None) -> httpx.Response:
    body = write({"probs": to_wire("probs", LOGITS)}, {})
    return httpx.Response(200, content=b"".join(body.slices()), headers={"content-type": MEDIA_TYPE})


def problem(status: int, code: str, retry_after: str | None = None) -> httpx.Response:
    headers = {"content-type": "application/problem+json"} | ({"retry-after": retry_after} if retry_after else {})
    return httpx.Response(status, json={"code": code, "detail": "Not now."}, headers=headers)


class Script:
    """A service that answers as it is told, one thing after another; remembers what it was asked, and the waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *steps: httpx.Response | Exception) -> None:
        self.steps = list(steps)
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []
        monkeypatch.setattr("loss_client.client.time.sleep", self.waits.append)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def client(self, **options: Any) -> LossClient:
        return LossClient("http://127.0.0.1:1", http=httpx.Client(transport=httpx.MockTransport(self)), **options)


@pytest.mark.parametrize(
    "step",
    [
        problem(503, "draining", "2"),
        problem(429, "rate-limited", "2"),
        httpx.Response(502, text="Bad gateway"),
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.WriteError("reset"),
        httpx.RemoteProtocolError("closed"),
    ],
)
def test_what_fails_in_passing_is_tried_again_with_the_same_body(
    monkeypatch: pytest.MonkeyPatch, step: httpx.Response | Exception
) -> None:
    script = Script(monkeypatch, step, step, good())

    answer = script.client().softmax(LOGITS)

    np.testing.assert_array_equal(answer.probs, LOGITS)
    assert len({request.content for request in script.requests}) == 1
    assert len(script.requests) == 3


@pytest.mark.parametrize(
    "step",
    [
        problem(422, "shape-mismatch"),
        problem(500, "internal"),
        problem(504, "deadline-exceeded"),
        httpx.UnsupportedProtocol("ftp"),
        httpx.LocalProtocolError("a header"),
    ],
)
def test_what_would_fail_again_is_tried_once(monkeypatch: pytest.MonkeyPatch, step: httpx.Response | Exception) -> None:
    script = Script(monkeypatch, step)

    with pytest.raises(Exception):  # noqa: B017, PT011 - which one is told by other tests
        script.client().softmax(LOGITS)

    assert not script.steps
    assert not script.waits


def test_a_certificate_that_is_wrong_stays_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    error = httpx.ConnectError("certificate verify failed")
    error.__cause__ = ssl.SSLCertVerificationError("self-signed")
    script = Script(monkeypatch, error)

    with pytest.raises(NoAnswerError, match="certificate verify failed"):
        script.client().softmax(LOGITS)

    assert not script.waits


def test_waits_are_jittered_grow_and_follow_what_the_service_says(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    for _ in range(40):
        script = Script(monkeypatch, *[problem(503, "draining", "3")] * 4, good())
        script.client(timeout=None, retry_budget=RetryBudget(100)).softmax(LOGITS)
        waits.append(script.waits)

    by_try = np.array(waits).T - 3.0
    assert (by_try >= 0).all()
    for place, times in enumerate(by_try):
        bound = 0.1 * 2**place
        assert times.max() <= bound
        assert times.max() - times.min() > bound / 4


def test_retry_after_may_be_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, problem(503, "draining", formatdate(time.time() + 20, usegmt=True)), good())

    script.client().softmax(LOGITS)

    assert 15 < script.waits[0] < 21


def test_after_the_last_try_the_services_own_reason_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, *[problem(429, "rate-limited", "1")] * 3)

    with pytest.raises(RateLimitedError) as caught:
        script.client(retries=RetryPolicy(attempts=3)).softmax(LOGITS)

    assert caught.value.retry_after == 1
    assert len(script.waits) == 2


def test_nobody_waits_longer_than_the_call_has_time(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, problem(503, "draining", "30"))

    with pytest.raises(DrainingError):
        script.client(timeout=20.0).softmax(LOGITS)

    assert not script.waits


def test_the_retries_of_all_calls_have_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, *[httpx.ConnectError("refused")] * 100)
    client = script.client(retry_budget=RetryBudget(capacity=3), retries=RetryPolicy(attempts=3))

    for _ in range(10):
        with pytest.raises(NoAnswerError):
            client.softmax(LOGITS)

    assert len(script.requests) == 10 + 3


def test_answers_fill_the_budget_again(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = httpx.ConnectError("refused")
    script = Script(monkeypatch, refused, *[good() for _ in range(6)], refused, good())
    client = script.client(retry_budget=RetryBudget(capacity=1))

    for _ in range(7):
        client.softmax(LOGITS)

    assert len(script.requests) == 9


def test_a_timeout_is_told_to_the_service_as_what_is_left_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, problem(503, "draining"), good(), good())
    client = script.client(timeout=5.0)

    client.softmax(LOGITS)
    client.softmax(LOGITS, timeout=None)

    first, second, unbounded = [request.headers.get("x-request-timeout-ms") for request in script.requests]
    assert 4000 < int(second) <= int(first) <= 5000
    assert unbounded is None
    with pytest.raises(ValueError, match="more than 0 seconds"):
        client.softmax(LOGITS, timeout=0)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_service_that_does_not_answer_in_time_is_given_up(is_async: bool) -> None:
    def call(address: str) -> None:
        if not is_async:
            with LossClient(address) as client:
                client.softmax(LOGITS, timeout=0.2)
            return

        async def ask() -> None:
            async with AsyncLossClient(address) as client:
                await client.softmax(LOGITS, timeout=0.2)

        asyncio.run(ask())

    started = time.monotonic()

    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(CallTimeoutError, match=r"within 0\.2 s") as caught,
    ):
        call(f"http://127.0.0.1:{silent.getsockname()[1]}")

    assert isinstance(caught.value, TimeoutError)
    assert time.monotonic() - started < 10


def test_an_answer_that_trickles_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("loss_client.exchange.time.monotonic", lambda: now[0])

    class Trickle(httpx.SyncByteStream):
        def __iter__(self) -> Any:
            while True:
                now[0] += 0.5
                yield b"x"

    answer = httpx.Response(200, stream=Trickle(), headers={"content-type": MEDIA_TYPE})
    script = Script(monkeypatch, answer)

    with pytest.raises(CallTimeoutError):
        script.client(timeout=2.0).softmax(LOGITS)

    assert now[0] < 4


@pytest.mark.faults
def test_no_call_is_lost_while_the_service_is_restarted() -> None:
    """Calls go on from two threads while a service stops and another one takes its port."""
    errors: list[Exception] = []
    done = [0, 0]
    stopping = threading.Event()

    def call(place: int, client: LossClient) -> None:
        while not stopping.is_set():
            try:
                client.softmax(LOGITS)
                done[place] += 1
            except Exception as error:
                errors.append(error)
                return

    with running_service("--drain-seconds", "2") as first:
        first.wait_until_ready()
        policy = RetryPolicy(attempts=60, base_seconds=0.2, max_seconds=0.5)
        client = LossClient(first.address, retries=policy, retry_budget=RetryBudget(1000))
        threads = [threading.Thread(target=call, args=(place, client)) for place in range(2)]
        for thread in threads:
            thread.start()
        _wait_for(lambda: min(done) > 10)
        assert first.stop() == 0
        before = list(done)
        with running_service("--port", str(first.port)):
            _wait_for(lambda: bool(errors) or all(now > then + 10 for now, then in zip(done, before, strict=True)))
            stopping.set()
            for thread in threads:
                thread.join(30)
    client.close()

    assert not errors


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
