"""Memory of binary requests, read from the service's process: `python -m benchmarks.memory`; 1 when a bound is missed.

The peak of one request is that of the resident memory above what the process held before, relative to the body; it may
be 1.2 where the classes lie last and tensors are aligned, and 2.2 otherwise. After a hundred requests the process must
hold no more than 32 MiB above what it held at the start.
"""

from __future__ import annotations

import http.client
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.loopback import port_of, process
from service.http.formats import MEDIA_TYPES
from service.tensors import array_of, dtype_of
from service.wire import safetensors_codec

MEBIBYTE = 1 << 20
ROWS, CLASSES = 1560, 32000  # 200 MB of float32
REQUESTS = 100
SETTLE_SECONDS = 6.0
LOSS = "/v1/cross-entropy"
GRADIENT = "/v1/cross-entropy/gradient"


def cases() -> Iterator[tuple[str, str, dict[str, Tensor], float]]:
    """Yield title, path, tensors in the order of the body, and the bound."""
    logits, target = torch.randn(ROWS, CLASSES), torch.randint(CLASSES, (ROWS,))
    yield "loss", LOSS, {"logits": logits, "target": target}, 1.2
    yield "loss and gradient", GRADIENT, {"logits": logits, "target": target}, 1.2
    halves = {"logits": logits.repeat(2, 1).half(), "target": target.repeat(2)}
    yield "float16, loss and gradient", GRADIENT, halves, 1.2
    yield "tensor askew, loss", LOSS, {"target": target[1:].short(), "logits": logits[1:]}, 2.2
    yield "tensor askew, loss and gradient", GRADIENT, {"target": target[1:].short(), "logits": logits[1:]}, 2.2
    middle = {"logits": logits.view(12, CLASSES, ROWS // 12), "target": target.view(12, ROWS // 12)}
    yield "classes in the middle, loss and gradient", GRADIENT, middle, 2.2


def body_of(tensors: dict[str, Tensor]) -> bytes:
    """Return a safetensors body with the tensors in their order, however they come to lie."""
    header, data, end = {}, [], 0
    for name, tensor in tensors.items():
        data.append(array_of(tensor).tobytes())
        begin, end = end, end + len(data[-1])
        dtype = dtype_of(tensor).safetensors
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return b"".join([len(text).to_bytes(safetensors_codec.PREFIX_BYTES, "little"), text, *data])


def ask(port: int, path: str, body: bytes) -> None:
    """Send a request and read the answer piece by piece."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", path, body, {"Content-Type": MEDIA_TYPES["safetensors"]})
    answer = connection.getresponse()
    while answer.read(MEBIBYTE):
        pass
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"the service answered {answer.status}")


def resident(pid: int, name: str) -> int:
    """Return `VmRSS` (now) or `VmHWM` (the peak) of a process, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def main() -> int:
    """Print the figures; 1 when one is over its bound."""
    missed = 0
    with process("service", "serve", "--port", "0", "--device", "cpu", "--log-level", "warning") as service:
        port, pid = port_of(service), service.pid
        for path in (LOSS, GRADIENT):
            ask(port, path, body_of({"logits": torch.randn(64, 1000), "target": torch.randint(1000, (64,))}))
        start = resident(pid, "VmRSS")
        print(f"{'one request':45}{'body':>12}{'above start':>14}{'x body':>9}{'bound':>7}")
        for title, path, tensors, bound in cases():
            body = body_of(tensors)
            time.sleep(SETTLE_SECONDS)
            before = resident(pid, "VmRSS")
            Path(f"/proc/{pid}/clear_refs").write_text("5")
            ask(port, path, body)
            above = resident(pid, "VmHWM") - before
            missed += above > bound * len(body)
            figures = f"{len(body) / 1e6:>9.1f} MB{above / 1e6:>11.1f} MB{above / len(body):>9.2f}{bound:>7.1f}"
            print(f"{title:45}{figures}", flush=True)
        _, path, tensors, _ = next(case for case in cases() if case[1] == GRADIENT)
        body = body_of(tensors)
        for _ in range(REQUESTS):
            ask(port, path, body)
        time.sleep(SETTLE_SECONDS)
        kept = resident(pid, "VmRSS") - start
        missed += kept > 32 * MEBIBYTE
        print(f"\nafter {REQUESTS} requests of {len(body) / 1e6:.0f} MB: {kept / MEBIBYTE:+.1f} MiB (bound 32)")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
