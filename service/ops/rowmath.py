"""Row-wise softmax and its logarithm, computed so that neither large nor confident rows lose their digits.

For a row z of C logits: m = max z, S = sum_j e^(z_j - m), q = softmax(z) = e^(z - m) / S, ln q = z - m - ln S.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from service.ops import native

LONG_ROW = 1 << 12
"""From this many classes on float32 probabilities are summed again: torch's softmax sums in 16 lanes, each serially,
and its S loses digits (2850 units in the last place at 2 million classes)."""

CONFIDENT = 0.5
"""A class with more probability than this is the largest of its row, and 1 - q is taken from the sum of the others."""


SHORT_ROW = 512
"""Up to this many classes float32 rows are computed in float64: the shorter a row, the more digits float32 loses in it,
and the more it is a matter of chance whether torch or this service comes nearer to the truth."""


def computation_dtype(dtype: torch.dtype, classes: int, *, accurate: bool) -> torch.dtype:
    """Return the type in which rows are computed: a matter of their type, length and options, never of their number."""
    if dtype == torch.float64 or accurate or classes <= SHORT_ROW:
        return torch.float64
    return torch.float32


class Partition(NamedTuple):
    """What the softmax of rows is divided by, S e^m.

    Attributes:
        peak: m [rows, 1], float64 or the type of the logits; NaN where a NaN stands in the row beside an infinite m.
        log: ln S as float64 [rows, 1].
    """

    peak: Tensor
    log: Tensor

    @property
    def logsumexp(self) -> Tensor:
        """m + ln S, float64 [rows, 1]; an infinite m is itself the answer, since S is NaN there."""
        return torch.where(self.peak.isinf(), self.peak, self.peak + self.log)


class Distribution(NamedTuple):
    """The softmax of rows, and what its logarithm is made of.

    Attributes:
        probs: q times `excess` [rows, classes].
        excess: the sum of `probs`, which should be 1, [rows, 1]; None where it is taken for 1.
        top: the index of the largest class, the first of equals, int64 [rows, 1].
        partition: m and ln S.
        confident: bool [rows, 1], whether the largest class has more than half of the probability; None where no row's
            has and nobody needs to look.
        others: 1 - q of the largest class, summed from the others [rows, 1]; None when no row is confident.
    """

    probs: Tensor
    excess: Tensor | None
    top: Tensor
    partition: Partition
    confident: Tensor | None
    others: Tensor | None

    def normalized(self) -> Tensor:
        """Return q, in the memory of `probs`; to be called once."""
        return self.probs if self.excess is None else self.probs.div_(self.excess)

    def per_excess(self, factor: Tensor) -> Tensor:
        """Return what `probs` are to be multiplied by for q times `factor` [rows, 1]."""
        return factor if self.excess is None else factor / self.excess


def distribution(logits: Tensor, out: Tensor, top: Tensor | None = None, *, temperature: float = 1.0) -> Distribution:
    """Compute the softmax of each row of `logits` [rows, classes] into `out`, which may be `logits` itself.

    `top`, the index of each row's largest class, is found unless given. A `temperature` other than 1 is for what
    `native.divides`.
    ln S comes from the largest probability, which is 1 / S; in a confident row it is log1p(S - 1) with S - 1 summed
    from the other classes. Source: Blanchard, Higham and Higham, *Accurately computing the log-sum-exp and softmax
    functions*, 2021, section 4.
    """
    if native.computes(logits):
        return _compiled(logits, out, temperature)
    if top is None:
        top = index_of_largest(logits)
    peak = logits.gather(1, top)
    if logits.shape[1] <= SHORT_ROW and logits.device.type == "cpu":
        return _of_short_rows(logits, peak, top, out)
    probs = torch.softmax(logits, 1, out=out)
    largest = probs.gather(1, top)
    excess = None
    if probs.dtype == torch.float32 and probs.shape[1] >= LONG_ROW:
        excess = probs.sum(1, keepdim=True)
        largest.div_(excess)
    log_partition = largest.double().log().neg_()
    confident = largest > CONFIDENT
    if not confident.any():
        return Distribution(probs, excess, top, Partition(peak, log_partition), None, None)
    others = sum_of_others(probs, top)
    if excess is not None:
        others.div_(excess)
    log_partition = torch.where(confident, torch.log1p(others.double() / largest), log_partition)
    return Distribution(probs, excess, top, Partition(peak, log_partition), confident, others)


def _compiled(logits: Tensor, out: Tensor, temperature: float) -> Distribution:
    """Compute the same with S - 1 summed from the other classes in every row: ln S = log1p(S - 1)."""
    rest, peak, top = native.softmax(logits, out, temperature)
    others = (rest / (rest + 1.0)).to(out.dtype)
    return Distribution(out, None, top, Partition(peak, rest.log1p_()), others < CONFIDENT, others)


def _of_short_rows(logits: Tensor, peak: Tensor, top: Tensor, out: Tensor) -> Distribution:
    """Do the same with NumPy's exponential.

    torch's softmax takes 100 ns for a row however short, and torch.exp twice as long as NumPy's in float64.
    """
    probs = torch.sub(logits, peak, out=out)
    array = probs.numpy()
    np.exp(array, out=array)
    own = probs.gather(1, top)  # 1, or NaN: then the row is NaN
    rest = probs.scatter_(1, top, 0.0).sum(1, keepdim=True).mul_(own)
    partition = rest + 1.0
    probs.scatter_(1, top, own).div_(partition)
    log_partition = rest.log1p()
    others = rest.div_(partition)
    return Distribution(probs, None, top, Partition(peak, log_partition.double()), others < CONFIDENT, others)


def index_of_largest(values: Tensor) -> Tensor:
    """Return the index of the largest class (the first of equals, the first NaN if there is one): int64 [rows, 1]."""
    if values.device.type == "cpu":
        # NumPy's takes a tenth of the time of torch's on a CPU: no more than the maximum alone.
        return torch.from_numpy(values.numpy().argmax(1, keepdims=True))
    return values.argmax(1, keepdim=True)


def sum_of_others(values: Tensor, index: Tensor) -> Tensor:
    """Return, for each row of `values` [rows, classes], the sum over all classes but `index` [rows, 1]: [rows, 1].

    The digits that 1 - q_index loses when q_index is close to 1 are all there. `values` is as before afterwards.
    """
    own = values.gather(1, index)
    others = values.scatter_(1, index, 0.0).sum(1, keepdim=True)
    values.scatter_(1, index, own)
    return others


def balance(gradient: Tensor, rows: Distribution, where: Tensor | None = None) -> Tensor:
    """Recompute, in confident rows, the gradient entry of the largest class as minus the sum of the others.

    The gradient by the logits sums to 0 over a row, and where q is close to 1 the entry's own formula is a difference
    of nearly equal numbers. `where` (bool [rows, 1]) restricts the rows further. In place.
    """
    if rows.confident is None:
        return gradient
    chosen = rows.confident if where is None else rows.confident & where
    entry = torch.where(chosen, sum_of_others(gradient, rows.top).neg_(), gradient.gather(1, rows.top))
    return gradient.scatter_(1, rows.top, entry)


def times(mass: Tensor, quantity: Tensor) -> Tensor:
    """Return mass * quantity where 0 times infinity is 0: a class without mass does not count, however unlikely it is.

    A NaN stays a NaN.
    """
    product = mass * quantity
    return product.masked_fill_((mass == 0) & quantity.isinf(), 0.0)


def scratch(values: Tensor, *reusable: Tensor | None) -> Tensor:
    """Return memory in the shape and type of `values`: the first reusable buffer that is not `values`, else new."""
    for buffer in reusable:
        if buffer is not None and buffer.data_ptr() != values.data_ptr():
            return buffer
    return torch.empty_like(values)
