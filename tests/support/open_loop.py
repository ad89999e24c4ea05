"""Load in processes of its own, open-loop: requests come when they come, however slow the answers are.

`python -m tests.support.open_loop` reads one order in JSON from standard input and writes what happened to standard
output. Whoever sends the next request only after the last answer (wrk, most scripts) slows down with the service, and
so never overloads it. Here the times of arrival are drawn beforehand (Poisson), and latency counts from them.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from pathlib import Path

import uvloop

LONGEST_START_SECONDS = 30.0

HUGE_BYTES = 1 << 26
"""From this size on a body is sent by the system from where the file lies: the cores are there for the service."""

IDLE_SECONDS = 2.0
"""How long a connection is kept for the next request; the service itself keeps it for five."""


@dataclass(frozen=True)
class Order:
    """What to send.

    Attributes:
        request_path: file with one request, head and body.
        rate: requests per second; 0 for as many as `connections` one after the other can have answered.
        patience: seconds after which a client leaves.
        connections: most that are open at once; a request that finds none free counts as `no connection`.
        asks_first: whether the body waits until the service asks for it (the request says `Expect: 100-continue`).
    """

    port: int
    request_path: str
    seconds: float
    rate: float = 0.0
    patience: float = 1.0
    connections: int = 1000
    seed: int = 0
    asks_first: bool = False


@dataclass
class Outcome:
    """What happened; latencies in seconds, and the `seconds` until the last answer came."""

    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    without_retry_after: int = 0

    @property
    def goodput(self) -> float:
        """Requests answered in time, per second."""
        return len(self.answered) / self.seconds if self.answered else 0.0


def quantile(values: list[float], part: float) -> float:
    """Return the value that a part of all values does not exceed; infinity when there is none."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else float("inf")


class Load:
    """A load on its way, in another process."""

    def __init__(self, order: Order) -> None:
        self._order = order
        # Not a pipe: nobody reads it before the end, and it would hold the load up when it is full.
        self._told = tempfile.TemporaryFile("w+")  # noqa: SIM115  # `outcome` closes it
        command = [sys.executable, "-m", "tests.support.open_loop"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self._told, text=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(order)))
        self._process.stdin.close()

    def outcome(self) -> Outcome:
        """Wait for its end."""
        try:
            self._process.wait(LONGEST_START_SECONDS + self._order.seconds + self._order.patience)
        finally:
            self._process.kill()
            self._process.wait()
        with self._told as told:
            told.seek(0)
            return Outcome(**json.load(told))


def offer(order: Order) -> Outcome:
    """Send a load, and wait for its end."""
    return Load(order).outcome()


class _Clients:
    """Everybody who asks."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._request = Path(order.request_path).read_bytes()
        size = self._request.index(b"\r\n\r\n") + 4
        self._head, self._body = self._request[:size], self._request[size:]
        self._file = Path(order.request_path).open("rb")  # noqa: SIM115  # the process ends with it
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = deque()
        self._open = 0
        self._counts: Counter[str] = Counter()
        self._last_answer = 0.0
        self._outcome = Outcome()

    async def run(self) -> Outcome:
        """Send everything that is due, and wait for the last answer."""
        started = time.perf_counter()
        if self._order.rate:
            await self._on_schedule(started)
        else:
            await asyncio.gather(*(self._one_after_the_other(started) for _ in range(self._order.connections)))
        self._outcome.seconds = self._last_answer - started
        self._outcome.counts = dict(self._counts)
        return self._outcome

    async def _on_schedule(self, started: float) -> None:
        draw = random.Random(self._order.seed)
        clients: list[asyncio.Task[None]] = []
        due = started
        while (due := due + draw.expovariate(self._order.rate)) < started + self._order.seconds:
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            clients.append(asyncio.create_task(self._ask(due)))
        await asyncio.gather(*clients)

    async def _one_after_the_other(self, started: float) -> None:
        while time.perf_counter() < started + self._order.seconds:
            await self._ask(time.perf_counter())

    async def _ask(self, due: float) -> None:
        try:
            async with asyncio.timeout(self._order.patience):
                self._counts[await self._exchange(due)] += 1
        except TimeoutError:
            self._counts["left"] += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            self._counts[type(error).__name__] += 1

    async def _exchange(self, due: float) -> str:
        while self._idle and time.perf_counter() - self._idle[0][2] > IDLE_SECONDS:
            self._idle.popleft()[1].close()
            self._open -= 1
        if self._idle:
            reader, writer, _ = self._idle.pop()
        elif self._open >= self._order.connections:
            return "no connection"
        else:
            self._open += 1
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._order.port, limit=1 << 20)
            except BaseException:
                self._open -= 1
                raise
        is_whole = False
        try:
            head = await self._sent(reader, writer)
            size = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
            while size:
                size -= len(await reader.readexactly(min(size, 1 << 18)))
            is_whole = b"\r\nconnection: close" not in head
        finally:
            if is_whole:
                self._idle.append((reader, writer, time.perf_counter()))
            else:
                self._open -= 1
                writer.transport.abort()
        self._note(head, time.perf_counter() - due)
        return head[9:12].decode()

    async def _sent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Send the request and return the header of the answer."""
        if self._order.asks_first:
            writer.write(self._head)
            if not (head := await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100"):
                return head.lower()
            if len(self._request) < HUGE_BYTES:
                writer.write(self._body)
            else:
                loop = asyncio.get_running_loop()
                await loop.sendfile(writer.transport, self._file, len(self._head), fallback=False)
        else:
            writer.write(self._request)
        return (await reader.readuntil(b"\r\n\r\n")).lower()

    def _note(self, head: bytes, seconds: float) -> None:
        if head[9:12] == b"200":
            self._outcome.answered.append(seconds)
            self._last_answer = time.perf_counter()
        else:
            self._outcome.refused.append(seconds)
            self._outcome.without_retry_after += b"\r\nretry-after: " not in head


def main() -> None:
    """Carry out the order on standard input."""
    order = Order(**json.load(sys.stdin))
    is_huge = Path(order.request_path).stat().st_size >= HUGE_BYTES
    run = asyncio.run if is_huge else uvloop.run  # the faster one cannot send files
    print(json.dumps(asdict(run(_Clients(order).run()))))


if __name__ == "__main__":
    main()
