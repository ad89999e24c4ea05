"""The compiled passes over rows: there when a compiler was, the same bits on every processor, and never needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.truth import truth_of, worst_error
from service.ops import native
from tests.support.asking import ask
from tests.support.batches import same_bits

DTYPES = (torch.float32, torch.float64)

needs_library = pytest.mark.skipif(not native._LIBRARIES, reason="no library fits this processor")


def test_the_library_is_there_where_a_compiler_is() -> None:
    if shutil.which("cc") is None or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("no C compiler, or no library for this processor")

    assert set(native._LIBRARIES) == set(DTYPES)


def rows_like(classes: int, dtype: torch.dtype) -> Tensor:
    """Return ordinary, far-off, confident, masked and broken rows."""
    torch.manual_seed(classes)
    logits = torch.randn(60, classes, dtype=torch.float64) * 3
    logits[10:20] += 1e4
    logits[20:30] *= 30
    logits[30:40, 0] += 40
    logits[40:50] = logits[40:50].masked_fill(torch.rand(10, classes) < 0.5, -torch.inf)
    logits[50], logits[51], logits[52, -1], logits[53, 0] = -torch.inf, 0.0, torch.nan, torch.inf
    return logits.to(dtype)


def of_masses(logits: Tensor, target: Tensor, slope: Tensor, temperature: float) -> list[Tensor]:
    """Return what comes of each kind of masses."""
    if (classes := logits.shape[1]) <= native.SHORT:
        return []
    results = []
    weight = torch.linspace(-1, 2, classes, dtype=torch.float64)
    for masses in (target, torch.softmax(logits.nan_to_num(), 1)):
        for weights in (None, weight):
            loss, grad = torch.empty(60, dtype=torch.float64), torch.empty_like(logits)
            fields = {"keep": 0.9, "spread": 0.1 / classes, "weight": weights, "temperature": temperature}
            found = native.cross_entropy_of_masses(logits, masses, slope, loss, grad, **fields)
            results += [loss, grad, *found]
    return results


@needs_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 17, 128, 129, 192, 1000, 1024, 5000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_wide_and_narrow_vectors_give_the_same_bits(
    classes: int, dtype: torch.dtype, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(native.__file__).parent
    variants = [name for name in ("avx512", "avx2") if (folder / f"rows-{name}.so").is_file()]
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or len(variants) < 2:
        pytest.skip("this processor runs one variant only")
    logits, target = rows_like(classes, dtype), torch.randint(classes, (60,))
    slope = torch.randn(60, dtype=torch.float64)

    results = []
    for variant in variants:
        monkeypatch.setattr(native, "_LIBRARIES", native.load(folder / f"rows-{variant}.so"))
        probs, grad, loss = torch.empty_like(logits), torch.empty_like(logits), torch.empty(60, dtype=torch.float64)
        found = native.softmax(logits, probs, temperature)
        native.cross_entropy(logits, target, slope, loss, grad, temperature=temperature)
        results.append([probs, *found, loss, grad, *of_masses(logits, target, slope, temperature)])

    assert all(same_bits(wide, narrow) for wide, narrow in zip(*results, strict=True))


@needs_library
@pytest.mark.parametrize("classes", [2, 10, 128, 129, 700, 5000, 100_000])
def test_errors_stay_within_a_few_units_where_torch_has_dozens(classes: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(200_000 // classes + 1, classes) * 5
    target = torch.randint(classes, logits.shape[:1])
    truth = truth_of(logits, target)
    probs, loss = torch.empty_like(logits), torch.empty(len(logits), dtype=torch.float64)
    grad = torch.empty_like(logits)

    native.softmax(logits, probs)
    native.cross_entropy(logits, target, torch.ones(len(logits), dtype=torch.float64), loss, grad)

    assert worst_error(probs, truth.probs) < 4
    assert worst_error(grad, truth.gradient) < 4
    assert worst_error(loss.float(), truth.loss) < 3


@pytest.mark.parametrize("kind", ["index", "smoothed index", "probabilities", "weighed probabilities"])
@pytest.mark.parametrize("classes", [10, 700, 5000])
def test_without_the_library_torch_gives_the_same_answers(
    classes: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(50, classes) * 5
    logits[::2, 0], logits[::5, 1] = 40.0, -torch.inf
    fields = {"logits": logits, "target": torch.randint(2, classes, (50,)), "reduction": "none"}
    fields["outputs"] = ["loss", "log_probs", "logsumexp", "grad_logits"]
    if kind == "smoothed index":
        fields["label_smoothing"] = 0.1
    elif kind != "index":
        fields["target"] = torch.softmax(logits + torch.randn(50, classes), 1)
    if kind == "weighed probabilities":
        fields |= {"weight": torch.rand(classes), "label_smoothing": 0.2, "temperature": 1.5}
    compiled = ask("cross-entropy", gradient=True, **fields)
    monkeypatch.setattr(native, "_LIBRARIES", {})

    by_torch = ask("cross-entropy", gradient=True, **fields)

    for name, expected in compiled.items():
        assert torch.allclose(by_torch[name], expected, rtol=1e-5, atol=1e-7), name


@needs_library
@pytest.mark.parametrize("temperature", [1e-15, 1e-10, 1e-3, 0.1, 3.0, 1e10, 1e15])
def test_dividing_on_the_way_is_dividing_before(temperature: float) -> None:
    logits = rows_like(1000, torch.float32)
    logits[54], logits[54, 0], logits[55] = -3e38, 3e38, -3e38
    fields = {"logits": logits, "temperature": temperature, "non_finite": "propagate"}

    probs = ask("softmax", **fields)["probs"]
    found = ask("log-softmax", outputs=["log_probs", "logsumexp"], **fields)

    quotient = logits.double() / temperature
    fits = ~(logits.isfinite() & (quotient.abs() > 3e38)).any(1)  # elsewhere it is infinite, as a float32
    log_probs, logsumexp = torch.log_softmax(quotient, 1), torch.logsumexp(quotient, 1)
    near = {"rtol": 1e-6, "atol": 1e-15, "equal_nan": True}
    torch.testing.assert_close(probs[fits], torch.softmax(quotient, 1).float()[fits], **near)
    torch.testing.assert_close(found["log_probs"][fits], log_probs.float()[fits], **near)
    torch.testing.assert_close(found["logsumexp"], logsumexp.float(), **near)


@needs_library
@pytest.mark.parametrize("classes", [10, 700])
@pytest.mark.parametrize(
    "bad", ["nothing", "a logit", "an infinity", "a logit behind an infinity", "an upstream gradient"]
)
def test_results_that_are_said_to_be_defined_hold_no_nan(classes: int, bad: str) -> None:
    logits, target = torch.randn(40, classes), torch.randint(classes, (40,))
    slope = torch.ones(40, dtype=torch.float64)
    logits[::2, 0] = logits[17, 0] = -torch.inf
    if bad == "a logit":
        logits[17, -1] = torch.nan
    elif bad == "an infinity":
        logits[17, -1] = torch.inf
    elif bad == "a logit behind an infinity":
        logits[17, 1], logits[17, -1] = torch.inf, torch.nan
    elif bad == "an upstream gradient":
        slope[17] = 1e300  # infinite as a float32, and 0 times that is no number
    loss, grad = torch.empty(40, dtype=torch.float64), torch.empty_like(logits)

    found = native.cross_entropy(logits, target, slope, loss, grad, parts=False)

    holds_nan = bool(loss.isnan().any() or grad.isnan().any())
    assert found.are_defined == (bad == "nothing")
    assert holds_nan == (bad != "nothing")
    assert found.rest is None
