"""Losses of a Loss Service as PyTorch modules; needs torch."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from loss_client.client import LossClient

Reduction = Literal["none", "mean", "sum"]


class RemoteCrossEntropyLoss(torch.nn.Module):
    """Cross-entropy computed by a Loss Service: `torch.nn.CrossEntropyLoss`, with the client in front.

    The gradient comes with the loss, in the same answer and from the same pass; `backward` asks for nothing more. It is
    asked for only when it is needed: not under `torch.no_grad()`, nor when nothing requires it. Targets of class
    probabilities get theirs when they require it.

    As in torch, the mean over nothing is NaN and not an error. Two things are different: the loss of float16 and
    bfloat16 logits is float32, and float16 logits travel as float32, so that a gradient keeps what only a later loss
    scale would have saved. Tensors on a GPU are copied to the host and their results back.

    Args:
        client: a client, or the address of the service.
        weight: one number a class, shape (C); as in torch it may not require a gradient.
        ignore_index: rows with this class index are skipped.
        reduction: `none`, `mean` or `sum`.
        label_smoothing: the part of each row's target mass that is spread evenly over all classes, from 0 to 1.
        temperature: divides the logits.
        class_dim: the dimension that holds the classes; 1, or 0 for one-dimensional logits, unless given.
        accuracy: `fast`, or `accurate` for results rounded once from float64.
        non_finite: `propagate` returns the NaN that torch would return; `reject` raises NonFiniteError instead.
    """

    weight: Tensor | None

    def __init__(
        self,
        client: LossClient | str,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        class_dim: int | None = None,
        accuracy: Literal["fast", "accurate"] = "fast",
        non_finite: Literal["reject", "propagate"] = "propagate",
    ) -> None:
        super().__init__()
        self.client = LossClient(client) if isinstance(client, str) else client
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.temperature = temperature
        self.class_dim = class_dim
        self.accuracy = accuracy
        self.non_finite = non_finite

    # Nothing of a request can be compiled.
    @torch.compiler.disable  # type: ignore[untyped-decorator] # torch leaves it without types
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss: a scalar, or with reduction `none` one for each row.

        Args:
            logits: (C), (N, C) or (N, C, d1, ..., dk), the classes where `class_dim` says.
            target: class indices in the shape of the logits without the classes, or class probabilities in theirs.

        Raises:
            LossClientError: the service refused the request, or there was no answer.
        """
        if torch.is_grad_enabled() and (logits.requires_grad or target.requires_grad):
            return cast(Tensor, cast(Any, _RemoteCrossEntropy).apply(self, logits, target))
        return self.client.cross_entropy(logits, target, self.weight, outputs=["loss"], **self.options()).loss

    def options(self) -> dict[str, Any]:
        """Return the options of its requests."""
        names = ("ignore_index", "reduction", "label_smoothing", "temperature", "class_dim", "accuracy", "non_finite")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """Return what is shown of it in a model."""
        return f"{self.client.url}, reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"


class _RemoteCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: RemoteCrossEntropyLoss, logits: Tensor, target: Tensor) -> Tensor:
        options = loss.options()
        _, by_logits, by_target = ctx.needs_input_grad
        outputs: list[Literal["loss", "grad_logits", "grad_target"]] = ["loss"]
        outputs += ["grad_logits"] if by_logits else []
        outputs += ["grad_target"] if by_target else []
        answer = loss.client.cross_entropy_gradient(
            _wide(logits), _wide(target), loss.weight, outputs=outputs, **options
        )
        ctx.save_for_backward(answer.grad_logits if by_logits else None, answer.grad_target if by_target else None)
        ctx.class_dim = options["class_dim"] if options["class_dim"] is not None else min(1, logits.ndim - 1)
        ctx.is_reduced = options["reduction"] != "none"
        ctx.dtypes = logits.dtype, target.dtype
        return answer.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # Rows do not depend on each other: a row's gradient is that of its loss times what comes from above.
        if ctx.is_reduced:
            return None, *map(_scaled, ctx.saved_tensors, (grad_output, grad_output), ctx.dtypes)
        slope = grad_output.unsqueeze(ctx.class_dim)
        # A skipped row stays 0 whatever comes from above.
        slopes = [None if part is None else slope.where(part != 0, 0) for part in ctx.saved_tensors]
        return None, *map(_scaled, ctx.saved_tensors, slopes, ctx.dtypes)


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor whose gradient does not vanish before it is scaled."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _scaled(gradient: Tensor | None, slope: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a gradient times what comes from above, rounded once."""
    return None if gradient is None or slope is None else (gradient * slope).to(dtype)
