"""The OpenAPI document: operators from their table, statuses from `problems`, everything with runnable examples."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, cast

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service import describe
from service.errors import ERRORS, NotFound, RequestError
from service.http import oip_docs, samples
from service.http.auth import OPEN_PATHS
from service.http.envelope import ALWAYS_ANSWERED
from service.http.permits import LONGEST_TIMEOUT_MS, TIMEOUT_HEADER
from service.http.problems import PROBLEM_MEDIA_TYPE, STATUS, status_of, statuses_of
from service.ops.spec import Operator
from service.settings import Settings
from service.tensors import DTYPES, MAX_RANK
from service.wire import json_codec, oip_codec, safetensors_codec

DESCRIPTION = """\
Batched **softmax, log-softmax, negative log-likelihood and cross-entropy, with their gradients**, exactly as
PyTorch defines them, for callers that do not have PyTorch or do not want it in their process.

**Operators.** Every operator is `POST /v1/{operator}`; `POST /v1/{operator}/gradient` gives the result **and** the
gradient in one pass. Names and meaning of the options follow `torch.nn.functional`.

**Tensors.** A tensor is a nested array of numbers, or compact: `{"dtype": "float32", "shape": [2, 3], "base64": "..."}`
with little-endian bytes in row-major order. A single number is a tensor without dimensions. Non-finite numbers are the
strings `"NaN"`, `"Infinity"` and `"-Infinity"`.

**Formats.** `application/json`, and `application/x-safetensors` for bodies of any size: the
[safetensors](https://github.com/huggingface/safetensors) file format, tensors by name, options in `__metadata__`, where
a value is the string itself, or JSON for numbers and lists. Same request, same numbers, same errors. The answer is in
the format of the request unless `Accept` asks for the other (RFC 9110, 12.5.1: `*/*` and `application/*` mean the
format of the request, and `;q=` says what is liked better).

**Other clients.** Below `/v2` the same operators speak the Open Inference Protocol, so that clients of Triton and
KServe work unchanged. There, every path of a model also exists with `/versions/1` after the model's name, and means the
same.

**Errors** are `application/problem+json` (RFC 9457). Each says in `detail` what is wrong, in `pointer` where, and in
`expected` and `got` what was wanted and what came; `type` is the address of a page that says how to mend the request.
[`/problems`](problems) lists them all, for programs that accept `application/json` in JSON.
A path that does not exist is answered with 404 `not-found`, and a method that a path does not take with 405
`method-not-allowed`.

**To look at.** The [explorer](explore) shows a request as sliders, bars and arrows, and hands it over as a program.

**Headers.** Every answer carries `X-Request-Id`: yours, if it has 1 to 64 of `A-Z a-z 0-9 . _ -`, otherwise a new one.
Answers of operators carry `Server-Timing` with the milliseconds of `decode`, `queue`, `compute` and `encode`. A caller
who waits no longer than so many milliseconds says so in `X-Request-Timeout-Ms`.

**When there is too much to do**, a request waits at most for a moment and is then refused with 503: `overloaded` where
the work ahead would take too long, `memory-budget` where other requests hold the memory it needs. `Retry-After` says in
how many seconds to send it again; requests have no side effects. A caller who leaves stops the work on his request.
"""

KEYS_DESCRIPTION = """
**API keys.** Operators, `/v1/operators`, `/v1/limits`, `/metrics` and everything below `/v2` need the header
`Authorization: Bearer KEY`.
"""

ABOUT = "About the service"

PROBES = {
    "/v1/operators": "What the operators take and give",
    "/v1/limits": "The limits in force",
    "/health/live": "Whether the process answers",
    "/health/ready": "Whether requests should be sent here",
    "/metrics": "Metrics for Prometheus",
}
"""Short names of the endpoints about the service itself, in their order."""

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "What is wrong with a request (RFC 9457).",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "description": "Where the problem is explained: /problems/{code}."},
        "title": {"type": "string", "description": "The kind of problem in a few words."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "What is wrong with this request."},
        "code": {"type": "string", "enum": sorted(ERRORS), "description": "The kind of problem, for programs."},
        "pointer": {"type": "string", "description": "Where in the request (RFC 6901), such as /target/17."},
        "expected": {"description": "What was wanted, where it can be said shortly."},
        "got": {"description": "What came, where it can be said shortly."},
        "limit": {"type": "integer", "description": "The limit that was passed."},
        "request_id": {"type": "string", "description": "The X-Request-Id of the answer."},
    },
}

SAFETENSORS_SCHEMAS: dict[str, dict[str, Any]] = {
    "SafetensorsRequest": {
        "type": "string",
        "format": "binary",
        "title": "SafetensorsRequest",
        "description": f"""\
A safetensors file: 8 bytes with the length of the header (an unsigned integer, little-endian), the header, and the
data.

- The header is one JSON object of at most {safetensors_codec.MAX_HEADER_BYTES} bytes that begins with `{{`. It
  describes each tensor by name, `"logits": {{"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}`: its type, its
  shape, and where its bytes begin and end in the data. Sizes and positions are integers from 0; a tensor has at most
  {MAX_RANK} dimensions.
- Types: {", ".join(dtype.safetensors for dtype in DTYPES.values())}. Values are little-endian and row-major.
- The tensors lie one after the other and are the whole of the data: no gap, no overlap, nothing after them.
- Options stand in the header under `__metadata__`, strings to strings: `"reduction": "sum"`; a number or a list is
  written as its JSON, `"class_dim": "-1"`, `"outputs": "[\\"loss\\"]"`. The key `format`, which libraries write, is
  ignored. `dtype` has no effect, since the tensors have their types; `encoding` is for answers in JSON.
- Names stand once, as in JSON.""",
    },
    "SafetensorsAnswer": {
        "type": "string",
        "format": "binary",
        "title": "SafetensorsAnswer",
        "description": "A safetensors file with the outputs by name; a single number has the shape `[]`. The types are "
        "those of the table, and half types come back as they went.",
    },
}
"""What there is to say of binary bodies; their bytes have no schema."""

HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The id of the request: the caller's own, or a new one.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
    "Server-Timing": {
        "description": "Milliseconds of decode, queue, compute and encode.",
        "schema": {"type": "string"},
        "example": "decode;dur=0.041, queue;dur=0.002, compute;dur=0.187, encode;dur=0.029",
    },
    oip_codec.JSON_BYTES_HEADER: {
        "description": "How many bytes of an answer with binary data are JSON.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "Retry-After": {
        "description": "Seconds after which the request may be sent again.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Allow": {"description": "The methods that the path takes.", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "How to authenticate: `Bearer`.", "schema": {"type": "string"}},
}
"""Headers of answers, by name; the document refers to them."""

NOT_OF_OPERATORS = {"not-found"}
"""Codes that no operator's own endpoint answers."""

NOT_OF_INFERENCE = NOT_OF_OPERATORS | {"not-acceptable", "unsupported-media-type"}
"""The same below `/v2`."""

OF_ANY_PATH = {
    "malformed-request",
    "unauthorized",
    "method-not-allowed",
    "request-timeout",
    "uri-too-long",
    "rate-limited",
    "headers-too-large",
    "internal",
    "draining",
    "engine-restarting",
}
"""Codes that any path may answer, whatever it is for."""

RETRY_STATUSES = {429, 503}
"""Statuses whose answers carry Retry-After."""


@cache
def recorded() -> dict[str, Any]:
    """Return what the service answered to every example: `answers` by path and name, and `problems` by code."""
    return cast(dict[str, Any], orjson.loads(files("service.http").joinpath("assets", "examples.json").read_bytes()))


def install_openapi(app: FastAPI, operators: Mapping[str, Operator], settings: Settings) -> None:
    """Make `app.openapi()` return the document, built once, of a service with these settings."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = build_openapi(app, operators, settings)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents


def build_openapi(app: FastAPI, operators: Mapping[str, Operator], settings: Settings) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the application."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary="Losses and their gradients over HTTP, exactly as PyTorch defines them.",
        description=DESCRIPTION,
        routes=app.routes,
        openapi_version="3.1.0",
        license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        tags=[
            *({"name": operator.title, "description": _first_sentence(operator)} for operator in operators.values()),
            {"name": oip_docs.TAG, "description": oip_docs.TAG_DESCRIPTION},
            {"name": ABOUT, "description": "Health, limits, and what the operators take and give."},
        ],
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.update(describe.tensor_schemas())
    schemas |= SAFETENSORS_SCHEMAS | oip_docs.SCHEMAS
    schemas["Problem"] = PROBLEM_SCHEMA
    components["headers"] = HEADERS
    possible = set(ERRORS) - _impossible(settings)
    operator_statuses = _by_status(possible - NOT_OF_OPERATORS)
    inference_statuses = _by_status(possible - NOT_OF_INFERENCE)
    any_statuses = _by_status(possible & OF_ANY_PATH)
    components["responses"] = (
        _problem_responses("Problem", operator_statuses)
        | _problem_responses("AnyProblem", any_statuses)
        | oip_docs.responses("Refusal", inference_statuses | {"404": [NotFound]})
        | oip_docs.responses("AnyRefusal", any_statuses)
    )
    paths: dict[str, Any] = {}
    for operator, gradient in itertools.product(operators.values(), (False, True)):
        name = describe.schema_name(operator, gradient=gradient)
        schemas[name + "Request"] = describe.request_schema(operator, gradient=gradient)
        schemas[name + "Answer"] = describe.answer_schema(operator, gradient=gradient)
        paths[path_of(operator, gradient=gradient)] = {"post": _operation(operator, gradient, operator_statuses)}
    paths |= oip_docs.paths(
        operators, recorded()["answers"], inference_statuses, has_shared_memory=settings.shared_memory
    )
    for path, item in sorted(document.get("paths", {}).items(), key=lambda pair: _place(pair[0])):
        paths[path] = {method: _probe(path, operation) for method, operation in item.items()}
    for path, operation in ((path, operation) for path, item in paths.items() for operation in item.values()):
        operation["responses"] = dict(sorted((_refusals(path, any_statuses) | operation["responses"]).items()))
        if settings.api_keys is not None and path in OPEN_PATHS:
            operation["security"] = []
    document["paths"] = paths
    if settings.api_keys is not None:
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "An API key of this service."}
        }
        document["security"] = [{"key": []}]
        document["info"]["description"] += KEYS_DESCRIPTION
    return document


def path_of(operator: Operator, *, gradient: bool) -> str:
    """Return the path of an endpoint."""
    return f"/v1/{operator.name}" + ("/gradient" if gradient else "")


def operation_id(operator: Operator, *, gradient: bool) -> str:
    """Return the name of an endpoint, as client generators use it: `crossEntropyGradient`."""
    return _camel_case(describe.schema_name(operator, gradient=gradient))


def _camel_case(name: str) -> str:
    """Return a name without separators. Not with underscores: links into Swagger UI take those for spaces."""
    first, *others = name.replace("-", "/").split("/")
    return first[:1].lower() + first[1:] + "".join(other.title() for other in others)


def _first_sentence(operator: Operator) -> str:
    sentence = " ".join(operator.doc.strip().split("\n\n")[0].split()).partition(". ")[0].rstrip(".")
    return sentence.removeprefix(f"{operator.title}: ") + "."


def _place(path: str) -> int:
    """Return where a probe stands in the document: those that are not in the list come last."""
    return [*PROBES, path].index(path)


def _probe(path: str, operation: dict[str, Any]) -> dict[str, Any]:
    """Return what FastAPI says of a probe, with a short name and the headers of its answers."""
    operation |= {"operationId": _camel_case(path.removeprefix("/v1").strip("/")), "tags": [ABOUT]}
    operation["summary"] = PROBES.get(path, operation["summary"])
    for response in operation["responses"].values():
        response["headers"] = _headers("X-Request-Id")
    return operation


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _operation(operator: Operator, gradient: bool, statuses: Iterable[str]) -> dict[str, Any]:
    name = describe.schema_name(operator, gradient=gradient)
    examples = {example.name: example for example in describe.examples(operator, gradient=gradient)}
    answers = recorded()["answers"].get(path_of(operator, gradient=gradient), {})
    return {
        "tags": [operator.title],
        "summary": f"{operator.title} and its gradient" if gradient else operator.title,
        "description": f"{operator.doc.strip()}\n\n{describe.reference(operator, gradient=gradient)}",
        "operationId": operation_id(operator, gradient=gradient),
        "parameters": [
            {
                "name": "X-Request-Id",
                "in": "header",
                "description": "Echoed in the answer; made when absent or not of this form.",
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
            },
            {
                "name": TIMEOUT_HEADER,
                "in": "header",
                "description": "Milliseconds after which the request is given up with 504; unless given, the "
                "service's own limit (`deadline_seconds` of /v1/limits). A request that would wait longer than that "
                "is refused at once.",
                "schema": {"type": "integer", "minimum": 1, "maximum": LONGEST_TIMEOUT_MS},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                json_codec.MEDIA_TYPE: {
                    "schema": {"$ref": f"#/components/schemas/{name}Request"},
                    "examples": {
                        key: {"summary": example.summary, "value": dict(example.request)}
                        for key, example in examples.items()
                    },
                },
                safetensors_codec.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/SafetensorsRequest"}},
            },
        },
        "responses": {
            "200": {
                "description": "The outputs asked for, in the order of the table.",
                "headers": _headers("X-Request-Id", "Server-Timing"),
                "content": {
                    json_codec.MEDIA_TYPE: {
                        "schema": {"$ref": f"#/components/schemas/{name}Answer"},
                        "examples": {
                            key: {"summary": example.summary, "value": answers[key]}
                            for key, example in examples.items()
                            if key in answers
                        },
                    },
                    safetensors_codec.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/SafetensorsAnswer"}},
                },
            },
            **{status: _reference("Problem", status) for status in statuses},
        },
    }


def _reference(kind: str, status: str) -> dict[str, str]:
    return {"$ref": f"#/components/responses/{kind}{status}"}


def _refusals(path: str, statuses: Iterable[str]) -> dict[str, Any]:
    """Return those of the answers of any path that this one gives, too."""
    never = {*(("401", "429") if path in OPEN_PATHS else ()), *(("503",) if path.startswith(ALWAYS_ANSWERED) else ())}
    kind = "AnyRefusal" if path.startswith("/v2") else "AnyProblem"
    return {status: _reference(kind, status) for status in statuses if status not in never}


def _impossible(settings: Settings) -> set[str]:
    """Return the codes that a service with these settings never answers."""
    if settings.api_keys is None:
        return {"unauthorized", "rate-limited"}
    return {"rate-limited"} if settings.rate_per_key is None else set()


def _by_status(codes: Collection[str]) -> dict[str, list[type[RequestError]]]:
    """Return the errors of these codes by status."""
    by_status: dict[int, list[type[RequestError]]] = defaultdict(list)
    for error in STATUS:
        if error.code in codes:
            for status in statuses_of(error):
                by_status[status].append(error)
    return {str(status): errors for status, errors in sorted(by_status.items())}


def _problem_responses(kind: str, statuses: Mapping[str, list[type[RequestError]]]) -> dict[str, Any]:
    """Return one response a status, with every code that it can carry."""
    return {
        f"{kind}{status}": {
            "description": "\n".join(f"- `{error.code}`: {error.title}." for error in errors),
            "headers": _headers(
                "X-Request-Id",
                *(["Retry-After"] if int(status) in RETRY_STATUSES else []),
                *(["WWW-Authenticate"] if status == "401" else []),
                *(["Allow"] if status == "405" else []),
            ),
            "content": {
                PROBLEM_MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {
                        error.code: {"summary": error.title, "value": example_problem(error, int(status))}
                        for error in errors
                    },
                }
            },
        }
        for status, errors in statuses.items()
    }


def example_problem(error: type[RequestError], status: int | None = None) -> dict[str, Any]:
    """Return an answer of this kind: one that the service gave, or one made of the kind's first sentence."""
    status = status or STATUS[error]
    found = recorded()["problems"].get(error.code)
    if found is not None and found["answer"]["status"] == status:
        return dict(found["answer"])
    sentence = next(key for key in error.sentences if status_of(error, key) == status)
    return {
        "type": f"/problems/{error.code}",
        "title": error.title,
        "status": status,
        "detail": samples.example(error, sentence),
        "code": error.code,
        "request_id": samples.REQUEST_ID,
    }
