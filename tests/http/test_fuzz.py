"""Generated requests against a running service: no failure, and nothing answered that the document does not say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from service.app import create_app
from service.http.permits import TIMEOUT_HEADER
from tests.support.running import RunningService, running_service

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]

# The library's own pytest plugin wants an older pytest; what it does is to loop over these.
DOCUMENT = schemathesis.openapi.from_dict(create_app().openapi())
OPERATIONS = {found.ok().label: found.ok() for found in DOCUMENT.get_all_operations()}
ASKED = [
    (label, mode)
    for label, operation in OPERATIONS.items()
    for mode in GenerationMode
    if operation.body or mode is GenerationMode.POSITIVE  # nothing can be wrong where nothing is sent
]


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service("--threads=1", "--device=cpu", "--log-level=error") as running:
        running.wait_until_ready()
        yield running


def ask(service: RunningService, label: str, mode: GenerationMode, limits: settings) -> None:
    """Call one operation with generated requests and check every answer."""

    @limits
    @given(OPERATIONS[label].as_strategy(mode))
    def every_answer(case: Case) -> None:
        if (case.headers or {}).get(TIMEOUT_HEADER, "").isdigit():
            case.headers[TIMEOUT_HEADER] = "60000"  # 504 would be the right answer to less
        case.call_and_validate(base_url=service.address, checks=CHECKS)

    every_answer()


QUIET = list(HealthCheck)


@pytest.mark.parametrize(("label", "mode"), ASKED)
def test_every_answer_is_as_the_document_says(service: RunningService, label: str, mode: GenerationMode) -> None:
    examples = 5 if "/v2/" in label else 20  # below /v2 there is much of a kind
    limits = settings(max_examples=examples, phases=[Phase.generate], suppress_health_check=QUIET)

    ask(service, label, mode, limits)


@pytest.mark.fuzz
@pytest.mark.parametrize(("label", "mode"), ASKED)
def test_every_answer_is_as_the_document_says_for_long(
    service: RunningService, label: str, mode: GenerationMode
) -> None:
    limits = settings(max_examples=1000, derandomize=False, suppress_health_check=QUIET)

    ask(service, label, mode, limits)
