"""The OpenAPI document says what the service does: every example in it is answered as it says."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import orjson
import pytest
import schemathesis
from starlette.routing import Route

from service import describe
from service.app import create_app
from service.errors import ERRORS
from service.http.docs import NOT_OF_OPERATORS, example_problem, path_of, recorded
from service.http.formats import MEDIA_TYPES
from service.http.problems import statuses_of
from service.ops import OPERATORS
from service.settings import Settings
from service.tensors import DTYPES
from service.wire.safetensors_codec import MAX_HEADER_BYTES
from tests.http.record_examples import record
from tests.support.closeness import assert_close

STALE = "the recorded examples are not current: run `python -m tests.http.record_examples`"

ENDPOINTS = [(operator, gradient) for operator in OPERATORS.values() for gradient in (False, True)]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(orjson.dumps(create_app(Settings(device="cpu")).openapi()))
    return document


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    return asyncio.run(record())


def test_every_example_is_answered_as_the_document_says(now: dict[str, Any]) -> None:
    assert {path: list(answers) for path, answers in now["answers"].items()} == {
        path: list(answers) for path, answers in recorded()["answers"].items()
    }, STALE
    assert_close(now["answers"], recorded()["answers"])


def test_every_example_problem_is_one_that_the_service_gives(now: dict[str, Any]) -> None:
    assert now["problems"] == recorded()["problems"], STALE
    assert {code: entry["answer"]["code"] for code, entry in now["problems"].items()} == {
        code: code for code in now["problems"]
    }


@pytest.mark.parametrize("code", ERRORS)
def test_an_example_problem_is_a_whole_sentence(code: str) -> None:
    detail = example_problem(ERRORS[code])["detail"]

    assert detail.endswith((".", "?"))
    assert not re.search(r"\{\w*\}|\.\.\.", detail)


@pytest.mark.parametrize(("operator", "gradient"), ENDPOINTS)
def test_an_endpoint_documents_every_option_with_default_and_meaning(
    document: dict[str, Any], operator: Any, gradient: bool
) -> None:
    schema = document["components"]["schemas"][describe.schema_name(operator, gradient=gradient) + "Request"]
    text = document["paths"][path_of(operator, gradient=gradient)]["post"]["description"]

    for name, option in operator.options.model_fields.items():
        assert schema["properties"][name]["description"] == option.description
        assert f"| `{name}` |" in text
        if name != "outputs":
            assert schema["properties"][name]["default"] == option.default
    assert schema["properties"]["outputs"]["default"] == describe.defaults(operator, gradient=gradient)
    assert set(schema["properties"]) == set(operator.options.model_fields) | set(operator.tensors_of(gradient=gradient))


@pytest.mark.parametrize(("operator", "gradient"), ENDPOINTS)
def test_an_endpoint_documents_every_error_under_its_status(
    document: dict[str, Any], operator: Any, gradient: bool
) -> None:
    responses = document["paths"][path_of(operator, gradient=gradient)]["post"]["responses"]

    documented = {
        (code, int(status))
        for status, response in responses.items()
        if "$ref" in response
        for code in document["components"]["responses"][response["$ref"].rpartition("/")[2]]["content"][
            "application/problem+json"
        ]["examples"]
    }

    assert documented == {
        (error.code, status)
        for error in ERRORS.values()
        for status in statuses_of(error)
        if error.code not in NOT_OF_OPERATORS | {"unauthorized", "rate-limited"}
    }


@pytest.mark.parametrize(("operator", "gradient"), ENDPOINTS)
def test_an_endpoint_documents_every_format_in_and_out(document: dict[str, Any], operator: Any, gradient: bool) -> None:
    post = document["paths"][path_of(operator, gradient=gradient)]["post"]

    assert set(post["requestBody"]["content"]) == set(MEDIA_TYPES.values())
    assert set(post["responses"]["200"]["content"]) == set(MEDIA_TYPES.values())
    assert "`Accept`" in document["info"]["description"]


@pytest.mark.anyio
async def test_every_example_of_a_model_is_answered_as_the_document_says(
    document: dict[str, Any], client: httpx.AsyncClient
) -> None:
    for operator, gradient in ENDPOINTS:
        path = f"/v2/models/{describe.model_name(operator, gradient)}/infer"
        post = document["paths"][path]["post"]
        examples = post["requestBody"]["content"]["application/json"]["examples"]
        answers = post["responses"]["200"]["content"]["application/json"]["examples"]
        assert list(examples) == list(answers)
        assert examples
        for name, example in examples.items():
            assert_close((await client.post(path, json=example["value"])).json(), answers[name]["value"])


def test_everything_below_v2_is_documented() -> None:
    app = create_app(Settings(device="cpu", shared_memory=True))
    documented = {re.sub(r"\{\w+\}", "{}", path) for path in app.openapi()["paths"]}
    routed = {re.sub(r"\{\w+\}", "{}", route.path) for route in app.routes if isinstance(route, Route)}
    unversioned = {path for path in routed if path.startswith("/v2") and "/versions/" not in path}

    assert {path for path in unversioned if "cuda" not in path} - {"/v2/models/{}/infer"} <= documented
    assert "`/versions/1`" in str(app.openapi()["tags"])
    assert "`/versions/1`" in app.openapi()["info"]["description"]


def test_the_binary_format_is_documented_with_its_types_and_limits(document: dict[str, Any]) -> None:
    text = document["components"]["schemas"]["SafetensorsRequest"]["description"]

    assert all(dtype.safetensors in text for dtype in DTYPES.values())
    assert str(MAX_HEADER_BYTES) in text
    assert "__metadata__" in text


def test_the_document_is_valid_and_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    loaded = schemathesis.openapi.from_dict(document)
    references = set(re.findall(r'"\$ref":"#/components/(\w+)/([\w-]+)"', orjson.dumps(document).decode()))

    assert document["openapi"] == "3.1.0"
    loaded.validate()
    assert len(list(loaded.get_all_operations())) == sum(len(item) for item in document["paths"].values())
    assert all(name in document["components"][kind] for kind, name in references)


def test_operations_have_names_of_their_own_and_tags_in_order(document: dict[str, Any]) -> None:
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    names = [operation["operationId"] for operation in operations]

    assert len(set(names)) == len(names)
    assert list(dict.fromkeys(tag for operation in operations for tag in operation["tags"])) == [
        tag["name"] for tag in document["tags"]
    ]


def test_the_document_has_a_licence_and_says_what_the_service_is(document: dict[str, Any]) -> None:
    assert document["info"]["license"]["identifier"] == "Apache-2.0"
    assert "PyTorch" in document["info"]["description"]
