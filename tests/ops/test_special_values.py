"""Empty input, ignored rows, infinities, NaN and odd weights: one test for each line of the contract."""

from __future__ import annotations

import itertools
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from service.errors import (
    InvalidOption,
    NonFinite,
    RequestError,
    ShapeMismatch,
    TargetOutOfRange,
    UndefinedMean,
)
from service.ops import OPERATORS, native
from tests.support.asking import all_outputs, ask

LOSSES = ("nll-loss", "cross-entropy")
every_loss = pytest.mark.parametrize("operator", LOSSES)
every_operator = pytest.mark.parametrize("operator", OPERATORS)
every_reduction = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


def rows_for(operator: str, values: Tensor) -> dict[str, Tensor]:
    """Return the first input of an operator; it is not asked of log_probs that they are normalised."""
    return {"log_probs" if operator == "nll-loss" else "logits": values}


def gradient_of(answer: dict[str, Tensor]) -> Tensor:
    return answer["grad_log_probs"] if "grad_log_probs" in answer else answer["grad_logits"]


def loss_and_gradient(operator: str, values: Tensor, **fields: Any) -> tuple[Tensor, Tensor]:
    answer = ask(operator, gradient=True, **rows_for(operator, values), **fields)
    return answer["loss"], gradient_of(answer)


def refused(error: type[RequestError], operator: str, *, gradient: bool = False, **fields: Any) -> RequestError:
    with pytest.raises(error) as caught:
        ask(operator, gradient=gradient, **fields)
    return caught.value


def logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Nothing to average


@every_loss
@pytest.mark.parametrize("shape", [(0, 5), (2, 5, 0), (0, 5, 3)])
def test_no_rows_give_an_empty_loss_without_reduction(operator: str, shape: tuple[int, ...]) -> None:
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)

    loss, gradient = loss_and_gradient(operator, torch.zeros(shape), target=target, reduction="none")

    assert loss.shape == target.shape
    assert gradient.shape == shape


@every_loss
def test_no_rows_sum_to_zero(operator: str) -> None:
    loss, gradient = loss_and_gradient(
        operator, torch.zeros(0, 5), target=torch.zeros(0, dtype=torch.int64), reduction="sum"
    )

    assert loss == 0
    assert gradient.shape == (0, 5)


@every_operator
def test_no_rows_give_empty_results(operator: str) -> None:
    fields: dict[str, Any] = rows_for(operator, torch.zeros(0, 5))
    if operator in LOSSES:
        fields |= {"target": torch.zeros(0, dtype=torch.int64), "reduction": "none"}
    else:
        fields |= {"grad_output": torch.zeros(0, 5)}

    answer = ask(operator, gradient=True, outputs=all_outputs(operator, gradient=True), **fields)

    assert all(tensor.numel() == 0 for name, tensor in answer.items() if name != "total_weight")


def test_no_rows_of_probabilities_have_no_mean() -> None:
    refused(UndefinedMean, "cross-entropy", logits=torch.zeros(0, 5), target=torch.zeros(0, 5))


NOTHING = {
    "no rows": (torch.zeros(0, 3), {"target": torch.zeros(0, dtype=torch.int64)}),
    "all rows ignored": (logits(2, 3), {"target": torch.tensor([-100, -100])}),
    "one ignored row without a batch": (logits(3), {"target": torch.tensor(-100)}),
    "zero weights": (logits(2, 3), {"target": torch.tensor([0, 1]), "weight": torch.tensor([0.0, 0.0, 1.0])}),
    "weights that cancel": (logits(2, 3), {"target": torch.tensor([0, 1]), "weight": torch.tensor([1.0, -1.0, 1.0])}),
}
nothing_to_average = pytest.mark.parametrize(("values", "fields"), NOTHING.values(), ids=NOTHING)
nothing_kept = pytest.mark.parametrize(("values", "fields"), list(NOTHING.values())[:4], ids=list(NOTHING)[:4])


@every_loss
@nothing_to_average
@pytest.mark.parametrize("gradient", [False, True])
def test_a_mean_over_zero_weight_is_undefined(
    operator: str, values: Tensor, fields: dict[str, Any], gradient: bool
) -> None:
    refused(UndefinedMean, operator, gradient=gradient, **rows_for(operator, values), **fields)


@every_loss
@nothing_to_average
def test_a_mean_over_zero_weight_is_undefined_when_only_the_gradient_is_wanted(
    operator: str, values: Tensor, fields: dict[str, Any]
) -> None:
    wanted = "grad_log_probs" if operator == "nll-loss" else "grad_logits"

    refused(UndefinedMean, operator, gradient=True, outputs=[wanted], **rows_for(operator, values), **fields)


@every_loss
@nothing_to_average
def test_the_zero_weight_itself_can_be_asked_for(operator: str, values: Tensor, fields: dict[str, Any]) -> None:
    answer = ask(operator, outputs=["total_weight"], **rows_for(operator, values), **fields)

    assert answer["total_weight"] == 0


@every_loss
@nothing_kept
def test_a_normalizer_makes_the_mean_of_nothing_zero(operator: str, values: Tensor, fields: dict[str, Any]) -> None:
    loss, gradient = loss_and_gradient(operator, values, normalizer=7.0, **fields)

    assert loss == 0
    assert not gradient.any()


@every_loss
@nothing_kept
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_nothing_kept_gives_zeros(operator: str, values: Tensor, fields: dict[str, Any], reduction: str) -> None:
    loss, gradient = loss_and_gradient(operator, values, reduction=reduction, **fields)

    assert not loss.any()
    assert not gradient.any()


@every_loss
@pytest.mark.parametrize("name", ["no rows", "all rows ignored", "one ignored row without a batch"])
def test_propagate_gives_the_nan_of_a_mean_over_nothing_and_a_zero_gradient(operator: str, name: str) -> None:
    values, fields = NOTHING[name]

    loss, gradient = loss_and_gradient(operator, values, non_finite="propagate", **fields)

    assert loss.isnan()
    assert not gradient.any()


@every_loss
def test_propagate_gives_the_nan_of_a_mean_over_zero_weights_as_torch(operator: str) -> None:
    values, fields = NOTHING["zero weights"]
    leaf = values.clone().requires_grad_()
    function = functional.nll_loss if operator == "nll-loss" else functional.cross_entropy
    expected = function(leaf, **fields)
    expected.backward()

    loss, gradient = loss_and_gradient(operator, values, non_finite="propagate", **fields)

    assert loss.isnan()
    assert expected.isnan()
    # torch's own gradient is NaN for every class in cross-entropy, and for the target alone in nll-loss.
    assert gradient.isnan().any()


# Ignored rows


@every_loss
@pytest.mark.parametrize("ignored", [-100, -1, 255, 4, 2, -(2**63), 2**63 - 1])
@every_reduction
def test_any_integer_can_be_the_ignored_target(operator: str, ignored: int, reduction: str) -> None:
    values = logits(6, 4)
    target = torch.tensor([0, ignored, 1, 3, ignored, 0])
    kept = target != ignored

    loss, gradient = loss_and_gradient(operator, values, target=target, ignore_index=ignored, reduction=reduction)

    expected, expected_gradient = loss_and_gradient(operator, values[kept], target=target[kept], reduction=reduction)
    assert torch.equal(loss[kept] if reduction == "none" else loss, expected)
    assert torch.equal(gradient[kept], expected_gradient)
    assert not gradient[~kept].any()


@every_loss
def test_an_ignored_target_is_tested_before_the_range(operator: str) -> None:
    error = refused(
        TargetOutOfRange, operator, **rows_for(operator, logits(3, 4)), target=torch.tensor([9, 4, 0]), ignore_index=9
    )

    assert (error.pointer, error.got) == ("/target/1", 4)


@every_loss
@pytest.mark.parametrize("target", [-1, 4, 2**40, -(2**40)])
def test_a_target_that_is_no_class_is_refused(operator: str, target: int) -> None:
    error = refused(TargetOutOfRange, operator, **rows_for(operator, logits(2, 4)), target=torch.tensor([0, target]))

    assert (error.pointer, error.got) == ("/target/1", target)


@every_loss
@pytest.mark.parametrize("poison", [nan, inf, -inf])
@pytest.mark.parametrize("options", [{}, {"weight": torch.tensor([1.0, 2.0, 3.0, 4.0])}], ids=["plain", "weighted"])
@every_reduction
def test_an_ignored_row_counts_nothing_whatever_it_holds(
    operator: str, poison: float, options: dict[str, Any], reduction: str
) -> None:
    values = logits(3, 4)
    target = torch.tensor([1, -100, 3])
    expected = loss_and_gradient(operator, values, target=target, reduction=reduction, **options)
    values[1] = poison

    loss, gradient = loss_and_gradient(operator, values, target=target, reduction=reduction, **options)

    assert torch.equal(loss, expected[0])
    assert torch.equal(gradient, expected[1])
    assert not gradient[1].any()


@pytest.mark.parametrize("poison", [nan, inf, -inf])
def test_an_ignored_row_counts_nothing_with_smoothing(poison: float) -> None:
    values, fields = logits(3, 4), {"target": torch.tensor([1, -100, 3]), "label_smoothing": 0.3}
    expected = loss_and_gradient("cross-entropy", values, **fields)
    values[1] = poison

    loss, gradient = loss_and_gradient("cross-entropy", values, **fields)

    assert torch.equal(loss, expected[0])
    assert torch.equal(gradient, expected[1])


def test_log_probs_of_an_ignored_row_are_still_refused_when_they_are_nan() -> None:
    values = logits(2, 3)
    values[1, 0] = nan

    error = refused(
        NonFinite, "cross-entropy", logits=values, target=torch.tensor([0, -100]), outputs=["loss", "log_probs"]
    )

    assert error.pointer == "/logits/1"


def test_a_class_that_is_ignored_still_stands_in_the_denominator() -> None:
    values = logits(3, 4)
    target = torch.tensor([0, 2, 1])

    loss, _ = loss_and_gradient("cross-entropy", values, target=target, ignore_index=2)

    torch.testing.assert_close(loss, functional.cross_entropy(values, target, ignore_index=2))


@pytest.mark.parametrize("ignored", [-1, -100])
def test_a_negative_ignore_index_means_nothing_to_probabilities(ignored: int) -> None:
    values, target = logits(3, 4), torch.full((3, 4), 0.25)

    loss, _ = loss_and_gradient("cross-entropy", values, target=target, ignore_index=ignored)

    assert loss == loss_and_gradient("cross-entropy", values, target=target)[0]


def test_an_ignore_index_that_could_be_a_class_is_refused_with_probabilities() -> None:
    error = refused(
        InvalidOption, "cross-entropy", logits=logits(3, 4), target=torch.full((3, 4), 0.25), ignore_index=0
    )

    assert error.pointer == "/ignore_index"


# Infinite logits


def test_a_masked_class_off_target_has_no_gradient() -> None:
    values = torch.tensor([[1.0, -inf, 2.0]])

    loss, gradient = loss_and_gradient("cross-entropy", values, target=torch.tensor([0]))

    torch.testing.assert_close(loss, functional.cross_entropy(values[:, [0, 2]], torch.tensor([0])))
    assert gradient[0, 1] == 0
    torch.testing.assert_close(gradient[0, 0], -gradient[0, 2])


@every_reduction
def test_a_masked_target_has_infinite_loss_and_a_finite_gradient(reduction: str) -> None:
    values = torch.tensor([[1.0, -inf, 2.0]])

    loss, gradient = loss_and_gradient("cross-entropy", values, target=torch.tensor([1]), reduction=reduction)

    assert loss == inf
    expected = torch.softmax(values, 1)
    expected[0, 1] = -1
    torch.testing.assert_close(gradient, expected)


def test_a_log_probability_of_minus_infinity_is_an_infinite_loss() -> None:
    loss, gradient = loss_and_gradient("nll-loss", torch.tensor([[0.0, -inf]]), target=torch.tensor([1]))

    assert loss == inf
    assert gradient.tolist() == [[0, -1]]


@pytest.mark.parametrize("classes", [3, 100])
def test_a_masked_class_with_smoothing_has_infinite_loss_and_a_finite_gradient(classes: int) -> None:
    values = logits(1, classes)
    values[0, 1] = -inf

    loss, gradient = loss_and_gradient("cross-entropy", values, target=torch.tensor([0]), label_smoothing=0.3)

    mass = torch.full((1, classes), 0.3 / classes, dtype=torch.float64)
    mass[0, 0] += 0.7
    assert loss == inf
    torch.testing.assert_close(gradient.double(), torch.softmax(values.double(), 1) - mass, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("classes", [3, 100])
def test_a_masked_class_without_probability_counts_nothing(classes: int) -> None:
    values, target = logits(1, classes), torch.rand(1, classes, generator=torch.Generator().manual_seed(1))
    values[0, 1], target[0, 1] = -inf, 0.0
    others = [j for j in range(classes) if j != 1]

    answer = ask("cross-entropy", gradient=True, logits=values, target=target, outputs=["loss", "grad_logits"])

    torch.testing.assert_close(answer["loss"], functional.cross_entropy(values[:, others], target[:, others]))
    q, mass = torch.softmax(values, 1), target
    torch.testing.assert_close(answer["grad_logits"], mass.sum() * q - mass)


def test_a_masked_class_with_probability_has_infinite_loss() -> None:
    loss, gradient = loss_and_gradient(
        "cross-entropy", torch.tensor([[0.0, -inf, 0.0]]), target=torch.tensor([[0.5, 0.5, 0.0]])
    )

    assert loss == inf
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -0.5, 0.5]]))


@every_loss
def test_a_target_without_weight_counts_nothing_even_where_it_is_masked(operator: str) -> None:
    values = torch.tensor([[1.0, -inf, 2.0], [0.0, 0.0, 0.0]])
    fields = {"target": torch.tensor([1, 0]), "weight": torch.tensor([1.0, 0.0, 1.0])}

    loss, gradient = loss_and_gradient(operator, values, reduction="none", **fields)

    assert loss[0] == 0
    assert loss[1].isfinite()
    assert not gradient[0].any()


def test_a_masked_class_without_weight_counts_nothing_in_smoothing() -> None:
    values = torch.tensor([[1.0, -inf, 2.0]])
    weight = torch.tensor([1.0, 0.0, 2.0])

    loss, _ = loss_and_gradient("cross-entropy", values, target=torch.tensor([0]), weight=weight, label_smoothing=0.3)

    log_probs = torch.log_softmax(values, 1)[0]
    expected = -(0.7 + 0.1) * log_probs[0] - 0.1 * 2 * log_probs[2]
    torch.testing.assert_close(loss, expected)


def test_the_gradient_by_a_target_of_a_masked_class_is_infinite() -> None:
    fields = {"logits": torch.tensor([[0.0, -inf]]), "target": torch.tensor([[1.0, 0.0]])}

    answer = ask("cross-entropy", gradient=True, outputs=["loss", "grad_target"], **fields)

    assert answer["grad_target"].tolist() == [[0.0, inf]]


POISONED = {
    "a row of nothing but -inf": [-inf, -inf, -inf],
    "+inf": [0.0, inf, 0.0],
    "NaN": [0.0, nan, 0.0],
    "NaN beside +inf": [inf, nan, -inf],
}
poisoned = pytest.mark.parametrize("row", POISONED.values(), ids=POISONED)
of_logits = pytest.mark.parametrize("operator", [name for name in OPERATORS if name != "nll-loss"])


def poisoned_request(operator: str, row: list[float], classes: int) -> dict[str, Any]:
    values = logits(3, classes)
    values[1] = row[0]
    values[1, :3] = torch.tensor(row)
    target = {"target": torch.tensor([0, 2, 1]), "reduction": "none"} if operator == "cross-entropy" else {}
    return {"logits": values, **target}


@poisoned
@of_logits
@pytest.mark.parametrize("classes", [3, 100])
def test_a_row_that_would_be_nan_is_refused_by_its_number(operator: str, row: list[float], classes: int) -> None:
    error = refused(NonFinite, operator, **poisoned_request(operator, row, classes))

    assert error.pointer == "/logits/1"
    assert "row 1" in error.detail


@poisoned
@of_logits
@pytest.mark.parametrize("classes", [3, 100])
def test_propagate_gives_nan_where_torch_does_and_spares_the_neighbours(
    operator: str, row: list[float], classes: int
) -> None:
    fields = poisoned_request(operator, row, classes)
    function = {
        "softmax": lambda: torch.softmax(fields["logits"], 1),
        "log-softmax": lambda: torch.log_softmax(fields["logits"], 1),
        "cross-entropy": lambda: functional.cross_entropy(fields["logits"], fields["target"], reduction="none"),
    }[operator]

    (result, *_) = ask(operator, non_finite="propagate", **fields).values()

    assert torch.equal(result.isnan(), function().isnan())
    torch.testing.assert_close(result[[0, 2]], function()[[0, 2]])


@poisoned
@every_operator
def test_a_poisoned_row_leaves_the_gradient_of_its_neighbours_alone(operator: str, row: list[float]) -> None:
    values = logits(3, 3)
    fields: dict[str, Any] = {"non_finite": "propagate"}
    if operator in LOSSES:
        fields |= {"target": torch.tensor([0, 2, 1]), "reduction": "sum"}
    else:
        fields |= {"grad_output": logits(3, 3, seed=1)}
    healthy = ask(operator, gradient=True, **rows_for(operator, values), **fields)
    values[1] = torch.tensor(row)

    answer = ask(operator, gradient=True, **rows_for(operator, values), **fields)

    assert torch.equal(gradient_of(answer)[[0, 2]], gradient_of(healthy)[[0, 2]])


@of_logits
@pytest.mark.parametrize(("row", "expected"), [([-inf, -inf, -inf], -inf), ([0.0, inf, -inf], inf)])
def test_logsumexp_of_infinite_rows_is_torchs(operator: str, row: list[float], expected: float) -> None:
    fields = poisoned_request(operator, row, 3) | {"outputs": ["logsumexp"]}
    fields["logits"][1] = torch.tensor(row)

    answer = ask(operator, **fields)

    assert answer["logsumexp"][1] == expected
    torch.testing.assert_close(answer["logsumexp"], torch.logsumexp(fields["logits"], 1))


def with_a_nan(filling: tuple[float, ...], classes: int, dtype: torch.dtype) -> Tensor:
    """Return rows with `filling` and a NaN first, in the middle and last, each before and behind the other.

    A row of nothing but -inf stands for a filling of -inf alone.
    """
    rows = []
    for place, other in itertools.permutations(sorted({0, classes // 2, classes - 1}), 2):
        row = torch.full((classes,), -inf) if filling == (-inf,) else logits(classes)
        row[other], row[place] = filling[0], nan
        if -inf in filling and classes > 2:
            row[next(j for j in range(classes) if j not in (place, other))] = -inf
        rows.append(row)
    return torch.stack(rows).to(dtype)


BESIDE_A_NAN = {"nothing but -inf": (-inf,), "+inf": (inf,), "both": (inf, -inf)}


@of_logits
@pytest.mark.parametrize("filling", BESIDE_A_NAN.values(), ids=BESIDE_A_NAN)
@pytest.mark.parametrize("classes", [2, 3, 100, 128, 129, 513, 700, 5000])
@pytest.mark.parametrize("accuracy", ["fast", "accurate"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "by torch"])
def test_logsumexp_is_nan_wherever_a_nan_stands_beside_an_infinity(
    operator: str,
    filling: tuple[float, ...],
    classes: int,
    *,
    accuracy: str,
    dtype: torch.dtype,
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "_LIBRARIES", {})
    values = with_a_nan(filling, classes, dtype)
    fields: dict[str, Any] = {"logits": values, "accuracy": accuracy, "outputs": ["logsumexp"]}
    if operator == "cross-entropy":
        fields["target"] = torch.full(values.shape[:1], -100)

    propagated = ask(operator, non_finite="propagate", **fields)["logsumexp"]

    assert torch.logsumexp(values, 1).isnan().all()
    assert propagated.isnan().all()
    assert refused(NonFinite, operator, **fields).pointer == "/logits/0"


@pytest.mark.parametrize("kind", ["smoothed", "weighted", "probabilities"])
@pytest.mark.parametrize("filling", BESIDE_A_NAN.values(), ids=BESIDE_A_NAN)
@pytest.mark.parametrize("classes", [3, 100, 700])
def test_logsumexp_of_every_kind_of_target_is_nan_beside_a_nan(
    kind: str, filling: tuple[float, ...], classes: int
) -> None:
    values = with_a_nan(filling, classes, torch.float32)
    fields: dict[str, Any] = {"logits": values, "target": torch.zeros(len(values), dtype=torch.int64)}
    fields |= {
        "smoothed": {"label_smoothing": 0.1},
        "weighted": {"weight": torch.ones(classes)},
        "probabilities": {"target": torch.softmax(logits(len(values), classes), 1)},
    }[kind]

    answer = ask("cross-entropy", outputs=["logsumexp"], non_finite="propagate", **fields)

    assert answer["logsumexp"].isnan().all()


def test_a_nan_in_an_output_that_is_not_wanted_is_no_error() -> None:
    values = torch.tensor([[nan, 0.0]])

    answer = ask("cross-entropy", logits=values, target=torch.tensor([0]), outputs=["total_weight"])

    assert answer["total_weight"] == 1


def test_the_first_row_that_would_be_nan_is_named() -> None:
    values = logits(50, 3)
    values[17, 1] = values[31, 0] = nan

    assert refused(NonFinite, "softmax", logits=values).pointer == "/logits/17"


def test_a_row_that_would_be_nan_is_named_by_its_place_in_the_batch() -> None:
    values = logits(2, 5, 3, 4)
    values[1, 2, 0, 3] = nan

    error = refused(NonFinite, "softmax", logits=values)

    assert "[1, 0, 3]" in error.detail.replace("(", "[").replace(")", "]")


def test_opposite_infinities_in_a_sum_are_refused_as_a_whole() -> None:
    fields = {
        "log_probs": torch.tensor([[-inf, 0.0], [0.0, inf]]),
        "target": torch.tensor([0, 1]),
        "reduction": "sum",
    }

    refused(NonFinite, "nll-loss", **fields)
    assert ask("nll-loss", non_finite="propagate", **fields)["loss"].isnan()


# Large, odd and negative numbers


def test_the_softmax_of_the_largest_floats_is_finite() -> None:
    answer = ask("softmax", logits=torch.tensor([[3.4e38, -3.4e38], [3.4e38, 3.4e38], [-3.4e38, -3.4e38]]))

    assert answer["probs"].tolist() == [[1, 0], [0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("dtype", "largest", "others"),
    [
        (torch.float32, 3e7, -1e16),
        (torch.float32, 1e22, -1e30),
        (torch.float64, 1e22, -1e38),
        (torch.float64, 1e200, -1e216),
    ],
)
@pytest.mark.parametrize("classes", [2, 100, 129, 700])
def test_logits_that_are_far_below_the_largest_have_no_probability(
    dtype: torch.dtype, largest: float, others: float, classes: int
) -> None:
    values = torch.full((1, classes), others, dtype=dtype)
    values[0, 0] = largest

    probs = ask("softmax", logits=values)["probs"]
    loss, gradient = loss_and_gradient("cross-entropy", values, target=torch.tensor([0]))

    assert torch.equal(probs, torch.softmax(values, 1))
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("classes", [2, 100])
def test_the_log_softmax_of_the_largest_floats_is_minus_infinity_at_worst(classes: int) -> None:
    values = torch.full((1, classes), -3.4e38)
    values[0, 0] = 3.4e38

    answer = ask("log-softmax", logits=values)

    assert answer["log_probs"][0, 0] == 0
    assert (answer["log_probs"][0, 1:] == -inf).all()


@pytest.mark.parametrize("classes", [2, 100])
def test_the_gradient_at_the_largest_floats_is_finite(classes: int) -> None:
    values = torch.full((1, classes), -3.4e38)
    values[0, 0] = 3.4e38

    loss, gradient = loss_and_gradient("cross-entropy", values, target=torch.tensor([1]))

    assert loss == inf
    assert gradient[0, :2].tolist() == [1, -1]


@every_operator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [3, 100])
def test_extreme_logits_give_finite_gradients(operator: str, dtype: torch.dtype, classes: int) -> None:
    largest = torch.finfo(dtype).max / 4
    values = logits(6, classes, dtype=dtype)
    values[1], values[2], values[3, 0], values[4, 0] = largest, -largest, largest, -largest
    fields: dict[str, Any] = {"grad_output": logits(6, classes, seed=1)}
    if operator in LOSSES:
        fields = {"target": torch.zeros(6, dtype=torch.int64), "reduction": "sum"}

    answer = ask(operator, gradient=True, **rows_for(operator, values), **fields)

    assert gradient_of(answer).isfinite().all()


def test_the_loss_is_linear_in_probabilities_that_are_not_normalised() -> None:
    values = logits(4, 5, dtype=torch.float64)
    first, second = logits(4, 5, seed=1, dtype=torch.float64), logits(4, 5, seed=2, dtype=torch.float64)

    together = loss_and_gradient("cross-entropy", values, target=first + 3 * second)

    parts = [loss_and_gradient("cross-entropy", values, target=target) for target in (first, second)]
    torch.testing.assert_close(together[0], parts[0][0] + 3 * parts[1][0])
    torch.testing.assert_close(together[1], parts[0][1] + 3 * parts[1][1])


@pytest.mark.parametrize("scale", [-1.0, 0.0, 2.5])
def test_unnormalised_and_negative_probabilities_equal_torchs(scale: float) -> None:
    values, target = logits(4, 5, dtype=torch.float64), logits(4, 5, seed=1, dtype=torch.float64) * scale

    loss, _ = loss_and_gradient("cross-entropy", values, target=target)

    torch.testing.assert_close(loss, functional.cross_entropy(values, target))


def test_a_nan_among_the_probabilities_is_refused_or_propagated() -> None:
    target = torch.tensor([[0.5, 0.5], [nan, 0.5]])

    error = refused(NonFinite, "cross-entropy", logits=torch.zeros(2, 2), target=target, reduction="none")
    answer = ask("cross-entropy", logits=torch.zeros(2, 2), target=target, reduction="none", non_finite="propagate")

    assert "row 1" in error.detail
    assert answer["loss"].isnan().tolist() == [False, True]


@every_loss
@every_reduction
def test_negative_weights_equal_torchs(operator: str, reduction: str) -> None:
    values, target = logits(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 2])
    weight = torch.tensor([-1.0, 2.0, -0.25], dtype=torch.float64)
    function = functional.nll_loss if operator == "nll-loss" else functional.cross_entropy

    loss, _ = loss_and_gradient(operator, values, target=target, weight=weight, reduction=reduction)

    torch.testing.assert_close(loss, function(values, target, weight=weight, reduction=reduction))


@every_loss
@pytest.mark.parametrize("odd", [nan, inf])
def test_a_weight_that_is_not_finite_makes_no_answer(operator: str, odd: float) -> None:
    fields = {"target": torch.tensor([0, 1]), "weight": torch.tensor([odd, 1.0, 1.0])}

    refused(NonFinite, operator, **rows_for(operator, logits(2, 3)), **fields)


def test_probabilities_divide_by_rows_and_indices_by_their_weight() -> None:
    values, target = logits(4, 3), torch.tensor([0, 1, 2, 2])
    weight = torch.tensor([0.5, 2.0, 1.0])
    one_hot = functional.one_hot(target, 3).float()

    hard = ask("cross-entropy", logits=values, target=target, weight=weight)
    soft = ask("cross-entropy", logits=values, target=one_hot, weight=weight)

    assert (hard["total_weight"], soft["total_weight"]) == (4.5, 4)
    torch.testing.assert_close(hard["loss"] * 4.5, soft["loss"] * 4)


# Options


@pytest.mark.parametrize("smoothing", [-0.1, 1.0001, nan, inf])
def test_a_smoothing_outside_0_to_1_is_refused(smoothing: float) -> None:
    error = refused(
        InvalidOption, "cross-entropy", logits=logits(1, 3), target=torch.tensor([0]), label_smoothing=smoothing
    )

    assert error.pointer == "/label_smoothing"


def test_full_smoothing_forgets_the_target() -> None:
    values = logits(1, 3)

    losses = [
        ask("cross-entropy", logits=values, target=torch.tensor([y]), label_smoothing=1.0)["loss"] for y in range(3)
    ]

    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("temperature", [0.0, -1.0, nan, inf])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    assert refused(InvalidOption, "softmax", logits=logits(1, 3), temperature=temperature).pointer == "/temperature"


@every_loss
@pytest.mark.parametrize("normalizer", [0.0, -1.0, nan, inf])
def test_a_normalizer_that_is_not_positive_is_refused(operator: str, normalizer: float) -> None:
    fields = {**rows_for(operator, logits(1, 3)), "target": torch.tensor([0]), "normalizer": normalizer}

    assert refused(InvalidOption, operator, **fields).pointer == "/normalizer"


@every_loss
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_normalizer_only_goes_with_mean(operator: str, reduction: str) -> None:
    fields = {**rows_for(operator, logits(1, 3)), "target": torch.tensor([0])}

    refused(InvalidOption, operator, normalizer=2.0, reduction=reduction, **fields)


# Shapes and types


def test_a_single_class_has_no_loss() -> None:
    loss, gradient = loss_and_gradient("cross-entropy", logits(3, 1), target=torch.zeros(3, dtype=torch.int64))

    assert loss == 0
    assert not gradient.any()


@every_operator
def test_no_classes_are_refused(operator: str) -> None:
    target = {"target": torch.zeros(2, dtype=torch.int64)} if operator in LOSSES else {}

    refused(ShapeMismatch, operator, **rows_for(operator, torch.zeros(2, 0)), **target)


@every_operator
def test_a_single_number_is_refused(operator: str) -> None:
    target = {"target": torch.tensor(0)} if operator in LOSSES else {}

    refused(ShapeMismatch, operator, **rows_for(operator, torch.tensor(1.0)), **target)


@every_operator
def test_nine_dimensions_are_refused(operator: str) -> None:
    target = {"target": torch.zeros([1] * 8, dtype=torch.int64)} if operator in LOSSES else {}

    refused(ShapeMismatch, operator, **rows_for(operator, torch.zeros([1] * 9)), **target)


@pytest.mark.parametrize(
    ("logits_shape", "target_shape"), [((3,), (1,)), ((1, 3), ()), ((2, 3), (2, 1)), ((2, 3, 4), (2, 3))]
)
def test_an_index_target_has_the_shape_without_the_classes(
    logits_shape: tuple[int, ...], target_shape: tuple[int, ...]
) -> None:
    target = torch.zeros(target_shape, dtype=torch.int64)

    error = refused(ShapeMismatch, "cross-entropy", logits=torch.zeros(logits_shape), target=target)

    assert error.pointer == "/target"


@pytest.mark.parametrize(
    "dtype",
    [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64],
    ids=str,
)
@every_loss
def test_every_integer_type_holds_indices(operator: str, dtype: torch.dtype) -> None:
    values = logits(2, 3, 2, 2)
    target = torch.tensor([0, 2, 1, 0, 2, 2, 1, 0]).reshape(2, 2, 2)

    loss, _ = loss_and_gradient(operator, values, target=target.to(dtype))

    assert loss == loss_and_gradient(operator, values, target=target)[0]


@pytest.mark.parametrize("accuracy", ["fast", "accurate"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_half_precision_mean_over_70000_rows_is_right(dtype: torch.dtype, accuracy: str) -> None:
    values = logits(70_000, 4, dtype=dtype)
    target = torch.arange(70_000) % 4

    answer = ask("cross-entropy", gradient=True, logits=values, target=target, accuracy=accuracy)

    leaf = values.double().requires_grad_()
    expected = functional.cross_entropy(leaf, target)
    expected.backward()
    assert answer["total_weight"] == 70_000
    torch.testing.assert_close(answer["loss"].double(), expected.detach(), rtol=1e-6, atol=0)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    torch.testing.assert_close(answer["grad_logits"].double(), leaf.grad, rtol=2**-8, atol=smallest)


def test_a_half_precision_loss_with_smoothing_does_not_overflow() -> None:
    values = logits(16, 1000, dtype=torch.float16) * 100

    answer = ask("cross-entropy", logits=values, target=torch.arange(16), label_smoothing=0.1, reduction="sum")

    expected = functional.cross_entropy(values.double(), torch.arange(16), label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(answer["loss"].double(), expected, rtol=1e-6, atol=0)


def test_the_upstream_gradient_scales_a_loss_before_it_is_rounded_to_half() -> None:
    values = logits(70_000, 4, dtype=torch.float16)
    target = torch.arange(70_000) % 4

    answer = ask("cross-entropy", gradient=True, logits=values, target=target, grad_output=torch.tensor(65536.0))

    leaf = values.double().requires_grad_()
    (functional.cross_entropy(leaf, target) * 65536).backward()
    torch.testing.assert_close(answer["grad_logits"].double(), leaf.grad, rtol=2**-10, atol=2**-24)
