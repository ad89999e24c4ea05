"""The laws that hold between requests: finite differences, recombination, temperature, one operator as two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from service.ops import OPERATORS
from tests.support.asking import ask
from tests.support.batches import VARIANTS, batch_of, chosen, operator_of, same_bits

every_variant = pytest.mark.parametrize("variant", VARIANTS)
of_cross_entropy = pytest.mark.parametrize(
    "variant", [name for name in VARIANTS if operator_of(name) == "cross-entropy"]
)


def objective(variant: str, fields: dict[str, Any], upstream: Tensor) -> float:
    """Return the number whose gradient is asked for: the first output times the upstream gradient, summed."""
    first = OPERATORS[operator_of(variant)].outputs[0].name
    fields = {name: value for name, value in fields.items() if name != "grad_output"} | {"outputs": [first]}
    return float((ask(operator_of(variant), **fields)[first] * upstream).sum())


@every_variant
@pytest.mark.parametrize("temperature", [None, 0.5])
def test_gradient_equals_finite_differences(variant: str, temperature: float | None) -> None:
    fields = batch_of(variant, 4, 5, dtype=torch.float64, spread=1.0)
    if operator_of(variant) != "nll-loss":
        fields["temperature"] = temperature
    answer = ask(operator_of(variant), gradient=True, **fields)

    step = 1e-5
    for name in ("logits", "log_probs", "target"):
        if f"grad_{name}" not in answer:
            continue
        differences = torch.zeros_like(fields[name])
        for position in range(fields[name].numel()):
            up, down = fields[name].clone(), fields[name].clone()
            up.view(-1)[position] += step
            down.view(-1)[position] -= step
            rise = objective(variant, fields | {name: up}, fields["grad_output"])
            rise -= objective(variant, fields | {name: down}, fields["grad_output"])
            differences.view(-1)[position] = rise / (2 * step)
        torch.testing.assert_close(answer[f"grad_{name}"], differences, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_example_of_every_operator_agrees_with_torch(operator: str) -> None:
    example = OPERATORS[operator].gradient_example
    fields = {
        name: torch.tensor(value, dtype=torch.int64 if name == "target" else torch.float64)
        for name, value in example.items()
    }
    first = fields["log_probs" if operator == "nll-loss" else "logits"].requires_grad_()
    expected = {
        "softmax": lambda: torch.softmax(first, 1),
        "log-softmax": lambda: torch.log_softmax(first, 1),
        "nll-loss": lambda: torch.nn.functional.nll_loss(first, fields["target"]),
        "cross-entropy": lambda: torch.nn.functional.cross_entropy(first, fields["target"]),
    }[operator]()
    expected.backward(fields.get("grad_output", torch.tensor(1.0, dtype=torch.float64)))

    result, *_, gradient = ask(
        operator, gradient=True, **{name: value.detach() for name, value in fields.items()}
    ).values()

    torch.testing.assert_close(result, expected.detach())
    torch.testing.assert_close(gradient, first.grad)


@pytest.mark.parametrize("operator", ["softmax", "log-softmax", "cross-entropy"])
@pytest.mark.parametrize("temperature", [0.25, 0.7, 3.0])
@pytest.mark.parametrize("classes", [5, 100])
def test_temperature_equals_dividing_the_logits(operator: str, temperature: float, classes: int) -> None:
    fields = batch_of(operator, 9, classes, dtype=torch.float64)
    divided = fields | {"logits": fields["logits"] / temperature}

    answer = ask(operator, gradient=True, temperature=temperature, **fields)

    expected = ask(operator, gradient=True, **divided)
    torch.testing.assert_close(
        answer.pop("grad_logits"), expected.pop("grad_logits") / temperature, atol=1e-15, rtol=1e-13
    )
    for name, tensor in answer.items():
        assert same_bits(tensor, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(
    "weight", [None, torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0, -1.0, 1.5])], ids=["plain", "weighted"]
)
def test_log_softmax_then_nll_equals_cross_entropy(dtype: torch.dtype, reduction: str, weight: Tensor | None) -> None:
    logits = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    target = torch.randint(7, (3, 4), generator=torch.Generator().manual_seed(1)).masked_fill_(
        torch.eye(3, 4, dtype=torch.bool), -100
    )
    fields = {"target": target, "weight": weight, "reduction": reduction}

    (log_probs,) = ask("log-softmax", logits=logits).values()
    second = ask("nll-loss", gradient=True, log_probs=log_probs, **fields)
    back = ask("log-softmax", gradient=True, logits=logits, grad_output=second["grad_log_probs"])

    fused = ask("cross-entropy", gradient=True, logits=logits, **fields)
    tolerance = {"atol": 8 * torch.finfo(dtype).eps, "rtol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(second["loss"], fused["loss"], **tolerance)
    assert second["total_weight"] == fused["total_weight"]
    torch.testing.assert_close(back["grad_logits"], fused["grad_logits"], **tolerance)


def test_probs_of_one_operator_are_the_exponentials_of_the_other() -> None:
    fields = {"logits": torch.randn(5, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}

    (probs,), (log_probs,) = ask("softmax", **fields).values(), ask("log-softmax", **fields).values()

    torch.testing.assert_close(log_probs.exp(), probs, atol=0, rtol=1e-14)
    torch.testing.assert_close(probs.sum(1), torch.ones(5, dtype=torch.float64), atol=1e-14, rtol=0)


@pytest.mark.parametrize("variant", ["nll-loss", *(name for name in VARIANTS if operator_of(name) == "cross-entropy")])
def test_micro_batches_recombine_with_the_total_weight_as_normalizer(variant: str) -> None:
    fields = batch_of(variant, 40, 6, dtype=torch.float64) | {"reduction": "mean", "grad_output": None}
    fields["outputs"] = [*fields["outputs"], "total_weight"]
    whole = ask(operator_of(variant), gradient=True, **fields)

    parts = [
        ask(
            operator_of(variant),
            gradient=True,
            normalizer=float(whole["total_weight"]),
            **chosen(fields, slice(start, stop)),
        )
        for start, stop in ((0, 1), (1, 7), (7, 30), (30, 40))
    ]

    torch.testing.assert_close(sum(part["loss"] for part in parts), whole["loss"], rtol=1e-14, atol=0)
    torch.testing.assert_close(sum(part["total_weight"] for part in parts), whole["total_weight"], rtol=1e-14, atol=0)
    for name in ("grad_logits", "grad_log_probs", "grad_target"):
        if name in whole:
            assert same_bits(torch.cat([part[name] for part in parts]), whole[name]), name


@every_variant
def test_the_gradient_is_linear_in_its_upstream(variant: str) -> None:
    fields = batch_of(variant, 9, 100, dtype=torch.float64)
    doubled = fields | {"grad_output": fields["grad_output"] * 2}

    answer = ask(operator_of(variant), gradient=True, **doubled)

    for name, expected in ask(operator_of(variant), gradient=True, **fields).items():
        if name.startswith("grad_"):
            assert same_bits(answer[name], expected * 2), name


@of_cross_entropy
def test_a_reduction_sums_and_averages_the_losses_of_the_rows(variant: str) -> None:
    fields = batch_of(variant, 30, 6, dtype=torch.float64) | {"grad_output": None, "outputs": ["loss", "total_weight"]}
    rows = ask("cross-entropy", **fields)

    total = ask("cross-entropy", **(fields | {"reduction": "sum"}))
    mean = ask("cross-entropy", **(fields | {"reduction": "mean"}))

    torch.testing.assert_close(total["loss"], rows["loss"].sum(), rtol=1e-14, atol=0)
    torch.testing.assert_close(mean["loss"], rows["loss"].sum() / rows["total_weight"], rtol=1e-14, atol=0)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "nll-loss" and "weighted" not in name])
@pytest.mark.parametrize("classes", [5, 100])
def test_gradients_by_logits_sum_to_zero_over_a_row(variant: str, classes: int) -> None:
    fields = batch_of(variant, 20, classes, dtype=torch.float64)

    gradient = ask(operator_of(variant), gradient=True, **fields)["grad_logits"]

    assert gradient.sum(1).abs().max() <= 1e-14 * max(1, float(gradient.abs().max()))


def test_one_hot_probabilities_equal_indices() -> None:
    fields = batch_of("cross-entropy", 30, 100, dtype=torch.float64)
    fields["target"] = fields["target"].clamp(min=0)
    soft = fields | {"target": torch.nn.functional.one_hot(fields["target"], 100).double()}

    answer = ask("cross-entropy", gradient=True, **soft)

    for name, expected in ask("cross-entropy", gradient=True, **fields).items():
        torch.testing.assert_close(answer[name], expected, atol=1e-15, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@every_variant
def test_a_result_is_that_of_the_same_numbers_in_float64(variant: str, dtype: torch.dtype) -> None:
    fields = batch_of(variant, 12, 50, dtype=dtype)
    wide = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in fields.items()
    }

    answer = ask(operator_of(variant), gradient=True, accuracy="accurate", **fields)

    for name, expected in ask(operator_of(variant), gradient=True, **wide).items():
        assert same_bits(answer[name], expected.to(answer[name].dtype)), name
