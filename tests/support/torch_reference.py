"""Torch's own answer to a case: torch.nn.functional and autograd, on the rows in any element type."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tests.support.cases import Case, index_weight


def torch_answer(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what torch gives when everything is computed in `dtype`: [rows, classes], [rows] or []."""
    leaf = _by_row(case.first, case).to(dtype).requires_grad_()
    if case.operator == "nll-loss":
        outputs = {"loss": _reduced(case, functional.nll_loss, leaf, None)}
        return _with_gradients(case, outputs, {"grad_log_probs": leaf}, "loss")
    logits = leaf if case.fields.get("temperature") is None else leaf / case["temperature"]
    outputs = {"logsumexp": torch.logsumexp(logits, 1)}
    leaves = {"grad_logits": leaf}
    if case.operator == "cross-entropy":
        target = None
        if case.is_soft:
            target = leaves["grad_target"] = _by_row(case["target"], case).to(dtype).requires_grad_()
        outputs["loss"] = _reduced(case, functional.cross_entropy, logits, target)
        outputs["log_probs"] = torch.log_softmax(logits, 1)
        return _with_gradients(case, outputs, leaves, "loss")
    name, function = {
        "softmax": ("probs", torch.softmax),
        "log-softmax": ("log_probs", torch.log_softmax),
    }[case.operator]
    outputs[name] = function(logits, 1)
    return _with_gradients(case, outputs, leaves, name)


def _by_row(tensor: Tensor, case: Case) -> Tensor:
    return tensor.movedim(case.class_dim, -1).reshape(-1, tensor.shape[case.class_dim])


def _reduced(case: Case, function: object, rows: Tensor, soft_target: Tensor | None) -> Tensor:
    options: dict[str, object] = {"reduction": case["reduction"]}
    if case.fields.get("weight") is not None:
        options["weight"] = case["weight"].to(rows.dtype)
    if case.fields.get("ignore_index") is not None and not case.is_soft:
        options["ignore_index"] = case["ignore_index"]
    if case.fields.get("label_smoothing") is not None:
        options["label_smoothing"] = case["label_smoothing"]
    if case.fields.get("normalizer") is not None:
        options["reduction"] = "sum"
    target = case["target"].long().reshape(-1) if soft_target is None else soft_target
    loss = function(rows, target, **options)  # type: ignore[operator]
    return loss / case["normalizer"] if case.fields.get("normalizer") is not None else loss


def _with_gradients(
    case: Case, outputs: dict[str, Tensor], leaves: dict[str, Tensor], differentiated: str
) -> dict[str, Tensor]:
    result = outputs[differentiated]
    upstream = case.fields.get("grad_output")
    if upstream is None:
        upstream = torch.ones_like(result)
    elif case.operator in ("softmax", "log-softmax"):
        upstream = _by_row(upstream, case)
    upstream = upstream.to(result.dtype).reshape(result.shape)
    gradients = torch.autograd.grad(result, list(leaves.values()), upstream)
    answer = {name: tensor.detach() for name, tensor in outputs.items()}
    if "loss" in outputs:
        rows = leaves[next(iter(leaves))].shape[0]
        answer["total_weight"] = torch.tensor(rows if case.is_soft else index_weight(case.fields), dtype=result.dtype)
    return answer | dict(zip(leaves, gradients, strict=True))
