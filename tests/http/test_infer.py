"""Open Inference bodies over HTTP: the same numbers as below /v1, and the protocol's rules of form."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from torch import Tensor

from service.app import create_app
from service.http.compression import MOST_PARTS
from service.ops import OPERATORS
from service.settings import Settings
from service.tensors import DTYPES, array_of, dtype_of, tensor_from_bytes
from tests.http.calling import BINARY, ENDPOINTS, SAFETENSORS, Endpoint, T, check_refusal, client_of, infer_body
from tests.http.test_binary import REQUESTS, path_of, request_of, tensors_of, written
from tests.support.batches import operator_of, same_bits

pytestmark = pytest.mark.anyio

JSON_BYTES = "Inference-Header-Content-Length"
SOFTMAX = "/v2/models/softmax/infer"
CROSS_ENTROPY = "/v2/models/cross_entropy/infer"

LOGITS = {"name": "logits", "shape": [2, 3], "datatype": "FP32", "data": [0.5, -1.5, 2.0, 0.25, 0.0, -4.0]}
PROBS = torch.softmax(torch.tensor(LOGITS["data"]).reshape(2, 3), 1)


def inferred(response: httpx.Response) -> dict[str, Tensor]:
    """Return the tensors of an answer, as the protocol has it."""
    assert response.status_code == 200, response.text[:300]
    content = response.content
    size = int(response.headers.get(JSON_BYTES, len(content)))
    is_binary = size < len(content)
    assert (JSON_BYTES in response.headers) == is_binary
    assert response.headers["Content-Type"] == ("application/octet-stream" if is_binary else "application/json")
    head, data, tensors = json.loads(content[:size]), content[size:], {}
    types = {dtype.open_inference: dtype for dtype in DTYPES.values()}
    for output in head["outputs"]:
        dtype = types[output["datatype"]]
        if "data" in output:
            assert "parameters" not in output
            assert not any(isinstance(number, list) for number in output["data"])
            tensors[output["name"]] = torch.tensor(output["data"], dtype=dtype.torch).reshape(output["shape"])
        else:
            end = output["parameters"]["binary_data_size"]
            tensors[output["name"]] = tensor_from_bytes(bytearray(data[:end]), dtype, tuple(output["shape"]))
            data = data[end:]
    assert not data
    return tensors


def as_inference(fields: dict[str, Any], *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """Write tensors and options as an Open Inference request that wants its outputs in the same way."""
    inputs, blocks = [], []
    for name, tensor in ((name, value) for name, value in fields.items() if isinstance(value, Tensor)):
        described = {"name": name, "shape": list(tensor.shape), "datatype": dtype_of(tensor).open_inference}
        if binary:
            blocks.append(array_of(tensor.contiguous()).tobytes())
            inputs.append(described | {"parameters": {"binary_data_size": len(blocks[-1])}})
        else:
            inputs.append(described | {"data": tensor.reshape(-1).tolist()})
    options = {name: value for name, value in fields.items() if not isinstance(value, Tensor)}
    outputs = [{"name": name, "parameters": {"binary_data": binary}} for name in options.pop("outputs")]
    head = json.dumps({"inputs": inputs, "parameters": options, "outputs": outputs}).encode()
    return head + b"".join(blocks), {JSON_BYTES: str(len(head))} if binary else {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("variant", "gradient", "options"), REQUESTS)
async def test_the_same_request_gets_the_same_bits_in_both_protocols(
    client: httpx.AsyncClient, variant: str, gradient: bool, options: dict[str, Any], dtype: torch.dtype
) -> None:
    fields = request_of(variant, gradient=gradient, dtype=dtype, **options)
    native = await client.post(path_of(variant, gradient), content=written(fields, BINARY), headers=SAFETENSORS)
    expected = tensors_of(native)
    model = operator_of(variant).replace("-", "_") + ("_gradient" if gradient else "")

    for binary in (False, True):
        body, headers = as_inference(fields, binary=binary)
        answered = inferred(await client.post(f"/v2/models/{model}/infer", content=body, headers=headers))

        assert list(answered) == fields["outputs"]
        assert all(same_bits(answered[name], expected[name]) for name in expected)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
@pytest.mark.parametrize("binary", [False, True])
async def test_every_operator_gives_its_default_outputs(
    client: httpx.AsyncClient, endpoint: Endpoint, binary: bool
) -> None:
    body, headers = infer_body(endpoint.valid(), binary=binary)

    answered = inferred(await client.post(endpoint.infer_path, content=body, headers=headers))

    outputs = OPERATORS[endpoint.operator].outputs_of(gradient=endpoint.gradient)
    assert list(answered) == [output.name for output in outputs if output.default]


async def post(client: httpx.AsyncClient, path: str = SOFTMAX, **request: Any) -> httpx.Response:
    return await client.post(path, content=json.dumps(request).encode())


@pytest.mark.parametrize("version", ["", "/versions/1"])
async def test_an_answer_names_model_and_version_and_id(client: httpx.AsyncClient, version: str) -> None:
    path = f"/v2/models/softmax{version}/infer"

    named = (await post(client, path, inputs=[LOGITS], id="7\u20ac")).json()
    unnamed = (await post(client, path, inputs=[LOGITS], id="")).json()

    assert {name: named[name] for name in ("model_name", "model_version", "id")} == {
        "model_name": "softmax",
        "model_version": "1",
        "id": "7\u20ac",
    }
    assert set(unnamed) == {"model_name", "model_version", "outputs"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "application/json"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {JSON_BYTES: "all"},
    ],
    ids=str,
)
async def test_json_is_read_whatever_the_headers_call_it(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    body = json.dumps({"inputs": [LOGITS]}).encode()
    if JSON_BYTES in headers:
        headers = {JSON_BYTES: str(len(body))}

    answered = inferred(await client.post(SOFTMAX, content=body, headers=headers))

    assert torch.allclose(answered["probs"], PROBS)


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([2, 3], [[0.5, -1.5, 2.0], [0.25, 0.0, -4.0]]),
        ([2, 3], [0.5, -1.5, 2, 0.25, 0, -4]),
        ([1, 2, 3], [[[0.5, -1.5, 2.0], [0.25, 0.0, -4.0]]]),
    ],
)
async def test_data_is_nested_as_the_shape_or_flat(client: httpx.AsyncClient, shape: list[int], data: Any) -> None:
    response = await post(client, inputs=[LOGITS | {"shape": shape, "data": data}], parameters={"class_dim": -1})

    assert torch.allclose(inferred(response)["probs"], PROBS.reshape(shape))


async def test_a_tensor_of_eight_dimensions_may_be_nested(client: httpx.AsyncClient) -> None:
    logits = torch.randn(1, 2, 1, 1, 1, 1, 1, 2)

    response = await post(client, inputs=[LOGITS | {"shape": list(logits.shape), "data": logits.tolist()}])

    assert torch.allclose(inferred(response)["probs"], torch.softmax(logits, 1))


@pytest.mark.parametrize(
    ("outputs", "by_default", "binary"),
    [
        (None, None, {"probs": False}),
        (None, False, {"probs": False}),
        (None, True, {"probs": True}),
        ([("logsumexp", None)], None, {"logsumexp": False}),
        ([("logsumexp", None)], True, {"logsumexp": True}),
        ([("logsumexp", False)], True, {"logsumexp": False}),
        ([("logsumexp", True), ("probs", False)], None, {"logsumexp": True, "probs": False}),
        ([("probs", False), ("logsumexp", None)], True, {"probs": False, "logsumexp": True}),
    ],
)
async def test_outputs_come_in_the_order_and_the_way_asked_for(
    client: httpx.AsyncClient, outputs: Any, by_default: bool | None, binary: dict[str, bool]
) -> None:
    request: dict[str, Any] = {"inputs": [LOGITS]}
    if by_default is not None:
        request["parameters"] = {"binary_data_output": by_default}
    if outputs is not None:
        request["outputs"] = [
            {"name": name, "parameters": {} if how is None else {"binary_data": how}} for name, how in outputs
        ]

    response = await post(client, **request)

    size = int(response.headers.get(JSON_BYTES, len(response.content)))
    answered = json.loads(response.content[:size])["outputs"]
    assert {output["name"]: "data" not in output for output in answered} == binary
    assert [output["name"] for output in answered] == list(binary)
    assert torch.allclose(inferred(response).get("probs", PROBS), PROBS)


async def test_json_and_binary_inputs_go_together(client: httpx.AsyncClient) -> None:
    target = torch.tensor([2, 0], dtype=torch.int32).numpy().tobytes()
    described = {"name": "target", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [LOGITS, described]}).encode()

    response = await client.post(CROSS_ENTROPY, content=head + target, headers={JSON_BYTES: str(len(head))})

    assert inferred(response)["loss"].item() == pytest.approx(-PROBS.log()[[0, 1], [2, 0]].mean().item())


@pytest.mark.parametrize("model", ["softmax", "log_softmax"])
async def test_a_body_without_json_is_one_row_of_float32(client: httpx.AsyncClient, model: str) -> None:
    logits = torch.tensor([0.5, -1.5, 2.0])

    response = await client.post(
        f"/v2/models/{model}/infer", content=logits.numpy().tobytes(), headers={JSON_BYTES: "0"}
    )

    (answered,) = inferred(response).values()
    assert torch.allclose(answered, getattr(torch, model)(logits, 0).reshape(1, 3))
    assert JSON_BYTES in response.headers


async def test_literals_that_are_no_numbers_of_json_go_in_and_out_bare(client: httpx.AsyncClient) -> None:
    logits = LOGITS | {"data": [0.5, -math.inf, 2.0, math.nan, 0.0, 1.0]}
    outputs = [{"name": "log_probs"}]

    response = await post(
        client, "/v2/models/log_softmax/infer", inputs=[logits], outputs=outputs, parameters={"non_finite": "propagate"}
    )

    expected = torch.log_softmax(torch.tensor(logits["data"]).reshape(2, 3), 1)
    assert b"-Infinity" in response.content
    assert b'"-Infinity"' not in response.content
    assert torch.allclose(inferred(response)["log_probs"], expected, equal_nan=True)


async def test_a_literal_inside_a_string_stays_a_string(client: httpx.AsyncClient) -> None:
    answer = (await post(client, inputs=[LOGITS], id='NaN "Infinity\\" -Infinity')).json()

    assert answer["id"] == 'NaN "Infinity\\" -Infinity'


@pytest.mark.parametrize("binary", [False, True])
async def test_an_empty_batch_and_a_single_number_have_their_shapes(client: httpx.AsyncClient, binary: bool) -> None:
    logits, target = torch.empty(0, 5), torch.empty(0, dtype=torch.int64)
    fields = {"logits": logits, "target": target, "grad_output": torch.tensor(2.0), "reduction": "sum"}
    body, headers = as_inference(fields | {"outputs": ["loss", "grad_logits"]}, binary=binary)

    answered = inferred(await client.post("/v2/models/cross_entropy_gradient/infer", content=body, headers=headers))

    assert answered["loss"].shape == ()
    assert answered["loss"].item() == 0
    assert answered["grad_logits"].shape == (0, 5)


async def test_an_answer_of_empty_outputs_alone_is_json(client: httpx.AsyncClient) -> None:
    body, headers = as_inference({"logits": torch.empty(0, 5), "outputs": ["probs"]}, binary=True)

    response = await client.post(SOFTMAX, content=body, headers=headers)

    assert response.headers["Content-Type"] == "application/json"
    assert response.json()["outputs"][0]["parameters"] == {"binary_data_size": 0}
    assert inferred(response)["probs"].shape == (0, 5)


@pytest.mark.parametrize("dtype", [name for name, dtype in DTYPES.items() if dtype.kind == "integer"])
@pytest.mark.parametrize("binary", [False, True])
async def test_targets_of_every_integer_type_are_taken(client: httpx.AsyncClient, dtype: str, binary: bool) -> None:
    fields: dict[str, object] = {"logits": T([[0.5, -1.5, 2.0], [0.25, 0.0, -4.0]]), "target": T([2, 0], dtype)}
    body, headers = infer_body(fields, binary=binary)

    answered = inferred(await client.post(CROSS_ENTROPY, content=body, headers=headers))

    assert answered["loss"].item() == pytest.approx(-PROBS.log()[[0, 1], [2, 0]].mean().item())


async def test_an_index_beyond_int64_is_out_of_range_as_below_v1(client: httpx.AsyncClient) -> None:
    for datatype, data in (("UINT64", [2**63, 0]), ("INT64", [2**63, 0])):
        target = {"name": "target", "shape": [2], "datatype": datatype, "data": data}

        response = await post(client, CROSS_ENTROPY, inputs=[LOGITS, target])

        told = check_refusal(response, code="target-out-of-range")
        assert told == "target[0] is an integer that int64 cannot hold, but logits have 3 classes (0 to 2)."


COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress}
INFLATE = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", COMPRESS)
async def test_a_compressed_body_is_the_body(client: httpx.AsyncClient, name: str, binary: bool) -> None:
    logits = torch.randn(40, 3000)
    body, headers = as_inference({"logits": logits, "outputs": ["probs"]}, binary=binary)

    response = await client.post(SOFTMAX, content=COMPRESS[name](body), headers=headers | {"Content-Encoding": name})

    assert torch.allclose(inferred(response)["probs"], torch.softmax(logits, 1))


async def test_a_gzip_body_may_have_several_parts(client: httpx.AsyncClient) -> None:
    body = json.dumps({"inputs": [LOGITS]}).encode()
    parts = gzip.compress(body[:20]) + gzip.compress(body[20:])

    response = await client.post(SOFTMAX, content=parts, headers={"Content-Encoding": "gzip"})

    assert torch.allclose(inferred(response)["probs"], PROBS)


async def test_a_gzip_body_of_many_parts_is_refused(client: httpx.AsyncClient) -> None:
    parts = gzip.compress(b"") * MOST_PARTS + gzip.compress(json.dumps({"inputs": [LOGITS]}).encode())

    response = await client.post(SOFTMAX, content=parts, headers={"Content-Encoding": "gzip"})

    assert response.status_code == 400
    check_refusal(response, code="malformed-request")


@pytest.mark.parametrize("name", COMPRESS)
@pytest.mark.parametrize("damage", ["cut", "flipped", "followed"])
async def test_a_compressed_body_that_is_damaged_is_refused(client: httpx.AsyncClient, name: str, damage: str) -> None:
    packed = COMPRESS[name](json.dumps({"inputs": [LOGITS]}).encode())
    damaged = {"cut": packed[:-1], "flipped": packed[:-2] + b"\xff\xff", "followed": packed + b"\0\1\2"}[damage]

    response = await client.post(SOFTMAX, content=damaged, headers={"Content-Encoding": name})

    assert response.status_code == 400
    check_refusal(response, code="malformed-request")


@pytest.mark.parametrize("name", COMPRESS)
async def test_a_body_that_grows_beyond_the_limit_is_refused_before_it_has_grown(name: str) -> None:
    bomb = COMPRESS[name](b"{}" + b" " * 100_000_000)
    async with client_of(create_app(Settings(threads=1, device="cpu", max_json_bytes=1 << 20))) as client:
        response = await client.post(SOFTMAX, content=bomb, headers={"Content-Encoding": name})

    assert response.status_code == 413
    check_refusal(response, code="content-too-large")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", INFLATE)
async def test_an_answer_is_compressed_when_exactly_that_is_accepted(
    client: httpx.AsyncClient, name: str, binary: bool
) -> None:
    logits = torch.randn(40, 3000)
    body, headers = as_inference({"logits": logits, "outputs": ["probs"]}, binary=binary)
    request = client.build_request("POST", SOFTMAX, content=body, headers=headers | {"Accept-Encoding": name})

    response = await client.send(request, stream=True)
    raw = b"".join([piece async for piece in response.aiter_raw()])

    assert response.headers["Content-Encoding"] == name
    plain = httpx.Response(
        200, headers={key: value for key, value in response.headers.items() if key != "content-encoding"},
        content=INFLATE[name](raw),
    )  # fmt: skip
    assert torch.allclose(inferred(plain)["probs"], torch.softmax(logits, 1))


@pytest.mark.parametrize("accepted", ["gzip, deflate", "gzip, deflate, br", "br", "*", "", "gzip;q=0", "identity"])
@pytest.mark.parametrize("path", [SOFTMAX, "/v2/models/softmax"])
async def test_no_answer_is_compressed_for_a_client_that_lists_what_it_may_undo(
    client: httpx.AsyncClient, accepted: str, path: str
) -> None:
    body = json.dumps({"inputs": [LOGITS]}).encode() if path == SOFTMAX else b""

    response = await client.request(
        "POST" if body else "GET", path, content=body, headers={"Accept-Encoding": accepted}
    )

    assert response.status_code == 200
    assert "Content-Encoding" not in response.headers


async def test_an_unknown_compression_is_refused_with_those_that_are_known(client: httpx.AsyncClient) -> None:
    response = await client.post(SOFTMAX, content=b"{}", headers={"Content-Encoding": "zstd"})

    assert response.status_code == 415
    check_refusal(response, code="unsupported-encoding")
    assert response.headers["Accept-Encoding"] == "gzip, deflate"


async def test_what_only_clients_write_is_no_reason_to_refuse(client: httpx.AsyncClient) -> None:
    request = {
        "id": None,
        "model_name": "softmax",
        "inputs": [LOGITS | {"parameters": {"content_type": "np"}}],
        "outputs": [{"name": "probs", "parameters": None}],
        "parameters": {
            "sequence_id": 1,
            "sequence_start": True,
            "sequence_end": False,
            "priority": 1,
            "timeout": 10**7,
        },
    }

    assert torch.allclose(inferred(await post(client, **request))["probs"], PROBS)


async def test_a_deadline_in_the_body_is_heeded(client: httpx.AsyncClient) -> None:
    late = await post(client, inputs=[LOGITS], parameters={"timeout": 1})
    in_time = await post(client, inputs=[LOGITS], parameters={"timeout": 10**7})

    assert late.status_code == 504
    check_refusal(late, code="deadline-exceeded")
    assert in_time.status_code == 200


async def test_a_service_that_is_not_ready_says_so_in_both_protocols(app: FastAPI) -> None:
    unready = create_app(Settings(threads=1, device="cpu"))
    async with client_of(unready) as client:
        for path in ("/v2/health/ready", "/v2/models/softmax/ready"):
            assert (await client.get(path)).status_code == 503
            assert (await client.get(path)).json()["ready"] is False
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        unready.state.service.readiness = "ok"
        assert (await client.get("/v2/models/softmax/versions/1/ready")).json() == {"name": "softmax", "ready": True}
        unready.state.service.is_refusing = True
        assert (await client.get("/v2/health/ready")).status_code == 200
        check_refusal(await client.post(SOFTMAX, content=b"{}"), code="draining")


@pytest.mark.parametrize("path", ["/v2", "/v2/models/softmax", "/v2/models/softmax/config", "/v2/models/stats"])
async def test_head_works_wherever_get_does(client: httpx.AsyncClient, path: str) -> None:
    response = await client.head(path)

    assert response.status_code == 200
    assert response.content == b""


async def test_a_bug_is_admitted_as_the_protocol_has_it() -> None:
    import dataclasses

    def fail(*_: object) -> None:
        raise ValueError("a secret")

    broken = dataclasses.replace(OPERATORS["softmax"], name="broken", forward=fail)
    async with client_of(create_app(Settings(threads=1, device="cpu"), {"broken": broken})) as client:
        body = json.dumps({"inputs": [LOGITS]}).encode()
        response = await client.post("/v2/models/broken/infer", content=body, headers={"X-Request-Id": "mine"})

    assert response.status_code == 500
    told = check_refusal(response, code="internal")
    assert told == "This is a bug in the service. Please report it with request id mine."


async def test_metadata_and_config_show_what_the_operator_table_says(client: httpx.AsyncClient) -> None:
    for endpoint in ENDPOINTS:
        path = endpoint.infer_path.removesuffix("/infer")
        operator = OPERATORS[endpoint.operator]
        metadata = (await client.get(path)).json()
        config = (await client.get(f"{path}/versions/1/config")).json()

        names = list(operator.tensors_of(gradient=endpoint.gradient))
        assert [tensor["name"] for tensor in metadata["inputs"]] == names
        assert [tensor["name"] for tensor in config["input"]] == names
        assert {tensor["name"] for tensor in metadata["outputs"]} == {
            output.name for output in operator.outputs_of(gradient=endpoint.gradient) if output.name != "grad_target"
        }
        assert config["max_batch_size"] == 0
        required = [tensor["name"] for tensor in config["input"] if not tensor["optional"]]
        assert required == list(endpoint.valid())


async def test_metadata_show_the_two_dimensional_form(client: httpx.AsyncClient) -> None:
    metadata = (await client.get("/v2/models/cross_entropy_gradient")).json()

    assert {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in metadata["inputs"]} == {
        "logits": ("FP32", [-1, -1]),
        "target": ("INT64", [-1]),
        "weight": ("FP32", [-1]),
        "grad_output": ("FP32", []),
    }
    assert {tensor["name"]: tensor["shape"] for tensor in metadata["outputs"]} == {
        "loss": [],
        "total_weight": [],
        "log_probs": [-1, -1],
        "logsumexp": [-1],
        "grad_logits": [-1, -1],
    }


async def test_statistics_count_requests_rows_and_launches(client: httpx.AsyncClient) -> None:
    async def stats() -> dict[str, Any]:
        answer = (await client.get("/v2/models/log_softmax/stats")).json()
        (found,) = answer["model_stats"]
        return dict(found)

    before = await stats()
    for _ in range(3):
        await post(client, "/v2/models/log_softmax/infer", inputs=[LOGITS])
    await post(client, "/v2/models/log_softmax/infer", inputs=[])
    after = await stats()

    def grown(*path: str) -> int:
        first, second = before, after
        for name in path:
            first, second = first[name], second[name]
        return int(second) - int(first)  # type: ignore[call-overload]

    assert grown("inference_count") == 6
    assert grown("execution_count") == 3
    assert grown("inference_stats", "success", "count") == 3
    assert grown("inference_stats", "fail", "count") == 1
    for part in ("compute_input", "compute_infer", "compute_output"):
        assert grown("inference_stats", part, "count") == 3
        assert 0 < grown("inference_stats", part, "ns") < grown("inference_stats", "success", "ns")
    every = (await client.get("/v2/models/stats")).json()["model_stats"]
    assert [found["name"] for found in every] == [endpoint.infer_path.split("/")[3] for endpoint in ENDPOINTS]
