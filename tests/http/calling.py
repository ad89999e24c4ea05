"""How tests call the service, and what every refusal must look like."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI

from service.errors import ERRORS
from service.http.problems import statuses_of
from service.ops import OPERATORS
from service.tensors import DTYPES

JSON = {"Content-Type": "application/json"}
SAFETENSORS = {"Content-Type": "application/x-safetensors"}

NESTED, COMPACT, BINARY = FORMS = ("nested", "compact", "safetensors")
"""The forms in which a request can be written: two of JSON, and safetensors."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """Return a client that calls the application without a network."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1")


def check_problem(response: httpx.Response, *, code: str | None = None) -> dict[str, Any]:
    """Assert what holds for every refusal, and return its members."""
    assert response.headers["Content-Type"] == "application/problem+json", response.text[:200]
    assert len(response.content) <= 4096
    problem = response.json()
    assert problem["code"] in ERRORS
    if code is not None:
        assert problem["code"] == code, problem["detail"]
    assert problem["status"] == response.status_code
    assert problem["status"] in statuses_of(ERRORS[problem["code"]])
    assert problem["type"] == f"/problems/{problem['code']}"
    assert problem["title"] == ERRORS[problem["code"]].title
    assert problem["request_id"] == response.headers["X-Request-Id"]
    assert REQUEST_ID.fullmatch(problem["request_id"])
    assert set(problem) <= {
        "type", "title", "status", "detail", "code", "pointer", "expected", "got", "limit", "request_id"
    }  # fmt: skip
    return dict(problem)


@dataclass(frozen=True)
class T:
    """A tensor that can be written in every form."""

    values: Any
    dtype: str = "float32"

    def nested(self) -> str:
        return json.dumps(_named(self.values))

    @property
    def shape(self) -> list[int]:
        return list(np.asarray(self.values, self.dtype).shape)

    @property
    def datatype(self) -> str:
        return DTYPES[self.dtype].open_inference

    def flat(self) -> list[Any]:
        return list(np.asarray(self.values, self.dtype).reshape(-1).tolist())

    def data(self) -> bytes:
        array = np.asarray(self.values, self.dtype)
        return array.astype(array.dtype.newbyteorder("<")).tobytes()

    def compact(self) -> str:
        text = base64.b64encode(self.data()).decode()
        return json.dumps({"dtype": self.dtype, "shape": self.shape, "base64": text})


def _named(values: Any) -> Any:
    """Return nested lists with the numbers that JSON cannot write as strings."""
    if isinstance(values, list):
        return [_named(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return "NaN" if math.isnan(values) else "Infinity" if values > 0 else "-Infinity"
    return values


@dataclass(frozen=True)
class Text:
    """A value as it stands in a JSON text, valid or not."""

    text: str

    @property
    def option(self) -> str | None:
        """The same value as an option of a safetensors header, None where it cannot be one.

        A string is not to be read as a number or a list there, and nothing but strings, numbers and lists can be told.
        """
        if self.text[0] in "-0123456789[":
            return self.text
        value = json.loads(self.text) if self.text[0] == '"' else None
        return value if isinstance(value, str) and value[:1] not in tuple("-0123456789[") else None


@dataclass(frozen=True)
class Described:
    """A tensor's description as it stands in a safetensors header, valid or not, and its data."""

    text: str
    data: bytes = b""


@dataclass(frozen=True)
class Endpoint:
    """An operator, or its gradient."""

    operator: str
    gradient: bool

    @property
    def path(self) -> str:
        return f"/v1/{self.operator}" + ("/gradient" if self.gradient else "")

    @property
    def infer_path(self) -> str:
        name = self.operator.replace("-", "_") + ("_gradient" if self.gradient else "")
        return f"/v2/models/{name}/infer"

    @property
    def first(self) -> str:
        return OPERATORS[self.operator].inputs[0].name

    @property
    def is_loss(self) -> bool:
        return OPERATORS[self.operator].is_loss

    @property
    def fields(self) -> list[str]:
        operator = OPERATORS[self.operator]
        return [*operator.tensors_of(gradient=self.gradient), *operator.options.model_fields]

    def valid(self) -> dict[str, object]:
        """Return a request that is answered: two rows of three classes."""
        fields: dict[str, object] = {self.first: T([[0.5, -1.5, 2.0], [0.25, 0.0, -4.0]])}
        if self.is_loss:
            fields["target"] = T([0, 2], "int64")
        elif self.gradient:
            fields["grad_output"] = T([[1.0, 0.5, 0.0], [0.0, 2.0, 1.0]])
        return fields


ENDPOINTS = [Endpoint(name, gradient) for name in OPERATORS for gradient in (False, True)]


def infer_body(fields: dict[str, object], *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """Write a request in the Open Inference form by hand, and return its headers too; tensors are T, or Text of one."""
    inputs, parameters, blocks, more = [], [], [], ""
    for name, value in fields.items():
        if isinstance(value, T):
            described = f'"name": {json.dumps(name)}, "shape": {value.shape}, "datatype": "{value.datatype}"'
            if binary:
                blocks.append(value.data())
                inputs.append(f'{{{described}, "parameters": {{"binary_data_size": {len(blocks[-1])}}}}}')
            else:
                inputs.append(f'{{{described}, "data": {json.dumps(value.flat())}}}')
            continue
        text = value.text if isinstance(value, Text) else json.dumps(value)
        if name == "outputs" and text.startswith("["):
            named = ", ".join(f'{{"name": {json.dumps(each)}}}' for each in json.loads(text))
            more += f', "outputs": [{named}]'
        elif name == "outputs":
            more += f', "outputs": {text}'
        else:
            parameters.append(f"{json.dumps(name)}: {text}")
    if parameters:
        more += f', "parameters": {{{", ".join(parameters)}}}'
    head = f'{{"inputs": [{", ".join(inputs)}]{more}}}'.encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    return head + b"".join(blocks), headers


def check_refusal(response: httpx.Response, *, code: str) -> str:
    """Assert what holds for every refusal below `/v2`, and return its sentence."""
    assert response.headers["Content-Type"] == "application/json", response.text[:200]
    refusal = response.json()
    assert set(refusal) == {"error", "code"}
    assert refusal["code"] == code, refusal["error"]
    assert response.status_code in statuses_of(ERRORS[code])
    assert len(response.content) <= 4096
    return str(refusal["error"])


def body_of(fields: dict[str, object], *, form: str = NESTED) -> bytes:
    """Write a request in the form asked for."""
    if form == BINARY:
        return _safetensors(fields)
    members = []
    for name, value in fields.items():
        if isinstance(value, T):
            text = value.compact() if form == COMPACT else value.nested()
        else:
            text = value.text if isinstance(value, Text) else json.dumps(value)
        members.append(f"{json.dumps(name)}: {text}")
    return ("{" + ", ".join(members) + "}").encode()


def safetensors_file(header: str | bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file with a header, right or wrong, and its data."""
    header = header.encode() if isinstance(header, str) else header
    return len(header).to_bytes(8, "little") + header + data


def _safetensors(fields: dict[str, object]) -> bytes:
    """Write a request as safetensors by hand: tensors one after the other, everything else as an option."""
    entries: list[str] = []
    options: dict[str, str] = {}
    data = b""
    for name, value in fields.items():
        if isinstance(value, T):
            place = [len(data), len(data) + len(value.data())]
            dtype = DTYPES[value.dtype].safetensors
            described = json.dumps({"dtype": dtype, "shape": value.shape, "data_offsets": place})
            entries.append(f"{json.dumps(name)}: {described}")
            data += value.data()
        elif isinstance(value, Described):
            entries.append(f"{json.dumps(name)}: {value.text}")
            data += value.data
        else:
            text = option_text(value)
            assert text is not None, "there is no such option in a safetensors header"
            options[name] = text
    if options:
        entries.append(f'"__metadata__": {json.dumps(options)}')
    return safetensors_file("{" + ", ".join(entries) + "}", data)


def option_text(value: object) -> str | None:
    """Return a value as an option of a safetensors header, None where it cannot be one."""
    if isinstance(value, Text):
        return value.option
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, int | float | list) and not isinstance(value, bool) else None
