"""The real Triton client, both of its kinds, against a running service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from torch.nn import functional
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from service.errors import ERRORS
from service.http.problems import statuses_of
from service.ops import OPERATORS
from tests.http.calling import ENDPOINTS, Endpoint
from tests.support.running import RunningService, running_service

LOGITS = np.random.default_rng(0).normal(size=(6, 5)).astype("float32") * 3
TARGET = np.array([0, 4, 2, 2, 1, 3])
WEIGHT = np.linspace(0.5, 1.5, 5, dtype="float32")
UPSTREAM = np.random.default_rng(1).normal(size=(6, 5)).astype("float32")


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service("--threads=1", "--device=cpu", "--max-body-bytes=67108864") as running:
        running.wait_until_ready()
        yield running


@pytest.fixture
def client(service: RunningService) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(service.address.removeprefix("http://"))
    yield client
    client.close()


def given(name: str, array: np.ndarray[Any, Any], *, binary: bool = True, kind: Any = triton) -> Any:
    tensor = kind.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def arrays_of(endpoint: Endpoint) -> dict[str, np.ndarray[Any, Any]]:
    """Return a request to an endpoint, with everything optional but `grad_output` of a loss."""
    first = LOGITS if endpoint.first == "logits" else torch.log_softmax(torch.from_numpy(LOGITS), 1).numpy()
    arrays = {endpoint.first: first}
    if endpoint.is_loss:
        return arrays | {"target": TARGET, "weight": WEIGHT}
    return arrays | ({"grad_output": UPSTREAM} if endpoint.gradient else {})


def expected_of(endpoint: Endpoint) -> dict[str, np.ndarray[Any, Any]]:
    """Return torch's own default outputs for that request."""
    arrays = {name: torch.from_numpy(array) for name, array in arrays_of(endpoint).items()}
    leaf = arrays[endpoint.first].requires_grad_()
    if endpoint.is_loss:
        function: Callable[..., torch.Tensor] = {
            "nll-loss": functional.nll_loss,
            "cross-entropy": functional.cross_entropy,
        }[endpoint.operator]
        result = function(leaf, arrays["target"], arrays["weight"])
        outputs = {"loss": result, "total_weight": arrays["weight"][arrays["target"]].sum()}
    else:
        result = {"softmax": torch.softmax, "log-softmax": torch.log_softmax}[endpoint.operator](leaf, 1)
        outputs = {OPERATORS[endpoint.operator].outputs[0].name: result}
    if endpoint.gradient:
        (outputs[f"grad_{endpoint.first}"],) = torch.autograd.grad(result, leaf, arrays.get("grad_output"))
    return {name: tensor.detach().numpy() for name, tensor in outputs.items()}


def model_of(endpoint: Endpoint) -> str:
    return endpoint.infer_path.split("/")[3]


def test_the_client_finds_a_server_and_its_models(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert {model["name"] for model in client.get_model_repository_index()} == set(map(model_of, ENDPOINTS))
    for model in map(model_of, ENDPOINTS):
        assert client.is_model_ready(model)
        assert client.is_model_ready(model, "1")
        assert client.get_model_metadata(model, "1")["name"] == model
        assert client.get_model_config(model)["max_batch_size"] == 0
    assert not client.is_model_ready("relu")
    assert not client.is_model_ready("softmax", "2")


@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=model_of)
def test_every_operator_gives_what_torch_gives(
    client: triton.InferenceServerClient, endpoint: Endpoint, binary_in: bool, binary_out: bool
) -> None:
    expected = expected_of(endpoint)
    inputs = [given(name, array, binary=binary_in) for name, array in arrays_of(endpoint).items()]
    outputs = None if binary_out else [triton.InferRequestedOutput(name, binary_data=False) for name in expected]

    answer = client.infer(model_of(endpoint), inputs, outputs=outputs)

    assert [output["name"] for output in answer.get_response()["outputs"]] == list(expected)
    for name, array in expected.items():
        given_back = answer.as_numpy(name)
        assert given_back.shape == array.shape
        assert given_back.dtype == np.float32
        np.testing.assert_allclose(given_back, array, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize(
    ("dtype", "binary"),
    [
        *((dtype, binary) for dtype in ("float16", "float32", "float64") for binary in (False, True)),
        ("bfloat16", True),  # the client sends none as JSON
    ],
)
def test_floating_types_come_back_as_they_went(client: triton.InferenceServerClient, dtype: str, binary: bool) -> None:
    numpy_type: Any = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    logits = LOGITS.astype(numpy_type)

    answer = client.infer("softmax", [given("logits", logits, binary=binary)])

    probs = answer.as_numpy("probs")
    exact = torch.softmax(torch.from_numpy(logits.astype("float64")), 1).numpy()
    assert probs.dtype == np.dtype(numpy_type)
    np.testing.assert_allclose(probs.astype("float64"), exact, rtol=float(ml_dtypes.finfo(numpy_type).eps), atol=1e-12)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("binary", [False, True])
def test_targets_may_have_any_integer_type(client: triton.InferenceServerClient, dtype: str, binary: bool) -> None:
    inputs = [given("logits", LOGITS), given("target", TARGET.astype(dtype), binary=binary)]

    loss = client.infer("cross_entropy", inputs).as_numpy("loss")

    assert loss == pytest.approx(functional.cross_entropy(torch.from_numpy(LOGITS), torch.from_numpy(TARGET)).item())


def test_options_travel_as_request_parameters(client: triton.InferenceServerClient) -> None:
    options = {"reduction": "sum", "label_smoothing": 0.1, "ignore_index": 2, "temperature": 1, "class_dim": -1}

    answer = client.infer("cross_entropy", [given("logits", LOGITS), given("target", TARGET)], parameters=options)

    expected = functional.cross_entropy(
        torch.from_numpy(LOGITS), torch.from_numpy(TARGET), ignore_index=2, label_smoothing=0.1, reduction="sum"
    )
    assert answer.as_numpy("loss") == pytest.approx(expected.item())


def test_outputs_can_be_chosen_each_in_its_way(client: triton.InferenceServerClient) -> None:
    outputs = [triton.InferRequestedOutput("logsumexp"), triton.InferRequestedOutput("loss", binary_data=False)]

    answer = client.infer("cross_entropy", [given("logits", LOGITS), given("target", TARGET)], outputs=outputs)

    assert [output["name"] for output in answer.get_response()["outputs"]] == ["logsumexp", "loss"]
    np.testing.assert_allclose(
        answer.as_numpy("logsumexp"), torch.logsumexp(torch.from_numpy(LOGITS), 1).numpy(), rtol=1e-6
    )
    assert "data" in answer.get_output("loss")
    assert answer.as_numpy("log_probs") is None


def test_the_id_comes_back_and_the_deadline_is_taken(client: triton.InferenceServerClient) -> None:
    answer = client.infer("softmax", [given("logits", LOGITS)], request_id="mine", timeout=10_000_000, priority=1)

    assert answer.get_response()["id"] == "mine"


@pytest.mark.parametrize("request_compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [False, True])
def test_bodies_and_answers_may_be_compressed(
    client: triton.InferenceServerClient, request_compression: str, response_compression: str, binary: bool
) -> None:
    outputs = [triton.InferRequestedOutput("probs", binary_data=binary)]

    answer = client.infer(
        "softmax",
        [given("logits", LOGITS, binary=binary)],
        outputs=outputs,
        request_compression_algorithm=request_compression,
        response_compression_algorithm=response_compression,
    )

    np.testing.assert_allclose(answer.as_numpy("probs"), torch.softmax(torch.from_numpy(LOGITS), 1), rtol=1e-6)


def test_non_finite_numbers_go_both_ways_in_json(client: triton.InferenceServerClient) -> None:
    logits = np.array([[0.5, -np.inf, 1.5], [np.nan, 0.0, 1.0]], "float32")
    outputs = [triton.InferRequestedOutput("log_probs", binary_data=False)]

    answer = client.infer(
        "log_softmax",
        [given("logits", logits, binary=False)],
        outputs=outputs,
        parameters={"non_finite": "propagate"},
    )

    np.testing.assert_allclose(answer.as_numpy("log_probs"), torch.log_softmax(torch.from_numpy(logits), 1), rtol=1e-6)


@pytest.mark.parametrize("binary", [False, True])
def test_empty_batches_and_single_numbers_have_their_shapes(client: triton.InferenceServerClient, binary: bool) -> None:
    inputs = [
        given("logits", np.empty((0, 5), "float32"), binary=binary),
        given("target", np.empty(0, "int64"), binary=binary),
        given("grad_output", np.array(2.0, "float32"), binary=binary),
    ]

    answer = client.infer("cross_entropy_gradient", inputs, parameters={"reduction": "sum"})

    assert answer.as_numpy("loss").shape == ()
    assert answer.as_numpy("grad_logits").shape == (0, 5)


@pytest.mark.parametrize("rows", [17, 333, 500])
@pytest.mark.parametrize("target_first", [False, True])
def test_large_tensors_are_computed_where_they_lie(
    client: triton.InferenceServerClient, rows: int, target_first: bool
) -> None:
    random = np.random.default_rng(rows)
    logits = random.normal(size=(rows, 1003)).astype("float32")
    target = random.integers(1003, size=rows).astype("int16")
    inputs = [given("logits", logits), given("target", target)]

    for request_id in ("", "1", "12", "123", "1234"):  # every place in memory
        answer = client.infer("cross_entropy_gradient", inputs[:: -1 if target_first else 1], request_id=request_id)

        leaf = torch.from_numpy(logits).requires_grad_()
        loss = functional.cross_entropy(leaf, torch.from_numpy(target).long())
        loss.backward()  # type: ignore[no-untyped-call]
        assert answer.as_numpy("loss") == pytest.approx(loss.item(), rel=1e-6)
        np.testing.assert_allclose(answer.as_numpy("grad_logits"), leaf.grad, rtol=2e-5, atol=1e-9)


def test_a_body_over_the_limit_is_refused_as_the_client_expects(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("softmax", [given("logits", np.zeros((1700, 10_000), "float32"))])

    assert caught.value.status() == "413"
    assert caught.value.message() == "The body is larger than the 67108864 bytes allowed."


MISTAKES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "not-found": ("cross-entropy", [("logits", LOGITS)], {}),
    "missing-field": ("cross_entropy", [("logits", LOGITS)], {}),
    "unknown-field": ("softmax", [("logits", LOGITS), ("x", LOGITS)], {}),
    "shape-mismatch": ("cross_entropy", [("logits", LOGITS), ("target", TARGET[1:])], {}),
    "dtype-mismatch": ("softmax", [("logits", TARGET.reshape(2, 3))], {}),
    "malformed-tensor": ("softmax", [("logits", LOGITS > 0)], {}),
    "invalid-option": ("softmax", [("logits", LOGITS)], {"temperature": -1}),
    "target-out-of-range": ("cross_entropy", [("logits", LOGITS), ("target", TARGET + 1)], {}),
    "non-finite": ("softmax", [("logits", LOGITS * np.inf)], {}),
    "undefined-mean": ("cross_entropy", [("logits", LOGITS), ("target", TARGET * 0 - 100)], {}),
}


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("code", MISTAKES)
def test_errors_are_sentences_of_the_clients_own_exception(
    client: triton.InferenceServerClient, code: str, binary: bool
) -> None:
    model, arrays, parameters = MISTAKES[code]

    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [given(name, array, binary=binary) for name, array in arrays], parameters=parameters)

    assert int(caught.value.status()) in statuses_of(ERRORS[code])
    assert caught.value.message().endswith((".", "?"))
    assert "exception occurred" not in caught.value.message()


def test_statistics_tell_the_average_batch(client: triton.InferenceServerClient) -> None:
    def counts() -> tuple[int, int, int]:
        (found,) = client.get_inference_statistics("nll_loss")["model_stats"]
        return found["inference_count"], found["execution_count"], found["inference_stats"]["success"]["count"]

    before = counts()
    inputs = [given("log_probs", -abs(LOGITS)), given("target", TARGET)]
    for _ in range(4):
        client.infer("nll_loss", inputs)

    assert np.subtract(counts(), before).tolist() == [24, 4, 4]
    assert len(client.get_inference_statistics()["model_stats"]) == len(ENDPOINTS)


def test_many_requests_may_be_on_their_way(service: RunningService) -> None:
    address = service.address.removeprefix("http://")
    with triton.InferenceServerClient(address, concurrency=4) as client:
        waiting = [client.async_infer("softmax", [given("logits", LOGITS * scale)]) for scale in range(8)]

        for scale, request in enumerate(waiting):
            expected = torch.softmax(torch.from_numpy(LOGITS * scale), 1)
            np.testing.assert_allclose(request.get_result().as_numpy("probs"), expected, rtol=1e-5)


def test_the_asyncio_client_speaks_to_the_service_too(service: RunningService) -> None:
    async def talk() -> None:
        async with triton_aio.InferenceServerClient(service.address.removeprefix("http://")) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("softmax")
            assert (await client.get_model_metadata("softmax"))["name"] == "softmax"
            assert (await client.get_model_config("softmax"))["max_batch_size"] == 0
            assert (await client.get_inference_statistics("softmax"))["model_stats"]
            assert await client.get_model_repository_index()
            for binary, compression in ((False, None), (True, None), (True, "gzip"), (False, "deflate")):
                expected = torch.softmax(torch.from_numpy(LOGITS), 1)
                answers = await asyncio.gather(
                    *(
                        client.infer(
                            "softmax",
                            [given("logits", LOGITS, binary=binary, kind=triton_aio)],
                            outputs=[triton_aio.InferRequestedOutput("probs", binary_data=binary)],
                            request_id=str(number),
                            request_compression_algorithm=compression,
                            response_compression_algorithm=compression,
                        )
                        for number in range(4)
                    )
                )
                for number, answer in enumerate(answers):
                    assert answer.get_response()["id"] == str(number)
                    np.testing.assert_allclose(answer.as_numpy("probs"), expected, rtol=1e-6)
            with pytest.raises(InferenceServerException, match="needs the tensor 'target'") as caught:
                await client.infer("cross_entropy", [given("logits", LOGITS, kind=triton_aio)])
            assert caught.value.status() == "422"

    asyncio.run(talk())


def test_a_key_goes_into_the_clients_headers(tmp_path: Any) -> None:
    key = "0123456789abcdef"
    (tmp_path / "keys").write_text(key + "\n")
    with running_service("--threads=1", "--device=cpu", f"--api-keys={tmp_path / 'keys'}") as running:
        running.wait_until_ready()
        with triton.InferenceServerClient(running.address.removeprefix("http://")) as client:
            inputs = [given("logits", LOGITS)]
            with pytest.raises(InferenceServerException, match="needs an API key") as caught:
                client.infer("softmax", inputs)
            answer = client.infer("softmax", inputs, headers={"Authorization": f"Bearer {key}"})

    assert caught.value.status() == "401"
    assert answer.as_numpy("probs").shape == (6, 5)
