"""Negative log-likelihood: the loss of a row is -w_y ln q_y, for log-probabilities, target class y and class weight w.

`log-softmax` followed by `nll-loss` is `cross-entropy` in two steps. That the input is normalised is not checked, as in
torch. Gradient: -w_y for the target class and 0 for the others, times the upstream gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.ops import examples, rowmath
from service.ops.spec import Buffers, Input, LossOptions, Operator, Output, Rows

WEIGHT = Input("weight", "weight", "One weight a class, shape (C).", required=False)
LOSS = Output("loss", "reduced", "The loss: one number, or one a row with reduction `none`.")
TOTAL_WEIGHT = Output("total_weight", "scalar", "What `mean` divides by unless a `normalizer` is given.")


def target_weight(rows: Rows) -> Tensor:
    """Return the weight of each row's target class, 0 for skipped rows: float64 [rows]."""
    target, weight = rows["target"], rows.get("weight")
    chosen = target.new_ones(target.shape, dtype=torch.float64) if weight is None else weight[target]
    return chosen if rows.kept is None else chosen.masked_fill(~rows.kept, 0.0)


def mean_weight(rows: Rows) -> Tensor | None:
    """Return what each row counts in `mean`: the same; None when every row counts 1."""
    return None if rows.kept is None and rows.get("weight") is None else target_weight(rows)


def forward(rows: Rows, options: LossOptions, out: Buffers) -> None:
    """Write the loss of each row."""
    if "loss" not in out:
        return
    log_prob = rows["log_probs"].gather(1, rows["target"].unsqueeze(1)).squeeze(1).double()
    loss = rowmath.times(target_weight(rows), log_prob.neg_())
    out["loss"].copy_(loss if rows.kept is None else loss.masked_fill_(~rows.kept, 0.0))


def value_and_gradient(rows: Rows, upstream: Tensor, options: LossOptions, out: Buffers) -> None:
    """Write the same and `grad_log_probs`."""
    forward(rows, options, out)
    if "grad_log_probs" not in out:
        return
    slope = (target_weight(rows) * upstream).neg_()
    if rows.kept is not None:
        slope.masked_fill_(~rows.kept, 0.0)
    gradient = out["grad_log_probs"].zero_()
    gradient.scatter_(1, rows["target"].unsqueeze(1), slope.to(gradient.dtype).unsqueeze(1))


OPERATOR = Operator(
    name="nll-loss",
    title="Negative log-likelihood",
    doc=__doc__,
    inputs=(
        Input("log_probs", "classes", "Log-probabilities: (C), (N, C) or (N, C, d1, ..., dk)."),
        Input("target", "indices", "Class indices, the shape of log_probs without its class dimension."),
        WEIGHT,
    ),
    outputs=(
        LOSS,
        TOTAL_WEIGHT,
        Output("grad_log_probs", "classes", "Gradient by the log-probabilities.", type_of="log_probs", gradient=True),
    ),
    options=LossOptions,
    forward=forward,
    value_and_gradient=value_and_gradient,
    row_weight=mean_weight,
    example={
        "log_probs": [[-0.4148, -2.3407, -1.4136], [-0.9864, -1.054, -1.2783]],
        "target": [0, 1],
    },
    gradient_example={
        "log_probs": [[-0.4148, -2.3407, -1.4136], [-0.9864, -1.054, -1.2783]],
        "target": [0, 1],
    },
    formula="-w_y ln q_y",
    gradient_formula="-w_y [j = y]",
    examples=examples.OF_NLL_LOSS,
)
