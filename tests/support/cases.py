"""Generated requests: every operator, shape, type and option, from a few choices and a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.support.asking import all_outputs

HALF = ("float16", "bfloat16")
FLOATING = (*HALF, "float32", "float64")
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Case:
    """A valid request to a gradient endpoint for everything that it can give."""

    operator: str
    seed: int
    fields: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = {
            name: f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else value
            for name, value in self.fields.items()
        }
        return f"Case({self.operator}, seed={self.seed}, {shown})"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(repr(self))  # hypothesis would print every element

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    @property
    def first(self) -> Tensor:
        """The tensor that rows and classes are counted by."""
        return self.fields["log_probs" if self.operator == "nll-loss" else "logits"]

    @property
    def class_dim(self) -> int:
        """The dimension of the classes, from 0."""
        dim = self.fields.get("class_dim")
        return (0 if self.first.ndim == 1 else 1) if dim is None else dim % self.first.ndim

    @property
    def is_soft(self) -> bool:
        """Whether the target holds probabilities."""
        target = self.fields.get("target")
        return target is not None and target.is_floating_point()


@st.composite
def cases(draw: st.DrawFn, operator: str, *, dtypes: tuple[str, ...] = FLOATING, soft: bool | None = None) -> Case:
    """Draw a request; `soft` fixes the kind of target, else both occur where the operator takes both."""
    seed = draw(st.integers(0, 2**31))
    random = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, draw(st.sampled_from(dtypes)))
    shape, class_dim = draw(_shapes())
    classes = shape[class_dim if class_dim is not None else (0 if len(shape) == 1 else 1)]
    rows_shape = list(shape)
    del rows_shape[class_dim if class_dim is not None else (0 if len(shape) == 1 else 1)]

    spread = draw(st.sampled_from([0.1, 1.0, 3.0, 30.0]))
    offset = draw(st.sampled_from([0.0, 0.0, 100.0, -1000.0]))
    values = (torch.randn(shape, generator=random, dtype=torch.float64) * spread + offset).to(dtype)
    fields: dict[str, Any] = {"class_dim": class_dim}

    if operator == "nll-loss":
        dim = class_dim if class_dim is not None else min(1, len(shape) - 1)
        fields["log_probs"] = torch.log_softmax(values.double(), dim).to(dtype)
    else:
        fields["logits"] = values
        fields["temperature"] = draw(st.sampled_from([None, None, 0.5, 0.7, 3.0]))

    if operator in ("softmax", "log-softmax"):
        fields["grad_output"] = _floats(draw, random, list(shape))
        fields["outputs"] = all_outputs(operator, gradient=True)
        return Case(operator, seed, fields)

    is_soft = operator == "cross-entropy" and (draw(st.booleans()) if soft is None else soft)
    if is_soft:
        fields["target"] = _soft_target(draw, random, list(shape), classes)
    else:
        fields |= _index_target(draw, random, rows_shape, classes)
    fields["weight"] = _weight(draw, random, classes)
    if operator == "cross-entropy":
        fields["label_smoothing"] = draw(st.sampled_from([None, None, 0.1, 0.6, 1.0]))
    fields |= _reduction(draw, fields, is_soft, rows_shape)
    if draw(st.booleans()):
        fields["grad_output"] = _floats(draw, random, rows_shape if fields["reduction"] == "none" else [])
    fields["outputs"] = all_outputs(operator, gradient=True, soft=is_soft)
    return Case(operator, seed, fields)


@st.composite
def _shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], int | None]:
    rank = draw(st.integers(1, 8))
    class_dim = draw(st.one_of(st.none(), st.integers(-rank, rank - 1)))
    sizes, counts = ([1, 2, 3, 5], [1, 2, 3, 10, 64, 65, 100, 257]) if rank <= 3 else ([1, 2], [1, 2, 3, 5])
    shape = [draw(st.sampled_from(sizes)) for _ in range(rank)]
    shape[class_dim if class_dim is not None else min(1, rank - 1)] = draw(st.sampled_from(counts))
    return tuple(shape), class_dim


def _floats(draw: st.DrawFn, random: torch.Generator, shape: list[int]) -> Tensor:
    dtype = getattr(torch, draw(st.sampled_from(FLOATING)))
    return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)


def _weight(draw: st.DrawFn, random: torch.Generator, classes: int) -> Tensor | None:
    kind = draw(st.sampled_from(["absent", "positive", "some zero", "some negative"]))
    if kind == "absent":
        return None
    weight = torch.rand(classes, generator=random, dtype=torch.float64) + 0.1
    if kind != "positive":
        weight[::3] *= 0.0 if kind == "some zero" else -1.0
    return weight.to(getattr(torch, draw(st.sampled_from(HALF)))).to(
        getattr(torch, draw(st.sampled_from(FLOATING[2:])))
    )


def _index_target(draw: st.DrawFn, random: torch.Generator, rows_shape: list[int], classes: int) -> dict[str, Any]:
    ignored = draw(st.sampled_from([None, -100, -1, 255, classes, 0]))
    target = torch.randint(classes, rows_shape, generator=random)
    skipped = torch.rand(rows_shape, generator=random) < draw(st.sampled_from([0.0, 0.3]))
    target = target.masked_fill(skipped, -100 if ignored is None else ignored)
    fitting = [kind for kind in INTEGERS if bool((target.to(kind) == target).all())]
    return {"target": target.to(draw(st.sampled_from(fitting))), "ignore_index": ignored}


def _soft_target(draw: st.DrawFn, random: torch.Generator, shape: list[int], classes: int) -> Tensor:
    kind = draw(st.sampled_from(["normalised", "unnormalised", "some zero", "some negative"]))
    target = torch.rand(shape, generator=random, dtype=torch.float64)
    if kind == "normalised":
        target /= classes / 2
    elif kind == "some zero":
        target *= torch.rand(shape, generator=random) < 0.4
    elif kind == "some negative":
        target -= 0.2
    return target.to(getattr(torch, draw(st.sampled_from(FLOATING))))


def _reduction(draw: st.DrawFn, fields: dict[str, Any], is_soft: bool, rows_shape: list[int]) -> dict[str, Any]:
    reduction = draw(st.sampled_from(["none", "sum", "mean", "mean over normalizer"]))
    if reduction == "mean over normalizer":
        return {"reduction": "mean", "normalizer": draw(st.sampled_from([0.5, 7.0, 1000.0]))}
    if reduction == "mean" and not is_soft and abs(index_weight(fields)) < 1e-2:
        reduction = "sum"
    return {"reduction": reduction}


def index_weight(fields: dict[str, Any]) -> float:
    """Return the summed class weight of the kept rows."""
    target = fields["target"].long().reshape(-1)
    kept = target[target != (-100 if fields.get("ignore_index") is None else fields["ignore_index"])]
    weight = fields.get("weight")
    return float(len(kept) if weight is None else weight.double()[kept].sum())
