"""Every sentence of every error is provoked by a request, and reads as the table of cases says."""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service import errors
from service.app import create_app
from service.errors import ERRORS, RequestError
from service.http.problems import STATUS, status_of
from service.ops import OPERATORS
from service.settings import Settings
from tests.http.calling import (
    BINARY,
    JSON,
    NESTED,
    SAFETENSORS,
    Endpoint,
    body_of,
    check_problem,
    check_refusal,
    client_of,
    infer_body,
)
from tests.http.infer_cases import INFER_CASES
from tests.http.problem_cases import CASES as NATIVE_CASES
from tests.http.problem_cases import Case

CASES = [*NATIVE_CASES, *INFER_CASES]

OTHERWISE_PROVOKED = {
    ("internal", "bug"),
    ("draining", "draining"),
    *(("malformed-request", sentence) for sentence in set(errors.MalformedRequest.sentences) - {"host"}),
    *(("request-timeout", sentence) for sentence in errors.RequestTimeout.sentences),
    *(("headers-too-large", sentence) for sentence in errors.HeadersTooLarge.sentences),
    ("uri-too-long", "target"),
    ("unauthorized", "missing"),
    ("unauthorized", "form"),
    ("unauthorized", "unknown"),
    ("rate-limited", "rate"),
    ("overloaded", "queue"),
    ("overloaded", "deadline"),
    ("memory-budget", "full"),
    ("memory-budget", "arriving"),
    ("memory-budget", "engine"),
    ("engine-restarting", "restarting"),
    ("deadline-exceeded", "late"),
    ("malformed-tensor", "region-bytes"),
}
"""Sentences that no request alone provokes; tests of their own do: here, in test_hosts.py, test_auth.py,
test_raw_requests.py, test_slow_callers.py, test_intake.py, test_overload.py, test_engine_faults.py and
test_shared_memory.py."""


def _requests() -> Iterator[Any]:
    for case in CASES:
        for endpoint in case.endpoints:
            for form in case.forms():
                name = f"{case.error.code}:{case.sentence}-{endpoint.path[4:]}{'' if form == NESTED else '-' + form}"
                yield pytest.param(case, endpoint, form, id=name)


def filled(value: Any, endpoint: Endpoint) -> Any:
    """Put the endpoint's names into a case."""
    if isinstance(value, list):
        return [filled(item, endpoint) for item in value]
    if not isinstance(value, str):
        return value
    words = {
        "first": endpoint.first,
        "owner": endpoint.operator,
        "path": endpoint.path,
        "infer": endpoint.infer_path,
        "fields": ", ".join(endpoint.fields),
        "result": OPERATORS[endpoint.operator].outputs[0].name,
    }
    for word, meaning in words.items():
        value = value.replace("{" + word + "}", meaning)
    return value


@pytest.fixture
async def client_for(app: FastAPI) -> AsyncIterator[Any]:
    clients: list[httpx.AsyncClient] = []

    def choose(case: Case) -> httpx.AsyncClient:
        chosen = create_app(Settings(threads=1, device="cpu", **case.settings)) if case.settings else app
        clients.append(client_of(chosen))
        return clients[-1]

    yield choose
    for client in clients:
        await client.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize(("case", "endpoint", "form"), list(_requests()))
async def test_a_wrong_request_is_refused_with_its_sentence(
    client_for: Any, case: Case, endpoint: Endpoint, form: str
) -> None:
    body, headers = case.body, case.headers | (SAFETENSORS if form == BINARY else {})
    if body is None:
        changed = {filled(name, endpoint): filled(value, endpoint) for name, value in case.change.items()}
        fields = {name: value for name, value in (endpoint.valid() | changed).items() if value is not None}
        body = body_of(fields, form=form)

    path = filled(case.path, endpoint)
    response = await client_for(case).request(case.method, path, content=body, headers=headers)

    if path.startswith("/v2"):
        assert check_refusal(response, code=case.error.code) == filled(case.detail, endpoint)
        assert response.status_code == status_of(case.error, case.sentence)
        return
    problem = check_problem(response, code=case.error.code)
    assert problem["detail"] == filled(
        case.typed_detail if form != NESTED and case.typed_detail else case.detail, endpoint
    )
    assert problem.get("pointer") == filled(case.pointer, endpoint)


def _inferences() -> Iterator[Any]:
    for case in CASES:
        for endpoint in case.endpoints if case.is_inferable else []:
            for binary in (False, True):
                name = f"{case.error.code}:{case.sentence}-{endpoint.infer_path[11:-6]}{'-binary' if binary else ''}"
                yield pytest.param(case, endpoint, binary, id=name)


@pytest.mark.anyio
@pytest.mark.parametrize(("case", "endpoint", "binary"), list(_inferences()))
async def test_the_same_mistake_is_refused_the_same_below_v2(
    client: httpx.AsyncClient, case: Case, endpoint: Endpoint, binary: bool
) -> None:
    changed = {filled(name, endpoint): filled(value, endpoint) for name, value in case.change.items()}
    fields = {name: value for name, value in (endpoint.valid() | changed).items() if value is not None}
    body, headers = infer_body(fields, binary=binary)

    response = await client.post(endpoint.infer_path, content=body, headers=headers)

    # How long a text is depends on how it is written; everything else is the same.
    told, expected = check_refusal(response, code=case.error.code), filled(case.typed_detail or case.detail, endpoint)
    assert re.sub(r"\d+ bytes", "", told) == re.sub(r"\d+ bytes", "", expected)
    assert response.status_code == status_of(case.error, case.sentence)


@pytest.mark.parametrize("error", list(ERRORS.values()), ids=list(ERRORS))
def test_every_sentence_is_provoked_by_a_case(error: type[RequestError]) -> None:
    provoked = {case.key for case in CASES} | OTHERWISE_PROVOKED

    assert {(error.code, sentence) for sentence in error.sentences} <= provoked


@pytest.mark.parametrize("error", list(ERRORS.values()), ids=list(ERRORS))
def test_sentences_speak_the_language_of_every_format(error: type[RequestError]) -> None:
    for text in (error.title, error.mend, *error.sentences.values()):
        assert not {"member", "members", "metadata", "parameter", "parameters"} & set(
            text.lower().translate(str.maketrans("", "", string.punctuation)).split()
        )
    for sentence in error.sentences.values():
        assert sentence.endswith((".", "?"))


def test_every_error_has_a_status() -> None:
    assert set(STATUS) == set(ERRORS.values())


@pytest.mark.anyio
async def test_a_target_beyond_the_classes_reads_as_promised(client: httpx.AsyncClient) -> None:
    target = [0] * 17 + [1000]

    response = await client.post("/v1/cross-entropy", json={"logits": [[0.0] * 1000] * 18, "target": target})

    problem = check_problem(response, code="target-out-of-range")
    assert problem["detail"] == "target[17] is 1000, but logits have 1000 classes (0 to 999)."
    assert problem["pointer"] == "/target/17"
    assert problem["got"] == 1000


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("option", "expected", "got"),
    [
        ({"reduction": "avg"}, "one of 'none', 'mean' or 'sum'", "avg"),
        ({"reduction": None}, "one of 'none', 'mean' or 'sum'", "null"),
        ({"label_smoothing": 1.5}, "a finite number from 0 to 1", 1.5),
        ({"temperature": -(10**70)}, "a finite number greater than 0", "-1" + "0" * 59 + "..."),
        ({"outputs": ["los"]}, "'loss', 'total_weight', 'log_probs' or 'logsumexp'", "los"),
    ],
)
async def test_what_came_stands_in_a_field_of_its_own_without_quotes(
    client: httpx.AsyncClient, option: dict[str, Any], expected: str, got: object
) -> None:
    response = await client.post("/v1/cross-entropy", json={"logits": [[0.5, 1.5]], "target": [0]} | option)

    problem = check_problem(response, code="invalid-option")
    assert (problem["expected"], problem["got"]) == (expected, got)


@pytest.mark.anyio
async def test_a_bug_is_admitted_without_a_word_about_its_cause() -> None:
    def fail(*_: object) -> None:
        raise ValueError("a secret")

    broken = dataclasses.replace(OPERATORS["softmax"], name="broken", forward=fail)
    async with client_of(create_app(Settings(threads=1, device="cpu"), {"broken": broken})) as client:
        response = await client.post("/v1/broken", json={"logits": [1.0, 2.0]}, headers={"X-Request-Id": "mine"})

    problem = check_problem(response, code="internal")
    assert problem["detail"] == "This is a bug in the service. Please report it with request id mine."
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id"}
    assert "secret" not in response.text
    assert "secret" not in str(response.headers)


@pytest.mark.anyio
async def test_a_request_after_the_last_call_is_told_to_come_again() -> None:
    app = create_app(Settings(threads=1, device="cpu"))
    app.state.service.is_refusing = True
    async with client_of(app) as client:
        response = await client.post("/v1/softmax", content=b"{}", headers=JSON)

    problem = check_problem(response, code="draining")
    assert problem["detail"] == "The service is about to stop and takes no more requests; send it again in a moment."
    assert int(response.headers["Retry-After"]) >= 1
