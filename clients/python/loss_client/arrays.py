"""NumPy arrays and torch tensors as they cross the wire, and back into the caller's kind.

torch is never imported here: a caller who passes tensors has done so already.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

ArrayT = TypeVar("ArrayT", NDArray[Any], "torch.Tensor")
"""The caller's kind of array: what goes in as NumPy comes out as NumPy, a tensor as a tensor on the same device."""

if TYPE_CHECKING:
    ArrayLike = NDArray[Any] | np.generic | torch.Tensor | float
    """Anything that can be an input: an array or tensor, or a number for one without dimensions."""

BFLOAT16 = "BF16"

WIRE_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    BFLOAT16: np.dtype("<i2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("<i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("<u1"),
}
"""Element types by their safetensors names; bfloat16, unknown to NumPy, as the integers of the same bytes."""

_NAMES = {dtype.name: name for name, dtype in WIRE_TYPES.items() if name != BFLOAT16} | {"bfloat16": BFLOAT16}


@dataclass(frozen=True, slots=True)
class WireArray:
    """An array as it crosses the wire; `values` have the type that `WIRE_TYPES` gives for `type_name`."""

    type_name: str
    values: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def __getitem__(self, index: Any) -> WireArray:
        return WireArray(self.type_name, self.values[index])

    def as_float64(self) -> NDArray[np.float64]:
        """Return the numbers as float64, exactly."""
        if self.type_name == BFLOAT16:
            return (self.values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return self.values.astype(np.float64)


def is_tensor(value: object) -> bool:
    """Return whether a value is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_wire(name: str, value: object, *, is_index: bool = False) -> WireArray:
    """Return an array or tensor as it is sent; nothing is copied that is little-endian and in the CPU's memory.

    A whole number of Python's is a class where the input `is_index`, and float64 elsewhere.

    Raises TypeError for what is neither, or has elements that the service does not know.
    """
    if is_tensor(value):
        return _tensor_to_wire(name, value)
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        array = np.asarray(value, None if is_index else np.float64)
    else:
        hint = f"; numpy.asarray({name}) makes it an array" if isinstance(value, list | tuple) else ""
        raise TypeError(f"'{name}' must be a NumPy array or a torch tensor, but is {type(value).__qualname__}{hint}")
    # NumPy counts the bits of text in its name: str32 is one character.
    type_name = _type_named(name, "str" if array.dtype.kind == "U" else array.dtype.name)
    if type_name == BFLOAT16:
        return WireArray(type_name, array.view(WIRE_TYPES[type_name]))
    return WireArray(type_name, array.astype(WIRE_TYPES[type_name], copy=False))


def _tensor_to_wire(name: str, value: Any) -> WireArray:
    torch = sys.modules["torch"]
    type_name = _type_named(name, str(value.dtype).removeprefix("torch."))
    values = value.detach().cpu()
    return WireArray(type_name, (values.view(torch.int16) if type_name == BFLOAT16 else values).numpy())


def _type_named(name: str, dtype_name: str) -> str:
    if dtype_name not in _NAMES:
        raise TypeError(f"'{name}' has elements of type {dtype_name}, but must have one of {', '.join(_NAMES)}")
    return _NAMES[dtype_name]


def giver_like(value: object) -> Callable[[WireArray], Any]:
    """Return the function that turns what came over the wire into the kind of `value`, on its device."""
    if not is_tensor(value):
        return _give_array
    device = cast(Any, value).device
    return lambda array: _give_tensor(array, device)


def _give_array(array: WireArray) -> NDArray[Any]:
    return array.values.view(_bfloat16()) if array.type_name == BFLOAT16 else array.values


def _bfloat16() -> np.dtype[Any]:
    try:
        found: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        raise TypeError("an output is bfloat16, which NumPy holds only with the package ml_dtypes") from None
    return found


def _give_tensor(array: WireArray, device: Any) -> Any:
    torch = sys.modules["torch"]
    tensor = torch.from_numpy(array.values)
    return (tensor.view(torch.bfloat16) if array.type_name == BFLOAT16 else tensor).to(device)
