"""The least that a service in this language could take: `python -m benchmarks.floor [gradient]`.

Bytes go from the socket into one buffer, one compiled call computes cross-entropy there, and bytes go back. Nothing is
parsed but the length, nothing is checked, there is no framework, and every request must be like the first one, in
safetensors. What a real service takes beyond this is HTTP, validation, and accounting. The address is printed once it
listens.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any, cast

import torch
import uvloop
from torch import Tensor

from service.ops import native
from service.tensors import Fields, bytes_of
from service.wire import safetensors_codec

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
HEAD_BYTES = 1 << 10
FIELDS = Fields("cross-entropy", ("logits", "target"), ())


class Floor(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(self, *, gradient: bool) -> None:
        self._gradient = gradient
        self._memory = memoryview(bytearray(HEAD_BYTES))
        self._filled = 0
        self._size = 0
        self._tensors: dict[str, Tensor] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where answers go."""
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> Any:
        """Say where the next bytes go."""
        return self._memory[self._filled : self._size or HEAD_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """Answer once a request is complete."""
        self._filled += nbytes
        if not self._size:
            self._begin()
        if self._size and self._filled == self._size:
            self._filled = 0
            self._answer()

    def _begin(self) -> None:
        """Make room for the first request, placed so that its data is aligned."""
        head, end, body = bytes(self._memory[: self._filled]).partition(b"\r\n\r\n")
        if not end or (length := LENGTH.search(head)) is None:
            return
        size = len(head) + len(end) + int(length[1])
        free = -(len(head) + len(end) + 8 + int.from_bytes(body[:8], "little")) % 64
        memory = torch.empty(free + size + 64, dtype=torch.uint8)
        free += -memory.data_ptr() % 64
        whole = bytes_of(memory)[free : free + size]
        whole[: self._filled] = self._memory[: self._filled]
        self._memory, self._size, self._start = whole, size, len(head) + len(end)

    def _answer(self) -> None:
        if not self._tensors:
            message = safetensors_codec.decode(self._memory[self._start :], FIELDS)
            self._tensors = {name: tensor.values for name, tensor in message.tensors.items()}
            rows = len(self._tensors["target"])
            self._slope = torch.full((rows,), 1 / rows, dtype=torch.float64)
            self._loss = torch.empty(rows, dtype=torch.float64)
        logits, target = self._tensors["logits"], self._tensors["target"]
        if self._gradient:
            native.cross_entropy(logits, target, self._slope, self._loss, logits, parts=False)
        else:
            native.cross_entropy(logits, target, None, self._loss, None, parts=False)
        found = {"loss": self._loss.sum().float(), "total_weight": torch.tensor(float(len(target)))}
        pieces = safetensors_codec.encode({"grad_logits": logits, **found} if self._gradient else found)
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % sum(map(len, pieces))
        self._transport.write(head + pieces[0])
        for piece in pieces[1:]:
            self._transport.write(piece)


async def serve(*, gradient: bool) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(lambda: Floor(gradient=gradient), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    torch.set_num_threads(1)
    uvloop.run(serve(gradient="gradient" in sys.argv[1:]))
