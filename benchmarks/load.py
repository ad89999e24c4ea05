"""A load generator in a process of its own: `python -m benchmarks.load`, told what to do in JSON on standard input.

Every line read is one round, {"port", "request" (base64), "connections", "seconds"}; every line written is its result,
{"requests", "seconds"}. Each connection sends a request, reads the whole answer, and sends the next.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
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
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"the server answered {head[:200]!r}")
            found = CONTENT_LENGTH.search(head)
            if found is None:
                raise RuntimeError(f"an answer without its length: {head[:200]!r}")
            await reader.readexactly(int(found[1]))
            answered += 1
    finally:
        writer.close()
    return answered


async def _round(port: int, request: bytes, connections: int, seconds: float) -> dict[str, float]:
    started = time.perf_counter()
    talks = (_converse(port, request, started + seconds) for _ in range(connections))
    answered = sum(await asyncio.gather(*talks))
    return {"requests": answered, "seconds": time.perf_counter() - started}


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        request = base64.b64decode(order["request"])
        result = uvloop.run(_round(order["port"], request, order["connections"], order["seconds"]))
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
