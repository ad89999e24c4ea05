"""A load generator in a process of its own: `python -m benchmarks.load`, told what to do in JSON on standard input.

Every line read is one round, {"port", "request" (base64), "connections", "seconds"}; every line written is its result,
{"requests", "seconds"}. Each connection sends a request, reads the whole answer, and sends the next: one connection
with blocking calls, which cost least, several on an event loop.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import sys
import time

import uvloop

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


async def _converse(port: int, request: bytes, until: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    answered = 0
    try:
        while time.perf_counter() < until:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_body_bytes(head))
            answered += 1
    finally:
        writer.close()
    return answered


def _converse_alone(port: int, request: bytes, until: float) -> int:
    """Do the same with blocking calls, sending and receiving large pieces at once."""
    answered = 0
    answer = bytearray(1 << 16)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while answered == 0 or time.perf_counter() < until:
            connection.sendall(request)
            filled, size = 0, 0
            while size == 0 or filled < size:
                if (received := connection.recv_into(memoryview(answer)[filled:])) == 0:
                    raise RuntimeError(f"the server closed the connection after {filled} bytes")
                filled += received
                if size == 0 and (end := answer.find(b"\r\n\r\n", 0, filled)) >= 0:
                    size = end + 4 + _body_bytes(bytes(answer[:end]))
                    if size > len(answer):
                        answer.extend(bytes(size - len(answer)))
            answered += 1
    return answered


def _body_bytes(head: bytes) -> int:
    """Return how long the body after a head is."""
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the server answered {head[:200]!r}")
    if (found := CONTENT_LENGTH.search(head + b"\r\n")) is None:
        raise RuntimeError(f"an answer without its length: {head[:200]!r}")
    return int(found[1])


async def _round(port: int, request: bytes, connections: int, seconds: float) -> dict[str, float]:
    started = time.perf_counter()
    talks = (_converse(port, request, started + seconds) for _ in range(connections))
    answered = sum(await asyncio.gather(*talks))
    return {"requests": answered, "seconds": time.perf_counter() - started}


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        request = base64.b64decode(order["request"])
        if order["connections"] == 1:
            started = time.perf_counter()
            answered = _converse_alone(order["port"], request, started + order["seconds"])
            result: dict[str, float] = {"requests": answered, "seconds": time.perf_counter() - started}
        else:
            result = uvloop.run(_round(order["port"], request, order["connections"], order["seconds"]))
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
