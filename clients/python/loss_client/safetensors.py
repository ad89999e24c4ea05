"""Named arrays to a safetensors body and back, without copying them: the header, and views.

The format (source: the README of huggingface/safetensors): 8 bytes with the length N of the header, little-endian; N
bytes of JSON, `{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__": {...}}`; then
the data, row-major and little-endian, without gaps. The library builds and reads whole `bytes`, a copy each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from loss_client.arrays import WIRE_TYPES, WireArray
from loss_client.errors import BadAnswerError

MEDIA_TYPE = "application/x-safetensors"

PREFIX_BYTES = 8
"""Bytes of the header's length."""

ALIGNMENT_BYTES = 64
"""What the data is aligned to within a body: a cache line."""

SLICE_BYTES = 1 << 18
"""A body is handed over in slices of so many bytes: what is copied below us is one slice at a time."""


@dataclass(frozen=True, slots=True)
class Body:
    """A body in pieces: the header, then views of the arrays' own memory."""

    pieces: tuple[bytes | memoryview, ...]
    nbytes: int

    def slices(self) -> Iterator[bytes]:
        """Yield the body in slices; views pass for bytes wherever they are only written to a socket."""
        for piece in self.pieces:
            for start in range(0, len(piece), SLICE_BYTES):
                yield cast(bytes, piece[start : start + SLICE_BYTES])


def write(arrays: Mapping[str, WireArray], options: Mapping[str, object]) -> Body:
    """Return the arrays as a body, with the options in its metadata; only what is not contiguous is copied."""
    header: dict[str, object] = {}
    if options:
        header["__metadata__"] = {name: _option(value) for name, value in options.items()}
    views: list[memoryview] = []
    end = 0
    # Wider types first: then every array is aligned for its own type.
    for name, array in sorted(arrays.items(), key=lambda item: -item[1].values.itemsize):
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": array.type_name, "shape": list(array.shape), "data_offsets": [begin, end]}
        if array.nbytes:
            contiguous = np.ascontiguousarray(array.values).reshape(-1)
            views.append(memoryview(cast(Any, contiguous.view(np.uint8))))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(PREFIX_BYTES + len(text)) % ALIGNMENT_BYTES)
    head = len(text).to_bytes(PREFIX_BYTES, "little") + text
    return Body((head, *views), len(head) + end)


def _option(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=np.generic.item)


def read(body: NDArray[np.uint8]) -> dict[str, WireArray]:
    """Return the arrays of a body as views of it; raises BadAnswerError when it is not safetensors."""
    try:
        size = int.from_bytes(body[:PREFIX_BYTES].tobytes(), "little")
        header = json.loads(body[PREFIX_BYTES : PREFIX_BYTES + size].tobytes())
        data = body[PREFIX_BYTES + size :]
        return {name: _view(data, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadAnswerError(f"the answer is not a safetensors body: {error}") from error


def _view(data: NDArray[np.uint8], entry: dict[str, Any]) -> WireArray:
    dtype, shape = WIRE_TYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= len(data) or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("the offsets of a tensor do not fit its shape")
    return WireArray(entry["dtype"], data[begin:end].view(dtype).reshape(shape))
