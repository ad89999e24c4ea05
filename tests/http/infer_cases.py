"""Requests in the Open Inference form that break its own rules, and the sentences that they are refused with."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from service import errors
from service.errors import RequestError
from service.tensors import DTYPES
from tests.http.calling import Endpoint
from tests.http.problem_cases import Case, forward

JSON_BYTES = "Inference-Header-Content-Length"

TYPES = ", ".join(dtype.open_inference for dtype in DTYPES.values())

LOGITS = {"name": "logits", "shape": [2, 3], "datatype": "FP32", "data": [0.5, -1.5, 2.0, 0.25, 0.0, -4.0]}


def softmax(endpoint: Endpoint) -> bool:
    return endpoint.operator == "softmax" and not endpoint.gradient


def head(**members: Any) -> bytes:
    return json.dumps(members).encode()


def of_logits(**parts: Any) -> bytes:
    """Return a request whose logits are described with some parts otherwise; None removes one."""
    described = {name: value for name, value in (LOGITS | parts).items() if value is not None}
    return head(inputs=[described])


def case(
    error: type[RequestError],
    sentence: str,
    detail: str,
    body: bytes,
    headers: dict[str, str] | None = None,
    *,
    where: Callable[[Endpoint], bool] = softmax,
    **more: Any,
) -> Case:
    return Case(error, sentence, detail, body=body, path="{infer}", headers=headers or {}, where=where, **more)


def _binary(size: Any, data: bytes = b"", **parts: Any) -> tuple[bytes, dict[str, str]]:
    text = of_logits(data=None, parameters={"binary_data_size": size}, **parts)
    return text + data, {JSON_BYTES: str(len(text))}


INFER_CASES = [
    # how much of the body is JSON
    *(
        case(
            errors.MalformedRequest,
            "json-bytes",
            f"The Inference-Header-Content-Length is '{stated}', but must be a number of bytes.",
            of_logits(),
            {JSON_BYTES: stated},
        )
        for stated in ("", "-1", "1.0", "0x10", "1_0", "+5", "5, 5", "9" * 20)
    ),
    case(
        errors.MalformedRequest,
        "json-bytes",
        "The Inference-Header-Content-Length is 3, but must be at most 2, the length of the body.",
        b"{}",
        {JSON_BYTES: "3"},
    ),
    case(
        errors.ContentTooLarge,
        "json-part",
        "The JSON is larger than the 2048 bytes allowed; send large tensors as binary data.",
        b" " * 2049,
        settings={"max_json_bytes": 2048},
    ),
    case(
        errors.ContentTooLarge,
        "json-part",
        "The JSON is larger than the 2048 bytes allowed; send large tensors as binary data.",
        b" " * 3000,
        {JSON_BYTES: "2049"},
        settings={"max_json_bytes": 2048},
    ),
    case(
        errors.ContentTooLarge,
        "body",
        "The body is larger than the 2048 bytes allowed.",
        b"{}" + b" " * 3000,
        {JSON_BYTES: "2"},
        settings={"max_body_bytes": 2048},
    ),
    case(
        errors.ContentTooLarge,
        "json-outputs",
        "The answer could take 4748 bytes of JSON, but at most 4096 are allowed; ask for large outputs as binary data.",
        of_logits(shape=[70, 4], data=[0.5] * 280),
        settings={"max_json_answer_bytes": 4096},
    ),
    # compression
    case(
        errors.UnsupportedEncoding,
        "encoding",
        "The Content-Encoding is 'br', but must be 'gzip', 'deflate' or 'identity'.",
        of_logits(),
        {"Content-Encoding": "br"},
    ),
    *(
        case(
            errors.MalformedRequest,
            "compression",
            f"The body is not whole and valid {name}, as its Content-Encoding says.",
            of_logits(),
            {"Content-Encoding": name},
        )
        for name in ("gzip", "deflate")
    ),
    # the JSON and its parts
    case(errors.MalformedJson, "object", "The body must be one JSON object, but is an array.", b"[1]"),
    case(errors.MalformedJson, "object", "The body must be one JSON object, but is empty.", b""),
    case(errors.MalformedJson, "truncated", "The body is not valid JSON: it ends too early.", b'{"inputs": [NaN, 1'),
    case(
        errors.MalformedJson,
        "syntax",
        "The body is not valid JSON: trailing comma in array at byte 40.",
        b'{"id": "NaN", "inputs": [NaN, -Infinity,]}',
    ),
    *(
        case(errors.MalformedJson, "kind", f"'{name}' must be {expected}, but is {got}.", body)
        for name, expected, got, body in (
            ("inputs", "an array", "an object", b'{"inputs": {}}'),
            ("inputs/0", "an object", "a number", b'{"inputs": [1]}'),
            ("inputs[0].name", "a string", "a number", of_logits(name=1)),
            ("inputs/0/parameters", "an object", "an array", of_logits(parameters=[])),
            ("outputs/0", "an object", "a string", head(inputs=[LOGITS], outputs=["probs"])),
            ("parameters", "an object", "a string", b'{"parameters": ""}'),
            ("id", "a string", "a number", head(inputs=[LOGITS], id=7)),
            (
                "id",
                "a string of at most 4096 bytes",
                "a string of 5002 bytes",
                head(inputs=[LOGITS], id="x" * 5000),
            ),
        )
    ),
    case(
        errors.UnknownField,
        "unknown",
        "The request has no field 'x'; its fields are id, parameters, inputs, outputs, model_name, model_version.",
        head(x=1),
    ),
    case(
        errors.UnknownField,
        "similar",
        "inputs[0] has no field 'dat'; did you mean 'data'?",
        of_logits(dat=[]),
    ),
    case(
        errors.UnknownField,
        "unknown",
        "outputs[0] has no field 'classification'; its fields are binary_data, shared_memory_region, "
        "shared_memory_byte_size, shared_memory_offset.",
        head(inputs=[LOGITS], outputs=[{"name": "probs", "parameters": {"classification": 3}}]),
    ),
    case(errors.DuplicateField, "duplicate", "'inputs' appears more than once.", b'{"inputs": [], "inputs": []}'),
    case(errors.DuplicateField, "duplicate", "'logits' appears more than once.", head(inputs=[LOGITS, LOGITS])),
    case(
        errors.DuplicateField,
        "duplicate",
        "'outputs' appears more than once.",
        head(inputs=[LOGITS], outputs=[{"name": "probs"}], parameters={"outputs": ["probs"]}),
    ),
    case(
        errors.DuplicateField,
        "part",
        "inputs[0] has 'name' more than once.",
        b'{"inputs": [{"name": "a", "name": "a"}]}',
    ),
    *(
        case(errors.MissingField, "part", f"inputs[0] needs '{name}'; it has none.", of_logits(**{name: None}))
        for name in ("name", "shape", "datatype")
    ),
    case(
        errors.MissingField,
        "part",
        "outputs[0] needs 'name'; it has none.",
        head(inputs=[LOGITS], outputs=[{"parameters": {}}]),
    ),
    case(
        errors.MissingField,
        "part",
        "inputs[0] needs 'shared_memory_byte_size'; it has none.",
        of_logits(data=None, parameters={"shared_memory_region": "r"}),
    ),
    case(errors.MissingField, "tensor", "softmax needs the tensor 'logits'; the request has none.", b"{}"),
    # names, types and shapes
    case(
        errors.MalformedTensor,
        "many",
        "The request has 17 tensors, but at most 16 are allowed.",
        head(inputs=[LOGITS] * 17),
    ),
    case(
        errors.MalformedTensor,
        "option-as-input",
        "'class_dim' is an option and no tensor, but stands among the inputs.",
        of_logits(name="class_dim"),
    ),
    case(
        errors.MalformedTensor,
        "input-as-option",
        "'logits' is a tensor and no option; it belongs among the inputs.",
        head(parameters={"logits": [0.5]}),
    ),
    case(
        errors.UnknownField,
        "similar",
        "softmax has no field 'logit'; did you mean 'logits'?",
        of_logits(name="logit"),
    ),
    *(
        case(
            errors.MalformedTensor,
            "dtype",
            f"The 'dtype' of 'logits' must be one of {TYPES}, but is {got}.",
            of_logits(datatype=datatype),
        )
        for datatype, got in (
            ("F32", "'F32'"),
            ("BOOL", "'BOOL'"),
            ("BYTES", "'BYTES'"),
            (5, "a number"),
            ([], "an array"),
        )
    ),
    *(
        case(
            errors.MalformedTensor,
            "shape",
            "The 'shape' of 'logits' must be a list of at most 8 sizes, each an integer from 0.",
            of_logits(shape=shape),
        )
        for shape in (6, "6", {}, [-6], [6.0], [True, 6], ["6"], [[6]])
    ),
    case(
        errors.MalformedTensor,
        "elements",
        "The sizes in the 'shape' of 'logits', zeros apart, multiply to more than 281474976710656.",
        of_logits(shape=[0, 2**48 + 1], data=[]),
    ),
    case(
        errors.ShapeMismatch,
        "rank",
        "'logits' has 9 dimensions, but at most 8 are allowed.",
        of_logits(shape=[1] * 8 + [6]),
    ),
    # elements
    case(
        errors.MalformedTensor,
        "source",
        "'logits' must have its elements in exactly one place: 'data', 'binary_data_size' or 'shared_memory_region'; "
        "it has none of them.",
        of_logits(data=None),
    ),
    case(
        errors.MalformedTensor,
        "source",
        "'logits' must have its elements in exactly one place: 'data', 'binary_data_size' or 'shared_memory_region'; "
        "it has 2 of them.",
        of_logits(parameters={"binary_data_size": 24}),
    ),
    *(
        case(
            errors.MalformedTensor,
            "numbers",
            f"'logits' needs {needed} for its shape, but its 'data' has {got}.",
            of_logits(shape=shape, data=data),
        )
        for shape, data, needed, got in (
            ([2, 3], [0.5] * 5, "6 numbers", 5),
            ([], [0.5, 0.5], "1 number", 2),
            ([2, 3], [], "6 numbers", 0),
            ([0, 3], [0.5], "0 numbers", "others"),
            ([2, 0], [[]], "0 numbers", "others"),
            ([2**40, 0], [[]], "0 numbers", "others"),
        )
    ),
    case(
        errors.MalformedTensor,
        "nesting",
        "The 'data' of 'logits' is nested as [3, 2], but the shape is [2, 3]; a flat list is fine, too.",
        of_logits(data=[[0.5, 1], [2, 3], [4, 5]]),
    ),
    case(
        errors.RaggedArray,
        "length",
        "logits[1] has 1 element, but the arrays before it have 2.",
        of_logits(shape=[3], data=[[0.5, 1], [2]]),
    ),
    case(
        errors.DtypeMismatch,
        "element",
        "logits[1] must be a number, but is a string.",
        of_logits(data=[0.5, "a", 1, 2, 3, 4]),
    ),
    case(
        errors.DtypeMismatch,
        "tensor",
        "'logits' must be a number, an array of numbers or a compact tensor, but is an object.",
        of_logits(data={}),
    ),
    *(
        case(
            errors.DtypeMismatch,
            "overflow",
            f"logits[1, 0] is {got}, which {name} cannot hold; it needs another type.",
            of_logits(datatype=datatype, data=[0, 0, 0, number, 0, 0]),
        )
        for datatype, name, number, got in (
            ("FP16", "float16", 70000, "70000"),
            ("FP32", "float32", -1e39, "-1e+39"),
            ("BF16", "bfloat16", 1e39, "1e+39"),
            ("INT8", "int8", 128, "128"),
            ("UINT8", "uint8", -1, "-1"),
            ("INT64", "int64", 0.5, "0.5"),
            ("INT64", "int64", float("nan"), "nan"),
            ("INT64", "int64", 1e300, "1e+300"),
            ("UINT64", "uint64", -1, "-1"),
            ("INT32", "int32", 2**31, "2147483648"),
            ("INT32", "int32", 10**20, "1e+20"),
        )
    ),
    case(
        errors.MalformedJson,
        "number",
        '\'logits\' holds a number that float64 cannot hold; write infinities as "Infinity" and "-Infinity".',
        of_logits().replace(b"-4.0", b"1e999"),
    ),
    # binary data
    *(
        case(
            errors.MalformedTensor,
            "binary",
            f"'logits' needs 24 bytes for its type and shape, but its 'binary_data_size' is {got}.",
            *_binary(size, b"\0" * 24),
        )
        for size, got in (
            (23, "23 bytes"),
            (-24, "-24"),
            (24.0, "24.0"),
            ("24", "'24'"),
            (True, "true"),
            (2**70, "9223372036854775808 bytes"),
        )
    ),
    *(
        case(
            errors.MalformedTensor,
            "blocks",
            f"The tensors take 24 bytes, but {size} bytes follow the JSON.",
            *_binary(24, b"\0" * size),
        )
        for size in (0, 23, 25)
    ),
    case(
        errors.MalformedTensor,
        "raw",
        "A body without JSON is one tensor alone, but cross-entropy needs 'logits' and 'target'.",
        b"\0" * 8,
        {JSON_BYTES: "0"},
        where=lambda endpoint: endpoint.operator == "cross-entropy" and forward(endpoint),
    ),
    case(
        errors.MalformedTensor,
        "raw",
        "A body without JSON is one tensor alone, but log-softmax needs 'logits' and 'grad_output'.",
        b"\0" * 8,
        {JSON_BYTES: "0"},
        where=lambda endpoint: endpoint.operator == "log-softmax" and endpoint.gradient,
    ),
    case(
        errors.MalformedTensor,
        "raw-bytes",
        "A body without JSON holds numbers of 4 bytes, but has 7 bytes.",
        b"\0" * 7,
        {JSON_BYTES: "0"},
    ),
    case(
        errors.MalformedTensor,
        "region",
        "'logits' lies in the shared memory region '../x', which is not registered.",
        of_logits(data=None, parameters={"shared_memory_region": "../x", "shared_memory_byte_size": 24}),
    ),
    case(
        errors.MalformedTensor,
        "region",
        "'probs' lies in the shared memory region 'x', which is not registered.",
        head(
            inputs=[LOGITS],
            outputs=[{"name": "probs", "parameters": {"shared_memory_region": "x", "shared_memory_byte_size": 24}}],
        ),
    ),
    # outputs and the protocol's own options
    case(
        errors.InvalidOption,
        "value",
        "'outputs' must be a list of output names, not empty, but is an empty list.",
        head(inputs=[LOGITS], outputs=[]),
    ),
    case(
        errors.InvalidOption,
        "value",
        "'outputs' must be a list of output names, not empty, but is a list of 255 bytes.",
        head(inputs=[LOGITS], outputs=[{"name": "x"}] * 17),
    ),
    case(
        errors.InvalidOption,
        "repeated-output",
        "'outputs' names 'probs' more than once.",
        head(inputs=[LOGITS], outputs=[{"name": "probs"}, {"name": "probs"}]),
    ),
    *(
        case(
            errors.InvalidOption,
            "value",
            f"'{name}' must be {expected}, but is {got}.",
            head(inputs=[LOGITS], parameters={name: value}),
        )
        for name, expected, value, got in (
            ("timeout", "an integer from 0 to 9223372036854775807", -1, "-1"),
            ("timeout", "an integer from 0 to 9223372036854775807", "1s", "'1s'"),
            ("timeout", "an integer from 0 to 9223372036854775807", 1.5, "1.5"),
            ("timeout", "an integer from 0 to 9223372036854775807", 2**63, str(2**63)),
            ("priority", "an integer from 0 to 9223372036854775807", True, "true"),
            ("binary_data_output", "true or false", 1, "1"),
        )
    ),
    case(
        errors.InvalidOption,
        "value",
        "'binary_data' must be true or false, but is 'yes'.",
        head(inputs=[LOGITS], outputs=[{"name": "probs", "parameters": {"binary_data": "yes"}}]),
    ),
    *(
        case(
            errors.InvalidOption,
            "value",
            f"'{name}' must be {expected}, but is {got}.",
            of_logits(
                data=None,
                parameters={"shared_memory_region": "r", "shared_memory_byte_size": 24} | {name: value},
            ),
        )
        for name, expected, value, got in (
            ("shared_memory_region", "the name of a region", 1, "1"),
            ("shared_memory_offset", "an integer from 0 to 9223372036854775807", -1, "-1"),
            ("shared_memory_byte_size", "an integer from 0 to 9223372036854775807", 2**63, str(2**63)),
        )
    ),
    case(
        errors.TooDeep,
        "depth",
        "The JSON is nested deeper than 13 levels.",
        b'{"inputs": ' + b"[" * 13 + b"]" * 13 + b"}",
    ),
    case(
        errors.TooDeep,
        "depth",
        "The JSON is nested deeper than 10 levels.",
        of_logits().replace(b"0.5", b"[" * 9 + b"]" * 9),
    ),
    # paths
    *(
        Case(error, sentence, detail, path=path, method=method, headers={}, body=b"{}")
        for error, sentence, detail, path, method in (
            (errors.NotFound, "similar", "There is nothing at this path; did you mean '/v2'?", "/v2/", "GET"),
            (errors.NotFound, "path", "There is nothing at this path; see /docs.", "/v2/logging", "GET"),
            (errors.NotFound, "path", "There is nothing at this path; see /docs.", "/v2/models/softmax/x", "GET"),
            (errors.NotFound, "path", "There is nothing at this path; see /docs.", "/v2/models", "GET"),
            (
                errors.NotFound,
                "operator",
                "There is no operator 'cross-entropy'; did you mean 'cross_entropy'?",
                "/v2/models/cross-entropy/infer",
                "POST",
            ),
            (
                errors.NotFound,
                "operator",
                "There is no operator 'nll_gradient'; did you mean 'nll_loss_gradient'?",
                "/v2/models/nll_gradient/infer",
                "POST",
            ),
            *(
                (
                    errors.NotFound,
                    "no-operator",
                    "There is no operator 'x'; the operators are softmax, softmax_gradient, log_softmax, "
                    "log_softmax_gradient, nll_loss, nll_loss_gradient, cross_entropy, cross_entropy_gradient.",
                    path,
                    method,
                )
                for path, method in (("/v2/models/x/infer", "POST"), ("/v2/models/x/config", "GET"))
            ),
            (
                errors.NotFound,
                "version",
                "softmax has no version '2'; its only version is 1.",
                "/v2/models/softmax/versions/2/infer",
                "POST",
            ),
            (
                errors.NotFound,
                "version",
                "softmax has no version '01'; its only version is 1.",
                "/v2/models/softmax/versions/01",
                "GET",
            ),
            (
                errors.NotFound,
                "region",
                "There is no shared memory region 'r'.",
                "/v2/systemsharedmemory/region/r/status",
                "GET",
            ),
            (
                errors.NotFound,
                "region",
                "There is no shared memory region 'r'.",
                "/v2/cudasharedmemory/region/r/status",
                "GET",
            ),
            (
                errors.NotFound,
                "shared-memory",
                "Shared memory is switched off; whoever runs the service may set LOSS_SHARED_MEMORY.",
                "/v2/systemsharedmemory/region/r/register",
                "POST",
            ),
            (
                errors.NotFound,
                "cuda-memory",
                "Shared memory of CUDA devices is not supported; use binary data, or the memory of the system.",
                "/v2/cudasharedmemory/region/r/register",
                "POST",
            ),
            (errors.MethodNotAllowed, "method", "This path takes POST, not GET.", "/v2/models/softmax/infer", "GET"),
            (errors.MethodNotAllowed, "method", "This path takes GET or HEAD, not POST.", "/v2", "POST"),
            (errors.MethodNotAllowed, "method", "This path takes POST, not GET.", "/v2/repository/index", "GET"),
        )
    ),
    Case(
        errors.MalformedRequest,
        "host",
        "The Host is 'example.org', but this service answers only for localhost, *.localhost, 127.0.0.1, [::1]; "
        "whoever runs it may set LOSS_ALLOWED_HOSTS.",
        path="/v2/health/live",
        method="GET",
        body=b"",
        headers={"Host": "example.org"},
    ),
    Case(
        errors.MalformedRequest,
        "origin",
        "The request comes from a page of 'https://example.org', but this service has shared memory, which is not for "
        "pages.",
        path="/v2/systemsharedmemory/region/r/register",
        body=b"{}",
        headers={"Origin": "https://example.org"},
        settings={"shared_memory": True},
    ),
]
