"""`loss-service operators` and `loss-service openapi` say what the service's own addresses say."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import httpx
import pytest

from service.__main__ import main
from service.app import create_app
from service.ops import OPERATORS
from service.settings import Settings


def answer_of(path: str) -> dict[str, object]:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(Settings(device="cpu")))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path)

    return dict(asyncio.run(get()).json())


def test_the_operators_are_those_of_the_service(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["operators", "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == answer_of("/v1/operators")["operators"]


def test_the_operators_are_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["operators"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["operator", *OPERATORS]
    assert "logits, target, weight* " in lines[-1]
    assert "loss, total_weight, log_probs*, logsumexp*" in lines[-1]


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_shown_with_everything_it_takes_and_gives(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["operators", name]) == 0

    text = capsys.readouterr().out
    operator = OPERATORS[name]
    for part in (*operator.inputs, *operator.outputs):
        assert f"  {part.name} [" in text
    for option in operator.options.model_fields:
        assert f"  {option}: " in text


def test_the_openapi_document_is_that_of_the_service(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["openapi"]) == 0

    assert json.loads(capsys.readouterr().out) == answer_of("/openapi.json")


def test_settings_that_cannot_be_used_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOSS_WORKERS", "0")

    assert main(["openapi"]) == 78

    assert capsys.readouterr().err == (
        "loss-service: LOSS_WORKERS (--workers) should be greater than or equal to 1, but is '0'\n"
    )


def test_a_reader_who_has_seen_enough_is_no_failure() -> None:
    command = f"{sys.executable} -m service openapi | head -c 1; exit ${{PIPESTATUS[0]}}"

    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (141, "{", "")
