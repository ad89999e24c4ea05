"""A loss as a newcomer would add it: the Brier score of softmax, sum_j (q_j - [j = y])^2, written like the others.

Gradient by z_j: 2 q_j (d_j - sum_k q_k d_k) with d = q - [j = y].
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.ops.nll_loss import LOSS, TOTAL_WEIGHT, target_weight
from service.ops.softmax import LOGITS
from service.ops.spec import Buffers, Input, LossOptions, Operator, Output, Rows


def forward(rows: Rows, options: LossOptions, out: Buffers) -> None:
    _compute(rows, None, out)


def value_and_gradient(rows: Rows, upstream: Tensor, options: LossOptions, out: Buffers) -> None:
    _compute(rows, upstream, out)


def _compute(rows: Rows, upstream: Tensor | None, out: Buffers) -> None:
    column = rows["target"].unsqueeze(1)
    probs = torch.softmax(rows["logits"], 1)
    distance = probs.scatter_add(1, column, -torch.ones_like(column, dtype=probs.dtype))
    counted = target_weight(rows)
    skipped = counted == 0
    if "loss" in out:
        out["loss"].copy_(distance.square().sum(1).double().mul_(counted).masked_fill_(skipped, 0.0))
    if upstream is not None and "grad_logits" in out:
        gradient = 2 * probs * (distance - (probs * distance).sum(1, keepdim=True))
        gradient.mul_((upstream * counted).to(gradient.dtype).unsqueeze(1)).masked_fill_(skipped.unsqueeze(1), 0.0)
        out["grad_logits"].copy_(gradient)


EXAMPLE = {"logits": [[1.0, 0.0, -1.0], [0.5, 0.25, 0.0]], "target": [0, 2]}

OPERATOR = Operator(
    name="brier-loss",
    title="Brier score",
    doc=__doc__,
    inputs=(LOGITS, Input("target", "indices", "Class indices.")),
    outputs=(
        LOSS,
        TOTAL_WEIGHT,
        Output("grad_logits", "classes", "Gradient by the logits.", type_of="logits", gradient=True),
    ),
    options=LossOptions,
    forward=forward,
    value_and_gradient=value_and_gradient,
    row_weight=target_weight,
    example=EXAMPLE,
    gradient_example=EXAMPLE,
)
