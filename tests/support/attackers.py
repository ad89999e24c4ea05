"""Callers of bad will, many at once: `python -m tests.support.attackers PORT EACH SECONDS` prints what became of them.

A line of JSON: for each kind, how many connections the service ended, and how long the longest of them lived; `left`
are those that were still open `PATIENCE_SECONDS` after the last was begun.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time

PATIENCE_SECONDS = 13.0

ASSET = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"

KINDS: dict[str, tuple[bytes, bytes]] = {
    "silent": (b"", b""),
    "header drip": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"a"),
    "body drip": (
        b"POST /v1/softmax HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n",
        b" ",
    ),
    "slow reader": (ASSET * 4, b""),
}
"""What each kind sends at first, and then twice a second. None of them reads."""


async def _attack(port: int, kind: str, until: float, lives: list[float]) -> None:
    beginning, piece = KINDS[kind]
    while time.monotonic() < until:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(connection, ("127.0.0.1", port))
            started = time.monotonic()
            await loop.sock_sendall(connection, beginning)
            while not _is_closed(connection):
                await asyncio.sleep(0.5)
                if piece:
                    connection.send(piece)
        except OSError:
            pass
        finally:
            connection.close()
        lives.append(time.monotonic() - started)


def _is_closed(connection: socket.socket) -> bool:
    """Return whether the other side has closed, without taking a byte of what it sent, unless that is a refusal."""
    if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return True
    try:
        seen = connection.recv(12, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    return not seen or seen.startswith(b"HTTP/1.1 408") or _has_hung_up(connection)


def _has_hung_up(connection: socket.socket) -> bool:
    """Return whether the system has heard of the end (state CLOSE_WAIT or CLOSE in TCP_INFO)."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0] in (7, 8)


async def main(port: int, each: int, seconds: float) -> None:
    """Attack, and print what became of it."""
    lives: dict[str, list[float]] = {kind: [] for kind in KINDS}
    until = time.monotonic() + seconds
    tasks = [asyncio.create_task(_attack(port, kind, until, lives[kind])) for kind in KINDS for _ in range(each)]
    _, left = await asyncio.wait(tasks, timeout=seconds + PATIENCE_SECONDS)
    outcome = {kind: {"ended": len(each), "longest": round(max(each, default=0.0), 2)} for kind, each in lives.items()}
    print(json.dumps({"left": len(left), **outcome}))


if __name__ == "__main__":
    # Attackers bring processors of their own, and do not take them from those who are to be measured.
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
