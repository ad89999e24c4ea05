"""Every operator as a method: the numbers of the service, in the caller's kind of array."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import loss_client.operators
import ml_dtypes
import numpy as np
import pytest
import torch
from loss_client import AsyncLossClient, LossClient

from service import describe
from service.ops import OPERATORS
from tests.client.conftest import KEY
from tests.support.closeness import assert_close
from tests.support.running import RunningService

ENDPOINTS = [(name, gradient) for name in OPERATORS for gradient in (False, True)]


def method_of(client: Any, operator: str, gradient: bool) -> Any:
    return getattr(client, operator.replace("-", "_") + ("_gradient" if gradient else ""))


def arrays_of(operator: str, gradient: bool) -> dict[str, Any]:
    example = OPERATORS[operator].gradient_example if gradient else OPERATORS[operator].example
    named = {tensor.name for tensor in describe.inputs_of(OPERATORS[operator], gradient=gradient)}
    return {name: np.array(value, "int64" if name == "target" else "float32") for name, value in example.items()} | {
        name: value for name, value in example.items() if name not in named
    }


def as_json(operator: str, gradient: bool, service: RunningService) -> dict[str, Any]:
    """Return the service's own answer to the example, in another format and without the client."""
    example = OPERATORS[operator].gradient_example if gradient else OPERATORS[operator].example
    path = f"/v1/{operator}" + ("/gradient" if gradient else "")
    answer = httpx.post(service.address + path, json=dict(example), headers={"Authorization": f"Bearer {KEY}"})
    answer.raise_for_status()
    return dict(answer.json())


@pytest.mark.parametrize(("operator", "gradient"), ENDPOINTS)
def test_a_method_gives_the_numbers_of_the_service(
    client: LossClient, service: RunningService, operator: str, gradient: bool
) -> None:
    answer = method_of(client, operator, gradient)(**arrays_of(operator, gradient))

    assert_close({name: value.tolist() for name, value in answer.items()}, as_json(operator, gradient, service))
    assert {type(value) for value in answer.values()} == {np.ndarray}
    for name in answer:
        assert getattr(answer, name) is answer[name]


@pytest.mark.parametrize(("operator", "gradient"), ENDPOINTS)
def test_the_asynchronous_client_gives_the_same_at_the_same_time(
    client: LossClient, service: RunningService, operator: str, gradient: bool
) -> None:
    async def ask() -> list[Any]:
        async with AsyncLossClient(service.address, api_key=KEY) as opened:
            await opened.wait_until_ready()
            calls = [method_of(opened, operator, gradient)(**arrays_of(operator, gradient)) for _ in range(8)]
            return await asyncio.gather(*calls)

    expected = method_of(client, operator, gradient)(**arrays_of(operator, gradient))

    for answer in asyncio.run(ask()):
        assert {name: value.tolist() for name, value in answer.items()} == {
            name: value.tolist() for name, value in expected.items()
        }


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_tensors_come_back_as_tensors_of_their_type(client: LossClient, dtype: str) -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    target = torch.tensor([0, 6, -100, 3, 2])

    answer = client.cross_entropy_gradient(logits, target, outputs=["loss", "grad_logits", "log_probs"])

    wanted = logits.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(wanted, target)
    loss.backward()
    assert wanted.grad is not None
    precision = {"float64": 1e-12, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
    torch.testing.assert_close(answer.loss.double(), loss.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(answer.grad_logits.double(), wanted.grad, rtol=precision, atol=precision)
    assert answer.loss.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert answer.grad_logits.dtype == answer.log_probs.dtype == logits.dtype


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16, ">f4"])
def test_arrays_come_back_as_arrays_of_their_type(client: LossClient, dtype: Any) -> None:
    logits = np.random.default_rng(1).normal(size=(5, 7)).astype(dtype)

    answer = client.softmax(logits)

    assert answer.probs.dtype == np.dtype(dtype).newbyteorder("=")
    expected = torch.softmax(torch.from_numpy(logits.astype("float64")), 1).numpy()
    np.testing.assert_allclose(answer.probs.astype("float64"), expected, rtol=8e-3)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_targets_may_be_of_any_integer_type(client: LossClient, dtype: str) -> None:
    logits = np.eye(3, dtype="float32")

    of_array = client.cross_entropy(logits, np.array([0, 1, 2], dtype))
    of_tensor = client.cross_entropy(torch.from_numpy(logits), torch.tensor([0, 1, 2], dtype=getattr(torch, dtype)))

    assert float(of_array.loss) == float(of_tensor.loss) == pytest.approx(0.5514447)


def test_what_does_not_lie_in_rows_is_sent_as_it_is_seen(client: LossClient) -> None:
    logits = np.random.default_rng(2).normal(size=(6, 4)).astype("float32")

    expected = client.softmax(logits).probs

    np.testing.assert_array_equal(client.softmax(np.asfortranarray(logits)).probs, expected)
    np.testing.assert_array_equal(client.softmax(logits[::2]).probs, expected[::2])
    assert torch.equal(client.softmax(torch.from_numpy(logits).T, class_dim=0).probs, torch.from_numpy(expected).T)


def test_outputs_without_elements_or_dimensions_keep_their_shape(client: LossClient) -> None:
    empty = client.softmax(np.empty((0, 5), "float32"))
    loss = client.nll_loss(np.zeros((2, 3), "float32"), np.array([0, 1]), reduction="sum").loss

    assert empty.probs.shape == (0, 5)
    assert loss.shape == ()


def test_an_upstream_gradient_may_be_a_number(client: LossClient) -> None:
    logits, target = np.eye(3, dtype="float32"), np.arange(3)

    doubled = client.cross_entropy_gradient(logits, target, grad_output=2.0).grad_logits

    np.testing.assert_allclose(doubled, 2 * client.cross_entropy_gradient(logits, target).grad_logits, rtol=1e-6)


def test_the_class_of_one_row_may_be_a_number(client: LossClient) -> None:
    logits = np.array([1.0, 2.0, 3.0])

    assert client.cross_entropy(logits, 0).loss == client.cross_entropy(logits, np.array(0)).loss
    assert client.nll_loss(logits, 2).loss == -3.0


def test_an_output_that_was_not_asked_for_says_how_to_get_it(client: LossClient) -> None:
    answer = client.softmax(np.eye(3, dtype="float32"))

    assert not hasattr(answer, "logsumexp")
    with pytest.raises(AttributeError, match="did not ask for 'logsumexp'; name it in `outputs`"):
        _ = answer.logsumexp


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([[1.0, 2.0]], "'logits' must be a NumPy array or a torch tensor, but is list; numpy.asarray"),
        (np.array(["a"]), "'logits' has elements of type str, but must have one of float64, "),
        (np.array([True]), "'logits' has elements of type bool"),
        (torch.zeros(2, dtype=torch.complex64), "'logits' has elements of type complex64"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_before_it_is_sent(
    client: LossClient, value: Any, sentence: str
) -> None:
    with pytest.raises(TypeError, match=sentence):
        client.softmax(value)


def test_an_operator_can_be_named(client: LossClient) -> None:
    logits, target = np.eye(3, dtype="float32"), np.arange(3)

    named = client.compute("cross-entropy", {"logits": logits, "target": target}, {"reduction": "sum"}, gradient=True)

    assert set(named) == {"loss", "total_weight", "grad_logits"}
    assert named["loss"] == client.cross_entropy(logits, target, reduction="sum").loss
    with pytest.raises(ValueError, match="there is no operator 'crossentropy'"):
        client.compute("crossentropy", {})
    with pytest.raises(ValueError, match="softmax takes no tensor 'target'"):
        client.compute("softmax", {"logits": logits, "target": target})
    with pytest.raises(ValueError, match="softmax needs the tensor 'logits'"):
        client.compute("softmax", {})


def test_the_service_can_be_asked_about_itself(client: LossClient, service: RunningService) -> None:
    assert (
        [operator["name"] for operator in client.operators()]
        == list(OPERATORS)
        == list(loss_client.operators.OPERATORS)
    )
    assert client.limits()["max_rank"] == 8
    assert client.is_ready()
    assert not LossClient("http://127.0.0.1:1").is_ready()
