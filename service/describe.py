"""What follows from the operator table: JSON schemas, the operator listing and examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from service.ops.request import describe_bounds, upstream_input
from service.ops.spec import Example, Input, Operator, Output
from service.tensors import DTYPES, MAX_RANK, NON_FINITE

Schema = dict[str, Any]

JSON_ONLY = ("dtype", "encoding")
"""Options that speak of numbers written out, and have no meaning where tensors are bytes."""

_FLOATING = [dtype.name for dtype in DTYPES.values() if dtype.kind == "floating"]
_INTEGER = [dtype.name for dtype in DTYPES.values() if dtype.kind == "integer"]


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _compact(title: str, dtypes: list[str]) -> Schema:
    return {
        "type": "object",
        "title": title,
        "description": "The bytes of a tensor in base64: little-endian, row-major. The only way to write one that is "
        "empty, such as (0, 5).",
        "required": ["dtype", "shape", "base64"],
        "additionalProperties": False,
        "properties": {
            "dtype": {"type": "string", "enum": dtypes},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": MAX_RANK},
            "base64": {"type": "string", "contentEncoding": "base64"},
        },
    }


def tensor_schemas() -> dict[str, Schema]:
    """Return the schemas that requests and answers refer to."""
    number: Schema = {"oneOf": [{"type": "number"}, {"type": "string", "enum": list(NON_FINITE)}]}
    return {
        "Number": {"title": "Number", "description": "A number; non-finite ones are strings.", **number},
        "FloatArray": {
            "title": "FloatArray",
            "description": "A number (a tensor without dimensions) or nested arrays of numbers, up to 8 deep.",
            "oneOf": [_ref("Number"), {"type": "array", "items": _ref("FloatArray")}],
        },
        "IntegerArray": {
            "title": "IntegerArray",
            "description": "An integer (a tensor without dimensions) or nested arrays of integers, up to 8 deep.",
            "oneOf": [{"type": "integer"}, {"type": "array", "items": _ref("IntegerArray")}],
        },
        "CompactFloats": _compact("CompactFloats", _FLOATING),
        "CompactIntegers": _compact("CompactIntegers", _INTEGER),
        "FloatTensor": {"title": "FloatTensor", "anyOf": [_ref("FloatArray"), _ref("CompactFloats")]},
        "IntegerTensor": {"title": "IntegerTensor", "anyOf": [_ref("IntegerArray"), _ref("CompactIntegers")]},
    }


def inputs_of(operator: Operator, *, gradient: bool) -> tuple[Input, ...]:
    """Return the tensors that an endpoint takes, `grad_output` among them."""
    return operator.inputs + ((upstream_input(operator),) if gradient else ())


def request_schema(operator: Operator, *, gradient: bool) -> Schema:
    """Return the JSON schema of what an endpoint takes."""
    inputs = inputs_of(operator, gradient=gradient)
    properties: dict[str, Schema] = {}
    for tensor in inputs:
        if tensor.role == "target":
            schema: Schema = {"anyOf": [_ref("IntegerTensor"), _ref("FloatTensor")]}
        else:
            schema = _ref("IntegerTensor" if tensor.role == "indices" else "FloatTensor")
        properties[tensor.name] = {**schema, "description": tensor.description}
    for name, declared in operator.options.model_json_schema()["properties"].items():
        option = _or_null({key: value for key, value in declared.items() if key != "title"})
        if name == "outputs":
            option |= {
                "items": {"type": "string", "enum": [output.name for output in operator.outputs_of(gradient=gradient)]},
                "uniqueItems": True,
                "default": defaults(operator, gradient=gradient),
            }
        properties[name] = option
    return {
        "type": "object",
        "title": schema_name(operator, gradient=gradient) + "Request",
        "required": [tensor.name for tensor in inputs if tensor.required],
        "additionalProperties": False,
        "properties": properties,
    }


def _or_null(declared: Schema) -> Schema:
    """Return pydantic's schema of an option that may be null as one type, as readers expect it: no `anyOf`."""
    if "anyOf" not in declared:
        return declared
    schema = {key: value for key, value in declared.items() if key != "anyOf"}
    (stated,) = (choice for choice in declared["anyOf"] if choice.get("type") != "null")
    return {**stated, "type": [stated["type"], "null"], **schema}


def answer_schema(operator: Operator, *, gradient: bool) -> Schema:
    """Return the JSON schema of what an endpoint gives."""
    return {
        "type": "object",
        "title": schema_name(operator, gradient=gradient) + "Answer",
        "additionalProperties": False,
        "properties": {
            output.name: {
                **_ref("FloatTensor"),
                "description": f"{output.description} Shape: {reference_shape(output)}; type: {_output_type(output)}."
                + ("" if output.default else " On request."),
            }
            for output in operator.outputs_of(gradient=gradient)
        },
    }


def schema_name(operator: Operator, *, gradient: bool) -> str:
    """Return an operator's name in camel case, as schemas are named: `CrossEntropyGradient`."""
    return operator.name.title().replace("-", "") + ("Gradient" if gradient else "")


def defaults(operator: Operator, *, gradient: bool) -> list[str]:
    """Return the names of the outputs given unless `outputs` says otherwise."""
    return [output.name for output in operator.outputs_of(gradient=gradient) if output.default]


def listing(operators: Mapping[str, Operator]) -> list[dict[str, Any]]:
    """Return the operator table as plain data."""
    return [
        {
            "name": operator.name,
            "title": operator.title,
            "description": operator.doc.strip(),
            "path": f"/v1/{operator.name}",
            "gradient_path": f"/v1/{operator.name}/gradient",
            "tensors": [_input(tensor) for tensor in inputs_of(operator, gradient=False)],
            "gradient_tensors": [_input(upstream_input(operator))],
            "options": _options(operator),
            "outputs": [_output(output) for output in operator.outputs],
        }
        for operator in operators.values()
    ]


_INPUT_SHAPES = {
    "classes": "[N, C, d1, ..., dk]",
    "indices": "[N, d1, ..., dk]",
    "target": "[N, d1, ..., dk] (indices) or [N, C, d1, ..., dk] (probabilities)",
    "weight": "[C]",
    "loss": "[] or, with reduction none, [N, d1, ..., dk]",
}
_INPUT_KINDS = {"indices": ["integer"], "target": ["integer", "floating"]}


def _input(tensor: Input) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": _INPUT_SHAPES[tensor.role],
        "kinds": _INPUT_KINDS.get(tensor.role, ["floating"]),
        "required": tensor.required,
        "description": tensor.description,
    }


def reference_shape(output: Output) -> str:
    """Return the shape of an output in words and letters."""
    return {
        "classes": "[N, C, d1, ..., dk]",
        "rows": "[N, d1, ..., dk]",
        "reduced": "[] or, with reduction none, [N, d1, ..., dk]",
        "scalar": "[]",
    }[output.shape]


def _output_type(output: Output) -> str:
    return f"that of {output.type_of}" if output.type_of else "float64 for float64 input, else float32"


def _output(output: Output) -> dict[str, Any]:
    return {
        "name": output.name,
        "shape": reference_shape(output),
        "type": _output_type(output),
        "default": output.default,
        "gradient_only": output.gradient,
        "description": output.description,
    }


def _options(operator: Operator) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "value": describe_bounds(option),
            "default": option.default,
            "description": option.description,
        }
        for name, option in operator.options.model_fields.items()
    ]


def models(operators: Mapping[str, Operator]) -> list[tuple[Operator, bool]]:
    """Return every operator and every gradient, as the Open Inference Protocol counts models."""
    return [(operator, gradient) for operator in operators.values() for gradient in (False, True)]


def model_name(operator: Operator, gradient: bool) -> str:
    """Return the name of an endpoint as a model of the Open Inference Protocol: `cross_entropy_gradient`."""
    return operator.name.replace("-", "_") + ("_gradient" if gradient else "")


_MODEL_SHAPES = {
    "classes": [-1, -1],
    "indices": [-1],
    "target": [-1],
    "weight": [-1],
    "loss": [],
    "rows": [-1],
    "reduced": [],
    "scalar": [],
}
"""Shapes of inputs and outputs in the form that the Open Inference metadata show: rows of classes, class indices, the
mean."""


def model_metadata(operator: Operator, gradient: bool) -> dict[str, Any]:
    """Return the Open Inference metadata of an endpoint, in its two-dimensional form with float32 and class indices."""
    return {
        "name": model_name(operator, gradient),
        "versions": ["1"],
        "platform": "loss-service",
        "inputs": [
            {"name": tensor.name, "datatype": _model_type(tensor), "shape": _MODEL_SHAPES[tensor.role]}
            for tensor in inputs_of(operator, gradient=gradient)
        ],
        "outputs": [
            {"name": output.name, "datatype": "FP32", "shape": _MODEL_SHAPES[output.shape]}
            for output in _model_outputs(operator, gradient)
        ],
    }


def model_config(operator: Operator, gradient: bool) -> dict[str, Any]:
    """Return the same as a Triton client's model configuration, which also says what is optional."""
    metadata = model_metadata(operator, gradient)
    optional = {tensor.name: not tensor.required for tensor in inputs_of(operator, gradient=gradient)}

    def configured(tensor: dict[str, Any]) -> dict[str, Any]:
        return {"name": tensor["name"], "data_type": f"TYPE_{tensor['datatype']}", "dims": tensor["shape"]}

    return {
        "name": metadata["name"],
        "platform": metadata["platform"],
        "backend": metadata["platform"],
        "max_batch_size": 0,
        "input": [configured(tensor) | {"optional": optional[tensor["name"]]} for tensor in metadata["inputs"]],
        "output": [configured(tensor) for tensor in metadata["outputs"]],
    }


def _model_type(tensor: Input) -> str:
    return "INT64" if tensor.role in ("indices", "target") else "FP32"


def _model_outputs(operator: Operator, gradient: bool) -> list[Output]:
    """Return the outputs that the two-dimensional form can give: not the gradient by class indices."""
    targets = [tensor.name for tensor in operator.inputs if tensor.role == "target"]
    return [output for output in operator.outputs_of(gradient=gradient) if output.type_of not in targets]


def infer_request(operator: Operator, gradient: bool, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON request in the Open Inference form; its tensors are nested numbers."""
    inputs = {tensor.name: tensor for tensor in inputs_of(operator, gradient=gradient)}
    tensors = [
        _infer_tensor(name, value, "FP32" if _holds_decimals(value) else _model_type(inputs[name]))
        for name, value in request.items()
        if name in inputs
    ]
    converted: dict[str, Any] = {"inputs": tensors}
    if "outputs" in request:
        converted["outputs"] = [{"name": name} for name in request["outputs"]]
    options = {name: value for name, value in request.items() if name not in inputs and name != "outputs"}
    return converted | ({"parameters": options} if options else {})


def is_inferable(request: Mapping[str, Any]) -> bool:
    """Return whether `infer_request` can convert a request.

    Not when it has compact tensors, nor numbers that are strings: those are bare literals there, which no document that
    is JSON can show.
    """
    return not any(
        isinstance(value, dict) or (name != "outputs" and _is_named(value)) for name, value in request.items()
    )


def _is_named(value: Any) -> bool:
    """Return whether a list holds a number by its name, at any depth."""
    return any(map(_is_named, value)) if isinstance(value, list) else value in NON_FINITE


def infer_answer(operator: Operator, gradient: bool, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON answer of nested float32 numbers in the Open Inference form."""
    outputs = [_infer_tensor(name, value, "FP32") for name, value in answer.items()]
    return {"model_name": model_name(operator, gradient), "model_version": "1", "outputs": outputs}


def _infer_tensor(name: str, value: Any, datatype: str) -> dict[str, Any]:
    shape: list[int] = []
    numbers = [value]
    while isinstance(numbers[0], list):
        shape.append(len(numbers[0]))
        numbers = [number for part in numbers for number in part]
    return {"name": name, "datatype": datatype, "shape": shape, "data": numbers}


def _holds_decimals(value: Any) -> bool:
    return any(map(_holds_decimals, value)) if isinstance(value, list) else isinstance(value, float)


def examples(operator: Operator, *, gradient: bool) -> Iterator[Example]:
    """Yield the requests that an endpoint answers, the simplest first."""
    first = operator.gradient_example if gradient else operator.example
    yield Example("example", "The simplest request", first)
    yield from (example for example in operator.examples if example.gradient in (None, gradient))


def reference(operator: Operator, *, gradient: bool) -> str:
    """Return the tensors, options and outputs of an endpoint as Markdown tables."""
    tensors = [
        (f"`{tensor.name}`", "yes" if tensor.required else "no", f"`{_INPUT_SHAPES[tensor.role]}`", tensor.description)
        for tensor in inputs_of(operator, gradient=gradient)
    ]
    options = [
        (f"`{name}`", _default(operator, name, option.default, gradient), describe_bounds(option), option.description)
        for name, option in operator.options.model_fields.items()
    ]
    outputs = [
        (
            f"`{output.name}`",
            "yes" if output.default else "on request",
            f"`{reference_shape(output)}`",
            output.description,
        )
        for output in operator.outputs_of(gradient=gradient)
    ]
    return "\n\n".join(
        (
            _table(("Tensor", "Needed", "Shape", "Meaning"), tensors),
            _table(("Option", "Default", "Value", "Meaning"), options),
            _table(("Output", "Given", "Shape", "Meaning"), outputs),
        )
    )


def _default(operator: Operator, name: str, default: object, gradient: bool) -> str:
    if name == "outputs":
        return ", ".join(f"`{output}`" for output in defaults(operator, gradient=gradient))
    return "none" if default is None else f"`{default}`"


def _table(head: tuple[str, ...], lines: Iterable[tuple[object, ...]]) -> str:
    rows = (head, ("---",) * len(head), *lines)
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
