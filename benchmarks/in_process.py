"""The engine beside torch's own functions, in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.rounds import duration, medians
from service.engine.scheduler import Engine
from service.ops import OPERATORS
from service.ops.bind import Job, bind
from service.tensors import Message, WireTensor

INDEX_SHAPES = ((8, 10), (256, 1000), (1024, 32000))
LARGE = (1024, 32000)


@dataclass(frozen=True)
class Case:
    """One computation: the tensors of a request, and the same in torch."""

    title: str
    operator: str
    gradient: bool
    tensors: dict[str, Tensor]
    options: dict[str, object]
    torch_forward: Callable[[Tensor], Tensor]

    @property
    def logits(self) -> Tensor:
        return self.tensors["logits"]

    def job(self) -> Job:
        message = Message({name: WireTensor(tensor) for name, tensor in self.tensors.items()}, dict(self.options))
        return bind(OPERATORS[self.operator], message, gradient=self.gradient)

    def run_torch(self, threads: int, device: torch.device) -> Callable[[], object]:
        logits = self.logits.to(device)
        upstream = self.tensors.get("grad_output")

        def run() -> None:
            torch.set_num_threads(threads)
            if self.gradient:
                leaf = logits.detach().requires_grad_()
                torch.autograd.grad(self.torch_forward(leaf), leaf, upstream)
            else:
                with torch.no_grad():
                    self.torch_forward(logits)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            torch.set_num_threads(1)

        return run


def _case(title: str, shape: tuple[int, int], *, gradient: bool, label_smoothing: float = 0.0) -> Case:
    torch.manual_seed(0)
    target = torch.randint(shape[1], shape[:1])
    return Case(
        title=title,
        operator="cross-entropy",
        gradient=gradient,
        tensors={"logits": torch.randn(shape) * 3, "target": target},
        options={"label_smoothing": label_smoothing},
        torch_forward=lambda logits: functional.cross_entropy(
            logits, target.to(logits.device), label_smoothing=label_smoothing
        ),
    )


def _soft_case() -> Case:
    torch.manual_seed(0)
    target = torch.softmax(torch.randn(LARGE), 1)
    return Case(
        "soft target, gradient",
        "cross-entropy",
        True,
        {"logits": torch.randn(LARGE) * 3, "target": target},
        {},
        lambda logits: functional.cross_entropy(logits, target.to(logits.device)),
    )


def _softmax_case(operator: str) -> Case:
    torch.manual_seed(0)
    function = {"softmax": torch.softmax, "log-softmax": torch.log_softmax}[operator]
    tensors = {"logits": torch.randn(LARGE) * 3, "grad_output": torch.randn(LARGE)}
    return Case(f"{operator}, gradient", operator, True, tensors, {}, lambda logits: function(logits, 1))


def _cases() -> list[Callable[[], Case]]:
    cases: list[Callable[[], Case]] = []
    for shape in INDEX_SHAPES:
        for gradient in (True, False):
            title = "loss and gradient" if gradient else "loss"
            cases.append(lambda shape=shape, title=title, gradient=gradient: _case(title, shape, gradient=gradient))  # type: ignore[misc]
    cases.append(lambda: _case("smoothing 0.1, gradient", LARGE, gradient=True, label_smoothing=0.1))
    cases.append(_soft_case)
    cases.append(lambda: _softmax_case("softmax"))
    cases.append(lambda: _softmax_case("log-softmax"))
    return cases


def measure(device: torch.device, *, quick: bool) -> None:
    """Print how long the engine, torch and memcpy take, and how many times faster than torch the engine is.

    torch has its inputs on the device and leaves its results there; the engine's requests and answers are on the host.
    """
    default_threads = torch.get_num_threads()
    engine = Engine(device, threads=default_threads)
    print(
        f"{'in process, float32':42}{'memcpy':>10}{'torch':>11}{'torch x1':>11}{'ours':>11}"
        f"{'of memcpy':>11}{'faster':>9}{'than x1':>9}"
    )
    for make in _cases():
        case = make()
        _measure_one(case, engine, default_threads, seconds=1.0 if quick else 6.0)
    engine.close()


def _measure_one(case: Case, engine: Engine, threads: int, *, seconds: float) -> None:
    job, copy = case.job(), torch.empty_like(case.logits)
    contestants = {
        "memcpy": lambda: copy.copy_(case.logits),
        "torch": case.run_torch(threads, engine.device),
        "torch x1": case.run_torch(1, engine.device),
        "ours": lambda: engine.compute(job).release(),
    }
    taken = medians(contestants, seconds=seconds)
    ours = taken["ours"]
    print(
        f"{f'{list(case.logits.shape)} {case.title}':42}"
        f"{duration(taken['memcpy']):>10}{duration(taken['torch']):>11}{duration(taken['torch x1']):>11}"
        f"{duration(ours):>11}{ours / taken['memcpy']:>10.2f}x{taken['torch'] / ours:>8.2f}x"
        f"{taken['torch x1'] / ours:>8.2f}x",
        flush=True,
    )
