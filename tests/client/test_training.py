"""`RemoteCrossEntropyLoss` in the place of torch's own: the same losses, gradients and trained models."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from loss_client import LossClient, RemoteCrossEntropyLoss
from loss_client.problems import UndefinedMeanError
from torch import Tensor, nn

from tests.client.conftest import KEY
from tests.support.running import RunningService

CLASSES = 6
RANDOM = torch.Generator().manual_seed(3)
WEIGHT = torch.rand(CLASSES, generator=RANDOM) + 0.2
FEATURES = torch.randn(96, 4, generator=RANDOM)
INDICES = torch.randint(CLASSES, (96,), generator=RANDOM)
SKIPPING = INDICES.masked_fill(torch.rand(96, generator=RANDOM) < 0.3, -100)
SOFT = torch.softmax(torch.randn(96, CLASSES, generator=RANDOM), 1)

LOSSES: dict[str, tuple[dict[str, Any], Tensor]] = {
    "plain": ({}, INDICES),
    "sum": ({"reduction": "sum"}, INDICES),
    "weighted": ({"weight": WEIGHT}, INDICES),
    "skipping": ({}, SKIPPING),
    "ignoring a class": ({"ignore_index": 2}, INDICES),
    "smoothed": ({"weight": WEIGHT, "label_smoothing": 0.1}, SKIPPING),
    "soft": ({}, SOFT),
    "soft, smoothed, weighted": ({"weight": WEIGHT, "label_smoothing": 0.2}, SOFT),
}


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """The paths that were asked for, in order."""
    return []


@pytest.fixture(scope="module")
def client(service: RunningService, asked: list[str]) -> Iterator[LossClient]:
    hooks = {"request": [lambda request: asked.append(request.url.path)]}
    with httpx.Client(event_hooks=hooks) as http:
        yield LossClient(service.address, api_key=KEY, http=http)


def trained(loss: nn.Module, target: Tensor, steps: int = 25) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3 if getattr(loss, "reduction", "") != "sum" else 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(FEATURES), target).backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("name", LOSSES)
def test_a_trained_model_has_the_parameters_that_torchs_own_loss_gives(client: LossClient, name: str) -> None:
    options, target = LOSSES[name]

    expected = trained(nn.CrossEntropyLoss(**options), target)
    parameters = trained(RemoteCrossEntropyLoss(client, **options), target)

    for key, value in parameters.items():
        torch.testing.assert_close(value, expected[key], rtol=2e-5, atol=2e-6)
    untrained = trained(nn.CrossEntropyLoss(**options), target, steps=0)
    assert any((untrained[key] - value).abs().max() > 1e-2 for key, value in parameters.items())


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(CLASSES,), (9, CLASSES), (2, CLASSES, 3, 4)])
def test_loss_and_gradient_are_torchs_in_every_shape(
    client: LossClient, reduction: Any, shape: tuple[int, ...]
) -> None:
    logits = torch.randn(shape, generator=RANDOM)
    target = torch.randint(CLASSES, shape[2:] if len(shape) == 1 else (shape[0], *shape[2:]), generator=RANDOM)
    results = []
    for loss in (RemoteCrossEntropyLoss(client, reduction=reduction), nn.CrossEntropyLoss(reduction=reduction)):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, target)
        (value * torch.arange(1.0, 1 + value.numel()).view(value.shape)).sum().backward()
        results.append((value.detach(), leaf.grad))

    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_a_soft_target_gets_its_gradient_when_it_requires_one(client: LossClient) -> None:
    results = []
    for loss in (RemoteCrossEntropyLoss(client), nn.CrossEntropyLoss()):
        logits, target = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.eye(3)[[0, 2, 1, 1, 0]]
        target.requires_grad_()
        student = logits.clone().requires_grad_()
        (2 * loss(student, target) + 2 * loss(logits, target)).backward()
        results.append((student.grad, target.grad))

    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_a_gradient_is_asked_for_with_the_loss_and_only_when_needed(client: LossClient, asked: list[str]) -> None:
    loss = RemoteCrossEntropyLoss(client)
    leaf = torch.zeros(2, 3, requires_grad=True)
    asked.clear()

    loss(leaf, torch.tensor([0, 1])).backward()
    loss(leaf.detach(), torch.tensor([0, 1]))
    with torch.no_grad():
        loss(leaf, torch.tensor([0, 1]))

    assert asked == ["/v1/cross-entropy/gradient", "/v1/cross-entropy", "/v1/cross-entropy"]


def test_a_skipped_row_stays_without_gradient_whatever_comes_from_above(client: LossClient) -> None:
    leaf = torch.zeros(2, 3, requires_grad=True)

    loss = RemoteCrossEntropyLoss(client, reduction="none")(leaf, torch.tensor([-100, 1]))
    loss.backward(torch.tensor([torch.inf, 1.0]))

    assert leaf.grad is not None
    assert leaf.grad[0].tolist() == [0, 0, 0]
    torch.testing.assert_close(leaf.grad[1], torch.tensor([1 / 3, -2 / 3, 1 / 3]))


def test_a_loss_scale_saves_gradients_that_half_precision_would_lose(client: LossClient) -> None:
    """A gradient of 1e-9 is 0 in float16, but not 65536 times that."""
    leaf = torch.zeros(1, 2, dtype=torch.float16)
    leaf[0, 0] = 20.0
    leaf.requires_grad_()

    (RemoteCrossEntropyLoss(client)(leaf, torch.tensor([0])) * 65536.0).backward()

    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float16
    assert leaf.grad[0, 1].item() == pytest.approx(65536 * 2.0611536e-09, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gradients_have_the_type_of_the_logits(client: LossClient, dtype: torch.dtype) -> None:
    leaf = torch.randn(4, 3, generator=RANDOM).to(dtype).requires_grad_()
    exact = leaf.detach().double().requires_grad_()
    target = torch.tensor([0, 1, 2, 1])

    RemoteCrossEntropyLoss(client)(leaf, target).backward()
    nn.functional.cross_entropy(exact, target).backward()

    assert leaf.grad is not None
    assert exact.grad is not None
    assert leaf.grad.dtype == dtype
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=torch.finfo(dtype).eps, atol=1e-12)


def test_the_mean_over_nothing_is_nan_as_in_torch_unless_told_otherwise(client: LossClient) -> None:
    leaf, target = torch.zeros(2, 3, requires_grad=True), torch.tensor([-100, -100])

    loss = RemoteCrossEntropyLoss(client)(leaf, target)
    loss.backward()

    assert loss.isnan()
    assert leaf.grad is not None
    assert not leaf.grad.any()
    with pytest.raises(UndefinedMeanError):
        RemoteCrossEntropyLoss(client, non_finite="reject")(leaf, target)


def test_a_compiled_model_steps_out_for_it(client: LossClient) -> None:
    model, loss = nn.Linear(4, CLASSES), RemoteCrossEntropyLoss(client)

    value = torch.compile(lambda: loss(model(FEATURES), INDICES), backend="eager")()
    value.backward()

    torch.testing.assert_close(value, nn.functional.cross_entropy(model(FEATURES), INDICES))
    assert model.weight.grad is not None


def test_it_is_a_module_like_others(client: LossClient) -> None:
    loss = RemoteCrossEntropyLoss(client, WEIGHT, class_dim=-1, temperature=2.0)

    assert list(loss.state_dict()) == ["weight"]
    assert loss.double().weight is not None
    assert loss.weight is not None
    assert loss.weight.dtype == torch.float64
    assert copy.deepcopy(loss).client is client
    assert "RemoteCrossEntropyLoss(http://127.0.0.1:" in repr(loss)
    logits = torch.randn(2, 5, CLASSES, generator=RANDOM)
    target = torch.randint(CLASSES, (2, 5), generator=RANDOM)
    expected = nn.functional.cross_entropy(logits.movedim(-1, 1) / 2, target, WEIGHT)
    torch.testing.assert_close(loss(logits, target), expected)
