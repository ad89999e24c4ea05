"""Adding a loss costs one file and one line: everything else follows from the table."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI

from service.app import create_app
from service.errors import TargetOutOfRange
from service.ops import OPERATORS
from service.ops.spec import Operator
from service.settings import Settings
from tests.support.asking import ask
from tests.support.toy_loss import OPERATOR

TABLE = {**OPERATORS, OPERATOR.name: OPERATOR}


def asked(use: Callable[[httpx.AsyncClient], Awaitable[Any]], table: Mapping[str, Operator] = TABLE) -> Any:
    """Run `use` with a client of an application that has the toy loss in its table, after its self-test."""

    async def run() -> Any:
        app: FastAPI = create_app(Settings(device="cpu", threads=1), table)
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            while (await client.get("/health/ready")).json()["status"] == "starting":  # noqa: ASYNC110 -- readiness is a page
                await asyncio.sleep(0.001)
            return await use(client)

    return asyncio.run(run())


def get(path: str) -> Any:
    async def use(client: httpx.AsyncClient) -> Any:
        return (await client.get(path)).raise_for_status().json()

    return asked(use)


def post(path: str, body: dict[str, Any]) -> httpx.Response:
    async def use(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(path, json=body)

    return asked(use)


def brier(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    one_hot = torch.nn.functional.one_hot(target, logits.shape[1])
    return (torch.softmax(logits, 1) - one_hot).square().sum(1).mean()


def test_its_route_answers_its_example() -> None:
    answer = post("/v1/brier-loss", OPERATOR.example)

    expected = brier(torch.tensor(OPERATOR.example["logits"]), torch.tensor(OPERATOR.example["target"]))
    assert answer.status_code == 200
    assert answer.json() == {"loss": pytest.approx(float(expected)), "total_weight": 2}


def test_its_gradient_route_answers_with_the_gradient_of_autograd() -> None:
    answer = post("/v1/brier-loss/gradient", OPERATOR.gradient_example)

    logits = torch.tensor(OPERATOR.example["logits"], requires_grad=True)
    brier(logits, torch.tensor(OPERATOR.example["target"])).backward()
    assert answer.status_code == 200
    torch.testing.assert_close(torch.tensor(answer.json()["grad_logits"]), logits.grad)


def test_its_requests_are_validated_like_all_others() -> None:
    answer = post("/v1/brier-loss", {**OPERATOR.example, "target": [0, 3]})

    assert answer.status_code == 422
    assert answer.json()["code"] == TargetOutOfRange.code


async def readiness(client: httpx.AsyncClient) -> httpx.Response:
    return await client.get("/health/ready")


def test_the_service_is_ready_when_it_has_answered_its_example() -> None:
    assert asked(readiness).status_code == 200


def test_the_service_is_not_ready_when_it_does_not_answer_its_example(caplog: pytest.LogCaptureFixture) -> None:
    broken = dataclasses.replace(OPERATOR, gradient_example={**OPERATOR.example, "target": [0, 3]})

    answer = asked(readiness, {broken.name: broken})

    assert (answer.status_code, answer.json()["status"]) == (503, "failed")
    assert "does not answer its own example" in caplog.text


def test_the_document_describes_it() -> None:
    document = get("/openapi.json")

    for path, schema in (("/v1/brier-loss", "BrierLoss"), ("/v1/brier-loss/gradient", "BrierLossGradient")):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{schema}Request"}
        assert OPERATOR.example in [example["value"] for example in content["examples"].values()]
        assert {f"{schema}Request", f"{schema}Answer"} <= set(document["components"]["schemas"])


def test_the_operator_listing_holds_it() -> None:
    operators = {entry["name"]: entry for entry in get("/v1/operators")["operators"]}

    assert list(operators) == list(TABLE)
    assert [output["name"] for output in operators["brier-loss"]["outputs"]] == ["loss", "total_weight", "grad_logits"]
    assert "normalizer" in [option["name"] for option in operators["brier-loss"]["options"]]


def test_the_table_of_the_service_itself_is_as_it_was() -> None:
    asked(lambda client: client.get("/v1/operators"))

    assert OPERATOR.name not in OPERATORS


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_reductions_ignored_rows_and_class_dimensions_come_for_free(reduction: str) -> None:
    logits = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.tensor([[0, -100], [2, 4], [1, 1]])
    poisoned = logits.clone()
    poisoned[0, :, 1] = torch.nan

    answer = ask(OPERATOR, gradient=True, logits=poisoned, target=target, reduction=reduction)

    kept = target.reshape(-1) != -100
    rows = logits.movedim(1, -1).reshape(-1, 5)
    losses = (torch.softmax(rows, 1) - torch.nn.functional.one_hot(target.reshape(-1).clamp(0), 5)).square().sum(1)
    losses = losses.masked_fill(~kept, 0.0)
    expected = {"none": losses.reshape(3, 2), "mean": losses.sum() / 5, "sum": losses.sum()}[reduction]
    torch.testing.assert_close(answer["loss"], expected)
    assert not answer["grad_logits"][0, :, 1].any()
