"""One request for every sentence that the service can refuse a request with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from service import errors
from service.errors import RequestError
from service.tensors import DTYPES
from tests.http.calling import (
    BINARY,
    COMPACT,
    ENDPOINTS,
    FORMS,
    NESTED,
    SAFETENSORS,
    Described,
    Endpoint,
    T,
    Text,
    option_text,
    safetensors_file,
)

NAN = float("nan")

TENSORS = {"{first}", "target", "weight", "grad_output"}


def compact(dtype: str = '"float32"', shape: str = "[2, 3]", data: str = '""', more: str = "") -> Text:
    return Text(f'{{"dtype": {dtype}, "shape": {shape}, "base64": {data}{more}}}')


def described(dtype: str = '"F32"', shape: str = "[2, 3]", offsets: str = "[0, 24]", more: str = "") -> Described:
    return Described(f'{{"dtype": {dtype}, "shape": {shape}, "data_offsets": {offsets}{more}}}', b"\0" * 24)


def always(_: Endpoint) -> bool:
    return True


def losses(endpoint: Endpoint) -> bool:
    return endpoint.is_loss


def activations(endpoint: Endpoint) -> bool:
    return not endpoint.is_loss


def cross_entropy(endpoint: Endpoint) -> bool:
    return endpoint.operator == "cross-entropy"


def nll_loss(endpoint: Endpoint) -> bool:
    return endpoint.operator == "nll-loss"


def forward(endpoint: Endpoint) -> bool:
    return not endpoint.gradient


def gradient(endpoint: Endpoint) -> bool:
    return endpoint.gradient


@dataclass(frozen=True)
class Case:
    """A request and the sentence it is refused with.

    In names, pointer and detail, `{first}` stands for the operator's first input, `{owner}` for its name.

    Attributes:
        change: what differs from a valid request; None removes the field.
        body: the whole body instead.
        typed_detail: the sentence when the tensors come with a type, where it differs.
        only: the forms in which it can be sent, where not in all of those that can carry what is changed.
    """

    error: type[RequestError]
    sentence: str
    detail: str
    pointer: str | None = None
    change: dict[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    where: Callable[[Endpoint], bool] = always
    method: str = "POST"
    path: str = "{path}"
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    settings: dict[str, Any] = field(default_factory=dict)
    typed_detail: str | None = None
    only: tuple[str, ...] = FORMS

    @property
    def key(self) -> tuple[str, str]:
        return self.error.code, self.sentence

    @property
    def endpoints(self) -> list[Endpoint]:
        found = [endpoint for endpoint in ENDPOINTS if self.where(endpoint)]
        return found if self.path in ("{path}", "{infer}") else found[:1]

    @property
    def is_inferable(self) -> bool:
        """Whether the same request can be sent in the Open Inference form."""
        if self.body is not None or self.settings or self.path != "{path}" or self.method != "POST":
            return False
        if BINARY not in self.only or list(self.headers) != ["Content-Type"]:
            return False
        values = [value for value in self.change.values() if value is not None]
        is_known = self.headers["Content-Type"] in ("application/json", SAFETENSORS["Content-Type"])
        has_tensors = all(isinstance(value, T) or name not in TENSORS for name, value in self.change.items() if value)
        return is_known and has_tensors and not any(isinstance(value, Described) for value in values)

    def forms(self) -> list[str]:
        """Return in which forms the request is sent."""
        if self.body is not None:
            return [NESTED]
        values = [value for value in self.change.values() if value is not None]
        if any(isinstance(value, Described) for value in values):
            return [BINARY]
        forms = [NESTED]
        if any(isinstance(value, T) for value in values):
            forms.append(COMPACT)
        if all(isinstance(value, T) or option_text(value) is not None for value in values) and "{first}" not in [
            name for name, value in self.change.items() if isinstance(value, Text)
        ]:
            forms.append(BINARY)
        return [form for form in forms if form in self.only]


_DTYPES = ", ".join(DTYPES)
_TYPES = ", ".join(dtype.safetensors for dtype in DTYPES.values())
_OPTION_DTYPES = "'float16', 'bfloat16', 'float32' or 'float64'"
_INT64 = "an integer from -9223372036854775808 to 9223372036854775807"
_LONG = "x" * 61 + "..."

CASES = [
    # malformed-request
    Case(
        errors.MalformedRequest,
        "host",
        "The Host is 'example.org:8000', but this service answers only for localhost, *.localhost, 127.0.0.1, [::1]; "
        "whoever runs it may set LOSS_ALLOWED_HOSTS.",
        headers={"Host": "example.org:8000"},
    ),
    Case(
        errors.MalformedRequest,
        "host",
        f"The Host is '{_LONG}', but this service answers only for a.example, *.b.example; whoever runs it may set "
        "LOSS_ALLOWED_HOSTS.",
        headers={"Host": "x" * 300},
        settings={"allowed_hosts": "A.example, *.b.example"},
    ),
    # malformed-json
    Case(errors.MalformedJson, "object", "The body must be one JSON object, but is an array.", body=b" [1]"),
    Case(errors.MalformedJson, "object", "The body must be one JSON object, but is a number.", body=b"1"),
    Case(errors.MalformedJson, "object", "The body must be one JSON object, but is empty.", body=b" \n"),
    Case(
        errors.MalformedJson,
        "syntax",
        "The body is not valid JSON: trailing comma in object at byte 8.",
        body=b'{"a": 1,}',
    ),
    Case(errors.MalformedJson, "truncated", "The body is not valid JSON: it ends too early.", body=b'{"a": [1'),
    Case(errors.MalformedJson, "truncated", "The body is not valid JSON: it ends too early.", body=b"[1"),
    Case(
        errors.MalformedJson,
        "syntax",
        "The body is not valid JSON: invalid character at byte 1.",
        body=b"[Object: null prototype]",
    ),
    Case(
        errors.MalformedJson,
        "stringify",
        "The body is not JSON, but '[object Object]': what JavaScript makes of an object without JSON.stringify.",
        body=b"[object Object]",
    ),
    *(
        Case(
            errors.MalformedJson,
            "safetensors",
            "The body is not JSON, but looks like safetensors; /v1 takes it as application/x-safetensors.",
            body=safetensors_file('{"a": {}}' + " " * blanks, data),
        )
        for blanks, data in ((0, b""), (0, b"\xff" * 8), (ord("{") - 9, b""), (ord('"') - 9, b""), (ord("0") - 9, b""))
    ),
    Case(
        errors.MalformedJson,
        "surrogate",
        "The body is not valid JSON: a string holds half of a surrogate pair, such as \\ud800, alone.",
        body=rb'{"a": "\ud800"}',
    ),
    Case(
        errors.MalformedJson,
        "surrogate",
        "The body is not valid JSON: a string holds half of a surrogate pair, such as \\ud800, alone.",
        body=rb'{"a": "\udc00"}',
    ),
    Case(
        errors.MalformedJson,
        "surrogate",
        "The body is not valid JSON: a string holds half of a surrogate pair, such as \\ud800, alone.",
        body=rb'{"a": "\\ud800", "b": "\\\ud800"}',
    ),
    Case(
        errors.MalformedJson,
        "truncated",
        "The body is not valid JSON: it ends too early.",
        body=rb'{"a": "\\ud800", "b": "\\\ud83d\ude00',
    ),
    Case(
        errors.MalformedJson,
        "literal",
        'The body is not valid JSON: NaN at byte 7; write it as a string, "NaN".',
        body=b'{"a": [NaN]}',
    ),
    Case(
        errors.MalformedJson,
        "literal",
        'The body is not valid JSON: -Infinity at byte 7; write it as a string, "-Infinity".',
        body=b'{"a": [-Infinity, 1]}',
    ),
    Case(
        errors.MalformedJson,
        "mark",
        "The body begins with a byte order mark; JSON is sent in UTF-8 without one.",
        body=b'\xef\xbb\xbf{"a": 1}',
    ),
    Case(
        errors.MalformedJson,
        "text",
        "The body is not valid UTF-8: byte 7 does not belong to a character.",
        body=b'{"a": "\xff"}',
    ),
    *(
        Case(
            errors.MalformedJson,
            "number",
            '\'{first}\' holds a number that float64 cannot hold; write infinities as "Infinity" and "-Infinity".',
            "/{first}",
            {"{first}": Text(text)},
        )
        for text in ("[[0.5, 1e999]]", "1e999", "[" + "9" * 400 + "]", "-" + "9" * 5000)
    ),
    Case(
        errors.MalformedJson,
        "number",
        '\'class_dim\' holds a number that float64 cannot hold; write infinities as "Infinity" and "-Infinity".',
        "/class_dim",
        {"class_dim": Text("1e999")},
    ),
    # malformed-tensor
    Case(
        errors.MalformedTensor,
        "dtype",
        f"The 'dtype' of '{{first}}' must be one of {_DTYPES}, but is 'F32'.",
        "/{first}/dtype",
        {"{first}": compact('"F32"')},
    ),
    Case(
        errors.MalformedTensor,
        "dtype",
        f"The 'dtype' of '{{first}}' must be one of {_DTYPES}, but is null.",
        "/{first}/dtype",
        {"{first}": compact("null")},
    ),
    Case(
        errors.MalformedTensor,
        "dtype",
        f"The 'dtype' of '{{first}}' must be one of {_DTYPES}, but is a string of 5002 bytes.",
        "/{first}/dtype",
        {"{first}": compact('"' + "x" * 5000 + '"')},
    ),
    *(
        Case(
            errors.MalformedTensor,
            "shape",
            "The 'shape' of '{first}' must be a list of at most 8 sizes, each an integer from 0.",
            "/{first}/shape",
            {"{first}": compact(shape=shape)},
        )
        for shape in ("2", "null", "[-1]", "[2.0]", "[true]", '["2"]', "[[2]]", "[" + "1, " * 2000 + "1]")
    ),
    *(
        Case(
            errors.MalformedTensor,
            "elements",
            "The sizes in the 'shape' of '{first}', zeros apart, multiply to more than 281474976710656.",
            "/{first}/shape",
            {"{first}": compact(shape=shape)},
        )
        for shape in (
            "[0, 281474976710657]",
            "[9223372036854775808]",
            "[" + "9" * 4000 + ", 0]",
            "[16777217, 16777217]",
        )
    ),
    *(
        Case(
            errors.MalformedTensor,
            "base64",
            "The 'base64' of '{first}' must be a string of base64 with padding, and is not.",
            "/{first}/base64",
            {"{first}": compact(shape="[2]", data=data)},
        )
        for data in (
            '"AAAAAAAAAAA"',
            '"AAAA AAAAAAA="',
            '"=AAAAAAAAAAA"',
            "5",
            "null",
            '"\\u00e9AAA"',
            '"AAAAAAAAAAA=AAAA"',
        )
    ),
    Case(
        errors.MalformedTensor,
        "size",
        "'{first}' needs 8 bytes for its dtype and shape, but its base64 holds 7.",
        "/{first}/base64",
        {"{first}": compact(shape="[2]", data='"AAAAAAAAAA=="')},
    ),
    Case(
        errors.MalformedTensor,
        "size",
        "'target' needs 1 byte for its dtype and shape, but its base64 holds 2.",
        "/target/base64",
        {"target": compact('"uint8"', "[]", '"AAA="')},
        where=losses,
    ),
    # malformed-tensor, in a safetensors header
    *(
        Case(
            errors.MalformedTensor,
            "json",
            "The body looks like JSON and not like safetensors; send it as application/json.",
            body=body,
            headers=SAFETENSORS,
        )
        for body in (b"{}", b"[]", b'{"logits": [1, 2]}', b'[[0.5, 1.5], "x"]')
    ),
    Case(
        errors.MalformedTensor,
        "short",
        "A safetensors body begins with 8 bytes for the length of its header; this one has 7 bytes.",
        body=b"\0" * 7,
        headers=SAFETENSORS,
    ),
    Case(
        errors.MalformedTensor,
        "long-header",
        "The safetensors header is 18446744073709551615 bytes long by its first 8 bytes, but at most 65536 are "
        "allowed.",
        body=b"\xff" * 8 + b"{}",
        headers=SAFETENSORS,
    ),
    Case(
        errors.MalformedTensor,
        "header-beyond",
        "The safetensors header is 3 bytes long by its first 8 bytes, but only 2 bytes follow.",
        body=b"\3" + b"\0" * 7 + b"{}",
        headers=SAFETENSORS,
    ),
    *(
        Case(
            errors.MalformedTensor,
            "header",
            "The safetensors header is not a JSON object.",
            body=safetensors_file(header),
            headers=SAFETENSORS,
        )
        for header in (b"", b"   ", b"[]", b"{", b" {}", b'{"\xff": 1}')
    ),
    Case(
        errors.MalformedTensor,
        "count",
        "The safetensors header describes 17 tensors, but at most 16 are allowed.",
        body=safetensors_file("{" + ", ".join(f'"{number}": 1' for number in range(17)) + "}"),
        headers=SAFETENSORS,
    ),
    *(
        Case(
            errors.MalformedTensor,
            "description",
            "The description of '{first}' must have 'dtype', 'shape' and 'data_offsets', and nothing else.",
            "/{first}",
            {"{first}": Described(text)},
        )
        for text in ("null", "[]", '{"dtype": "F32", "shape": [2]}', described(more=', "order": "C"').text)
    ),
    *(
        Case(
            errors.MalformedTensor,
            "dtype",
            f"The 'dtype' of '{{first}}' must be one of {_TYPES}, but is {got}.",
            "/{first}/dtype",
            {"{first}": described(dtype)},
        )
        for dtype, got in (
            ('"F8_E4M3"', "'F8_E4M3'"),
            ('"float32"', "'float32'"),
            ("null", "null"),
            ("1", "a number"),
            ('"' + "x" * 5000 + '"', "a string of 5002 bytes"),
        )
    ),
    *(
        Case(
            errors.MalformedTensor,
            "shape",
            "The 'shape' of '{first}' must be a list of at most 8 sizes, each an integer from 0.",
            "/{first}/shape",
            {"{first}": described(shape=shape)},
        )
        for shape in ("6", "null", "[-6]", "[6.0]", "[true, 6]", '["6"]', "[[6]]")
    ),
    Case(
        errors.MalformedTensor,
        "elements",
        "The sizes in the 'shape' of '{first}', zeros apart, multiply to more than 281474976710656.",
        "/{first}/shape",
        {"{first}": described(shape="[0, 281474976710657]", offsets="[0, 0]")},
    ),
    Case(
        errors.ShapeMismatch,
        "rank",
        "'{first}' has 2000 dimensions, but at most 8 are allowed.",
        "/{first}",
        {"{first}": described(shape="[" + "1," * 1999 + "1]", offsets="[0, 4]")},
    ),
    Case(
        errors.MalformedTensor,
        "option-as-tensor",
        "'class_dim' is an option and no tensor; options go into the string map of the header.",
        "/class_dim",
        {"class_dim": described()},
    ),
    Case(
        errors.MalformedTensor,
        "tensor-as-option",
        "'target' is a tensor and no option; tensors are described in the header.",
        "/target",
        body=safetensors_file('{"__metadata__": {"target": "[0, 2]"}}'),
        where=losses,
        headers=SAFETENSORS,
    ),
    *(
        Case(
            errors.MalformedTensor,
            "offsets",
            "The 'data_offsets' of '{first}' must be two byte positions, the first not after the second.",
            "/{first}/data_offsets",
            {"{first}": described(offsets=offsets)},
        )
        for offsets in ("null", "[24]", "[0, 24, 48]", "[24, 0]", "[-24, 0]", "[0.0, 24]", "[false, 24]")
    ),
    Case(
        errors.MalformedTensor,
        "span",
        "'{first}' needs 24 bytes for its dtype and shape, but its data_offsets span 1 byte.",
        "/{first}/data_offsets",
        {"{first}": described(offsets="[0, 1]")},
    ),
    Case(
        errors.MalformedTensor,
        "place",
        "'{first}' begins at byte 4 of the data, but must begin at byte 0: tensors follow each other without gaps "
        "and overlaps.",
        "/{first}/data_offsets",
        {"{first}": described(offsets="[4, 28]"), "target": None, "grad_output": None},
    ),
    Case(
        errors.MalformedTensor,
        "data",
        "The tensors take 24 bytes, but the data after the safetensors header has 25 bytes.",
        None,
        {"{first}": Described(described().text, b"\0" * 25), "target": None, "grad_output": None},
    ),
    *(
        Case(
            errors.MalformedTensor,
            "options",
            "The options in the safetensors header must map strings to strings.",
            body=safetensors_file(f'{{"__metadata__": {options}}}'),
            headers=SAFETENSORS,
        )
        for options in ("null", "[]", '{"class_dim": 1}', '{"format": null}')
    ),
    # too-deep
    Case(
        errors.TooDeep,
        "depth",
        "The JSON is nested deeper than 10 levels.",
        body=b'{"a": ' + b"[" * 10 + b"]" * 10 + b"}",
    ),
    Case(
        errors.TooDeep,
        "depth",
        "The JSON is nested deeper than 10 levels.",
        None,
        {"outputs": Text("[" * 10 + "]" * 10)},
    ),
    Case(
        errors.TooDeep,
        "depth",
        "The JSON is nested deeper than 10 levels.",
        None,
        {"{first}": Described("[" * 10 + "]" * 10)},
    ),
    # unknown-field
    Case(errors.UnknownField, "unknown", "{owner} has no field 'zzz'; its fields are {fields}.", "/zzz", {"zzz": 1}),
    Case(
        errors.UnknownField,
        "unknown",
        "{owner} has no field 'z/~?é'; its fields are {fields}.",
        "/z~1~0?é",
        {"z/~\né": 1},
    ),
    Case(
        errors.UnknownField,
        "unknown",
        f"{{owner}} has no field '{_LONG}'; its fields are {{fields}}.",
        f"/{_LONG}",
        {"x" * 100_000: 1},
        only=(NESTED,),
    ),
    Case(
        errors.UnknownField,
        "unknown",
        f"{{owner}} has no field '{_LONG}'; its fields are {{fields}}.",
        f"/{_LONG}",
        {"x" * 10_000: 1},
    ),
    Case(
        errors.UnknownField,
        "unknown",
        "The compact tensor '{first}' has no field 'order'; its fields are dtype, shape, base64.",
        "/{first}/order",
        {"{first}": compact(more=', "order": "C"')},
    ),
    Case(
        errors.UnknownField,
        "similar",
        "{owner} has no field 'output'; did you mean 'outputs'?",
        "/output",
        {"output": ["loss"]},
        where=forward,
    ),
    Case(
        errors.UnknownField,
        "gradient",
        "{owner} has no field 'grad_output'; POST it to /v1/{owner}/gradient.",
        "/grad_output",
        {"grad_output": 1.0},
        where=forward,
    ),
    *(
        Case(
            errors.UnknownField,
            "query",
            f"'{name}' stands in the address, but belongs in the body.",
            f"/{name}",
            path=f"/v1/softmax?{query}",
        )
        for name, query in (
            ("temperature", "temperature=2"),
            ("outputs", "x=1&outputs"),
            ("logits", "logits=%5B1%5D"),
            ("class_dim", "class%5Fdim=0"),
        )
    ),
    # duplicate-field
    Case(
        errors.DuplicateField,
        "duplicate",
        "'dtype' appears more than once.",
        "/dtype",
        body=b'{"encoding": "array", "dtype": "float32", "dtype": "float32"}',
    ),
    Case(
        errors.DuplicateField,
        "duplicate",
        "'dtype' appears more than once.",
        "/dtype",
        body=rb'{"encoding": "a\\", "dtype": "x\"y", "\u0064type": [{"outputs": 1, "outputs": 1}], "outputs": null}',
    ),
    Case(
        errors.DuplicateField,
        "duplicate",
        "'dtype' appears more than once.",
        "/dtype",
        body=safetensors_file(rb'{"__metadata__": {"dtype": "float32", "\u0064type": "float32"}}'),
        headers=SAFETENSORS,
    ),
    Case(
        errors.DuplicateField,
        "duplicate",
        "'target' appears more than once.",
        "/target",
        body=safetensors_file('{"target": {"dtype": "I8"}, "target": {}}'),
        where=losses,
        headers=SAFETENSORS,
    ),
    Case(
        errors.DuplicateField,
        "duplicate",
        "'__metadata__' appears more than once.",
        "/__metadata__",
        body=safetensors_file('{"__metadata__": {}, "__metadata__": {}}'),
        headers=SAFETENSORS,
    ),
    Case(
        errors.DuplicateField,
        "description",
        "The description of '{first}' has 'shape' more than once.",
        "/{first}/shape",
        {"{first}": described(more=', "shape": [2, 3]')},
    ),
    Case(
        errors.DuplicateField,
        "part",
        "The compact tensor '{first}' has 'shape' more than once.",
        "/{first}/shape",
        {"{first}": compact(more=', "shape": [2]')},
    ),
    # missing-field
    Case(
        errors.MissingField,
        "tensor",
        "{owner} needs the tensor '{first}'; the request has none.",
        "/{first}",
        {"{first}": None},
    ),
    Case(
        errors.MissingField,
        "tensor",
        "{owner} needs the tensor 'target'; the request has none.",
        "/target",
        {"target": None},
        where=losses,
    ),
    Case(
        errors.MissingField,
        "upstream",
        "{owner} needs the tensor 'grad_output', the gradient of your loss by '{result}'; the request has none.",
        "/grad_output",
        {"grad_output": None},
        where=lambda endpoint: endpoint.gradient and not endpoint.is_loss,
    ),
    Case(
        errors.MissingField,
        "part",
        "The compact tensor '{first}' needs 'base64'; it has none.",
        "/{first}/base64",
        {"{first}": Text('{"dtype": "float32", "shape": [0, 3]}')},
    ),
    # shape-mismatch
    Case(
        errors.ShapeMismatch,
        "rank",
        "'{first}' has 9 dimensions, but at most 8 are allowed.",
        "/{first}",
        {"{first}": T([[[[[[[[[0.5]]]]]]]]])},
    ),
    Case(
        errors.ShapeMismatch,
        "rank",
        "'{first}' has 2000 dimensions, but at most 8 are allowed.",
        "/{first}",
        {"{first}": compact(shape="[" + "1," * 1999 + "1]", data='"AAAAAA=="')},
    ),
    Case(
        errors.ShapeMismatch,
        "rank",
        "'weight' has 9 dimensions, but at most 8 are allowed.",
        "/weight",
        {"weight": T([[[[[[[[[0.5]]]]]]]]])},
        where=losses,
    ),
    Case(
        errors.ShapeMismatch,
        "scalar",
        "'{first}' is a single number, but must be an array with at least one dimension, that of the classes.",
        "/{first}",
        {"{first}": T(0.5)},
    ),
    Case(
        errors.ShapeMismatch,
        "classes",
        "'{first}' has shape [0], but dimension 0 holds the classes and must not be empty.",
        "/{first}",
        {"{first}": T([])},
    ),
    Case(
        errors.ShapeMismatch,
        "classes",
        "'{first}' has shape [2, 0, 3], but dimension 1 holds the classes and must not be empty.",
        "/{first}",
        {"{first}": compact(shape="[2, 0, 3]")},
    ),
    Case(
        errors.ShapeMismatch,
        "shape",
        "'weight' has shape [2], but must have shape [3]: one number for each class of '{first}'.",
        "/weight",
        {"weight": T([1.0, 2.0])},
        where=losses,
    ),
    Case(
        errors.ShapeMismatch,
        "shape",
        "'grad_output' has shape [3], but must have shape [2, 3]: that of the output '{result}'.",
        "/grad_output",
        {"grad_output": T([1.0, 2.0, 3.0])},
        where=lambda endpoint: endpoint.gradient and not endpoint.is_loss,
    ),
    Case(
        errors.ShapeMismatch,
        "shape",
        "'grad_output' has shape [2], but must have shape []: that of the output 'loss'.",
        "/grad_output",
        {"grad_output": T([1.0, 2.0])},
        where=lambda endpoint: endpoint.gradient and endpoint.is_loss,
    ),
    Case(
        errors.ShapeMismatch,
        "shape",
        "'grad_output' has shape [], but must have shape [2]: that of the output 'loss'.",
        "/grad_output",
        {"grad_output": T(1.0), "reduction": "none"},
        where=lambda endpoint: endpoint.gradient and endpoint.is_loss,
    ),
    Case(
        errors.ShapeMismatch,
        "shape",
        "'target' has shape [3], but must have shape [2]: that of '{first}' without the dimension of the classes.",
        "/target",
        {"target": T([0, 1, 2], "int64")},
        where=nll_loss,
    ),
    Case(
        errors.ShapeMismatch,
        "shape",
        "'target' has shape [2, 3], but must have shape [2]: that of '{first}' without the dimension of the classes.",
        "/target",
        {"target": T([[0, 1, 2], [0, 1, 2]], "int64"), "target_kind": "index"},
        where=cross_entropy,
    ),
    Case(
        errors.ShapeMismatch,
        "shape",
        "'target' has shape [2], but must have shape [2, 3]: that of '{first}', a probability for each.",
        "/target",
        {"target": T([0.5, 0.5]), "target_kind": "probs"},
        where=cross_entropy,
    ),
    Case(
        errors.ShapeMismatch,
        "target",
        "'target' has shape [3], but for 'logits' of shape [2, 3] it must have shape [2] (class indices) or [2, 3] "
        "(class probabilities).",
        "/target",
        {"target": T([0, 1, 2], "int64")},
        where=cross_entropy,
    ),
    Case(
        errors.ShapeMismatch,
        "class-last",
        "'target' has shape [2, 1], but for '{first}' of shape [2, 1, 3] it must have shape [2, 3]; it would fit with "
        "class_dim -1.",
        "/target",
        {"{first}": T([[[0.5, 1.5, 2.5]], [[0.5, 1.5, 2.5]]]), "target": T([[0], [2]], "int64")},
        where=losses,
    ),
    Case(
        errors.ShapeMismatch,
        "empty-rows",
        "'{first}' holds empty rows; an empty tensor is written in the compact form "
        '{"dtype": ..., "shape": ..., "base64": ""}.',
        "/{first}",
        {"{first}": Text("[[], [ ]]")},
    ),
    # ragged-array
    *(
        Case(
            errors.RaggedArray,
            "length",
            f"{{first}}[{', '.join(map(str, index))}] has {got}, but the arrays before it have {expected}.",
            "/{first}/" + "/".join(map(str, index)),
            {"{first}": Text(text)},
        )
        for text, index, got, expected in (
            ("[[1, 2], [3]]", (1,), "1 element", 2),
            ("[[1, 2], [3, 4], [5, 6, 7]]", (2,), "3 elements", 2),
            ("[[1], []]", (1,), "0 elements", 1),
            ("[[ ], [1]]", (1,), "1 element", 0),
            ("[[1, 2], [\n]]", (1,), "0 elements", 2),
            ("[[], [1, 2]]", (1,), "2 elements", 0),
            ("[[], [[1]]]", (1,), "1 element", 0),
            ("[[[1, 2], [3, 4]], [[5, 6], [7]]]", (1, 1), "1 element", 2),
            ("[[[1], [2]], [[3]]]", (1,), "1 element", 2),
            ("[[[1]], [[]]]", (1, 0), "0 elements", 1),
        )
    ),
    *(
        Case(
            errors.RaggedArray,
            "mixed",
            f"{{first}}[{', '.join(map(str, index))}] is {got}, but the elements before it are {expected}.",
            "/{first}/" + "/".join(map(str, index)),
            {"{first}": Text(text)},
        )
        for text, index, got, expected in (
            ("[[], 1]", (1,), "a number", "arrays"),
            ("[1, 2, [2], 3]", (2,), "an array", "numbers"),
            ("[[1, 2], 3]", (1,), "a number", "arrays"),
            ("[[1, [2]], [[3], 4]]", (0, 1), "an array", "numbers"),
            ("[[[1], [2]], [[3], 4]]", (1, 1), "a number", "arrays"),
            ('[[1, 2], ["NaN", [3]]]', (1, 1), "an array", "numbers"),
        )
    ),
    # dtype-mismatch
    *(
        Case(
            errors.DtypeMismatch,
            "tensor",
            f"'{{first}}' must be a number, an array of numbers or a compact tensor, but is {got}.",
            "/{first}",
            {"{first}": Text(text)},
        )
        for text, got in (('"1.5"', "a string"), ("true", "true"), ("false", "false"), ("null", "null"))
    ),
    *(
        Case(
            errors.DtypeMismatch,
            "element",
            f"{{first}}[{index}] must be a number, but is {got}.",
            "/{first}/" + index.replace(", ", "/"),
            {"{first}": Text(text)},
        )
        for text, index, got in (
            ('[[1, 2], [3, "4"]]', "1, 1", "a string"),
            ('["\\"NaN"]', "0", "a string"),
            ("[1, true]", "1", "true"),
            ("[0.5, false]", "1", "false"),
            ('[[1, {"a": [1, 2]}], [3]]', "0, 1", "an object"),
            ('["NaN", {}]', "1", "an object"),
            ('["-"]', "0", "a string"),
            ('["infinite"]', "0", "a string"),
        )
    ),
    Case(
        errors.DtypeMismatch,
        "null",
        "{first}[0, 1] must be a number, but is null, as JSON.stringify writes NaN and infinities; they are the "
        'strings "NaN", "Infinity" and "-Infinity".',
        "/{first}/0/1",
        {"{first}": Text("[[1, null], [2, 3]]")},
    ),
    *(
        Case(
            errors.DtypeMismatch,
            "spelling",
            f'{{first}}{index} must be a number, but is the string "{got}"; write it "{right}".',
            "/{first}" + pointer,
            {"{first}": Text(text % f'"{got}"')},
        )
        for text, index, pointer, got, right in (
            ('[[1, "Infinity"], [%s, true]]', "[1, 0]", "/1/0", "-inf", "-Infinity"),
            ("[%s]", "[0]", "/0", "inf", "Infinity"),
            ("[%s]", "[0]", "/0", "nan", "NaN"),
            ("[%s]", "[0]", "/0", "+Infinity", "Infinity"),
            ("[%s]", "[0]", "/0", "-INF", "-Infinity"),
            ("%s", "", "", "-infinity", "-Infinity"),
        )
    ),
    Case(
        errors.DtypeMismatch,
        "floating",
        "'{first}' must hold floating-point numbers, but holds int32.",
        "/{first}",
        {"{first}": T([0], "int32")},
        only=(COMPACT, BINARY),
    ),
    Case(
        errors.DtypeMismatch,
        "floating",
        "'grad_output' must hold floating-point numbers, but holds uint8.",
        "/grad_output",
        {"grad_output": T(0, "uint8")},
        only=(COMPACT, BINARY),
        where=lambda endpoint: endpoint.gradient and endpoint.is_loss,
    ),
    Case(
        errors.DtypeMismatch,
        "indices",
        "'target' must hold class indices, which are integers, but holds decimal numbers.",
        "/target",
        {"target": T([0.0, 1.5])},
        where=losses,
        typed_detail="'target' must hold class indices, which are integers, but holds float32.",
    ),
    Case(
        errors.DtypeMismatch,
        "probabilities",
        "'target' has the shape of 'logits', so it must hold class probabilities as floating-point numbers, but holds "
        "int64.",
        "/target",
        {"target": T([[0, 1, 0], [1, 0, 0]], "int64")},
        only=(COMPACT, BINARY),
        where=cross_entropy,
    ),
    Case(
        errors.DtypeMismatch,
        "too-large",
        '{first}[1, 0] is -70000, which float16 cannot hold; it needs "dtype": "float32".',
        "/{first}/1/0",
        {"{first}": T([[0.5, float("inf"), 1.0], [-70000.0, 0.0, 70000.0]]), "dtype": "float16"},
        only=(NESTED,),
    ),
    Case(
        errors.DtypeMismatch,
        "too-large",
        'weight[2] is 1e+39, which float32 cannot hold; it needs "dtype": "float64".',
        "/weight/2",
        {"weight": T([1, 2, 10**39])},
        where=losses,
        only=(NESTED,),
    ),
    # invalid-option
    *(
        Case(
            errors.InvalidOption,
            "value",
            f"'{name}' must be {expected}, but is {got}.",
            f"/{name}",
            {name: Text(text)},
            where=where,
        )
        for name, text, expected, got, where in (
            ("dtype", '"int64"', f"one of {_OPTION_DTYPES}", "'int64'", always),
            ("dtype", "null", f"one of {_OPTION_DTYPES}", "null", always),
            ("dtype", '"' + "x" * 100 + '"', f"one of {_OPTION_DTYPES}", f"'{_LONG}'", always),
            ("dtype", '"' + "x" * 9000 + '"', f"one of {_OPTION_DTYPES}", "a string of 9002 bytes", always),
            ("dtype", '"a\\n\\u001b[31m"', f"one of {_OPTION_DTYPES}", "'a??[31m'", always),
            ("encoding", "1", "one of 'array' or 'base64'", "1", always),
            ("non_finite", "{}", "one of 'reject' or 'propagate'", "an object", always),
            ("accuracy", "[1]", "one of 'fast' or 'accurate'", "a list", always),
            ("class_dim", "true", "an integer", "true", always),
            ("class_dim", "1.0", "an integer", "1.0", always),
            ("class_dim", '"1"', "an integer", "'1'", always),
            ("outputs", "[]", "a list of output names, not empty", "an empty list", always),
            ("outputs", '"loss"', "a list of output names, not empty", "'loss'", always),
            ("outputs", '{"loss": 1}', "a list of output names, not empty", "an object", always),
            ("outputs", "[" + "0, " * 3000 + "0]", "a list of output names, not empty", "a list of 9003 bytes", always),
            ("ignore_index", "1.0", _INT64, "1.0", losses),
            ("ignore_index", "9223372036854775808", _INT64, "9223372036854775808", losses),
            ("ignore_index", "false", _INT64, "false", losses),
            ("reduction", '"avg"', "one of 'none', 'mean' or 'sum'", "'avg'", losses),
            ("normalizer", "0", "a finite number greater than 0", "0", losses),
            ("normalizer", "-1.5", "a finite number greater than 0", "-1.5", losses),
            ("normalizer", '"NaN"', "a finite number greater than 0", "'NaN'", losses),
            ("normalizer", "true", "a finite number greater than 0", "true", losses),
            ("target_kind", '"soft"', "one of 'auto', 'index' or 'probs'", "'soft'", cross_entropy),
            ("label_smoothing", "1.5", "a finite number from 0 to 1", "1.5", cross_entropy),
            ("label_smoothing", "-0.1", "a finite number from 0 to 1", "-0.1", cross_entropy),
            ("label_smoothing", "false", "a finite number from 0 to 1", "false", cross_entropy),
            ("temperature", "0", "a finite number greater than 0", "0", cross_entropy),
            ("temperature", "true", "a finite number greater than 0", "true", activations),
            ("temperature", '"Infinity"', "a finite number greater than 0", "'Infinity'", activations),
            ("temperature", "null", "a finite number greater than 0", "null", activations),
            ("temperature", "9" * 400, "a finite number greater than 0", "9" * 61 + "...", activations),
        )
    ),
    *(
        Case(
            errors.InvalidOption,
            "class-dim",
            f"'class_dim' must be from -2 to 1 for '{{first}}' of shape [2, 3], but is {got}.",
            "/class_dim",
            {"class_dim": Text(text)},
        )
        for text, got in (("2", "2"), ("-3", "-3"), ("9" * 40, "9" * 40), ("-" + "9" * 400, "-" + "9" * 60 + "..."))
    ),
    *(
        Case(
            errors.InvalidOption,
            "list",
            f"'outputs' must be a list of output names, not empty, but is the text '{text}'; a list is written "
            '["probs"].',
            "/outputs",
            where=lambda endpoint: endpoint == Endpoint("softmax", gradient=False),
            **sent,
        )
        for text in ("['probs']", "[probs]")
        for sent in (
            {"change": {"outputs": Text(f'"{text}"')}},
            {
                "headers": SAFETENSORS,
                "body": safetensors_file(
                    f'{{"__metadata__": {{"outputs": "{text}"}}, "logits": {described(shape="[6]").text}}}', b"\0" * 24
                ),
            },
        )
    ),
    Case(
        errors.InvalidOption,
        "class-dim",
        "'class_dim' must be from -1 to 0 for '{first}' of shape [3], but is 1.",
        "/class_dim",
        {"{first}": T([0.5, 1.5, 2.5]), "class_dim": 1},
    ),
    Case(
        errors.InvalidOption,
        "output-name",
        "outputs[1] must be the name of an output, but is 5.",
        "/outputs/1",
        {"outputs": ["{result}", 5]},
    ),
    Case(
        errors.InvalidOption,
        "output",
        "softmax has no output 'loss'; ask for 'probs' or 'logsumexp'.",
        "/outputs/1",
        {"outputs": ["probs", "loss"]},
        where=lambda endpoint: endpoint == Endpoint("softmax", gradient=False),
    ),
    Case(
        errors.InvalidOption,
        "output",
        "nll-loss has no output 'probs'; ask for 'loss', 'total_weight' or 'grad_log_probs'.",
        "/outputs/0",
        {"outputs": ["probs"]},
        where=lambda endpoint: endpoint == Endpoint("nll-loss", gradient=True),
    ),
    Case(
        errors.InvalidOption,
        "gradient-output",
        "{owner} has no output 'grad_{first}'; POST to /v1/{owner}/gradient for it.",
        "/outputs/0",
        {"outputs": ["grad_{first}"]},
        where=forward,
    ),
    Case(
        errors.InvalidOption,
        "repeated-output",
        "'outputs' names '{result}' more than once.",
        "/outputs/1",
        {"outputs": ["{result}", "{result}"]},
    ),
    Case(
        errors.InvalidOption,
        "normalizer",
        "'normalizer' only goes with reduction 'mean', but reduction is 'sum'.",
        "/normalizer",
        {"normalizer": 2, "reduction": "sum"},
        where=losses,
    ),
    Case(
        errors.InvalidOption,
        "soft-ignore",
        "'ignore_index' must be negative when the target holds class probabilities, but is 0.",
        "/ignore_index",
        {"target": T([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), "ignore_index": 0},
        where=cross_entropy,
    ),
    Case(
        errors.InvalidOption,
        "soft-output",
        "'outputs' asks for 'grad_target', which exists only for a target of class probabilities, but this "
        "target holds class indices.",
        "/outputs",
        {"outputs": ["loss", "grad_target"]},
        where=lambda endpoint: endpoint == Endpoint("cross-entropy", gradient=True),
    ),
    # target-out-of-range
    Case(
        errors.TargetOutOfRange,
        "range",
        "target[1] is 3, but {first} have 3 classes (0 to 2).",
        "/target/1",
        {"target": T([0, 3], "uint8")},
        where=losses,
    ),
    Case(
        errors.TargetOutOfRange,
        "negative",
        "target[0] is -1, but {first} have 3 classes (0 to 2); a row is skipped where it holds "
        "ignore_index, here -100.",
        "/target/0",
        {"target": T([-1, -2], "int8")},
        where=losses,
    ),
    Case(
        errors.TargetOutOfRange,
        "negative",
        "target[1, 2] is -9223372036854775808, but {first} have 1 class (only 0); a row is skipped where it holds "
        "ignore_index, here -1.",
        "/target/1/2",
        {
            "{first}": T([[[0.5] * 3], [[0.5] * 3]]),
            "target": T([[0, 0, 0], [0, -1, -(2**63)]], "int64"),
            "ignore_index": -1,
        },
        where=losses,
    ),
    Case(
        errors.TargetOutOfRange,
        "range",
        "target is 3, but {first} have 3 classes (0 to 2).",
        "/target",
        {"{first}": T([0.5, 1.0, 2.0]), "target": T(3, "int16")},
        where=losses,
    ),
    Case(
        errors.TargetOutOfRange,
        "int64",
        "target[1] is an integer that int64 cannot hold, but {first} have 3 classes (0 to 2).",
        "/target/1",
        {"target": T([0, 2**63], "uint64")},
        where=losses,
    ),
    Case(
        errors.TargetOutOfRange,
        "int64",
        "target[0] is an integer that int64 cannot hold, but {first} have 3 classes (0 to 2).",
        "/target/0",
        {"target": T([10**30, 10**40])},
        where=losses,
        only=(NESTED,),
    ),
    # non-finite
    Case(
        errors.NonFinite,
        "row",
        "'{result}' would be NaN in row 1; see whether that row of the input holds NaN, Infinity, or nothing but "
        "-Infinity.",
        "/{first}/1",
        {"{first}": T([[0.5, 1.5, 2.5], [NAN, 1.5, 2.5]])},
        where=activations,
    ),
    Case(
        errors.NonFinite,
        "whole",
        "'{result}' would be NaN; see whether the input holds NaN, Infinity, or nothing but -Infinity.",
        "/{first}",
        {"{first}": T([NAN, 1.5, 2.5]), "grad_output": T([1.0, 1.0, 1.0])},
        where=lambda endpoint: endpoint.gradient and not endpoint.is_loss,
    ),
    # undefined-mean
    Case(
        errors.UndefinedMean,
        "zero",
        "The mean is undefined: the summed weight of the kept rows is 0.",
        None,
        {"target": T([-100, -100], "int64")},
        where=losses,
    ),
    # content-too-large
    Case(
        errors.ContentTooLarge,
        "json",
        "The body is larger than the 1024 bytes allowed for application/json; send large tensors as "
        "application/x-safetensors.",
        body=b" " * 1025,
        settings={"max_json_bytes": 1024},
    ),
    Case(
        errors.ContentTooLarge,
        "body",
        "The body is larger than the 1024 bytes allowed.",
        body=b" " * 1025,
        headers=SAFETENSORS,
        settings={"max_body_bytes": 1024},
    ),
    Case(
        errors.ContentTooLarge,
        "answer",
        "The answer could take 1730 bytes, but at most 1024 are allowed for application/json; "
        "large answers come as application/x-safetensors (say so in Accept).",
        None,
        {"logits": T([[0.5] * 100])},
        where=lambda endpoint: endpoint == Endpoint("softmax", gradient=False),
        headers={"Content-Type": "application/json", "Accept": "application/json"},
        settings={"max_json_answer_bytes": 1024},
    ),
    Case(
        errors.ContentTooLarge,
        "memory",
        "The request needs 20131072 bytes of memory, but all requests together may hold 16777216.",
        body=b" " * 20_000_000,
        headers=SAFETENSORS,
        settings={"memory_budget": 1 << 24},
    ),
    Case(
        errors.InvalidOption,
        "value",
        "'X-Request-Timeout-Ms' must be a whole number of milliseconds from 1 to 86400000, but is '1.5'.",
        headers={"Content-Type": "application/json", "X-Request-Timeout-Ms": "1.5"},
    ),
    # what HTTP says around the body
    Case(
        errors.UnsupportedMediaType,
        "missing",
        "The request has no Content-Type; it must be application/json or application/x-safetensors.",
        headers={},
        body=b"{}",
    ),
    Case(
        errors.UnsupportedMediaType,
        "type",
        "The Content-Type is 'text/plain', but it must be application/json or application/x-safetensors.",
        headers={"Content-Type": "text/plain"},
        body=b"{}",
    ),
    Case(
        errors.UnsupportedEncoding,
        "encoding",
        "The Content-Encoding is 'gzip', but must be 'identity'.",
        headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
        body=b"{}",
    ),
    Case(
        errors.NotAcceptable,
        "accept",
        "The Accept header is 'text/csv', but the answer can only be application/json or application/x-safetensors.",
        headers={"Content-Type": "application/json", "Accept": "text/csv"},
    ),
    Case(errors.NotFound, "path", "There is nothing at this path; see /docs.", method="GET", path="/nothing"),
    Case(errors.NotFound, "path", "There is nothing at this path; see /docs.", method="GET", path="/v1/"),
    *(
        Case(
            errors.NotFound, "similar", f"There is nothing at this path; did you mean '{right}'?", path=path, body=b"{}"
        )
        for path, right in (
            ("/v1/cross-entropy/grad", "/v1/cross-entropy/gradient"),
            ("/v1/cross-entropy/gradients/1", "/v1/cross-entropy/gradient"),
            ("/v1/softmax/backward", "/v1/softmax/gradient"),
            ("/v1/softmax/forward", "/v1/softmax"),
            ("/v1/softmax/gradient/", "/v1/softmax/gradient"),
            ("/v1/softmax/", "/v1/softmax"),
            ("/v1/operators/", "/v1/operators"),
            ("/docs/", "/docs"),
            ("/explore/", "/explore"),
            ("/metrics//", "/metrics"),
            ("/cross-entropy", "/v1/cross-entropy"),
            ("/cross_entropy/", "/v1/cross-entropy"),
            ("/api/v1/cross-entropy", "/v1/cross-entropy"),
            ("/api/v1/cross_entropy/gradient", "/v1/cross-entropy/gradient"),
        )
    ),
    Case(
        errors.NotFound,
        "listing",
        "There is nothing at this path; GET /v1/operators lists all operators.",
        method="GET",
        path="/v1/operators/cross-entropy",
    ),
    *(
        Case(
            errors.NotFound,
            "operator",
            f"There is no operator '{name}'; did you mean '{right}'?",
            path=path,
            body=b"{}",
        )
        for name, right, path in (
            ("cross_entropy", "cross-entropy", "/v1/cross_entropy/gradient"),
            ("CrossEntropyLoss", "cross-entropy", "/v1/CrossEntropyLoss"),
            ("cross-entropy-loss", "cross-entropy", "/v1/cross-entropy-loss/"),
            ("nll", "nll-loss", "/v1/nll"),
            ("logsoftmax", "log-softmax", "/v1/logsoftmax"),
        )
    ),
    *(
        Case(
            errors.NotFound,
            "no-operator",
            f"There is no operator '{name}'; the operators are softmax, log-softmax, nll-loss, cross-entropy.",
            path=f"/v1/{name}",
            body=b"{}",
        )
        for name in ("bce", "mse-loss", "kl-loss", "entropy", "loss", "x")
    ),
    Case(errors.MethodNotAllowed, "method", "This path takes POST, not DELETE.", method="DELETE"),
    Case(errors.MethodNotAllowed, "method", "This path takes GET or HEAD, not POST.", path="/v1/limits", body=b""),
]
