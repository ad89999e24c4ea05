"""What the OpenAPI document says of `/v2`: models with their examples, what there is to know of them, shared memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from service import describe
from service.errors import ERRORS, RequestError
from service.http.problems import EXTRA_HEADERS
from service.ops.spec import Operator
from service.tensors import DTYPES, MAX_RANK
from service.wire import json_codec, oip_codec

TAG = "Open Inference Protocol"

TAG_DESCRIPTION = """\
The operators as models, for clients of Triton, KServe and others that speak the protocol (version 2, REST, with the
binary tensor extension). The same computation, the same numbers and the same errors as below `/v1`. Every path of a
model also exists with `/versions/1` after its name."""

Schema = dict[str, Any]

_DATATYPES = [dtype.open_inference for dtype in DTYPES.values()]

_STATE = {"type": "object", "additionalProperties": {"type": ["boolean", "string"]}}
_COUNT = {
    "type": "object",
    "required": ["count", "ns"],
    "properties": {"count": {"type": "integer", "minimum": 0}, "ns": {"type": "integer", "minimum": 0}},
}
_TENSORS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"type": "string"},
            "datatype": {"type": "string", "enum": _DATATYPES},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": -1}, "description": "-1: any size."},
        },
    },
}
_PARTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")

SCHEMAS: dict[str, Schema] = {
    "Refusal": {
        "type": "object",
        "title": "Refusal",
        "description": "What is wrong with a request below /v2.",
        "required": ["error", "code"],
        "additionalProperties": False,
        "properties": {
            "error": {"type": "string", "description": "What is wrong, the sentence that /v1 gives in `detail`."},
            "code": {"type": "string", "enum": sorted(ERRORS), "description": "The kind of problem, for programs."},
        },
    },
    "InferTensor": {
        "type": "object",
        "title": "InferTensor",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": MAX_RANK},
            "datatype": {"type": "string", "enum": _DATATYPES},
            "parameters": {
                "type": "object",
                "description": "Where the elements are, when they are not in `data`: `binary_data_size` bytes after "
                "the JSON, or `shared_memory_byte_size` bytes of `shared_memory_region` from `shared_memory_offset`.",
                "properties": {
                    "binary_data_size": {"type": "integer", "minimum": 0},
                    "shared_memory_region": {"type": "string"},
                    "shared_memory_byte_size": {"type": "integer", "minimum": 0},
                    "shared_memory_offset": {"type": "integer", "minimum": 0, "default": 0},
                },
            },
            "data": {
                "description": "The elements in row-major order, flat or nested as the shape is. The literals `NaN`, "
                "`Infinity` and `-Infinity` are numbers here; answers are flat.",
            },
        },
    },
    "InferAnswer": {
        "type": "object",
        "title": "InferAnswer",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string", "description": "That of the request, when it had one."},
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/InferTensor"}},
        },
    },
    "InferBinary": {
        "type": "string",
        "format": "binary",
        "title": "InferBinary",
        "description": f"""\
JSON as above, and after it the bytes of tensors, little-endian and row-major, one after the other without padding, in
the order of those that have a `binary_data_size`. The header `{oip_codec.JSON_BYTES_HEADER}` says how many bytes are
JSON, in requests and in answers. With 0 the whole body is one row of float32 logits, for operators that need nothing
else. A body may be compressed as a whole (`Content-Encoding: gzip` or `deflate`); an answer is when `Accept-Encoding`
is exactly one of the two.""",
    },
    "ModelMetadata": {
        "type": "object",
        "title": "ModelMetadata",
        "description": "The two-dimensional form, with float32 and class indices. Any other rank and type that the "
        "operator takes is accepted, too.",
        "required": ["name", "versions", "platform", "inputs", "outputs"],
        "properties": {
            "name": {"type": "string"},
            "versions": {"type": "array", "items": {"type": "string"}},
            "platform": {"type": "string"},
            "inputs": _TENSORS,
            "outputs": _TENSORS,
        },
    },
    "ModelConfig": {
        "type": "object",
        "title": "ModelConfig",
        "required": ["name", "platform", "backend", "max_batch_size", "input", "output"],
        "properties": {
            "name": {"type": "string"},
            "platform": {"type": "string"},
            "backend": {"type": "string"},
            "max_batch_size": {"const": 0, "description": "Shapes are whole: no dimension is added for a batch."},
            "input": {"type": "array", "items": {"type": "object"}},
            "output": {"type": "array", "items": {"type": "object"}},
        },
    },
    "ModelStatistics": {
        "type": "object",
        "title": "ModelStatistics",
        "description": "What models have done since the service started, in both protocols.",
        "required": ["model_stats"],
        "properties": {
            "model_stats": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "version", "inference_count", "execution_count", "inference_stats"],
                    "properties": {
                        "name": {"type": "string"},
                        "version": {"type": "string"},
                        "inference_count": {"type": "integer", "description": "Rows of answered requests."},
                        "execution_count": {"type": "integer", "description": "Launches of the engine."},
                        "inference_stats": {
                            "type": "object",
                            "required": list(_PARTS),
                            "properties": dict.fromkeys(_PARTS, _COUNT),
                        },
                        "batch_stats": {"type": "array", "maxItems": 0, "items": {}},
                    },
                },
            }
        },
    },
}

MODEL = {"name": "model_name", "in": "path", "required": True}
REGION = {
    "name": "region_name",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": r"^[A-Za-z0-9_-][A-Za-z0-9._:-]{0,127}$"},
    "example": "input",
}


def paths(
    operators: Mapping[str, Operator],
    answers: Mapping[str, Mapping[str, Any]],
    statuses: Mapping[str, list[type[RequestError]]],
    *,
    has_shared_memory: bool,
) -> dict[str, Any]:
    """Return the paths below `/v2`. `answers` are those recorded of the operators, by path and name of the example."""
    found: dict[str, Any] = {}
    models = describe.models(operators)
    for operator, gradient in models:
        path = f"/v2/models/{describe.model_name(operator, gradient)}/infer"
        found[path] = {"post": _inference(operator, gradient, answers, statuses)}
    names = [describe.model_name(*model) for model in models]
    model = MODEL | {"schema": {"type": "string", "enum": names}, "example": names[0]}
    server = {"type": "object", "required": ["name", "version", "extensions"]}
    for path, name, summary, schema in (
        ("", "serverMetadata", "The service and its extensions", server),
        ("/health/live", "serverLive", "Whether the process answers", _STATE),
        ("/health/ready", "serverReady", "Whether requests should be sent here", _STATE),
        ("/models/{model_name}", "modelMetadata", "Inputs and outputs of a model", _schema("ModelMetadata")),
        ("/models/{model_name}/ready", "modelReady", "Whether a model answers", _STATE),
        ("/models/{model_name}/config", "modelConfig", "The same, and what is optional", _schema("ModelConfig")),
        ("/models/{model_name}/stats", "modelStatistics", "What a model has done", _schema("ModelStatistics")),
        ("/models/stats", "statistics", "What every model has done", _schema("ModelStatistics")),
    ):
        operation = _about_model(name, summary, schema, model) if "{" in path else _about(name, summary, schema)
        if path.endswith("ready"):
            operation["responses"]["503"] = _answer("Not ready.", _STATE)
        found["/v2" + path] = {"get": operation}
    index = {"type": "array", "items": {"type": "object", "required": ["name", "version", "state", "reason"]}}
    found["/v2/repository/index"] = {"post": _about("repositoryIndex", "All models", index)}
    return found | (_shared_memory() if has_shared_memory else {})


def responses(kind: str, statuses: Mapping[str, list[type[RequestError]]]) -> dict[str, Any]:
    """Return one response a status, with every code that it can carry."""
    return {
        f"{kind}{status}": {
            "description": "\n".join(f"- `{error.code}`: {error.title}." for error in errors),
            "headers": _headers("X-Request-Id", *_named_headers(errors)),
            "content": {json_codec.MEDIA_TYPE: {"schema": _schema("Refusal")}},
        }
        for status, errors in statuses.items()
    }


def _named_headers(errors: Iterable[type[RequestError]]) -> Iterator[str]:
    if any(error.code in ("rate-limited", "draining") for error in errors):
        yield "Retry-After"
    if any(error.code == "method-not-allowed" for error in errors):
        yield "Allow"
    if any(name == b"www-authenticate" for error in errors for name, _ in EXTRA_HEADERS.get(error, [])):
        yield "WWW-Authenticate"


def _schema(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _answer(description: str, schema: Schema | None) -> dict[str, Any]:
    content = {} if schema is None else {"content": {json_codec.MEDIA_TYPE: {"schema": schema}}}
    return {"description": description, "headers": _headers("X-Request-Id"), **content}


def _refusals(statuses: Iterable[str]) -> dict[str, Any]:
    return {status: {"$ref": f"#/components/responses/Refusal{status}"} for status in statuses}


def _about(
    name: str, summary: str, schema: Schema | None, parameters: Sequence[Any] = (), refused: Iterable[str] = ()
) -> dict[str, Any]:
    """Return an operation with its own statuses, those apart that any path may answer."""
    return {
        "tags": [TAG],
        "summary": summary,
        "operationId": name,
        **({"parameters": [*parameters]} if parameters else {}),
        "responses": {"200": _answer("As said.", schema), **_refusals(refused)},
    }


def _about_model(name: str, summary: str, schema: Schema, model: Schema) -> dict[str, Any]:
    return _about(name, summary, schema, [model], ["404"])


def _inference(
    operator: Operator,
    gradient: bool,
    answers: Mapping[str, Mapping[str, Any]],
    statuses: Mapping[str, list[type[RequestError]]],
) -> dict[str, Any]:
    name = describe.schema_name(operator, gradient=gradient)
    examples = {
        example.name: example
        for example in describe.examples(operator, gradient=gradient)
        if describe.is_inferable(example.request)
    }
    known = answers.get(f"/v1/{operator.name}" + ("/gradient" if gradient else ""), {})
    return {
        "tags": [TAG],
        "summary": f"{operator.title} and its gradient" if gradient else operator.title,
        "description": f"{operator.doc.strip()}\n\nTensors are `inputs`, options `parameters`.\n\n"
        + describe.reference(operator, gradient=gradient),
        "operationId": f"infer{name}",
        "parameters": [
            {
                "name": oip_codec.JSON_BYTES_HEADER,
                "in": "header",
                "description": "How many bytes of the body are JSON; all of them, when it is absent.",
                "schema": {"type": "integer", "minimum": 0},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                json_codec.MEDIA_TYPE: {
                    "schema": _request_schema(operator, gradient),
                    "examples": {
                        key: {
                            "summary": example.summary,
                            "value": describe.infer_request(operator, gradient, example.request),
                        }
                        for key, example in examples.items()
                    },
                },
                oip_codec.MEDIA_TYPE: {"schema": _schema("InferBinary")},
            },
        },
        "responses": {
            "200": {
                "description": "The outputs asked for, in the order asked for.",
                "headers": _headers("X-Request-Id", "Server-Timing", oip_codec.JSON_BYTES_HEADER),
                "content": {
                    json_codec.MEDIA_TYPE: {
                        "schema": _schema("InferAnswer"),
                        "examples": {
                            key: {
                                "summary": example.summary,
                                "value": describe.infer_answer(operator, gradient, known[key]),
                            }
                            for key, example in examples.items()
                            if key in known
                        },
                    },
                    oip_codec.MEDIA_TYPE: {"schema": _schema("InferBinary")},
                },
            },
            **_refusals(statuses),
        },
    }


def _request_schema(operator: Operator, gradient: bool) -> Schema:
    request = describe.request_schema(operator, gradient=gradient)
    inputs = [tensor.name for tensor in describe.inputs_of(operator, gradient=gradient)]
    outputs = [output.name for output in operator.outputs_of(gradient=gradient)]
    options = {name: declared for name, declared in request["properties"].items() if name not in (*inputs, "outputs")}
    named = {"properties": {"name": {"enum": inputs}}}
    return {
        "type": "object",
        "title": describe.schema_name(operator, gradient=gradient) + "Inference",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {
            "id": {"type": "string", "description": "Comes back in the answer."},
            "inputs": {
                "type": "array",
                "maxItems": oip_codec.MAX_INPUTS,
                "items": {"allOf": [_schema("InferTensor"), named]},
            },
            "outputs": {
                "type": "array",
                "minItems": 1,
                "description": "The outputs wanted; unless given, " + ", ".join(request_defaults(operator, gradient)),
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"enum": outputs},
                        "parameters": {
                            "type": "object",
                            "properties": {"binary_data": {"type": "boolean", "default": False}},
                        },
                    },
                },
            },
            "parameters": {
                "type": "object",
                "description": "The options, and what the protocol has beside them.",
                "properties": options
                | {
                    "binary_data_output": {
                        "type": "boolean",
                        "default": False,
                        "description": "Whether outputs come as binary data of which nothing else is said.",
                    },
                    "timeout": {
                        "type": "integer",
                        "minimum": 0,
                        "default": 0,
                        "description": "The caller's deadline, in microseconds; 0 for none.",
                    },
                    "priority": {"type": "integer", "minimum": 0, "default": 0, "description": "Has no effect."},
                },
            },
        },
    }


def request_defaults(operator: Operator, gradient: bool) -> list[str]:
    """Return the outputs that are given unless others are asked for, as text."""
    return [f"`{name}`" for name in describe.defaults(operator, gradient=gradient)]


def _shared_memory() -> dict[str, Any]:
    folder = "/v2/systemsharedmemory"
    regions = {
        "type": "array",
        "items": {"type": "object", "required": ["name", "key", "offset", "byte_size"]},
    }
    register = _about(
        "registerRegion", "Register a part of a shared memory object", None, [REGION], ["400", "413", "422"]
    )
    register["requestBody"] = {
        "required": True,
        "content": {
            json_codec.MEDIA_TYPE: {
                "schema": {
                    "type": "object",
                    "required": ["key", "byte_size"],
                    "additionalProperties": False,
                    "properties": {
                        "key": {"type": "string", "description": "Name of the shared memory object: `/name`."},
                        "offset": {"type": "integer", "minimum": 0, "default": 0},
                        "byte_size": {"type": "integer", "minimum": 1},
                    },
                }
            }
        },
    }
    one, every = "A registered region", "All registered regions"
    forget, forget_all = "Unregister a region", "Unregister all regions"
    return {
        folder + "/status": {"get": _about("regions", every, regions)},
        folder + "/region/{region_name}/status": {"get": _about("region", one, regions, [REGION], ["404"])},
        folder + "/region/{region_name}/register": {"post": register},
        folder + "/region/{region_name}/unregister": {"post": _about("unregisterRegion", forget, None, [REGION])},
        folder + "/unregister": {"post": _about("unregisterRegions", forget_all, None)},
    }
