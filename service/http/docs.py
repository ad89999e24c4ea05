"""The OpenAPI document: operators from their table, statuses from `problems`, everything with runnable examples."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service import describe
from service.errors import ERRORS, RequestError
from service.http.problems import PROBLEM_MEDIA_TYPE, STATUS
from service.ops.spec import Operator

DESCRIPTION = """\
Batched **softmax, log-softmax, negative log-likelihood and cross-entropy, with their gradients**, exactly as
PyTorch defines them, for callers that do not have PyTorch or do not want it in their process.

Every operator is `POST /v1/{operator}`; `POST /v1/{operator}/gradient` gives the result **and** the gradient in one
pass. A tensor is a nested array of numbers, or compact: `{"dtype": "float32", "shape": [2, 3], "base64": "..."}`.
Non-finite numbers are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`. Errors are `application/problem+json`: each
says what is wrong, where (`pointer`), and what was wanted.

Every answer carries `X-Request-Id` (yours, if it has 1 to 64 of `A-Z a-z 0-9 . _ -`) and, for operators,
`Server-Timing` with the milliseconds of `decode`, `queue`, `compute` and `encode`.
"""

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

NOT_OF_OPERATORS = {"not-found", "method-not-allowed"}
"""Codes that no operator's own endpoint answers."""


def install_openapi(app: FastAPI, operators: Mapping[str, Operator]) -> None:
    """Make `app.openapi()` return the document, built once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = build_openapi(app, operators)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents


def build_openapi(app: FastAPI, operators: Mapping[str, Operator]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the application."""
    document = get_openapi(
        title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, openapi_version="3.1.0"
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(describe.tensor_schemas())
    schemas["Problem"] = PROBLEM_SCHEMA
    paths: dict[str, Any] = {}
    for operator, gradient in itertools.product(operators.values(), (False, True)):
        name = describe.schema_name(operator, gradient=gradient)
        schemas[name + "Request"] = describe.request_schema(operator, gradient=gradient)
        schemas[name + "Answer"] = describe.answer_schema(operator, gradient=gradient)
        paths[f"/v1/{operator.name}" + ("/gradient" if gradient else "")] = {"post": _operation(operator, gradient)}
    document["paths"] = paths | document.get("paths", {})
    document["tags"] = [
        {"name": operator.title, "description": operator.doc.strip().splitlines()[0]} for operator in operators.values()
    ]
    return document


def _operation(operator: Operator, gradient: bool) -> dict[str, Any]:
    name = describe.schema_name(operator, gradient=gradient)
    summary = f"{operator.title} and its gradient" if gradient else operator.title
    return {
        "tags": [operator.title],
        "summary": summary,
        "description": operator.doc.strip(),
        "operationId": f"{operator.name}{'-gradient' if gradient else ''}".replace("-", "_"),
        "parameters": [
            {
                "name": "X-Request-Id",
                "in": "header",
                "description": "Echoed in the answer; made when absent or not of this form.",
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": f"#/components/schemas/{name}Request"},
                    "examples": {
                        "example": {"summary": summary, "value": describe.example(operator, gradient=gradient)}
                    },
                }
            },
        },
        "responses": {
            "200": {
                "description": "The outputs asked for, in the order of the table.",
                "headers": {
                    "X-Request-Id": {"schema": {"type": "string"}, "description": "The request's id."},
                    "Server-Timing": {
                        "schema": {"type": "string"},
                        "description": "Milliseconds of decode, queue, compute and encode.",
                    },
                },
                "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}Answer"}}},
            },
            **_problem_responses(),
        },
    }


def _problem_responses() -> dict[str, Any]:
    """Return one response a status, with every code that it can carry."""
    by_status: dict[int, list[type[RequestError]]] = {}
    for error, status in STATUS.items():
        if error.code not in NOT_OF_OPERATORS:
            by_status.setdefault(status, []).append(error)
    return {
        str(status): {
            "description": "\n".join(f"- `{error.code}`: {error.title}." for error in errors),
            "content": {
                PROBLEM_MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {error.code: {"value": _example_problem(error, status)} for error in errors},
                }
            },
        }
        for status, errors in sorted(by_status.items())
    }


def _example_problem(error: type[RequestError], status: int) -> dict[str, Any]:
    return {
        "type": f"/problems/{error.code}",
        "title": error.title,
        "status": status,
        "detail": error.mend,
        "code": error.code,
        "request_id": "8f14e45fceea167a",
    }
