"""The passes over rows that are compiled from C (`rows.c`): one call where torch takes a dozen, each over the row.

The libraries are made when the package is installed. Where there is none that fits the processor, and on other devices,
`computes` says no and torch does the work.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


class _Library(NamedTuple):
    """The functions for one element type."""

    softmax: Callable[..., None]
    log_softmax: Callable[..., None]
    cross_entropy: Callable[..., int]
    cross_entropy_of_masses: Callable[..., None]


_ARGUMENTS: tuple[list[Any], ...] = (
    [ctypes.c_double, *[_POINTER] * 4],
    [ctypes.c_double, *[_POINTER] * 3],
    [ctypes.c_double, *[_POINTER] * 6],
    [ctypes.c_double, _POINTER, _POINTER, ctypes.c_double, ctypes.c_double, *[_POINTER] * 6],
)
"""What each of them takes after logits, rows and classes."""

SHORT = 128
"""Rows of so many classes, and shorter ones, are not for `cross_entropy_of_masses`."""


def _variant() -> str:
    """Return which vector instructions this processor has, in the words of the build."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "base"
    return torch.backends.cpu.get_cpu_capability().lower()


def load(path: Path) -> dict[torch.dtype, _Library]:
    """Return the functions of a library by element type; nothing where it is not there or made for another system."""
    if not path.is_file() or sys.byteorder != "little":
        return {}
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return {}
    loaded = {}
    for dtype, suffix in ((torch.float32, "float"), (torch.float64, "double")):
        functions = _Library(*[library[f"{name}_{suffix}"] for name in _Library._fields])
        for function, arguments in zip(functions, _ARGUMENTS, strict=True):
            function.argtypes = (_POINTER, _COUNT, _COUNT, *arguments)  # type: ignore[attr-defined]
            function.restype = _COUNT if function is functions.cross_entropy else None  # type: ignore[attr-defined]
        loaded[dtype] = functions
    return loaded


_LIBRARIES = load(Path(__file__).with_name(f"rows-{_variant()}.so"))


def computes(logits: Tensor) -> bool:
    """Whether rows in this type and place can be computed here."""
    return logits.dtype in _LIBRARIES and logits.device.type == "cpu" and logits.is_contiguous()


def divides(logits: Tensor, temperature: float) -> bool:
    """Whether rows can be divided by a temperature on the way, without rounding the quotient to float32.

    In float64 the quotient may be rounded, and of a factor beyond these bounds float32 does not hold enough.
    """
    return (
        logits.dtype == torch.float32 and logits.shape[1] > SHORT and 2**-60 < temperature < 2**60 and computes(logits)
    )


class Rows(NamedTuple):
    """What rows come to beside their probabilities.

    Attributes:
        rest: S - 1, the sum of e^(z_j - m) over all classes but the largest, float64 [rows, 1].
        peak: m, the largest logit, float64 [rows, 1]; NaN where a NaN stands in the row beside an infinite m.
        top: its first place, int64 [rows, 1].
    """

    rest: Tensor
    peak: Tensor
    top: Tensor


def softmax(logits: Tensor, out: Tensor, temperature: float = 1.0) -> Rows:
    """Write the softmax of each row of `logits` [rows, classes] to `out`, contiguous, which may be `logits` itself.

    A `temperature` other than 1 is for what `divides`, here and below.
    """
    rows, classes = logits.shape
    rest = torch.empty((rows, 1), dtype=torch.float64)
    peak, top = torch.empty_like(rest), torch.empty((rows, 1), dtype=torch.int64)
    _LIBRARIES[logits.dtype].softmax(
        logits.data_ptr(),
        rows,
        classes,
        1.0 / temperature,
        out.data_ptr(),
        rest.data_ptr(),
        peak.data_ptr(),
        top.data_ptr(),
    )
    return Rows(rest, peak, top)


def log_softmax(logits: Tensor, peak: Tensor, log: Tensor, out: Tensor, temperature: float = 1.0) -> None:
    """Write ln q = z - m - ln S, rounded once, to `out`, which may be `logits` itself.

    `peak` is m and `log` ln S, float64 [rows, 1]. All contiguous.
    """
    _LIBRARIES[logits.dtype].log_softmax(
        logits.data_ptr(), *logits.shape, 1.0 / temperature, peak.data_ptr(), log.data_ptr(), out.data_ptr()
    )


class Losses(NamedTuple):
    """What is known of rows whose cross-entropy has been computed.

    Attributes:
        are_defined: whether no loss and no gradient holds a NaN; where it is False, one may.
        rest: as in `Rows`; None unless asked for.
        peak: the same.
    """

    are_defined: bool
    rest: Tensor | None
    peak: Tensor | None


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    slope: Tensor | None,
    loss: Tensor,
    grad: Tensor | None,
    *,
    temperature: float = 1.0,
    parts: bool = True,
) -> Losses:
    """Write the loss of each row, ln S + m - z_y, to `loss` (float64 [rows]), and slope (q - [j = y]) to `grad`.

    `target` is int64 [rows], in range; `slope` float64 [rows]; `grad` may be `logits` itself, or None. All contiguous.
    `parts` asks for `rest` and `peak`.
    """
    rows, classes = logits.shape
    rest = peak = None
    if parts:
        rest, peak = torch.empty((rows, 1), dtype=torch.float64), torch.empty((rows, 1), dtype=torch.float64)
    undefined = _LIBRARIES[logits.dtype].cross_entropy(
        logits.data_ptr(),
        rows,
        classes,
        1.0 / temperature,
        target.data_ptr(),
        None if slope is None else slope.data_ptr(),
        loss.data_ptr(),
        None if grad is None else grad.data_ptr(),
        None if rest is None else rest.data_ptr(),
        None if peak is None else peak.data_ptr(),
    )
    return Losses(not undefined, rest, peak)


def cross_entropy_of_masses(
    logits: Tensor,
    target: Tensor,
    slope: Tensor | None,
    loss: Tensor,
    grad: Tensor | None,
    *,
    keep: float,
    spread: float,
    weight: Tensor | None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Write the loss of each row, and slope (T q - t) to `grad`, for rows that are not `SHORT`; return R and m.

    The masses are t_j = w_j (keep p_j + spread), computed in float64. `target` is p [rows, classes] in the type of the
    logits, or int64 [rows] for p_j = [j = y]; `weight` is w, float64 [classes]; the rest as in `cross_entropy`.
    """
    rest = torch.empty((len(logits), 1), dtype=torch.float64)
    peak = torch.empty_like(rest)
    is_soft = target.ndim == 2
    _LIBRARIES[logits.dtype].cross_entropy_of_masses(
        logits.data_ptr(),
        *logits.shape,
        1.0 / temperature,
        target.data_ptr() if is_soft else None,
        None if is_soft else target.data_ptr(),
        keep,
        spread,
        None if weight is None else weight.data_ptr(),
        None if slope is None else slope.data_ptr(),
        loss.data_ptr(),
        None if grad is None else grad.data_ptr(),
        rest.data_ptr(),
        peak.data_ptr(),
    )
    return rest, peak
