"""Cross-entropy of logits against class indices or class probabilities, softmax and logarithm fused.

For logits z, q = softmax(z / temperature) and the target mass t_j of each class, the loss of a row is
-sum_j t_j ln q_j, and its gradient by z_j is (T q_j - t_j) / temperature with T = sum_j t_j. With class weights w and
label smoothing e over C classes:

- index target y: t_j = (1 - e) w_y [j = y] + (e / C) w_j, and nothing for a skipped row;
- probabilities p: t_j = w_j ((1 - e) p_j + e / C).

Without weights and smoothing the first is the familiar -ln q_y with the gradient q_j - [j = y]. Softmax and logarithm
are one operation because the slope of the one cancels the 1 / q of the other that blows up as q tends to 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from service.ops import examples, rowmath
from service.ops.log_softmax import write_log_probs
from service.ops.nll_loss import LOSS, TOTAL_WEIGHT, WEIGHT, target_weight
from service.ops.softmax import LOGITS, LOGSUMEXP, scaled
from service.ops.spec import Buffers, Input, LossOptions, Operator, Output, Rows, TemperatureOptions


class CrossEntropyOptions(TemperatureOptions, LossOptions):
    """Options of cross-entropy."""

    target_kind: Literal["auto", "index", "probs"] = Field(
        "auto",
        description=(
            "What the target holds: class indices, or class probabilities (which need not sum to 1). `auto`: a target "
            "of the logits' shape holds probabilities, any other indices."
        ),
    )
    label_smoothing: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="The part of each row's target mass that is spread evenly over all C classes."
    )


def forward(rows: Rows, options: CrossEntropyOptions, out: Buffers) -> None:
    """Write the loss of each row, `log_probs` and `logsumexp`."""
    _compute(rows, None, options, out)


def value_and_gradient(rows: Rows, upstream: Tensor, options: CrossEntropyOptions, out: Buffers) -> None:
    """Write the same, `grad_logits` and, for soft targets, `grad_target`."""
    _compute(rows, upstream, options, out)


def row_weight(rows: Rows) -> Tensor:
    """Return what each row counts in `mean`: its class weight, or 1 when the target holds probabilities."""
    return target_weight(rows) if "target" in rows.tensors else torch.ones(rows.count, dtype=torch.float64)


def _is_soft(rows: Rows) -> bool:
    return rows["target"].ndim == 2


def _compute(rows: Rows, upstream: Tensor | None, options: CrossEntropyOptions, out: Buffers) -> None:
    logits = scaled(rows["logits"], options.temperature)
    if upstream is not None and options.temperature != 1.0:
        slope: Tensor | None = upstream / options.temperature
    else:
        slope = upstream
    if _is_soft(rows) or options.label_smoothing:
        if "grad_target" in out:
            out = {"log_probs": torch.empty_like(logits), **out}
        _against_distribution(rows, logits, slope, options, out)
        _write_grad_target(rows, upstream, options, out)
    else:
        _against_index(rows, logits, slope, out)
    _skip(rows, out)


def _against_index(rows: Rows, logits: Tensor, slope: Tensor | None, out: Buffers) -> None:
    """Compute with all the mass of a row on one class: -ln q_y, and w_y (q - [j = y])."""
    target = rows["target"]
    column = target.unsqueeze(1)
    distance = (logits.amax(1) - logits.gather(1, column).squeeze(1)).double()
    probs = rowmath.softmax(logits, out["grad_logits"] if "grad_logits" in out else torch.empty_like(logits))
    write_log_probs(logits, probs, out)

    own = probs.gather(1, column).squeeze(1)
    confident = own > rowmath.CONFIDENT
    some_confident = bool(confident.any())
    others = rowmath.sum_of_others(probs, target) if some_confident else None
    weight = target_weight(rows)
    if "loss" in out:
        loss = _minus_log(own.double(), distance, probs)
        if others is not None:
            torch.where(confident, torch.log1p(-others.double()).neg_(), loss, out=loss)
        out["loss"].copy_(rowmath.times(weight, loss))
    if slope is not None and "grad_logits" in out:
        entry = own - 1
        if others is not None:
            torch.where(confident, others.neg_(), entry, out=entry)
        gradient = probs.scatter_(1, column, entry.unsqueeze(1))
        gradient.mul_((slope * weight).to(gradient.dtype).unsqueeze(1))


UNDERFLOW = 1e-30
"""A float32 probability below this has lost digits, or is 0; its logarithm is then taken from the logits."""


def _minus_log(own: Tensor, distance: Tensor, probs: Tensor) -> Tensor:
    """Return -ln q_y from q_y = `own`, or where that underflows from (m - z_y) + ln S; all float64 [rows]."""
    loss = own.log().neg_()
    vanishing = own < UNDERFLOW
    if vanishing.any():
        torch.where(vanishing, distance + rowmath.log_partition(probs), loss, out=loss)
    return loss


def _against_distribution(
    rows: Rows, logits: Tensor, slope: Tensor | None, options: CrossEntropyOptions, out: Buffers
) -> None:
    """Compute with the mass of a row spread over classes: sum_j t_j (m - z_j) + T ln S, and T q - t."""
    mass = _target_mass(rows, options, logits)
    total = _total_mass(rows, options, mass)
    probs = rowmath.softmax(logits, torch.empty_like(logits))
    if "loss" in out:
        distance = logits.amax(1, keepdim=True) - logits
        loss = rowmath.times(mass, distance).sum(1).double()
        out["loss"].copy_(loss.add_(rowmath.times(total, rowmath.log_partition(probs))))
    write_log_probs(logits, probs, out)
    if slope is not None and "grad_logits" in out:
        scale = slope.to(mass.dtype).unsqueeze(1)
        upstream = mass.mul_(scale).neg_()
        pulled = total.to(mass.dtype).mul_(scale.squeeze(1)).neg_()
        rowmath.pull_back_log_softmax(probs, upstream, pulled, out["grad_logits"])


def _target_mass(rows: Rows, options: CrossEntropyOptions, logits: Tensor) -> Tensor:
    """Return t [rows, classes] in the type of the logits."""
    smoothing, classes = options.label_smoothing, logits.shape[1]
    weight, target = rows.get("weight"), rows["target"]
    if _is_soft(rows):
        mass = target * (1.0 - smoothing)
        if smoothing:
            mass.add_(smoothing / classes)
        return mass if weight is None else mass.mul_(weight.to(mass.dtype))
    spread = torch.full_like(logits, smoothing / classes)
    if weight is not None:
        spread.mul_(weight.to(spread.dtype))
    own = target_weight(rows).mul_(1.0 - smoothing).to(spread.dtype)
    return spread.scatter_add_(1, target.unsqueeze(1), own.unsqueeze(1))


def _total_mass(rows: Rows, options: CrossEntropyOptions, mass: Tensor) -> Tensor:
    """Return T as float64 [rows]: known in advance for indices, so that rounding of t does not enter."""
    if _is_soft(rows):
        return mass.sum(1).double()
    weight, classes = rows.get("weight"), mass.shape[1]
    spread = 1.0 if weight is None else weight.sum() / classes
    return target_weight(rows) * (1.0 - options.label_smoothing) + options.label_smoothing * spread


def _write_grad_target(rows: Rows, upstream: Tensor | None, options: CrossEntropyOptions, out: Buffers) -> None:
    """Write the derivative by the probabilities p_j: -(1 - e) w_j ln q_j, times the upstream gradient."""
    if upstream is None or "grad_target" not in out:
        return
    log_probs = out["log_probs"]
    slope = (upstream * (options.label_smoothing - 1.0)).to(log_probs.dtype).unsqueeze(1)
    weight = rows.get("weight")
    if weight is not None:
        slope = slope * weight.to(slope.dtype)
    out["grad_target"].copy_(rowmath.times(slope, log_probs))


def _skip(rows: Rows, out: Buffers) -> None:
    """Set loss and gradient of the skipped rows to 0, not by a product: such a row may hold NaN."""
    if rows.kept is None:
        return
    skipped = ~rows.kept
    for name in ("loss", "grad_logits"):
        if name in out:
            out[name].masked_fill_(skipped.view(-1, *[1] * (out[name].ndim - 1)), 0.0)


OPERATOR = Operator(
    name="cross-entropy",
    title="Cross-entropy",
    doc=__doc__,
    inputs=(
        LOGITS,
        Input(
            "target",
            "target",
            "Class indices, the shape of logits without the class dimension, or class probabilities in their shape.",
        ),
        WEIGHT,
    ),
    outputs=(
        LOSS,
        TOTAL_WEIGHT,
        Output("log_probs", "classes", "Logarithms of the class probabilities.", type_of="logits", default=False),
        LOGSUMEXP,
        Output("grad_logits", "classes", "Gradient by the logits.", type_of="logits", gradient=True),
        Output(
            "grad_target",
            "classes",
            "Gradient by a target of class probabilities.",
            type_of="target",
            default=False,
            gradient=True,
        ),
    ),
    options=CrossEntropyOptions,
    forward=forward,
    value_and_gradient=value_and_gradient,
    row_weight=row_weight,
    example={
        "logits": [[1.1316, -0.7943, 0.1328], [0.2654, 0.1978, -0.0265], [-2.8054, 0.2867, -0.1517]],
        "target": [0, 1, 2],
    },
    gradient_example={
        "logits": [[1.1316, -0.7943, 0.1328], [0.2654, 0.1978, -0.0265], [-2.8054, 0.2867, -0.1517]],
        "target": [0, 1, 2],
    },
    formula="-z_y + ln sum_k e^(z_k)",
    gradient_formula="q_j - [j = y]",
    examples=examples.OF_CROSS_ENTROPY,
)
