"""From the losses of rows to the loss of a request: one fixed order of summation, in float64.

The order depends on the number of rows alone, never on how they were cut into blocks or on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.errors import UndefinedMean
from service.ops.spec import LossOptions


@dataclass(frozen=True, slots=True)
class Denominator:
    """What the losses of a request are divided by.

    Attributes:
        total_weight: what `mean` divides by unless a `normalizer` is given.
        divisor: what this request divides by; 1 unless the reduction is `mean`.
    """

    total_weight: float
    divisor: float


def denominator(row_weights: Tensor | None, rows: int, options: LossOptions) -> Denominator:
    """Sum what each row counts (float64 [rows]; None: 1) and choose the divisor that the options ask for."""
    total_weight = float(rows) if row_weights is None else total(row_weights)
    if options.reduction != "mean":
        return Denominator(total_weight, 1.0)
    return Denominator(total_weight, total_weight if options.normalizer is None else options.normalizer)


def check_mean(over: Denominator, options: LossOptions) -> None:
    """Raise UndefinedMean when the divisor is 0, unless the caller asked for the NaN."""
    if over.divisor == 0.0 and options.non_finite == "reject":
        raise UndefinedMean("zero")


def reduced(row_losses: Tensor, over: Denominator) -> float:
    """Return the loss of a request: the sum of the losses of its rows (float64 [rows]) over the divisor."""
    return _quotient(total(row_losses), over.divisor)


def row_upstream(upstream: Tensor | None, rows: int, over: Denominator) -> Tensor:
    """Return the derivative of the answer by each row's loss: float64 [rows], from `grad_output` (default 1)."""
    if upstream is None:
        return torch.full((rows,), _quotient(1.0, over.divisor), dtype=torch.float64)
    return upstream.double().reshape(-1).div(over.divisor).expand(rows).contiguous()


def total(values: Tensor) -> float:
    """Sum float64 [rows] in an order that follows from their number alone."""
    # NumPy's pairwise sum runs in one thread; torch's order depends on the number of threads.
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.add.reduce(values.numpy()))


def _quotient(dividend: float, divisor: float) -> float:
    """Divide as IEEE 754 says, by 0 too."""
    if divisor:
        return dividend / divisor
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.float64(dividend) / divisor)
