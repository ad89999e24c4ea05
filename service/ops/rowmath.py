"""Row-wise softmax and its logarithm, computed so that neither large nor confident rows lose their digits.

For a row z of C logits: m = max z, S = sum_j e^(z_j - m), q = softmax(z) = e^(z - m) / S, ln q = z - m - ln S.
"""

from __future__ import annotations

import torch
from torch import Tensor

HUGE_ROW = 1 << 18
"""From this many classes on, S is summed explicitly: torch's softmax sums 16 lanes serially and loses digits."""

CONFIDENT = 0.5
"""A class with more probability than this is the largest of its row, and 1 - q is taken from the sum of the others."""


SHORT_ROW = 64
"""Up to this many classes float32 rows are computed in float64: it costs no time there, and short rows are where
float32 loses most digits."""


def computation_dtype(dtype: torch.dtype, classes: int, *, accurate: bool) -> torch.dtype:
    """Return the type in which rows are computed: a matter of their type, length and options, never of their number."""
    if dtype == torch.float64 or accurate or classes <= SHORT_ROW:
        return torch.float64
    return torch.float32


def softmax(values: Tensor, out: Tensor) -> Tensor:
    """Write the softmax of each row of `values` [rows, classes] into `out`, which may be `values` itself."""
    if values.shape[1] < HUGE_ROW:
        return torch.softmax(values, 1, out=out)
    for row, row_out in zip(values.unbind(), out.unbind(), strict=True):
        torch.sub(row, row.amax(), out=row_out).exp_()
        row_out.div_(row_out.sum())
    return out


def sum_of_others(probs: Tensor, index: Tensor) -> Tensor:
    """Return, for each row of `probs` [rows, classes], the sum over all classes but `index` [rows].

    The digits that 1 - q_index loses when q_index is close to 1 are all there. `probs` is as before afterwards.
    """
    column = index.unsqueeze(1)
    own = probs.gather(1, column)
    others = probs.scatter_(1, column, 0.0).sum(1)
    probs.scatter_(1, column, own)
    return others


def log_partition(probs: Tensor) -> Tensor:
    """Return ln S as float64 [rows] from `probs` = softmax [rows, classes]: the largest probability is 1 / S.

    A confident row takes log1p(S - 1) with S - 1 summed from the other classes. Source: Blanchard, Higham and Higham,
    *Accurately computing the log-sum-exp and softmax functions*, 2021, section 4.
    """
    largest = probs.amax(1)
    result = largest.double().log().neg_()
    confident = largest > CONFIDENT
    if confident.any():
        others = sum_of_others(probs, probs.argmax(1)).double()
        torch.where(confident, torch.log1p(others / largest.double()), result, out=result)
    return result


def balance(gradient: Tensor, probs: Tensor, where: Tensor | None = None) -> Tensor:
    """Recompute, in confident rows, the gradient entry of the largest class as minus the sum of the others.

    The gradient by the logits sums to 0 over a row, and where q is close to 1 the entry's own formula is a difference
    of nearly equal numbers. `where` (bool [rows]) restricts the rows further. In place.
    """
    confident = probs.amax(1) > CONFIDENT
    if where is not None:
        confident &= where
    if confident.any():
        column = probs.argmax(1).unsqueeze(1)
        others = -sum_of_others(gradient, column.squeeze(1)).unsqueeze(1)
        gradient.scatter_(1, column, torch.where(confident.unsqueeze(1), others, gradient.gather(1, column)))
    return gradient


def pull_back_log_softmax(probs: Tensor, upstream: Tensor, total: Tensor, out: Tensor) -> Tensor:
    """Write g - q sum_k g_k into `out`, for g = `upstream` [rows, classes] and `total` its sums [rows].

    Taken from the sum of the others where a confident class also holds at least half of the upstream mass.
    """
    # Not addcmul: whether it fuses the product could depend on an element's place in the block.
    torch.mul(probs, total.unsqueeze(1), out=out)
    gradient = torch.sub(upstream, out, out=out)
    largest = probs.amax(1)
    if not (largest > CONFIDENT).any():
        return gradient
    own = upstream.gather(1, probs.argmax(1, keepdim=True)).squeeze(1)
    return balance(gradient, probs, where=2 * own.abs() >= upstream.abs().sum(1))


def times(mass: Tensor, quantity: Tensor) -> Tensor:
    """Return mass * quantity where 0 times infinity is 0: a class without mass does not count, however unlikely it is.

    A NaN stays a NaN.
    """
    product = mass * quantity
    return product.masked_fill_((mass == 0) & quantity.isinf(), 0.0)
