"""Large binary bodies, which go past the HTTP parser, over real connections of every kind."""

from __future__ import annotations

import asyncio
import functools
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import pytest
import torch
from torch.nn import functional

from service.app import create_app
from service.http.limits import KEPT_BYTES
from service.settings import Settings
from service.wire import safetensors_codec
from tests.http.calling import client_of
from tests.support.raw_http import (
    Answer,
    Listening,
    as_problem,
    listening,
    read_answer,
    read_to_the_end,
    request,
    reset,
    resident_bytes,
)

MEDIA_TYPE = safetensors_codec.MEDIA_TYPE
LOSS = "/v1/cross-entropy"
GRADIENT = "/v1/cross-entropy/gradient"
LIMIT = 16 << 20
PREFIX = safetensors_codec.PREFIX_BYTES
CHUNKED = "Transfer-Encoding: chunked"
EXPECT = "Expect: 100-continue"

KB_70, MB_1, MB_4, MB_8 = (16, 1100), (64, 4096), (128, 8192), (128, 16384)

WAYS = ["tcp", "tcp-asyncio", "tls", "tls-asyncio", "uds"]


@dataclass(frozen=True)
class Question:
    """A cross-entropy, asked in safetensors."""

    shape: tuple[int, int]
    seed: int = 0
    path: str = LOSS
    _tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        rows, classes = self.shape
        self._tensors["logits"] = torch.randn(rows, classes, generator=generator) * 3
        self._tensors["target"] = torch.randint(classes, (rows,), generator=generator)

    @functools.cached_property
    def body(self) -> bytes:
        return b"".join(safetensors_codec.encode(self._tensors))

    def request(self, *lines: str) -> bytes:
        return request("POST", self.path, f"Content-Type: {MEDIA_TYPE}", *lines, body=self.body)

    @property
    def head(self) -> bytes:
        return self.request()[: -len(self.body)]

    def check(self, answer: Answer) -> None:
        """Assert that this is the answer to this question, by torch."""
        assert answer.status == 200, answer.body[:500]
        assert answer.headers["content-type"] == MEDIA_TYPE
        tensors = read_safetensors(answer.body)
        logits = self._tensors["logits"].clone().requires_grad_(self.path == GRADIENT)
        loss = functional.cross_entropy(logits, self._tensors["target"])
        torch.testing.assert_close(tensors["loss"], loss.detach())
        if self.path == GRADIENT:
            (gradient,) = torch.autograd.grad(loss, logits)
            torch.testing.assert_close(tensors["grad_logits"], gradient)


@functools.lru_cache(maxsize=32)
def question(shape: tuple[int, int], seed: int = 0, path: str = LOSS) -> Question:
    return Question(shape, seed, path)


def read_safetensors(body: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors of a float32 answer."""
    start = PREFIX + int.from_bytes(body[:PREFIX], "little")
    header = json.loads(body[PREFIX:start])
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        assert entry["dtype"] == "F32"
        data = bytearray(body[start + begin : start + end])
        tensors[name] = torch.frombuffer(data, dtype=torch.float32).reshape(entry["shape"])
    return tensors


GET = request("GET", "/health/live")
HEAD = request("HEAD", "/health/live")
JSON = request("POST", LOSS, "Content-Type: application/json", body=b'{"logits": [[0, 0]], "target": [1]}')


def check_json(answer: Answer) -> None:
    assert (answer.status, json.loads(answer.body)["loss"]) == (200, pytest.approx(0.6931472))


@pytest.fixture(scope="module", params=WAYS)
def service(request: pytest.FixtureRequest) -> Iterator[Listening]:
    with listening(request.param, f"--max-body-bytes={LIMIT}", "--threads=2", "--device=cpu") as running:
        yield running


@pytest.fixture
def connection(service: Listening) -> Iterator[socket.socket]:
    with service.connect() as connection:
        yield connection


@pytest.fixture(autouse=True)
def check_that_all_is_well_after(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does, the service is idle afterwards, answers as before, and nothing in it has failed."""
    if "service" not in request.fixturenames:
        yield
        return
    running: Listening = request.getfixturevalue("service")
    before = len(running.service.log())
    yield
    running.wait_until_idle()
    question(KB_70).check(running.ask(question(KB_70).request()))
    assert_no_complaint(running.service.log()[before:])


def assert_no_complaint(log: str) -> None:
    for line in log.replace("socket.send() raised exception.", "").splitlines():  # asyncio's word on a caller's leaving
        if '"logger": "asyncio", "message": ""' in line:
            continue
        for complaint in ("Traceback", "xception", "never retrieved", '"internal"', "warn"):
            assert complaint not in line, "\n".join(line.split("\\n")[-12:])


def send_in_pieces(connection: socket.socket, data: bytes, cuts: list[int]) -> None:
    """Send each piece in a packet of its own, as far as that can be had."""
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        connection.sendall(data[start:end])
        time.sleep(0.002)


def test_a_connection_serves_large_small_and_other_requests_in_turn(connection: socket.socket) -> None:
    for seed in range(4):
        for shape in (KB_70, MB_1, (2, 3)):
            for path in (LOSS, GRADIENT):
                asked = question(shape, seed, path)
                connection.sendall(asked.request())
                asked.check(read_answer(connection))
        connection.sendall(JSON)
        check_json(read_answer(connection))
        connection.sendall(HEAD)
        assert read_answer(connection, is_head=True).status == 200
        connection.sendall(GET)
        assert read_answer(connection).status == 200


@pytest.mark.parametrize("shape", [(2, 3), KB_70, MB_1], ids=str)
@pytest.mark.parametrize("path", [LOSS, GRADIENT])
def test_pipelined_requests_are_answered_in_their_order(
    service: Listening, connection: socket.socket, shape: tuple[int, int], path: str
) -> None:
    if service.is_tls and (shape, path) == (MB_1, GRADIENT):
        pytest.skip("only one thread at a time may use a TLS connection")
    first, second, third = (question(shape, seed, path) for seed in (1, 2, 3))
    text = first.request() + GET + second.request() + JSON + third.request()
    sender = threading.Thread(target=connection.sendall, args=(text,))
    sender.start()
    if service.is_tls:
        sender.join()
    received = bytearray()

    first.check(read_answer(connection, received=received))
    assert read_answer(connection, received=received).status == 200
    second.check(read_answer(connection, received=received))
    check_json(read_answer(connection, received=received))
    third.check(read_answer(connection, received=received))

    sender.join()
    assert not received


def test_a_long_body_may_come_in_one_piece_with_the_end_of_a_chunked_one(connection: socket.socket) -> None:
    text = b'{"logits": [[0, 0]]}'
    path, kind = "/v1/softmax", "Content-Type: application/json"
    long = request("POST", path, kind, body=text.ljust(KEPT_BYTES + 1))
    hiding = request("POST", path, kind, body=text.ljust(100) + GET)
    connection.sendall(request("POST", path, kind, CHUNKED) + b"14\r\n" + text[:5])
    time.sleep(0.05)
    connection.sendall(text[5:] + b"\r\n0\r\n\r\n" + long)
    time.sleep(0.05)
    connection.sendall(hiding + JSON)
    received = bytearray()

    assert [read_answer(connection, received=received).status for _ in range(3)] == [200, 200, 400]
    check_json(read_answer(connection, received=received))


@pytest.mark.parametrize("after_head", [-30, -1, 0, 1, PREFIX - 1, PREFIX, PREFIX + 1, 5000, 66_000, 10**9])
def test_the_first_packet_may_end_anywhere(connection: socket.socket, after_head: int) -> None:
    asked = question(MB_1)
    text = asked.request()

    send_in_pieces(connection, text, [min(len(asked.head) + after_head, len(text))])

    asked.check(read_answer(connection))


@pytest.mark.parametrize("shape", [KB_70, MB_1], ids=str)
def test_a_body_may_come_in_pieces_of_any_size(connection: socket.socket, shape: tuple[int, int]) -> None:
    asked, following = question(shape), question(shape, 1, GRADIENT)
    text = asked.request() + following.request()
    start, end = len(asked.head), len(asked.request())
    around = [*range(start - 3, start + PREFIX + 5), *range(end - 6, end + 4)]
    odd = random.Random(0).sample(range(start + 20, end - 10), 20)

    send_in_pieces(connection, text, sorted([*around, *odd, end + len(following.head) + 3]))

    received = bytearray()
    asked.check(read_answer(connection, received=received))
    following.check(read_answer(connection, received=received))


def test_leave_to_send_is_given_once_the_body_is_wanted(connection: socket.socket) -> None:
    asked = question(MB_1)
    connection.sendall(asked.request(EXPECT)[: -len(asked.body)])
    received = bytearray()

    leave = read_answer(connection, received=received)
    connection.sendall(asked.body)
    answer = read_answer(connection, received=received)

    assert leave == Answer(100, {}, b"")
    asked.check(answer)


@pytest.mark.parametrize(
    ("lines", "size", "code"),
    [
        ([f"Content-Type: {MEDIA_TYPE}"], LIMIT + 1, "content-too-large"),
        (["Content-Type: text/plain"], 1 << 20, "unsupported-media-type"),
        ([f"Content-Type: {MEDIA_TYPE}", "Content-Encoding: gzip"], 1 << 20, "unsupported-encoding"),
    ],
)
def test_leave_to_send_is_not_given_when_the_body_is_not_wanted(
    connection: socket.socket, lines: list[str], size: int, code: str
) -> None:
    connection.sendall(request("POST", LOSS, *lines, EXPECT, length=size))

    answer = read_answer(connection)

    assert as_problem(answer)[1] == code
    assert answer.headers["connection"] == "close"
    assert read_to_the_end(connection) == b""


def test_a_body_without_a_length_is_read_too(connection: socket.socket) -> None:
    asked = question(MB_1, path=GRADIENT)
    head = request("POST", GRADIENT, f"Content-Type: {MEDIA_TYPE}", CHUNKED)
    pieces = [asked.body[start : start + 77_777] for start in range(0, len(asked.body), 77_777)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)

    connection.sendall(head + chunks + b"0\r\n\r\n" + GET)

    received = bytearray()
    asked.check(read_answer(connection, received=received))
    assert read_answer(connection, received=received).status == 200


def test_a_declared_body_too_large_is_refused_and_a_blind_writer_sees_it(connection: socket.socket) -> None:
    connection.sendall(request("POST", LOSS, f"Content-Type: {MEDIA_TYPE}", length=LIMIT + 1) + bytes(7 << 20))

    answer = read_answer(connection)

    assert as_problem(answer) == (413, "content-too-large")
    assert json.loads(answer.body)["limit"] == LIMIT
    assert read_to_the_end(connection) == b""


@pytest.mark.parametrize("lines", [[], [EXPECT]], ids=str)
@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("size", [100_000, 1 << 20, 7 << 20])
def test_a_header_found_wrong_is_refused_and_a_blind_writer_sees_it(
    connection: socket.socket, size: int, is_split: bool, lines: list[str]
) -> None:
    head = request("POST", LOSS, f"Content-Type: {MEDIA_TYPE}", *lines, length=size)
    wrong = head + (2**40).to_bytes(PREFIX, "little")

    if is_split:
        connection.sendall(wrong[:-3])
        time.sleep(0.02)
    connection.sendall(wrong[-3:] if is_split else wrong)
    connection.sendall(bytes(size - PREFIX))
    received = bytearray()
    answer = read_answer(connection, received=received)
    if lines:
        assert answer.status == 100
        answer = read_answer(connection, received=received)

    assert as_problem(answer) == (400, "malformed-tensor")
    assert answer.headers["connection"] == "close"
    assert read_to_the_end(connection) == b""


def test_what_is_wrong_within_a_whole_body_leaves_the_connection_open(connection: socket.socket) -> None:
    asked = question(MB_1)
    wrong = request("POST", LOSS, f"Content-Type: {MEDIA_TYPE}", body=asked.body.replace(b"logits", b"logitz"))

    connection.sendall(wrong)
    refused = read_answer(connection)
    connection.sendall(asked.request())
    answered = read_answer(connection)

    assert as_problem(refused) == (400, "unknown-field")
    asked.check(answered)


@pytest.mark.parametrize("how", [socket.socket.close, reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("sent", [0, 1, PREFIX, PREFIX + 1, 3000, 70_000, 500_000, -1])
def test_a_caller_may_leave_in_the_middle_of_a_body(service: Listening, how: object, sent: int) -> None:
    asked = question(MB_1)
    for split in (False, True):
        connection = service.connect()
        connection.sendall(asked.head)
        if split:
            time.sleep(0.01)
        connection.sendall(asked.body[:sent])
        time.sleep(0.01)
        how(connection)  # type: ignore[operator]


@pytest.mark.parametrize("how", [socket.socket.close, reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("pipelined", [b"", GET, question(MB_1, 7, GRADIENT).request()], ids=["", "GET", "POST"])
def test_a_caller_may_leave_while_the_answer_is_made(service: Listening, how: object, pipelined: bytes) -> None:
    for _ in range(3):
        connection = service.connect()
        connection.sendall(question(MB_8, path=GRADIENT).request())
        connection.settimeout(0.2)
        with suppress(TimeoutError):  # the service answers before it reads on
            connection.sendall(pipelined)
        how(connection)  # type: ignore[operator]


@pytest.mark.parametrize("how", [socket.socket.close, reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("pipelined", [b"", GET], ids=["", "GET"])
def test_a_caller_may_leave_while_the_answer_is_sent(service: Listening, how: object, pipelined: bytes) -> None:
    asked = question(MB_8, path=GRADIENT)
    for _ in range(3):
        connection = service.connect()
        connection.sendall(asked.request() + pipelined)
        assert len(connection.recv(1000)) > 0
        how(connection)  # type: ignore[operator]


LONGEST_TIDY_SECONDS = 20.0
"""Unused memory is handed back within seconds."""


def test_callers_who_leave_take_no_memory_with_them(service: Listening) -> None:
    def leave(after: int) -> None:
        connection = service.connect()
        connection.sendall(asked.head + asked.body[:after])
        if after == len(asked.body):
            connection.recv(1)
        reset(connection)

    asked = question(MB_8, path=GRADIENT)
    for _ in range(3):
        leave(len(asked.body))
        leave(6 << 20)
    service.wait_until_idle()
    before = resident_bytes(service.service)

    for _ in range(20):
        leave(len(asked.body))
        leave(6 << 20)
    service.wait_until_idle()

    end = time.monotonic() + LONGEST_TIDY_SECONDS
    while resident_bytes(service.service) - before >= 64 << 20:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_slow_readers_get_their_own_bytes_and_nobody_elses(service: Listening) -> None:
    slow = [(service.connect(), question(MB_8, seed, GRADIENT)) for seed in range(3)]
    for connection, asked in slow:
        connection.sendall(asked.request())
    received = [bytearray(connection.recv(1000)) for connection, _ in slow]
    for seed in range(3, 6):  # these take and give back buffers of the very same size
        question(MB_8, seed, GRADIENT).check(service.ask(question(MB_8, seed, GRADIENT).request()))

    while any(len(part) < 4 << 20 for part in received):
        for (connection, _), part in zip(slow, received, strict=True):
            part.extend(connection.recv(300_000))
            time.sleep(0.001)

    for (connection, asked), part in zip(slow, received, strict=True):
        asked.check(read_answer(connection, received=part))
        connection.close()


def test_eight_connections_with_large_bodies_at_once(service: Listening) -> None:
    def ask(number: int) -> None:
        with service.connect() as connection:
            for seed in (number, number + 1):
                asked = question(MB_4, seed, (LOSS, GRADIENT)[number % 2])
                connection.sendall(asked.request())
                asked.check(read_answer(connection))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def test_a_large_body_where_none_is_taken_does_no_harm(connection: socket.socket) -> None:
    connection.sendall(request("GET", "/v1/limits", "Content-Length: 1000000", body=bytes(1_000_000)) + GET)
    received = bytearray()

    assert read_answer(connection, received=received).status == 200
    assert read_answer(connection, received=received).status == 200


@pytest.mark.parametrize(("way", "sent"), [("tcp", 500_000), ("tls-asyncio", 3)])
def test_a_half_sent_body_is_answered_with_draining(way: str, sent: int) -> None:
    asked = question(MB_1)
    with listening(way, "--drain-seconds", "3") as service, service.connect() as connection:
        connection.sendall(asked.head + asked.body[:sent])
        time.sleep(0.2)

        assert service.service.stop() == 0
        answer = read_answer(connection)

        assert as_problem(answer) == (503, "draining")
        assert answer.headers["connection"] == "close"
        assert_no_complaint(service.service.log())


def test_several_workers_take_large_bodies() -> None:
    with listening("tcp", "--workers", "2", "--drain-seconds", "1") as service:
        for seed in range(6):
            asked = question(MB_4, seed, GRADIENT)
            asked.check(service.ask(asked.request()))
        service.wait_until_idle()


def ask_in_process(asked: Question) -> bytes:
    async def ask() -> bytes:
        async with client_of(create_app(Settings(threads=1, device="cpu"))) as client:
            answer = await client.post(asked.path, content=asked.body, headers={"Content-Type": MEDIA_TYPE})
        return answer.content

    return asyncio.run(ask())


def test_without_a_connection_of_our_own_the_bits_are_the_same(service: Listening) -> None:
    asked = question(MB_1, path=GRADIENT)

    assert service.ask(asked.request()).body == ask_in_process(asked)


def test_another_server_gives_the_same_bits() -> None:
    asked = question(MB_4, path=GRADIENT)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "hypercorn", "--bind", f"fd://{listener.fileno()}", "service.app:create_app()"],
            pass_fds=[listener.fileno()],
            stderr=subprocess.DEVNULL,
        )
    try:
        answer = httpx.post(address + GRADIENT, content=asked.body, headers={"Content-Type": MEDIA_TYPE}, timeout=30)
    finally:
        process.terminate()
        process.wait(30)

    assert answer.content == ask_in_process(asked)


def test_a_short_answer_leaves_in_one_piece() -> None:
    body = b'{"logits": [0, 1]}'
    with listening("tcp") as service, service.connect() as connection:
        connection.sendall(request("POST", "/v1/softmax", "Content-Type: application/json", body=body))

        first = connection.recv(1 << 16)

    head, _, found = first.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert set(json.loads(found)) == {"probs"}
