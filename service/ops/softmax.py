"""Softmax: q_j = e^(z_j / temperature) / sum_k e^(z_k / temperature), the distribution that the logits z describe.

Gradient for an upstream g: dz_j = q_j (g_j - sum_k g_k q_k) / temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.ops import examples, native, rowmath
from service.ops.spec import Buffers, Input, Operator, Output, Rows, TemperatureOptions

LOGITS = Input("logits", "classes", "Unnormalised log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).")
LOGSUMEXP = Output("logsumexp", "rows", "ln of the sum of e^(logits / temperature) over the classes.", default=False)


def scaled(logits: Tensor, temperature: float) -> tuple[Tensor, float]:
    """Return logits / temperature and 1; the logits themselves, and what is left to divide by, where that is later."""
    if temperature == 1.0 or native.divides(logits, temperature):
        return logits, temperature
    return logits / temperature, 1.0


def forward(rows: Rows, options: TemperatureOptions, out: Buffers) -> None:
    """Write `probs` and `logsumexp`."""
    _compute(rows, options, out)


def value_and_gradient(rows: Rows, upstream: Tensor, options: TemperatureOptions, out: Buffers) -> None:
    """Write the same and `grad_logits`, from the probabilities just computed."""
    computed = _compute(rows, options, out)
    if "grad_logits" not in out:
        return
    probs = computed.probs
    gradient = torch.mul(probs, upstream, out=out["grad_logits"])
    pulled = gradient.sum(1, keepdim=True)
    torch.sub(upstream, pulled, out=gradient).mul_(probs)
    rowmath.balance(gradient, computed)
    if options.temperature != 1.0:
        gradient.div_(options.temperature)


def _compute(rows: Rows, options: TemperatureOptions, out: Buffers) -> rowmath.Distribution:
    logits, temperature = scaled(rows["logits"], options.temperature)
    probs = out["probs"] if "probs" in out else torch.empty_like(logits)
    computed = rowmath.distribution(logits, probs, temperature=temperature)
    computed.normalized()
    if "logsumexp" in out:
        out["logsumexp"].copy_(computed.partition.logsumexp.squeeze(1))
    return computed


OPERATOR = Operator(
    name="softmax",
    title="Softmax",
    doc=__doc__,
    inputs=(LOGITS,),
    outputs=(
        Output("probs", "classes", "Class probabilities; those of a row sum to 1.", type_of="logits"),
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
    formula="q_j = e^(z_j) / sum_k e^(z_k)",
    gradient_formula="q_j (g_j - sum_k g_k q_k)",
    examples=examples.of_softmax("probs"),
)
