"""What an answer should be, worked out in long double from the closed forms, with the size of its terms.

Beside every result stands its `scale`: the largest of the terms that it is a sum of. Where terms cancel, no method that
rounds its terms can do better than a unit in the last place of the largest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.support.cases import Case

Exact = NDArray[np.longdouble]


@dataclass
class Truth:
    """Results and their scales by output name, flattened to rows in row-major order: [rows, classes], [rows] or []."""

    values: dict[str, Exact] = field(default_factory=dict)
    scales: dict[str, Exact] = field(default_factory=dict)

    def put(self, name: str, value: Exact, scale: Exact | None = None) -> None:
        """Note a result; without a scale its terms do not cancel."""
        self.values[name] = np.asarray(value, np.longdouble)
        self.scales[name] = np.asarray(np.abs(value) if scale is None else scale, np.longdouble)


def exact(tensor: Tensor) -> Exact:
    """Return the numbers of a tensor in long double."""
    return tensor.double().numpy().astype(np.longdouble)


def by_row(tensor: Tensor, class_dim: int) -> Exact:
    """Return a tensor of the first input's shape as [rows, classes]."""
    return exact(tensor.movedim(class_dim, -1).reshape(-1, tensor.shape[class_dim]))


class Rows:
    """Rows of logits in long double: probabilities q, their logarithms, and 1 - q of the largest without cancelling."""

    def __init__(self, logits: Exact) -> None:
        rows = np.arange(len(logits))
        self.largest = logits.argmax(1)
        top = logits[rows, self.largest]
        self.shifted = logits - top[:, None]
        powers = np.exp(self.shifted)
        powers[rows, self.largest] = 0
        others = powers.sum(1)
        powers[rows, self.largest] = 1
        self.log_partition = np.log1p(others)
        self.probs = powers / (1 + others)[:, None]
        self.log_probs = self.shifted - self.log_partition[:, None]
        self.logsumexp = top + self.log_partition
        self.complement = 1 - self.probs
        self.complement[rows, self.largest] = others / (1 + others)

    def pulled_back(self, mass: Exact) -> Exact:
        """Return T q_j - t_j as q_j (sum of the other t) - t_j (1 - q_j): exact for one-hot and confident rows."""
        others = mass.sum(1)[:, None] - mass
        for row in np.flatnonzero((mass != 0).sum(1) == 1):
            others[row] = np.where(mass[row] != 0, 0, mass[row].sum())
        return self.probs * others - mass * self.complement


def truths_of(case: Case) -> list[Truth]:
    """Return what may be taken for true where the temperature divides logits in the type of the computation.

    With logits of 1000 the rounding of that quotient alone is worth hundreds of units in the last place of the result,
    so a method is judged by the nearer truth: that of the exact quotient or of the rounded one.
    """
    if case.fields.get("temperature") is None:
        return [truth_of(case)]
    dtype = torch.float64 if case.first.dtype == torch.float64 else torch.float32
    return [truth_of(case), truth_of(case, (case.first.to(dtype) / case["temperature"]))]


def truth_of(case: Case, scaled: Tensor | None = None) -> Truth:
    """Return everything that the gradient endpoint of a case's operator can give.

    `scaled` are the logits after division by the temperature, unless it is to be exact.
    """
    if case.operator == "nll-loss":
        return _nll(case)
    temperature = np.longdouble(case.fields.get("temperature") or 1.0)
    if scaled is None:
        rows = Rows(by_row(case.first, case.class_dim) / temperature)
    else:
        rows = Rows(by_row(scaled, case.class_dim))
    truth = Truth()
    truth.put("logsumexp", rows.logsumexp, np.maximum(np.abs(rows.logsumexp), rows.log_partition))
    if case.operator == "cross-entropy":
        _cross_entropy(case, rows, temperature, truth)
        return truth
    upstream = by_row(case["grad_output"], case.class_dim)
    size = np.abs(upstream)
    if case.operator == "softmax":
        truth.put("probs", rows.probs)
        pulled = (rows.probs * upstream).sum(1, keepdims=True)
        value = rows.probs * (upstream - pulled) / temperature
        truth.put("grad_logits", value, rows.probs * (size + (rows.probs * size).sum(1, keepdims=True)) / temperature)
    else:
        truth.put("log_probs", rows.log_probs)
        value = (upstream - rows.probs * upstream.sum(1, keepdims=True)) / temperature
        truth.put("grad_logits", value, (size + rows.probs * size.sum(1, keepdims=True)) / temperature)
    return truth


def _index(case: Case, rows: int, classes: int) -> tuple[NDArray[np.bool_], Exact]:
    """Return which rows are kept, and one-hot rows (0 where skipped)."""
    target = case["target"].long().reshape(-1).numpy()
    ignored = case.fields.get("ignore_index")
    kept = target != (-100 if ignored is None else ignored)
    one_hot = np.zeros((rows, classes), np.longdouble)
    one_hot[kept, target[kept]] = 1
    return kept, one_hot


def _weight(case: Case, classes: int) -> Exact:
    weight = case.fields.get("weight")
    return np.ones(classes, np.longdouble) if weight is None else exact(weight)


def _reduce(case: Case, losses: Exact, scales: Exact, total: np.longdouble, truth: Truth) -> Exact:
    """Put `loss` and `total_weight`, and return the derivative of the answer by each row's loss."""
    upstream = case.fields.get("grad_output")
    slope = np.ones(1, np.longdouble) if upstream is None else exact(upstream).reshape(-1)
    truth.put("total_weight", total)
    if case["reduction"] == "none":
        truth.put("loss", losses, scales)
        return np.broadcast_to(slope, losses.shape)
    divisor = np.longdouble(1)
    if case["reduction"] == "mean":
        divisor = np.longdouble(case.fields.get("normalizer") or total)
    truth.put("loss", losses.sum() / divisor, scales.sum() / np.abs(divisor))
    return np.broadcast_to(slope / divisor, losses.shape)


def _nll(case: Case) -> Truth:
    log_probs = by_row(case.first, case.class_dim)
    truth = Truth()
    _, one_hot = _index(case, *log_probs.shape)
    mass = one_hot * _weight(case, log_probs.shape[1])
    losses = -(mass * log_probs).sum(1)
    slope = _reduce(case, losses, np.abs(losses), mass.sum(), truth)
    truth.put("grad_log_probs", -slope[:, None] * mass)
    return truth


def _cross_entropy(case: Case, rows: Rows, temperature: np.longdouble, truth: Truth) -> None:
    count, classes = rows.probs.shape
    smoothing = np.longdouble(case.fields.get("label_smoothing") or 0.0)
    weight = _weight(case, classes)
    if case.is_soft:
        mass = weight * ((1 - smoothing) * by_row(case["target"], case.class_dim) + smoothing / classes)
        total = np.longdouble(count)
    else:
        kept, one_hot = _index(case, count, classes)
        mass = np.where(kept[:, None], weight * ((1 - smoothing) * one_hot + smoothing / classes), 0)
        total = (one_hot * weight).sum()
    losses = -(mass * rows.log_probs).sum(1)
    slope = _reduce(case, losses, np.abs(mass * rows.log_probs).sum(1), total, truth)
    truth.put("log_probs", rows.log_probs)
    slope = slope[:, None]
    gradient = slope * rows.pulled_back(mass) / temperature
    spread = np.abs(slope) * (rows.probs * np.abs(mass).sum(1, keepdims=True) + np.abs(mass)) / temperature
    truth.put("grad_logits", gradient, spread if case.is_soft or smoothing else None)
    if case.is_soft:
        truth.put("grad_target", -slope * (1 - smoothing) * weight * rows.log_probs)


def rows_of(answer: dict[str, Tensor], case: Case) -> dict[str, Exact]:
    """Return an answer's tensors as `truth_of` has them: [rows, classes], [rows] or []."""
    return {
        name: by_row(tensor, case.class_dim) if tensor.shape == case.first.shape else exact(tensor).reshape(-1)
        for name, tensor in answer.items()
    }


def ulp(size: Exact, dtype: torch.dtype) -> Exact:
    """Return the distance between neighbouring numbers of a type at a given size."""
    info = torch.finfo(dtype)
    _, exponent = np.frexp(np.maximum(size, np.longdouble(info.smallest_normal)))
    return np.ldexp(np.longdouble(info.eps), exponent - 1)


def error_in_ulp(got: Exact, wanted: Exact, scale: Exact, dtype: torch.dtype) -> float:
    """Return the largest error over a tensor in units in the last place; infinity where one is not a number."""
    if wanted.size == 0:
        return 0.0
    error = np.abs(got.reshape(wanted.shape) - wanted) / ulp(scale, dtype)
    return float("inf") if np.isnan(error).any() else float(error.max())
