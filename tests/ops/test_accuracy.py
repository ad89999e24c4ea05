"""Accuracy against a hundred decimal digits where it is easily lost: confident rows, large offsets, long rows."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from service.ops import native
from tests.support.asking import ask
from tests.support.truth import Rows, error_in_ulp, exact

mpmath.mp.dps = 100

MARGINS = (10, 20, 40, 100)


def confident_row(margin: float, classes: int, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Return (1, classes) with the first class `margin` above the others, which differ a little."""
    row = torch.rand(1, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    row[0, 0] = margin + 1
    return row.to(dtype)


def truth_of_row(logits: Tensor, mass: list[mpf]) -> dict[str, list[mpf]]:
    """Return loss, probabilities and gradient of one row with the target mass `mass`, in a hundred digits."""
    z = [mpf(value) for value in logits[0].double().tolist()]
    log_partition = mpmath.log(mpmath.fsum(mpmath.exp(value) for value in z))
    log_probs = [value - log_partition for value in z]
    probs = [mpmath.exp(value) for value in log_probs]
    total = mpmath.fsum(mass)
    return {
        "loss": [-mpmath.fsum(t * log_prob for t, log_prob in zip(mass, log_probs, strict=True))],
        "probs": probs,
        "log_probs": log_probs,
        "grad_logits": [total * q - t for q, t in zip(probs, mass, strict=True)],
    }


def ulps(got: Tensor, wanted: list[mpf]) -> float:
    """Return the largest error in units in the last place of the answer's type."""
    info = torch.finfo(got.dtype)
    worst = mpf(0)
    for value, truth in zip(got.reshape(-1).double().tolist(), wanted, strict=True):
        size = max(abs(truth), mpf(info.smallest_normal))
        unit = mpf(info.eps) * mpf(2) ** mpmath.floor(mpmath.log(size, 2))
        worst = max(worst, abs(mpf(value) - truth) / unit)
    return float(worst)


TARGETS = {
    "index": (lambda n: {"target": torch.tensor([0])}, lambda n: [mpf(1)] + [mpf(0)] * (n - 1)),
    "one-hot probabilities": (
        lambda n: {"target": torch.eye(n)[:1]},
        lambda n: [mpf(1)] + [mpf(0)] * (n - 1),
    ),
    "smoothing": (
        lambda n: {"target": torch.tensor([0]), "label_smoothing": 0.125},
        lambda n: [mpf("0.875") + mpf("0.125") / n] + [mpf("0.125") / n] * (n - 1),
    ),
    "another class": (lambda n: {"target": torch.tensor([1])}, lambda n: [mpf(0), mpf(1)] + [mpf(0)] * (n - 2)),
}
every_target = pytest.mark.parametrize(("fields", "mass"), TARGETS.values(), ids=TARGETS)


@every_target
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("classes", [2, 10, 64, 100, 1000])
def test_accurate_mode_keeps_one_ulp_in_confident_rows(fields: Any, mass: Any, margin: float, classes: int) -> None:
    logits = confident_row(margin, classes)

    answer = ask("cross-entropy", gradient=True, logits=logits, accuracy="accurate", **fields(classes))

    truth = truth_of_row(logits, mass(classes))
    assert ulps(answer["loss"], truth["loss"]) <= 1
    assert ulps(answer["grad_logits"], truth["grad_logits"]) <= 1


@pytest.mark.parametrize("accuracy", ["fast", "accurate"])
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("classes", [2, 10, 64, 100, 1000])
@pytest.mark.parametrize("kind", ["index", "one-hot probabilities"])
def test_a_confident_loss_keeps_its_digits_in_either_mode(
    kind: str, accuracy: str, margin: float, classes: int
) -> None:
    logits = confident_row(margin, classes)
    fields, mass = TARGETS[kind]

    answer = ask("cross-entropy", gradient=True, logits=logits, accuracy=accuracy, **fields(classes))

    truth = truth_of_row(logits, mass(classes))
    assert ulps(answer["loss"], truth["loss"]) <= 4
    # Entries off the target have the error of torch's softmax; torch's own entry on the target has no digit left.
    assert ulps(answer["grad_logits"], truth["grad_logits"]) <= (64 if accuracy == "fast" else 1)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_accurate_softmax_and_its_logarithm_keep_one_ulp_in_confident_rows(margin: float, classes: int) -> None:
    logits = confident_row(margin, classes)

    probs = ask("softmax", logits=logits, accuracy="accurate")["probs"]
    log_probs = ask("log-softmax", logits=logits, accuracy="accurate")["log_probs"]

    truth = truth_of_row(logits, [mpf(0)] * classes)
    assert ulps(probs, truth["probs"]) <= 1
    assert ulps(log_probs, truth["log_probs"]) <= 1


@pytest.mark.parametrize("margin", MARGINS)
def test_float64_keeps_its_digits_in_confident_rows(margin: float) -> None:
    logits = confident_row(margin, 10, dtype=torch.float64)

    answer = ask("cross-entropy", gradient=True, logits=logits, target=torch.tensor([0]))

    truth = truth_of_row(logits, [mpf(1)] + [mpf(0)] * 9)
    assert abs(mpf(answer["loss"].item()) / truth["loss"][0] - 1) <= 1e-13
    assert abs(mpf(answer["grad_logits"][0, 0].item()) / truth["grad_logits"][0] - 1) <= 1e-13


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("classes", [3, 200])
def test_the_long_double_reference_agrees_with_a_hundred_digits(margin: float, classes: int) -> None:
    logits = confident_row(margin, classes, dtype=torch.float64)
    rows = Rows(exact(logits))
    mass = np.zeros((1, classes), np.longdouble)
    mass[0, 0] = 1

    truth = truth_of_row(logits, [mpf(1)] + [mpf(0)] * (classes - 1))

    gradient = rows.pulled_back(mass)[0]
    assert all(
        abs(mpf(str(got)) / wanted - 1) < 1e-15 for got, wanted in zip(gradient, truth["grad_logits"], strict=True)
    )
    assert abs(mpf(str(-rows.log_probs[0, 0])) / truth["loss"][0] - 1) < 1e-15


INPUTS = {
    "standard, 10 classes": ((500, 10), 3.0, 0.0),
    "standard, 1000 classes": ((200, 1000), 3.0, 0.0),
    "standard, 32000 classes": ((4, 32_000), 3.0, 0.0),
    "standard, 300000 classes": ((2, 300_000), 3.0, 0.0),
    "spread 30": ((200, 1000), 30.0, 0.0),
    "offset 1e4": ((200, 1000), 3.0, 1e4),
    "offset 1e8": ((200, 1000), 30.0, 1e8),
}
every_input = pytest.mark.parametrize(("size", "spread", "offset"), INPUTS.values(), ids=INPUTS)


@every_input
@pytest.mark.parametrize(("accuracy", "bar"), [("fast", 4.0), ("accurate", 1.0)], ids=["fast", "accurate"])
def test_row_losses_keep_the_bar_of_the_contract(
    size: tuple[int, int], spread: float, offset: float, accuracy: str, bar: float
) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(size, generator=random) * spread + offset
    target = torch.randint(size[1], size[:1], generator=random)
    target[::2] = logits[::2].argmax(1)

    loss = ask("cross-entropy", logits=logits, target=target, reduction="none", accuracy=accuracy)["loss"]

    truth = -Rows(exact(logits)).log_probs[np.arange(size[0]), target.numpy()]
    assert error_in_ulp(exact(loss), truth, np.abs(truth), torch.float32) <= bar


@every_input
def test_softmax_is_no_worse_than_torchs(size: tuple[int, int], spread: float, offset: float) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(0)) * spread + offset

    probs = ask("softmax", logits=logits)["probs"]

    truth = Rows(exact(logits)).probs
    theirs = error_in_ulp(exact(torch.softmax(logits, 1)), truth, truth, torch.float32)
    assert error_in_ulp(exact(probs), truth, truth, torch.float32) <= max(theirs, 4.0)


@every_input
def test_the_gradient_of_cross_entropy_is_no_worse_than_autograds(
    size: tuple[int, int], spread: float, offset: float
) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(size, generator=random) * spread + offset
    target = torch.randint(size[1], size[:1], generator=random)
    target[::2] = logits[::2].argmax(1)
    leaf = logits.clone().requires_grad_()
    torch.nn.functional.cross_entropy(leaf, target, reduction="sum").backward()

    gradient = ask("cross-entropy", gradient=True, logits=logits, target=target, reduction="sum")["grad_logits"]

    mass = np.zeros(size, np.longdouble)
    mass[np.arange(size[0]), target.numpy()] = 1
    truth = Rows(exact(logits)).pulled_back(mass)
    theirs = error_in_ulp(exact(leaf.grad), truth, np.abs(truth), torch.float32)
    assert error_in_ulp(exact(gradient), truth, np.abs(truth), torch.float32) <= max(theirs, 4.0)


def assert_no_worse(ours: Tensor, theirs: Tensor, truth: Any) -> None:
    """Compare the largest errors; three quarters of a unit in the last place of the largest number is always enough."""
    errors = [float(np.abs(exact(tensor) - truth).max()) for tensor in (ours, theirs)]
    unit = float(np.spacing(np.float32(np.abs(truth).max())))
    assert errors[0] <= max(errors[1], 0.75 * unit)


needs_library = pytest.mark.skipif(not native._LIBRARIES, reason="torch itself computes where no library fits")
every_seed = pytest.mark.parametrize("seed", range(20))


@needs_library
@every_seed
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("size", [(64, 1000), (4, 32_000)], ids=str)
def test_the_largest_error_of_probabilities_is_no_larger_than_torchs(
    size: tuple[int, int], temperature: float, seed: int
) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed))

    probs = ask("softmax", logits=logits, temperature=temperature)["probs"]
    log_probs = ask("log-softmax", logits=logits, temperature=temperature)["log_probs"]

    truth = Rows(exact(logits) / np.longdouble(temperature))
    assert_no_worse(probs, torch.softmax(logits / temperature, 1), truth.probs)
    assert_no_worse(log_probs, torch.log_softmax(logits / temperature, 1), truth.log_probs)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "smoothing": {"label_smoothing": 0.1},
    "everything": {"temperature": 0.7, "label_smoothing": 0.1, "weight": torch.linspace(0.5, 1.5, 1000)},
}


@needs_library
@every_seed
@pytest.mark.parametrize("spread", [0.01, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_error_of_a_gradient_against_probabilities_is_no_larger_than_torchs(
    kind: str, spread: float, seed: int
) -> None:
    random, options = torch.Generator().manual_seed(seed), KINDS[kind]
    temperature, smoothing = options.get("temperature", 1.0), options.get("label_smoothing", 0.0)
    logits = torch.randn(32, 1000, generator=random) * spread
    target = torch.softmax(torch.randn(32, 1000, generator=random) * 2, 1)
    leaf = logits.clone().requires_grad_()
    torch.nn.functional.cross_entropy(
        leaf / temperature, target, weight=options.get("weight"), label_smoothing=smoothing, reduction="sum"
    ).backward()

    fields = {"logits": logits, "target": target, "reduction": "sum", **options}
    gradient = ask("cross-entropy", gradient=True, **fields)["grad_logits"]

    mass = (1 - np.longdouble(smoothing)) * exact(target) + np.longdouble(smoothing) / 1000
    mass *= exact(options.get("weight", torch.ones(1000)))
    truth = Rows(exact(logits) / np.longdouble(temperature)).pulled_back(mass) / np.longdouble(temperature)
    assert_no_worse(gradient, leaf.grad, truth)


def test_a_mean_over_many_rows_loses_nothing() -> None:
    random = torch.Generator().manual_seed(0)
    logits, target = torch.randn(1_000_000, 2, generator=random), torch.randint(2, (1_000_000,), generator=random)

    loss = ask("cross-entropy", logits=logits, target=target)["loss"]

    expected = torch.nn.functional.cross_entropy(logits.double(), target)
    assert abs(float(loss) / float(expected) - 1) <= 2**-24
