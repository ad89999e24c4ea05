"""Log-softmax: ln q_j = z_j / temperature - ln sum_k e^(z_k / temperature), without ever forming the probability.

Gradient for an upstream g: dz_j = (g_j - q_j sum_k g_k) / temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.ops import examples, native, rowmath
from service.ops.softmax import LOGITS, LOGSUMEXP, scaled
from service.ops.spec import Buffers, Operator, Output, Rows, TemperatureOptions


def write_log_probs(logits: Tensor, partition: rowmath.Partition, out: Buffers, *, temperature: float = 1.0) -> None:
    """Write `log_probs` and `logsumexp`, those that are wanted, from logits [rows, classes].

    A `temperature` other than 1 is for what `native.divides`.
    """
    if "log_probs" in out:
        if native.computes(logits):
            native.log_softmax(logits, partition.peak, partition.log, out["log_probs"], temperature)
        else:
            out["log_probs"].copy_((logits - partition.peak.double()).sub_(partition.log))
    if "logsumexp" in out:
        out["logsumexp"].copy_(partition.logsumexp.squeeze(1))


def forward(rows: Rows, options: TemperatureOptions, out: Buffers) -> None:
    """Write `log_probs` and `logsumexp`."""
    logits, temperature = scaled(rows["logits"], options.temperature)
    computed = rowmath.distribution(logits, rowmath.scratch(logits, out.get("log_probs")), temperature=temperature)
    write_log_probs(logits, computed.partition, out, temperature=temperature)


def value_and_gradient(rows: Rows, upstream: Tensor, options: TemperatureOptions, out: Buffers) -> None:
    """Write the same and `grad_logits`, from the probabilities that the logarithm needs anyway."""
    logits, temperature = scaled(rows["logits"], options.temperature)
    gradient = rowmath.scratch(logits, out.get("grad_logits"))
    computed = rowmath.distribution(logits, gradient, temperature=temperature)
    write_log_probs(logits, computed.partition, out, temperature=temperature)
    if "grad_logits" not in out:
        return
    balanced = None
    if computed.confident is not None:
        # Only where the confident class also holds at least half of the upstream mass does its entry lose digits.
        own = upstream.gather(1, computed.top).abs_()
        balanced = 2 * own >= upstream.abs().sum(1, keepdim=True)
    # Not addcmul: whether it fuses the product could depend on an element's place in the block.
    torch.mul(computed.probs, computed.per_excess(upstream.sum(1, keepdim=True)), out=out["grad_logits"])
    gradient = torch.sub(upstream, out["grad_logits"], out=out["grad_logits"])
    rowmath.balance(gradient, computed, balanced)
    if options.temperature != 1.0:
        gradient.div_(options.temperature)


OPERATOR = Operator(
    name="log-softmax",
    title="Log-softmax",
    doc=__doc__,
    inputs=(LOGITS,),
    outputs=(
        Output("log_probs", "classes", "Logarithms of the class probabilities.", type_of="logits"),
        LOGSUMEXP,
        Output("grad_logits", "classes", "Gradient by the logits.", type_of="logits", gradient=True),
    ),
    options=TemperatureOptions,
    forward=forward,
    value_and_gradient=value_and_gradient,
    example={"logits": [[1.1316, -0.7943, 0.1328], [0.2654, 0.1978, -0.0265]]},
    gradient_example={
        "logits": [[1.1316, -0.7943, 0.1328], [0.2654, 0.1978, -0.0265]],
        "grad_output": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    },
    formula="ln q_j = z_j - ln sum_k e^(z_k)",
    gradient_formula="g_j - q_j sum_k g_k",
    examples=examples.of_softmax("log_probs"),
)
