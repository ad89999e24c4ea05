"""Named tensors as they travel between rooms: the dtype table, descriptions and messages."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.errors import NAME_LIMIT, UnknownField, clip

Kind = Literal["floating", "integer"]

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How numbers that JSON cannot write are written: as these strings."""

MAX_RANK = 8
"""Largest number of dimensions a tensor may have."""

MAX_ELEMENTS = 2**48
"""Largest product of the non-zero sizes of a shape: more than any memory holds, and no overflow."""


@dataclass(frozen=True, slots=True)
class DType:
    """One element type and the name each format gives it."""

    name: str
    """Name in JSON, as torch and NumPy spell it."""
    safetensors: str
    """Name in safetensors headers."""
    open_inference: str
    """Name in the Open Inference Protocol."""
    kind: Kind
    torch: torch.dtype
    numpy: np.dtype[np.generic]
    """Type whose bytes are the same; bfloat16, unknown to NumPy, has int16 here."""

    @property
    def item_size(self) -> int:
        """Bytes in one element."""
        return self.torch.itemsize


def _dtype(name: str, kind: Kind, numpy: str | None = None) -> DType:
    bytes_as = np.dtype(numpy or name).newbyteorder("<")
    return DType(name, _safetensors_name(name), _open_inference_name(name), kind, getattr(torch, name), bytes_as)


def _safetensors_name(name: str) -> str:
    """Return `F32` for float32, `U8` for uint8, `BF16` for bfloat16."""
    return name.replace("bfloat", "BF").replace("float", "F").replace("uint", "U").replace("int", "I")


def _open_inference_name(name: str) -> str:
    """Return `FP32` for float32, `UINT8` for uint8, `BF16` for bfloat16."""
    return name.replace("bfloat", "BF").replace("float", "FP").upper()


DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        _dtype("float64", "floating"),
        _dtype("float32", "floating"),
        _dtype("float16", "floating"),
        _dtype("bfloat16", "floating", "int16"),
        _dtype("int64", "integer"),
        _dtype("int32", "integer"),
        _dtype("int16", "integer"),
        _dtype("int8", "integer"),
        _dtype("uint64", "integer"),
        _dtype("uint32", "integer"),
        _dtype("uint16", "integer"),
        _dtype("uint8", "integer"),
    )
}
"""Every element type that may cross the wire, by name."""

BY_TORCH = {dtype.torch: dtype for dtype in DTYPES.values()}
"""The same by torch's type."""


def dtype_of(tensor: Tensor) -> DType:
    """Return the table's line for the element type of `tensor`."""
    return BY_TORCH[tensor.dtype]


def tensor_from_bytes(data: bytearray | memoryview, dtype: DType, shape: tuple[int, ...]) -> Tensor:
    """View `data` (little-endian, row-major) as a tensor of `shape`; nothing is copied.

    `data` must be writable and hold exactly the bytes of the shape.
    """
    if len(data) == 0:
        return torch.empty(shape, dtype=dtype.torch)
    flat = torch.frombuffer(data, dtype=dtype.torch)
    return flat if len(shape) == 1 else flat.reshape(shape)


def tensor_in(data: memoryview, dtype: DType, shape: tuple[int, ...], address: int) -> Tensor:
    """View a part of a body, which lies at an address, as a tensor; one that lies askew for its type is copied."""
    if address % dtype.item_size:
        data = memoryview(bytearray(data))
    return tensor_from_bytes(data, dtype, shape)


def address_of(data: bytearray | memoryview) -> int:
    """Return where writable bytes lie in memory; 0 where there are none."""
    return torch.frombuffer(data, dtype=torch.uint8).data_ptr() if len(data) else 0


def bytes_of(tensor: Tensor) -> memoryview:
    """View the memory of a contiguous CPU tensor."""
    return memoryview(cast(Any, array_of(tensor))).cast("B")


def array_of(tensor: Tensor) -> NDArray[Any]:
    """View the bytes of a contiguous CPU tensor as a little-endian NumPy array of the table's type."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy()


@dataclass(frozen=True, slots=True)
class WireTensor:
    """A tensor as a caller wrote it.

    Numbers written out in JSON have no element type of their own: such a *literal* arrives as int64 when every
    number is integral, else as float64, and takes its type when the request is bound.
    """

    values: Tensor
    is_literal: bool = False
    beyond_int64: int | None = None
    """Flat position of the first integer that int64 cannot hold; `values` are then float64."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def kind(self) -> Kind:
        """What the caller wrote: `integer` or `floating`."""
        if self.beyond_int64 is not None:
            return "integer"
        return dtype_of(self.values).kind

    @property
    def type_name(self) -> str:
        """The element type in words, for a sentence."""
        if self.is_literal or self.beyond_int64 is not None:
            return "integers" if self.kind == "integer" else "decimal numbers"
        return dtype_of(self.values).name


@dataclass(frozen=True, slots=True)
class LongText:
    """The value of an option that is longer than any option's can be; nobody looks into it."""

    kind: str
    """What it is, in words: `a string`."""
    size: int

    def __str__(self) -> str:
        return f"{self.kind} of {self.size} bytes"


@dataclass(frozen=True, slots=True, eq=False)
class Fields:
    """The names a request may use: which of them are tensors, which are options."""

    owner: str
    """Whom the names belong to, for a sentence: `cross-entropy`."""
    tensors: tuple[str, ...]
    options: tuple[str, ...]
    only_gradient: tuple[str, ...] = ()
    """Names that only the owner's gradient endpoint knows."""

    def check(self, name: str, path: str = "") -> None:
        """Raise UnknownField unless the request may use `name`, with the nearest name that it may."""
        known = self.tensors + self.options
        if name in known:
            return
        pointer = f"{path}/" + clip(name).replace("~", "~0").replace("/", "~1")
        if name in self.only_gradient:
            raise UnknownField("gradient", pointer=pointer, owner=self.owner, name=name)
        if similar := get_close_matches(name[:NAME_LIMIT], known, n=1):
            raise UnknownField("similar", pointer=pointer, owner=self.owner, name=clip(name), similar=similar[0])
        raise UnknownField("unknown", pointer=pointer, owner=self.owner, name=clip(name), expected=", ".join(known))


@dataclass(slots=True)
class Message:
    """A decoded request: named tensors and raw options, whatever the format was."""

    tensors: dict[str, WireTensor] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)
    owns_memory: bool = False
    """Whether the tensors lie in memory that may be overwritten: a result may take the place of its input."""
