"""Softmax, cross-entropy and gradient in long double (64 bits of mantissa), with the cancelling parts summed apart.

float64 alone is no truth for a confident row: at a margin of 20 it has lost half of the digits of 1 - q. Here 1 - q of
the largest class is summed from the others, and ln S is log1p of that sum. `check` compares with 50 digits of mpmath.
"""

from __future__ import annotations

from dataclasses import dataclass

import mpmath  # type: ignore[import-untyped]
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Exact = NDArray[np.longdouble]


@dataclass(frozen=True)
class Truth:
    """What is true of rows.

    Attributes:
        probs: [rows, classes].
        loss: [rows].
        gradient: by the logits [rows, classes].
        terms: the size that a gradient's error is judged at: its own, or that of the smaller of the two terms that it
            is the difference of. Where they cancel by chance no method that rounds them keeps the digits of the rest.
    """

    probs: Exact
    loss: Exact
    gradient: Exact
    terms: Exact


def exact(tensor: Tensor) -> Exact:
    return tensor.double().numpy().astype(np.longdouble)


def truth_of(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Truth:
    """Return what is true of rows of logits against indices [rows] or probabilities [rows, classes]."""
    z, smoothing = exact(logits), np.longdouble(label_smoothing)
    rows, classes = np.arange(len(z)), z.shape[1]
    largest = z.argmax(1)
    shifted = z - z[rows, largest][:, None]
    powers = np.exp(shifted)
    powers[rows, largest] = 0
    others = powers.sum(1)
    powers[rows, largest] = 1
    probs = powers / (1 + others)[:, None]
    complement = 1 - probs
    complement[rows, largest] = others / (1 + others)
    log_probs = shifted - np.log1p(others)[:, None]
    if target.ndim == 2:
        mass = exact(target)
    else:
        mass = np.full_like(z, smoothing / classes)
        mass[rows, target.numpy()] += 1 - smoothing
    if target.ndim == 1 and not label_smoothing:
        column = target.numpy()
        gradient = probs.copy()
        gradient[rows, column] = -complement[rows, column]
        return Truth(probs, -log_probs[rows, column], gradient, gradient)
    other_mass = mass.sum(1)[:, None] - mass
    gradient = probs * other_mass - mass * complement
    return Truth(probs, -(mass * log_probs).sum(1), gradient, np.maximum(np.abs(gradient), np.minimum(probs, mass)))


def ulp(size: Exact, dtype: torch.dtype) -> Exact:
    """Return the distance between neighbouring numbers of a type at a given size."""
    info = torch.finfo(dtype)
    _, exponent = np.frexp(np.maximum(np.abs(size), np.longdouble(info.smallest_normal)))
    distance: Exact = np.ldexp(np.longdouble(info.eps), exponent - 1)
    return distance


def worst_error(got: Tensor, wanted: Exact, size: Exact | None = None) -> float:
    """Return the largest error over a tensor, in units in the last place of its own type at its own size or `size`."""
    error = np.abs(exact(got) - wanted) / ulp(wanted if size is None else size, got.dtype)
    return float("inf") if np.isnan(error).any() else float(error.max())


def check() -> None:
    """Raise AssertionError unless this module agrees with mpmath on confident and ordinary rows."""
    logits = torch.cat([torch.randn(20, 7) * 3, torch.randn(20, 7) * 30])
    target = torch.randint(7, (len(logits),))
    found = truth_of(logits, target)
    with mpmath.workdps(50):
        for row, column in enumerate(target.tolist()):
            z = [mpmath.mpf(value) for value in logits[row].tolist()]
            total = mpmath.fsum(mpmath.exp(value) for value in z)
            probs = [mpmath.exp(value) / total for value in z]
            assert _close(found.loss[row], mpmath.log(total) - z[column])
            for index, prob in enumerate(probs):
                assert _close(found.probs[row, index], prob)
                entry = prob if index != column else -mpmath.fsum(p for i, p in enumerate(probs) if i != column)
                assert _close(found.gradient[row, index], entry)


def _close(found: np.longdouble, wanted: mpmath.mpf) -> bool:
    high = float(found)
    found_exactly = mpmath.mpf(high) + mpmath.mpf(float(found - np.longdouble(high)))
    return bool(abs(found_exactly - wanted) <= abs(wanted) * mpmath.mpf(10) ** -17)
