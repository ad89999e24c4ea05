"""The largest errors of loss, probabilities and gradient beside torch's own: `python -m benchmarks.accuracy`.

Errors are in units in the last place of each result's own type (torch's loss of a bfloat16 row is bfloat16, ours is
float32), the largest over the tensor, against `benchmarks.truth`. The bar: fast is no worse than torch, or within 4
units for the loss; accurate is within 1 unit; half types are within 0.51 of theirs, their losses within 4 of float32.
The units of T q_j - t_j, the gradient against smoothed or soft targets, are those of its smaller term where that is
larger than the difference.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.truth import check, truth_of, worst_error
from service.engine.scheduler import Engine
from service.ops import OPERATORS
from service.ops.bind import bind
from service.tensors import Message, WireTensor

HALF = (torch.float16, torch.bfloat16)
RESULTS = ("loss", "probs", "gradient")
FAST_LOSS_BAR = 4.0
HALF_BAR = 0.51


@dataclass(frozen=True)
class Input:
    """Logits [rows, classes] and what they are compared with."""

    title: str
    logits: Tensor
    target: Tensor
    label_smoothing: float = 0.0


def inputs() -> Iterator[Input]:
    """Yield the inputs of the table, made as they are needed: some are large."""
    torch.manual_seed(0)
    for classes, rows in (
        (10, 5000),
        (64, 2000),
        (65, 2000),
        (1000, 500),
        (4095, 200),
        (4096, 200),
        (32000, 24),
        (2_000_000, 1),
    ):
        yield _random(f"randn*3, C={classes}", torch.randn(rows, classes) * 3)
    yield _random("randn*30, C=10", torch.randn(5000, 10) * 30)
    yield _random("randn*30, C=1000", torch.randn(500, 1000) * 30)
    yield _random("offset 1e4, C=1000", torch.randn(200, 1000) * 3 + 1e4)
    yield _random("offset 1e8, randn*30, C=1000", torch.randn(200, 1000) * 30 + 1e8)
    for classes in (10, 1000, 32000):
        for margin in (10.0, 15.0, 20.0):
            logits = torch.randn(24, classes)
            logits[:, 0] = logits.amax(1) + margin
            target = torch.zeros(24, dtype=torch.int64)
            yield Input(f"target {margin:g} above the rest, C={classes}", logits, target)
    for below in (90.0, 104.0, 200.0):
        logits = torch.randn(200, 1000)
        logits[:, 0] = logits[:, 1:].amax(1) - below
        yield Input(f"target {below:g} below the largest, C=1000", logits, torch.zeros(200, dtype=torch.int64))
    for classes, rows in ((10, 5000), (1000, 500), (32000, 24)):
        logits = torch.randn(rows, classes) * 3
        target = torch.randint(classes, (rows,))
        yield Input(f"smoothing 0.1, C={classes}", logits, target, label_smoothing=0.1)
        yield Input(f"soft target, C={classes}", logits, torch.softmax(torch.randn(rows, classes), 1))
    for dtype in HALF:
        for classes, rows in ((10, 5000), (1000, 500), (32000, 24)):
            name = str(dtype).removeprefix("torch.")
            yield _random(f"{name} randn*3, C={classes}", (torch.randn(rows, classes) * 3).to(dtype))


def _random(title: str, logits: Tensor) -> Input:
    return Input(title, logits, torch.randint(logits.shape[1], logits.shape[:1]))


def by_torch(case: Input) -> dict[str, Tensor]:
    leaf = case.logits.clone().requires_grad_()
    target = case.target.to(leaf.dtype) if case.target.is_floating_point() else case.target
    loss = functional.cross_entropy(leaf, target, reduction="none", label_smoothing=case.label_smoothing)
    (gradient,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss))
    return {"loss": loss.detach(), "probs": torch.softmax(case.logits, 1), "gradient": gradient}


def by_engine(engine: Engine, case: Input, accuracy: str) -> dict[str, Tensor]:
    logits = WireTensor(case.logits)
    options: dict[str, object] = {"reduction": "none", "label_smoothing": case.label_smoothing, "accuracy": accuracy}
    message = Message({"logits": logits, "target": WireTensor(case.target)}, options)
    loss = engine.compute(bind(OPERATORS["cross-entropy"], message, gradient=True)).tensors
    message = Message({"logits": logits}, {"accuracy": accuracy})
    probs = engine.compute(bind(OPERATORS["softmax"], message, gradient=False)).tensors
    return {"loss": loss["loss"], "probs": probs["probs"], "gradient": loss["grad_logits"]}


def missed(case: Input, errors: dict[str, dict[str, float]]) -> list[str]:
    """Return which results are beyond the bar."""
    is_half = case.logits.dtype in HALF
    beyond = []
    for result in RESULTS:
        fast_bar = errors["torch"][result]
        if result == "loss":
            fast_bar = FAST_LOSS_BAR if is_half else max(fast_bar, FAST_LOSS_BAR)
        elif is_half:
            fast_bar = HALF_BAR
        accurate_bar = HALF_BAR if is_half and result != "loss" else 1.0
        beyond += [f"fast {result}"] * (errors["fast"][result] > fast_bar)
        beyond += [f"accurate {result}"] * (errors["accurate"][result] > accurate_bar)
    return beyond


def main() -> int:
    """Print the table; return 1 when a bar is missed."""
    check()
    engine = Engine(torch.device("cpu"), threads=1)
    print(f"torch {torch.__version__}; largest error in units in the last place: torch / fast / accurate\n")
    print(f"{'':40}" + "".join(f"{result:^30}" for result in RESULTS))
    all_missed = []
    for case in inputs():
        truth = truth_of(case.logits, case.target, case.label_smoothing)
        answers = {"torch": by_torch(case)}
        answers |= {accuracy: by_engine(engine, case, accuracy) for accuracy in ("fast", "accurate")}
        sizes = {"gradient": truth.terms}
        errors = {
            who: {result: worst_error(answer[result], getattr(truth, result), sizes.get(result)) for result in RESULTS}
            for who, answer in answers.items()
        }
        columns = (" / ".join(_shown(errors[who][result]) for who in errors) for result in RESULTS)
        beyond = missed(case, errors)
        print(f"{case.title:40}" + "".join(f"{column:^30}" for column in columns) + ", ".join(beyond), flush=True)
        all_missed += beyond
    engine.close()
    print(f"\n{len(all_missed)} results beyond the bar" if all_missed else "\nall within the bar")
    return 1 if all_missed else 0


def _shown(error: float) -> str:
    return f"{error:8.3g}" if error >= 10 else f"{error:8.3f}"


if __name__ == "__main__":
    sys.exit(main())
