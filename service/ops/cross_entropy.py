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

from service.ops import examples, native, rowmath
from service.ops.log_softmax import write_log_probs
from service.ops.nll_loss import LOSS, TOTAL_WEIGHT, WEIGHT, mean_weight
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


def forward(rows: Rows, options: CrossEntropyOptions, out: Buffers) -> bool:
    """Write the loss of each row, `log_probs` and `logsumexp`; return whether they are known to hold no NaN."""
    return _compute(rows, None, options, out)


def value_and_gradient(rows: Rows, upstream: Tensor, options: CrossEntropyOptions, out: Buffers) -> bool:
    """Write the same, `grad_logits` and, for soft targets, `grad_target`; return the same."""
    return _compute(rows, upstream, options, out)


def row_weight(rows: Rows) -> Tensor | None:
    """Return what each row counts in `mean`: its class weight, or 1 (None) when the target holds probabilities."""
    return mean_weight(rows) if "target" in rows.tensors else None


def _is_soft(rows: Rows) -> bool:
    return rows["target"].ndim == 2


def _compute(rows: Rows, upstream: Tensor | None, options: CrossEntropyOptions, out: Buffers) -> bool:
    logits, temperature = scaled(rows["logits"], options.temperature)
    slope = None
    if upstream is not None and "grad_logits" in out:
        slope = upstream if options.temperature == 1.0 else upstream / options.temperature
        slope = slope.unsqueeze(1)
    if "grad_target" in out:
        out = {"log_probs": torch.empty_like(logits), **out}
    are_defined = False
    has_masses = _is_soft(rows) or options.label_smoothing > 0
    if has_masses and native.computes(logits) and logits.shape[1] > native.SHORT:
        _compiled_against_masses(rows, logits, slope, options, out, temperature=temperature)
    elif _is_soft(rows):
        _against_probabilities(rows, logits, slope, options, out)
    elif options.label_smoothing:
        _against_smoothed_index(rows, logits, slope, options, out)
    elif native.computes(logits):
        are_defined = _compiled_against_index(rows, logits, slope, out, temperature=temperature)
    else:
        _against_index(rows, logits, slope, out)
    _write_grad_target(rows, upstream, options, out)
    _skip(rows, out)
    return are_defined


def _against_index(rows: Rows, logits: Tensor, slope: Tensor | None, out: Buffers) -> None:
    """Compute with all the mass of a row on one class: (m - z_y) + ln S, and w_y (q - [j = y])."""
    column = rows["target"].unsqueeze(1)
    own_logit = logits.gather(1, column)
    computed = rowmath.distribution(logits, rowmath.scratch(logits, out.get("grad_logits")))
    write_log_probs(logits, computed.partition, out)
    weight = _weight_of(column, rows)
    if "loss" in out:
        loss = (computed.partition.peak - own_logit) + computed.partition.log
        out["loss"].copy_((loss if weight is None else rowmath.times(weight, loss)).squeeze(1))
    if slope is None:
        return
    probs = computed.probs
    slope = (slope if weight is None else slope * weight).to(probs.dtype)
    entry = computed.probs.gather(1, column)
    if computed.excess is not None:
        entry.div_(computed.excess)
    entry.sub_(1.0)
    if computed.confident is not None and computed.others is not None:
        entry = torch.where(computed.confident & (column == computed.top), -computed.others, entry)
    gradient = torch.mul(probs, computed.per_excess(slope), out=out["grad_logits"])
    gradient.scatter_(1, column, entry.mul_(slope))


def _compiled_against_index(
    rows: Rows, logits: Tensor, slope: Tensor | None, out: Buffers, *, temperature: float
) -> bool:
    """Compute the same in one call; return whether no result holds a NaN, as far as the call can tell."""
    weight = None if rows.get("weight") is None else rows["weight"][rows["target"]]
    if slope is not None:
        slope = slope.view(-1) if weight is None else slope.view(-1) * weight
    loss = out["loss"] if "loss" in out else torch.empty(rows.count, dtype=torch.float64)
    parts = "log_probs" in out or "logsumexp" in out
    are_defined, rest, peak = native.cross_entropy(
        logits, rows["target"], slope, loss, out.get("grad_logits"), temperature=temperature, parts=parts
    )
    if rest is not None and peak is not None:
        write_log_probs(logits, rowmath.Partition(peak, rest.log1p_()), out, temperature=temperature)
    if weight is None:
        return are_defined
    loss.copy_(rowmath.times(weight, loss))
    return False


def _compiled_against_masses(
    rows: Rows,
    logits: Tensor,
    slope: Tensor | None,
    options: CrossEntropyOptions,
    out: Buffers,
    *,
    temperature: float,
) -> None:
    """Compute with the mass of a row spread over classes, by probabilities or smoothing, in one call."""
    rest, peak = native.cross_entropy_of_masses(
        logits,
        rows["target"],
        slope,
        out["loss"] if "loss" in out else torch.empty(rows.count, dtype=torch.float64),
        None if slope is None else out["grad_logits"],
        keep=1.0 - options.label_smoothing,
        spread=options.label_smoothing / logits.shape[1],
        weight=rows.get("weight"),
        temperature=temperature,
    )
    write_log_probs(logits, rowmath.Partition(peak, rest.log1p_()), out, temperature=temperature)


def _against_smoothed_index(
    rows: Rows, logits: Tensor, slope: Tensor | None, options: CrossEntropyOptions, out: Buffers
) -> None:
    """Compute with the mass s_j = (e / C) w_j on every class and (1 - e) w_y more on the target.

    The loss is (1 - e) w_y (m - z_y) + sum_j s_j (m - z_j) + T ln S, so that t is never built.
    """
    column = rows["target"].unsqueeze(1)
    weight, each = rows.get("weight"), options.label_smoothing / logits.shape[1]
    own_mass = (1.0 - options.label_smoothing) * _weight_of_or_1(column, rows)
    total = own_mass + (options.label_smoothing if weight is None else weight.sum() * each)
    spread = None if weight is None else (weight * each).to(logits.dtype).unsqueeze(0)

    top = rowmath.index_of_largest(logits)
    peak = logits.gather(1, top)
    buffer = rowmath.scratch(logits, out.get("grad_logits"))
    if "loss" in out:
        own_part = rowmath.times(own_mass, peak - logits.gather(1, column))
        if spread is None:
            spread_part = torch.sub(peak, logits, out=buffer).sum(1, keepdim=True).double().mul_(each)
        else:
            spread_part = _weighed(logits, peak, spread, buffer)
    computed = rowmath.distribution(logits, buffer, top)
    write_log_probs(logits, computed.partition, out)
    if "loss" in out:
        out["loss"].copy_((own_part + spread_part + total * computed.partition.log).squeeze(1))
    if slope is None:
        return
    probs = computed.normalized()
    own_spread = each if spread is None else spread.squeeze(0)[column]
    entry = total * probs.gather(1, column) - (own_mass + own_spread)
    gradient = probs.sub_(each) if spread is None else probs.mul_(total.to(probs.dtype)).sub_(spread)
    gradient.scatter_(1, column, entry.to(gradient.dtype))
    rowmath.balance(gradient, computed, (column == computed.top) & (2 * own_mass >= total))
    _write_gradient(gradient, slope, out)


def _against_probabilities(
    rows: Rows, logits: Tensor, slope: Tensor | None, options: CrossEntropyOptions, out: Buffers
) -> None:
    """Compute with the mass of a row spread over classes: sum_j t_j (m - z_j) + T ln S, and T q - t."""
    mass = _target_mass(rows, options)
    total = mass.sum(1, keepdim=True)
    top = rowmath.index_of_largest(logits)
    buffer = rowmath.scratch(logits, out.get("grad_logits"))
    if "loss" in out:
        weighed = _weighed(logits, logits.gather(1, top), mass, buffer)
    computed = rowmath.distribution(logits, buffer, top)
    write_log_probs(logits, computed.partition, out)
    if "loss" in out:
        out["loss"].copy_((weighed + total * computed.partition.log).squeeze(1))
    if slope is not None:
        gradient = computed.probs.mul_(computed.per_excess(total)).sub_(mass)
        rowmath.balance(gradient, computed, 2 * mass.gather(1, computed.top) >= total)
        _write_gradient(gradient, slope, out)


def _weight_of(column: Tensor, rows: Rows) -> Tensor | None:
    """Return the weight of each row's target class, float64 [rows, 1]; None when there are no weights."""
    weight = rows.get("weight")
    return None if weight is None else weight[column]


def _weight_of_or_1(column: Tensor, rows: Rows) -> Tensor:
    weight = _weight_of(column, rows)
    return torch.ones_like(column, dtype=torch.float64) if weight is None else weight


def _weighed(logits: Tensor, peak: Tensor, mass: Tensor, buffer: Tensor) -> Tensor:
    """Return sum_j t_j (m - z_j) as float64 [rows, 1] where 0 times infinity is 0, for t = `mass`."""
    result = torch.sub(peak, logits, out=buffer).mul_(mass).sum(1, keepdim=True)
    if result.isnan().any():
        result = rowmath.times(mass, peak - logits).sum(1, keepdim=True)
    return result.double()


def _target_mass(rows: Rows, options: CrossEntropyOptions) -> Tensor:
    """Return t [rows, classes] from a target p of probabilities: p itself when nothing is added to it."""
    smoothing, mass, weight = options.label_smoothing, rows["target"], rows.get("weight")
    if smoothing:
        mass = (mass * (1.0 - smoothing)).add_(smoothing / mass.shape[1])
    return mass if weight is None else mass * weight.to(mass.dtype)


def _write_gradient(gradient: Tensor, slope: Tensor, out: Buffers) -> None:
    """Write `gradient` [rows, classes] times the slope [rows, 1]; mostly they lie in the result's memory already."""
    torch.mul(gradient, slope.to(gradient.dtype), out=out["grad_logits"])


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
