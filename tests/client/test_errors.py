"""What goes wrong is raised as one tree of exceptions, with everything that the service said."""

from __future__ import annotations

import copy
import pickle

import httpx
import numpy as np
import pytest
from loss_client import (
    BadAnswerError,
    LossClient,
    LossClientError,
    NoAnswerError,
    RequestRefusedError,
    RetryPolicy,
    ServiceError,
    ServiceFaultError,
    UnavailableError,
)
from loss_client.problems import (
    PROBLEMS,
    ContentTooLargeError,
    InternalError,
    InvalidOptionError,
    TargetOutOfRangeError,
    UnauthorizedError,
)

from service.errors import ERRORS
from service.http.problems import STATUS
from tests.client.conftest import KEY
from tests.support.running import RunningService

LOGITS = np.eye(3, dtype="float32")
ONCE = RetryPolicy(attempts=1)


def client_of(answer: httpx.Response) -> LossClient:
    """Return a client of a service that gives this answer to everything."""

    def handle(_: httpx.Request) -> httpx.Response:
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    http = httpx.Client(transport=httpx.MockTransport(handle))
    return LossClient("http://127.0.0.1:1", http=http, retries=ONCE)


def test_a_problem_is_raised_with_all_its_fields(client: LossClient) -> None:
    with pytest.raises(TargetOutOfRangeError) as caught:
        client.cross_entropy(LOGITS, np.array([0, 1, 7]))

    error = caught.value
    assert isinstance(error, RequestRefusedError)
    assert (error.status, error.code, error.pointer) == (422, "target-out-of-range", "/target/2")
    assert (error.title, error.expected, error.got) == ("A target is not a class", "0 to 2", 7)
    assert error.detail == "target[2] is 7, but logits have 3 classes (0 to 2)."
    assert error.request_id
    assert error.limit is error.retry_after is None
    assert str(error) == f"{error.detail} (target-out-of-range, request {error.request_id})"


def test_options_are_checked_by_the_service(client: LossClient) -> None:
    with pytest.raises(InvalidOptionError, match="'label_smoothing' must be a finite number from 0") as caught:
        client.cross_entropy(LOGITS, np.arange(3), label_smoothing=2.0)

    assert caught.value.pointer == "/label_smoothing"


@pytest.mark.parametrize("key", [None, "not-the-key-of-these-tests"])
def test_without_the_key_nothing_is_computed(service: RunningService, key: str | None) -> None:
    with LossClient(service.address, api_key=key) as stranger, pytest.raises(UnauthorizedError) as caught:
        stranger.softmax(LOGITS)

    assert caught.value.status == 401


@pytest.mark.parametrize("code", ERRORS)
def test_every_problem_of_the_service_has_its_exception(code: str) -> None:
    status = STATUS[ERRORS[code]]
    problem = {"code": code, "status": status, "detail": "What is wrong.", "title": ERRORS[code].title}
    answer = httpx.Response(status, json=problem, headers={"content-type": "application/problem+json"})
    bases = {429: UnavailableError, 503: UnavailableError}
    base = bases.get(status, ServiceFaultError if status >= 500 else RequestRefusedError)

    with pytest.raises(ServiceError) as caught:
        client_of(answer).softmax(LOGITS)

    assert type(caught.value) is PROBLEMS[code]
    assert isinstance(caught.value, base)
    assert isinstance(caught.value, LossClientError)
    assert ERRORS[code].title == caught.value.TITLE  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (403, RequestRefusedError),
        (413, ContentTooLargeError),
        (502, UnavailableError),
        (503, UnavailableError),
        (500, ServiceFaultError),
    ],
)
def test_what_a_proxy_says_is_raised_too(status: int, kind: type[ServiceError]) -> None:
    with pytest.raises(kind, match=r"^Bad teapot \(") as caught:
        client_of(httpx.Response(status, html="<h1>Bad teapot</h1><p")).softmax(LOGITS)

    assert (caught.value.status, caught.value.code) == (status, "")


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, html="<h1>Welcome</h1>"),
        httpx.Response(302, headers={"location": "/elsewhere"}),
        httpx.Response(200, content=b"short", headers={"content-type": "application/x-safetensors"}),
        httpx.Response(200, content=b"\x02" + bytes(7) + b"[]", headers={"content-type": "application/x-safetensors"}),
        httpx.Response(
            200,
            content=(64).to_bytes(8, "little") + b'{"probs":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}     ',
            headers={"content-type": "application/x-safetensors"},
        ),
        httpx.Response(422, content=b"{", headers={"content-type": "application/problem+json"}),
        httpx.Response(404, html="<h1>File not found</h1>"),
        httpx.Response(405, json={"detail": "Method Not Allowed"}),
        httpx.Response(501, html="<h1>Unsupported method</h1>"),
    ],
)
def test_an_answer_that_is_not_the_services_is_told_apart(answer: httpx.Response) -> None:
    with pytest.raises(BadAnswerError) as caught:
        client_of(answer).softmax(LOGITS)

    assert "<h1>" not in str(caught.value)


def test_the_address_where_something_else_answers_is_named_without_its_password() -> None:
    http = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(501, html="<h1>What?</h1>")))
    client = LossClient("http://user:secret@127.0.0.1:1/loss/", http=http, retries=ONCE)

    with pytest.raises(BadAnswerError, match=r"^http://127.0.0.1:1/loss knows nothing of Loss Service: .* text/html;"):
        client.softmax(LOGITS)


def test_a_service_that_is_not_there_is_no_answer() -> None:
    with (
        LossClient("http://127.0.0.1:1", retries=ONCE) as alone,
        pytest.raises(NoAnswerError, match=r"http://127.0.0.1:1 gave no"),
    ):
        alone.softmax(LOGITS)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://a:b", ""])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="must be like http"):
        LossClient(url)


@pytest.mark.parametrize("ending", ["/v1", "/v1/", "/loss/v2"])
def test_an_address_ends_before_the_version(ending: str) -> None:
    with pytest.raises(ValueError, match=r"leave /v[12] away$"):
        LossClient("http://127.0.0.1:8000" + ending)


def test_a_timeout_that_is_no_number_is_told_so() -> None:
    with LossClient(timeout="5") as client, pytest.raises(TypeError, match="a number of seconds or None, but is '5'"):  # type: ignore[arg-type]
        client.softmax(LOGITS)


def test_errors_can_be_pickled() -> None:
    with pytest.raises(InternalError) as caught:
        client_of(
            httpx.Response(500, json={"code": "internal"}, headers={"content-type": "application/problem+json"})
        ).softmax(LOGITS)

    assert pickle.loads(pickle.dumps(caught.value)).problem == caught.value.problem


def test_a_client_is_shared_when_what_holds_it_is_copied_and_never_pickled() -> None:
    client = LossClient("http://127.0.0.1:1", api_key=KEY)

    assert copy.deepcopy({"client": client})["client"] is client
    assert KEY not in repr(client)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(client)
