"""safetensors bodies over HTTP: which format is read and given, and the same numbers in all of them."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch
from fastapi import FastAPI
from torch import Tensor

from service.app import create_app
from service.ops import OPERATORS
from service.settings import Settings
from service.wire.safetensors_codec import MAX_HEADER_BYTES
from tests.http.calling import (
    BINARY,
    COMPACT,
    ENDPOINTS,
    FORMS,
    JSON,
    NESTED,
    SAFETENSORS,
    Endpoint,
    T,
    body_of,
    check_problem,
    client_of,
    safetensors_file,
)
from tests.support.batches import VARIANTS, batch_of, operator_of, same_bits

pytestmark = pytest.mark.anyio

LOGITS: dict[str, object] = {"logits": T([[0.5, -1.5, 2.0], [0.25, 0.0, -4.0]])}

MEDIA_TYPES = {NESTED: JSON, COMPACT: JSON, BINARY: SAFETENSORS}


_QUOTED = re.compile('"(NaN|-?Infinity)"')


def tensors_of(response: httpx.Response, *, dtypes: dict[str, torch.dtype] | None = None) -> dict[str, Tensor]:
    """Return the tensors of an answer in any format; `dtypes` says what nested numbers are."""
    assert response.status_code == 200, response.text[:300]
    if response.headers["Content-Type"] == SAFETENSORS["Content-Type"]:
        return safetensors.torch.load(response.content)
    assert response.headers["Content-Type"] == "application/json"
    tensors = {}
    for name, value in response.json().items():
        if isinstance(value, dict):
            data = bytearray(base64.b64decode(value["base64"], validate=True))
            dtype = getattr(torch, value["dtype"])
            tensors[name] = torch.frombuffer(data, dtype=dtype).reshape(value["shape"])
        else:
            numbers = json.loads(_QUOTED.sub(r"\1", json.dumps(value)))
            tensors[name] = torch.tensor(numbers, dtype=(dtypes or {}).get(name))
    return tensors


@pytest.mark.parametrize(
    ("of_request", "accept", "of_answer"),
    [
        (BINARY, None, BINARY),
        (NESTED, None, NESTED),
        (BINARY, "*/*", BINARY),
        (NESTED, "*/*", NESTED),
        (BINARY, "application/*", BINARY),
        (NESTED, "application/*", NESTED),
        (BINARY, "", BINARY),
        (BINARY, " , ", BINARY),
        (BINARY, "application/json", NESTED),
        (NESTED, "application/x-safetensors", BINARY),
        (NESTED, "Application/X-Safetensors", BINARY),
        (BINARY, "application/json, application/x-safetensors", BINARY),
        (NESTED, "application/json, application/x-safetensors", NESTED),
        (BINARY, "application/json, application/x-safetensors;q=0.9", NESTED),
        (NESTED, "application/json;q=0.5, application/x-safetensors;q=0.6", BINARY),
        (BINARY, "application/x-safetensors;q=0", None),
        (BINARY, "application/x-safetensors;q=0, */*", NESTED),
        (NESTED, "application/json;q=0, application/*;q=0.1", BINARY),
        (BINARY, "application/json;q=0.1, */*;q=0", NESTED),
        (BINARY, "*/*;q=0.1, application/json", NESTED),
        (BINARY, "text/html, application/json;q=0.2", NESTED),
        (BINARY, "application/x-safetensors; q = 0.5", BINARY),
        (BINARY, "application/x-safetensors;q=much", BINARY),
        (BINARY, "text/csv", None),
        (BINARY, "application/octet-stream", None),
        (BINARY, "*/*;q=0", None),
    ],
)
async def test_the_answer_is_in_the_format_asked_for_else_in_that_of_the_request(
    client: httpx.AsyncClient, of_request: str, accept: str | None, of_answer: str | None
) -> None:
    headers = MEDIA_TYPES[of_request] | ({} if accept is None else {"Accept": accept})
    request = client.build_request("POST", "/v1/softmax", content=body_of(LOGITS, form=of_request), headers=headers)
    if accept is None:
        del request.headers["Accept"]
    response = await client.send(request)

    if of_answer is None:
        check_problem(response, code="not-acceptable")
    else:
        assert response.headers["Content-Type"] == MEDIA_TYPES[of_answer]["Content-Type"]
        assert list(tensors_of(response)) == ["probs"]


@pytest.mark.parametrize(
    ("value", "is_read"),
    [
        ("application/x-safetensors", True),
        ("Application/X-Safetensors", True),
        ("application/x-safetensors;", True),
        ("application/x-safetensors; version=1", True),
        ("application/safetensors", False),
        ("application/octet-stream", False),
        ("application/x-safetensors, application/json", False),
        (None, False),
    ],
)
async def test_safetensors_is_read_however_it_is_spelt(
    client: httpx.AsyncClient, value: str | None, is_read: bool
) -> None:
    headers = {} if value is None else {"Content-Type": value}

    response = await client.post("/v1/softmax", content=body_of(LOGITS, form=BINARY), headers=headers)

    if is_read:
        assert response.status_code == 200
    else:
        check_problem(response, code="unsupported-media-type")


@pytest.mark.parametrize("form", FORMS)
async def test_a_body_in_another_format_than_its_header_says_is_malformed(client: httpx.AsyncClient, form: str) -> None:
    other = SAFETENSORS if form != BINARY else JSON

    response = await client.post("/v1/softmax", content=body_of(LOGITS, form=form), headers=other)

    check_problem(response, code="malformed-json" if form == BINARY else "malformed-tensor")


def request_of(variant: str, *, gradient: bool, dtype: torch.dtype, **options: Any) -> dict[str, Any]:
    """Return a request as tensors and options."""
    fields = batch_of(variant, 6, 5, dtype=dtype) | options
    declared = OPERATORS[operator_of(variant)].options.model_fields
    if fields.get("reduction") in ("mean", "sum"):
        fields["grad_output"] = torch.tensor(0.5, dtype=dtype)
    if not gradient:
        fields.pop("grad_output", None)
        fields["outputs"] = [name for name in fields["outputs"] if not name.startswith("grad_")]
    return {name: value for name, value in fields.items() if isinstance(value, Tensor) or name in declared}


def written(fields: dict[str, Any], form: str) -> bytes:
    """Write tensors and options in a form, safetensors with the library."""
    tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    options = {name: value for name, value in fields.items() if name not in tensors}
    if form == BINARY:
        text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
        return safetensors.torch.save(tensors, {"format": "pt", **text})
    values: dict[str, Any] = dict(options)
    for name, tensor in tensors.items():
        if form == NESTED:
            values[name] = tensor.tolist()
        else:
            raw = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
            data = base64.b64encode(raw.numpy().tobytes()).decode()
            dtype = str(tensor.dtype).removeprefix("torch.")
            values[name] = {"dtype": dtype, "shape": list(tensor.shape), "base64": data}
    return json.dumps(values).encode()


REQUESTS = [
    pytest.param(variant, gradient, options, id=f"{variant}{'/gradient' if gradient else ''}-{options}")
    for variant in VARIANTS
    for gradient in (False, True)
    for options in (
        {},
        {"accuracy": "accurate"},
        *([{"temperature": 0.7}] if operator_of(variant) != "nll-loss" else []),
        *(
            [{"reduction": "sum"}, {"reduction": "mean", "normalizer": 3.5}]
            if OPERATORS[operator_of(variant)].is_loss
            else []
        ),
    )
]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def path_of(variant: str, gradient: bool) -> str:
    return f"/v1/{operator_of(variant)}" + ("/gradient" if gradient else "")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("variant", "gradient", "options"), REQUESTS)
async def test_a_request_gets_the_same_bits_in_every_format(
    client: httpx.AsyncClient, variant: str, gradient: bool, options: dict[str, Any], dtype: torch.dtype
) -> None:
    fields = request_of(variant, gradient=gradient, dtype=dtype, **options)
    # What JSON numbers are read as is one type for all of them, so here all are of it.
    fields = {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in fields.items()
    } | {"dtype": str(dtype).removeprefix("torch.")}
    path = path_of(variant, gradient)

    expected = tensors_of(await client.post(path, content=written(fields, BINARY), headers=SAFETENSORS))

    assert set(expected) == set(fields["outputs"])
    dtypes = {name: tensor.dtype for name, tensor in expected.items()}
    for form in (NESTED, COMPACT):
        for encoding in ("array", "base64"):
            asked = fields | {"encoding": encoding}
            answer = tensors_of(await client.post(path, content=written(asked, form), headers=JSON), dtypes=dtypes)
            assert all(same_bits(answer[name], tensor) for name, tensor in expected.items())
            assert all(answer[name].shape == tensor.shape for name, tensor in expected.items())
    for encoding in ("array", "base64"):
        asked = fields | {"encoding": encoding}
        headers = SAFETENSORS | {"Accept": "application/json"}
        response = await client.post(path, content=written(asked, BINARY), headers=headers)
        assert isinstance(response.json()[fields["outputs"][0]], dict) == (encoding == "base64")
        answer = tensors_of(response, dtypes=dtypes)
        assert all(same_bits(answer[name], tensor) for name, tensor in expected.items())
    headers = JSON | {"Accept": "application/x-safetensors"}
    answer = tensors_of(await client.post(path, content=written(fields, NESTED), headers=headers))
    assert all(same_bits(answer[name], tensor) for name, tensor in expected.items())


async def test_a_request_gets_the_same_bits_beside_others(app: FastAPI) -> None:
    asked = [
        (path_of(variant, gradient), request_of(variant, gradient=gradient, dtype=dtype), form)
        for variant in VARIANTS
        for gradient in (False, True)
        for dtype in (torch.float32, torch.float64)
        for form in (BINARY, COMPACT)
    ]

    async with client_of(app) as client:

        async def ask(path: str, fields: dict[str, Any], form: str) -> dict[str, Tensor]:
            headers = MEDIA_TYPES[form] | {"Accept": "application/x-safetensors"}
            return tensors_of(await client.post(path, content=written(fields, form), headers=headers))

        alone = [await ask(*each) for each in asked]
        together = await asyncio.gather(*(ask(*each) for each in asked for _ in range(3)))

    for place, expected in enumerate(alone):
        for answer in together[3 * place : 3 * place + 3]:
            assert all(same_bits(answer[name], tensor) for name, tensor in expected.items())


async def test_large_bodies_beside_each_other_keep_their_bits(app: FastAPI) -> None:
    """Buffers of bodies and answers are lent again and again; nobody may see another's."""
    bodies = [
        {
            "logits": torch.randn(1000, 300, generator=torch.Generator().manual_seed(seed)),
            "target": torch.randint(300, (1000,), generator=torch.Generator().manual_seed(seed)),
        }
        for seed in range(6)
    ]

    async with client_of(app) as client:

        async def ask(fields: dict[str, Tensor]) -> dict[str, Tensor]:
            content = safetensors.torch.save(fields)
            return tensors_of(await client.post("/v1/cross-entropy/gradient", content=content, headers=SAFETENSORS))

        alone = [await ask(fields) for fields in bodies]
        together = await asyncio.gather(*(ask(fields) for fields in bodies * 3))

    for place, answer in enumerate(together):
        assert all(same_bits(answer[name], tensor) for name, tensor in alone[place % len(bodies)].items())


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
async def test_the_key_that_libraries_write_is_ignored(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
    tensors = {name: torch.tensor(value.values) for name, value in endpoint.valid().items() if isinstance(value, T)}

    plain = await client.post(endpoint.path, content=safetensors.torch.save(tensors), headers=SAFETENSORS)
    named = await client.post(
        endpoint.path, content=safetensors.torch.save(tensors, {"format": "pt"}), headers=SAFETENSORS
    )

    assert tensors_of(named).keys() == tensors_of(plain).keys()
    assert named.content == plain.content


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("reduction", "sum", "sum"),
        ("class_dim", "-1", -1),
        ("class_dim", "1", 1),
        ("label_smoothing", "0.25", 0.25),
        ("label_smoothing", "2.5e-1", 0.25),
        ("label_smoothing", "0", 0),
        ("temperature", "2", 2),
        ("ignore_index", "-9223372036854775808", -(2**63)),
        ("normalizer", "3.5", 3.5),
        ("outputs", '["loss", "logsumexp"]', ["loss", "logsumexp"]),
        ("non_finite", "propagate", "propagate"),
        ("accuracy", "accurate", "accurate"),
        ("dtype", "float64", "float64"),
        ("target_kind", "index", "index"),
    ],
)
async def test_an_option_says_the_same_in_both_formats(
    client: httpx.AsyncClient, name: str, text: str, value: object
) -> None:
    fields = LOGITS | {"target": T([0, 2], "int64")}
    tensors = {key: torch.tensor(tensor.values) for key, tensor in fields.items() if isinstance(tensor, T)}
    path = "/v1/cross-entropy"

    binary = await client.post(path, content=safetensors.torch.save(tensors, {name: text}), headers=SAFETENSORS)
    headers = JSON | {"Accept": "application/x-safetensors"}
    as_json = await client.post(path, content=body_of(fields | {name: value}, form=COMPACT), headers=headers)

    assert binary.status_code == 200, binary.text
    assert binary.content == as_json.content


async def test_a_number_is_a_tensor_without_dimensions(client: httpx.AsyncClient) -> None:
    fields = LOGITS | {"target": T([0, 2], "int64"), "grad_output": T(2.0)}

    response = await client.post(
        "/v1/cross-entropy/gradient", content=body_of(fields, form=BINARY), headers=SAFETENSORS
    )

    header = json.loads(response.content[8 : 8 + int.from_bytes(response.content[:8], "little")])
    assert header["loss"]["shape"] == []
    assert header["total_weight"]["shape"] == []
    assert header["grad_logits"]["shape"] == [2, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
async def test_half_types_come_back_as_they_went_and_losses_as_float32(
    client: httpx.AsyncClient, dtype: torch.dtype
) -> None:
    tensors = {"logits": torch.randn(4, 7).to(dtype), "target": torch.tensor([0, 1, 2, 6], dtype=torch.uint8)}

    answer = tensors_of(
        await client.post("/v1/cross-entropy/gradient", content=safetensors.torch.save(tensors), headers=SAFETENSORS)
    )

    assert {name: tensor.dtype for name, tensor in answer.items()} == {
        "loss": torch.float32,
        "total_weight": torch.float32,
        "grad_logits": dtype,
    }


async def test_empty_tensors_are_answered(client: httpx.AsyncClient) -> None:
    content = safetensors.torch.save({"logits": torch.zeros(0, 5)})

    answer = tensors_of(await client.post("/v1/softmax", content=content, headers=SAFETENSORS))

    assert answer["probs"].shape == (0, 5)


async def test_a_tensor_that_lies_askew_is_answered(client: httpx.AsyncClient) -> None:
    target, logits = torch.tensor([1], dtype=torch.int8), torch.randn(1, 3)
    entries = {
        "target": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]},
        "logits": {"dtype": "F32", "shape": [1, 3], "data_offsets": [1, 13]},
    }
    content = safetensors_file(json.dumps(entries), target.numpy().tobytes() + logits.numpy().tobytes())

    askew = await client.post("/v1/cross-entropy/gradient", content=content, headers=SAFETENSORS)
    plain = await client.post(
        "/v1/cross-entropy/gradient",
        content=safetensors.torch.save({"logits": logits, "target": target}),
        headers=SAFETENSORS,
    )

    assert askew.status_code == 200
    assert askew.content == plain.content


async def test_a_large_answer_is_given_in_binary_and_refused_in_json() -> None:
    settings = Settings(threads=1, device="cpu", max_json_answer_bytes=1024)
    content = safetensors.torch.save({"logits": torch.zeros(10, 100)})

    async with client_of(create_app(settings)) as client:
        binary = await client.post("/v1/softmax", content=content, headers=SAFETENSORS)
        refused = await client.post(
            "/v1/softmax", content=content, headers=SAFETENSORS | {"Accept": "application/json"}
        )

    assert binary.status_code == 200
    assert "application/x-safetensors" in check_problem(refused, code="content-too-large")["detail"]


async def test_each_format_has_a_limit_of_its_own() -> None:
    settings = Settings(threads=1, device="cpu", max_json_bytes=1024, max_body_bytes=4096)
    fits, too_large = ({"logits": torch.zeros(size)} for size in (900, 1100))

    async with client_of(create_app(settings)) as client:
        answered = await client.post("/v1/softmax", content=safetensors.torch.save(fits), headers=SAFETENSORS)
        refused = await client.post("/v1/softmax", content=safetensors.torch.save(too_large), headers=SAFETENSORS)
        as_json = await client.post("/v1/softmax", content=written(fits, COMPACT), headers=JSON)

    assert answered.status_code == 200
    assert check_problem(refused, code="content-too-large")["limit"] == 4096
    assert check_problem(as_json, code="content-too-large")["limit"] == 1024


async def test_a_body_of_unknown_length_is_read(client: httpx.AsyncClient) -> None:
    content = safetensors.torch.save({"logits": torch.zeros(200, 100)})

    async def chunks() -> Any:
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    response = await client.post("/v1/softmax", content=chunks(), headers=SAFETENSORS)

    assert tensors_of(response)["probs"].shape == (200, 100)


@pytest.mark.parametrize("size", [MAX_HEADER_BYTES + 1, 2**32, 2**64 - 1])
async def test_a_long_header_is_refused_before_the_rest_is_read(client: httpx.AsyncClient, size: int) -> None:
    async def chunks() -> Any:
        yield size.to_bytes(8, "little")
        for _ in range(64):
            yield b" " * (1 << 16)

    headers = SAFETENSORS | {"Content-Length": str(8 + (64 << 16))}
    response = await client.post("/v1/softmax", content=chunks(), headers=headers)

    check_problem(response, code="malformed-tensor")
    assert response.headers["Connection"] == "close"


async def test_an_answer_tells_where_its_time_went_in_binary_too(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/softmax", content=body_of(LOGITS, form=BINARY), headers=SAFETENSORS)

    assert response.headers["Server-Timing"].startswith("decode;dur=")
    assert int(response.headers["Content-Length"]) == len(response.content)


async def test_a_nan_is_told_as_in_json(client: httpx.AsyncClient) -> None:
    fields: dict[str, object] = {"logits": T([[0.5, 1.0], [float("nan"), 1.0]])}

    refused = await client.post("/v1/softmax", content=body_of(fields, form=BINARY), headers=SAFETENSORS)
    given = await client.post(
        "/v1/softmax", content=body_of(fields | {"non_finite": "propagate"}, form=BINARY), headers=SAFETENSORS
    )

    assert check_problem(refused, code="non-finite")["pointer"] == "/logits/1"
    assert tensors_of(given)["probs"].isnan().tolist() == [[False, False], [True, True]]
