"""Generated requests of every kind against torch and against the closed forms in long double."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.ops import OPERATORS
from tests.support.asking import ask
from tests.support.cases import HALF, Case, cases
from tests.support.torch_reference import torch_answer
from tests.support.truth import Exact, error_in_ulp, exact, rows_of, truth_of, truths_of, ulp

FEW_ULP = 4.0
"""Units in the last place that the fast mode may be wrong by even where torch is better."""

ROUNDING = 0.51
"""Units in the last place that a value computed with digits to spare may be wrong by after it is rounded once."""

every_operator = pytest.mark.parametrize("operator", OPERATORS)


def drawn(data: st.DataObject, operator: str, *dtypes: str) -> Case:
    return data.draw(cases(operator, dtypes=dtypes))


def rounding(dtype: torch.dtype, size: Exact) -> Exact:
    """Return what rounding once into a type may change; nothing to speak of in float64."""
    return size * 0 if dtype == torch.float64 else ROUNDING * ulp(size, dtype)


def within(got: Exact, wanted: Exact, limit: Exact) -> bool:
    return bool((np.abs(got.reshape(wanted.shape) - wanted) <= limit).all())


def errors_of(answer: dict[str, Exact], case: Case) -> dict[str, float]:
    """Return the largest error of each output in units in the last place, of float32 or a narrower soft target."""
    truths = truths_of(case)
    narrow = {"grad_target": case["target"].dtype} if case.is_soft and case["target"].dtype.itemsize == 2 else {}
    return {
        name: min(
            error_in_ulp(got, truth.values[name], truth.scales[name], narrow.get(name, torch.float32))
            for truth in truths
        )
        for name, got in answer.items()
    }


@every_operator
@settings(max_examples=300)
@given(data=st.data())
def test_float64_results_and_gradients_equal_torch_and_autograd(operator: str, data: st.DataObject) -> None:
    case = drawn(data, operator, "float64")

    answer = ask(operator, gradient=True, **case.fields)

    truth, expected = truth_of(case), torch_answer(case, torch.float64)
    assert set(answer) == set(expected)
    for name, got in rows_of(answer, case).items():
        scale = truth.scales[name]
        # torch loses the digits of confident rows, in proportion to the largest number around: 1, or the tensor's.
        size = np.maximum(scale, max(scale.max(), 1.0) * 1e-2)
        error = np.abs(got.reshape(scale.shape) - exact(expected[name]).reshape(scale.shape))
        assert (error <= 1e-12 * size + rounding(answer[name].dtype, scale)).all(), name


@every_operator
@settings(max_examples=200)
@given(data=st.data())
def test_float64_answers_equal_the_closed_forms(operator: str, data: st.DataObject) -> None:
    case = drawn(data, operator, "float64")

    answer = ask(operator, gradient=True, **case.fields)

    truths = truths_of(case)
    assert set(answer) == set(truths[0].values)
    for name, got in rows_of(answer, case).items():
        allowed = [1e-13 * truth.scales[name] + rounding(answer[name].dtype, truth.scales[name]) for truth in truths]
        assert any(within(got, truth.values[name], limit) for truth, limit in zip(truths, allowed, strict=True)), name


@every_operator
@settings(max_examples=400)
@given(data=st.data())
def test_float32_is_at_least_as_accurate_as_torch(operator: str, data: st.DataObject) -> None:
    case = drawn(data, operator, "float32")

    answer = rows_of(ask(operator, gradient=True, **case.fields), case)

    torchs = errors_of({name: exact(tensor) for name, tensor in torch_answer(case, torch.float32).items()}, case)
    for name, error in errors_of(answer, case).items():
        assert error <= max(torchs[name], FEW_ULP), name


@every_operator
@settings(max_examples=300)
@given(data=st.data())
def test_half_inputs_are_computed_in_float32_and_rounded_once(operator: str, data: st.DataObject) -> None:
    case = drawn(data, operator, *HALF)

    answer = ask(operator, gradient=True, **case.fields)

    torchs = errors_of({name: exact(tensor) for name, tensor in torch_answer(case, torch.float32).items()}, case)
    for name, got in rows_of(answer, case).items():
        computed = max(torchs[name], FEW_ULP)
        assert any(
            within(
                got,
                truth.values[name],
                rounding(answer[name].dtype, np.abs(truth.values[name]))
                + computed * ulp(truth.scales[name], torch.float32),
            )
            for truth in truths_of(case)
        ), name


@every_operator
@settings(max_examples=300)
@given(data=st.data())
def test_accurate_mode_is_within_one_ulp(operator: str, data: st.DataObject) -> None:
    case = drawn(data, operator, *HALF, "float32")

    answer = ask(operator, gradient=True, accuracy="accurate", **case.fields)

    truth = truth_of(case)
    for name, got in rows_of(answer, case).items():
        wanted, scale, dtype = truth.values[name], truth.scales[name], answer[name].dtype
        # The second term is what float64 itself leaves of terms that cancel.
        assert within(got, wanted, ulp(np.abs(wanted), dtype) + 1e-13 * scale), name


@every_operator
@settings(max_examples=200)
@given(data=st.data())
def test_results_have_the_shapes_and_types_of_the_contract(operator: str, data: st.DataObject) -> None:
    case = drawn(data, operator, "float16", "bfloat16", "float32", "float64")

    answer = ask(operator, gradient=True, **case.fields)

    rows_shape = case.first.movedim(case.class_dim, -1).shape[:-1]
    of_loss = torch.float64 if case.first.dtype == torch.float64 else torch.float32
    reduced = rows_shape if case.fields.get("reduction") == "none" else ()
    expected = {
        "probs": (case.first.shape, case.first.dtype),
        "log_probs": (case.first.shape, case.first.dtype),
        "grad_logits": (case.first.shape, case.first.dtype),
        "grad_log_probs": (case.first.shape, case.first.dtype),
        "grad_target": (case.first.shape, case["target"].dtype if case.is_soft else None),
        "logsumexp": (rows_shape, of_loss),
        "loss": (reduced, of_loss),
        "total_weight": ((), of_loss),
    }
    for name, tensor in answer.items():
        assert (tensor.shape, tensor.dtype) == expected[name], name


@every_operator
@settings(max_examples=100)
@given(data=st.data())
def test_forward_gives_the_bits_of_the_fused_pass(operator: str, data: st.DataObject) -> None:
    case = drawn(data, operator, "float16", "float32", "float64")
    together = ask(operator, gradient=True, **case.fields)
    names = [output.name for output in OPERATORS[operator].outputs_of(gradient=False)]

    alone = ask(operator, **(case.fields | {"grad_output": None, "outputs": names}))

    assert list(alone) == names
    for name, tensor in alone.items():
        assert torch.equal(tensor, together[name]), name


@every_operator
@settings(max_examples=100)
@given(data=st.data())
def test_an_output_does_not_depend_on_which_others_are_wanted(operator: str, data: st.DataObject) -> None:
    case = drawn(data, operator, "float16", "float32", "float64")
    together = ask(operator, gradient=True, **case.fields)

    for name, expected in together.items():
        alone = ask(operator, gradient=True, **(case.fields | {"outputs": [name]}))

        assert list(alone) == [name]
        assert torch.equal(alone[name], expected), name
