"""Batches for every operator that are easy to take apart: (N, C), reduction `none`, all outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from service.ops import OPERATORS
from tests.support.asking import all_outputs

VARIANTS = [
    "softmax",
    "log-softmax",
    "nll-loss",
    "cross-entropy",
    "cross-entropy, weighted and smoothed",
    "cross-entropy, soft",
    "cross-entropy, soft and weighted",
]
"""Every operator, cross-entropy with each of its formulas."""

assert {variant.split(",")[0] for variant in VARIANTS} == set(OPERATORS)

BY_ROW = ("logits", "log_probs", "grad_logits", "grad_log_probs", "target", "grad_target", "grad_output", "probs")
"""Tensors whose first dimension counts rows; so do `loss` and `logsumexp`."""


def operator_of(variant: str) -> str:
    return variant.split(",", maxsplit=1)[0]


def batch_of(
    variant: str, rows: int, classes: int, *, dtype: torch.dtype = torch.float32, spread: float = 3.0, seed: int = 0
) -> dict[str, Any]:
    """Return a request of [rows, classes] for the gradient endpoint; some rows are confident, some skipped."""
    operator, random = operator_of(variant), torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=random, dtype=torch.float64) * spread
    logits[::4, 0] += 12.0
    fields: dict[str, Any] = {}
    if operator == "nll-loss":
        fields["log_probs"] = torch.log_softmax(logits, 1).to(dtype)
    else:
        fields["logits"] = logits.to(dtype)
    is_soft = "soft" in variant.replace("softmax", "")
    if operator in ("softmax", "log-softmax"):
        fields["grad_output"] = torch.randn(rows, classes, generator=random).to(dtype)
    elif is_soft:
        fields["target"] = torch.rand(rows, classes, generator=random).to(dtype)
    else:
        target = torch.randint(classes, (rows,), generator=random)
        target[::8] = 0
        fields["target"] = target.masked_fill(torch.rand(rows, generator=random) < 0.1, -100)
    if operator in ("nll-loss", "cross-entropy"):
        fields["reduction"] = "none"
        fields["grad_output"] = torch.randn(rows, generator=random).to(dtype)
    if "weighted" in variant or operator == "nll-loss":
        fields["weight"] = torch.rand(classes, generator=random) + 0.1
    if "smoothed" in variant:
        fields["label_smoothing"] = 0.1
    fields["outputs"] = [name for name in all_outputs(operator, gradient=True, soft=is_soft) if name != "total_weight"]
    return fields


def chosen(fields: dict[str, Any], rows: Any) -> dict[str, Any]:
    """Return the request of some rows only, in their order."""
    return {
        name: value[rows] if name in BY_ROW and isinstance(value, Tensor) else value for name, value in fields.items()
    }


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same to the last bit; NaN equals NaN."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[first.element_size()]
    return first.dtype == second.dtype and torch.equal(
        first.contiguous().view(integers), second.contiguous().view(integers)
    )
