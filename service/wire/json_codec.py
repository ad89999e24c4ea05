"""JSON to named tensors and back, strictly: RFC 8259, no NaN literals, no repeated names, numbers in buffers."""

from __future__ import annotations

import binascii
import codecs
import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import cast

import msgspec
import numpy as np
import orjson
import simdjson
import torch
from msgspec import Raw
from numpy.typing import NDArray
from torch import Tensor

from service.errors import (
    DtypeMismatch,
    DuplicateField,
    MalformedJson,
    MalformedTensor,
    MissingField,
    counted,
    element_name,
    element_pointer,
)
from service.tensors import (
    DTYPES,
    NON_FINITE,
    DType,
    Fields,
    Message,
    WireTensor,
    array_of,
    dtype_of,
    tensor_from_bytes,
)
from service.wire.json_structure import WHITESPACE, Structure, array_shape, repeated_name, scan, structural_count
from service.wire.json_values import kind_of, option, plain_value, shape_of, unknown_dtype

MEDIA_TYPE = "application/json"

_members = msgspec.json.Decoder(dict[str, Raw])
_any = msgspec.json.Decoder(Raw)
_text = msgspec.json.Decoder(str)


DECODING_BYTES_PER_BYTE = 4
DECODING_BYTES_PER_MARK = 56
"""What decoding holds at its peak for a byte of the body, and for each comma, opening bracket and quote in it."""

MOST_DECODING_BYTES_PER_BYTE = 32
"""The same for a byte of the worst body there is, so that short ones need no counting."""


def decoding_bytes(body: bytes) -> int:
    """Return how much memory decoding a body takes at most, the body included."""
    return DECODING_BYTES_PER_BYTE * len(body) + DECODING_BYTES_PER_MARK * structural_count(body)


def decode(body: bytes, fields: Fields) -> Message:
    """Read a request; `fields` says which names are tensors and which options."""
    check_utf8(body)
    message = Message()
    for name, (raw, structure) in split(body, scan(body), fields).items():
        if name in fields.tensors:
            message.tensors[name] = _tensor(name, raw, structure)
        else:
            message.options[name] = option(name, raw)
    return message


def split(
    body: bytes | memoryview, structure: Structure, fields: Fields, path: str = "", *, known: Collection[str] = ()
) -> dict[str, tuple[memoryview, Structure]]:
    """Return the values of an object by name, still as text, each with its structure.

    The names must be those of `fields`, or `known` beside them. `path` is where the object stands in the request.
    """
    try:
        values = _members.decode(body)
    except msgspec.DecodeError as error:
        raise _not_an_object(bytes(body)) from error
    for name in values:
        if name not in known:
            fields.check(name, path)
    if structure.member_count != len(values):
        name = repeated_name(body)
        raise DuplicateField("part" if path else "duplicate", pointer=f"{path}/{name}", owner=fields.owner, name=name)
    members = structure.members()
    return {name: (memoryview(raw), part) for (name, raw), part in zip(values.items(), members, strict=True)}


def check_utf8(body: bytes) -> None:
    """Raise MalformedJson unless a text is UTF-8."""
    if body.isascii():
        return
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise _other_than_json(body) or MalformedJson("text", offset=error.start) from error


def _not_an_object(body: bytes) -> MalformedJson:
    """Return what is wrong with a body that is not a JSON object."""
    try:
        _any.decode(body)
    except msgspec.DecodeError as error:
        return _other_than_json(body) or _syntax_error(body, error)
    return MalformedJson("object", got=kind_of(body.lstrip()[:1]))


def _other_than_json(body: bytes) -> MalformedJson | None:
    """Return the error for what is often sent by mistake in the place of JSON."""
    if body.strip() == b"[object Object]":
        return MalformedJson("stringify")
    # The length of a safetensors header; eight characters of a text are far more than any.
    if body[8:9] == b"{" and int.from_bytes(body[:8], "little") <= len(body) - 8:
        return MalformedJson("safetensors")
    return None


def _syntax_error(body: bytes, error: msgspec.DecodeError) -> MalformedJson:
    """Return what is wrong with a body that is not JSON, in words and with its place."""
    if not body.strip(WHITESPACE):
        return MalformedJson("object", got="empty")
    if body.startswith(codecs.BOM_UTF8):
        return MalformedJson("mark")
    found = re.search(r"malformed: (.*) \(byte (\d+)\)", str(error))
    if found is None:
        # The parser says the same of half a surrogate pair as of a text that ends too early.
        return MalformedJson("truncated" if _ends_early(body) else "surrogate")
    reason, offset = found[1], int(found[2])
    if literal := _BARE_LITERAL.match(body, max(0, offset - 1)) or _BARE_LITERAL.match(body, offset):
        return MalformedJson("literal", got=literal[0].decode(), offset=literal.start())
    return (
        MalformedJson("surrogate") if "surrogate" in reason else MalformedJson("syntax", reason=reason, offset=offset)
    )


_BARE_LITERAL = re.compile(rb"(?<![A-Za-z0-9_+-])(NaN|-?Infinity)(?![A-Za-z0-9_])")


def _ends_early(body: bytes) -> bool:
    """Return whether a text goes wrong at its end even with other characters in place of surrogates."""
    try:
        _any.decode(_SURROGATE.sub(lambda found: b"x" * len(found[0]), body))
    except msgspec.DecodeError as error:
        return "truncated" in str(error)
    return False


_SURROGATE = re.compile(rb"\\\\|\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def _tensor(name: str, raw: memoryview, structure: Structure) -> WireTensor:
    return _compact(name, raw, structure) if raw[0] == ord("{") else literal(name, raw, structure)


def literal(name: str, raw: memoryview, structure: Structure) -> WireTensor:
    """Read a number or a nested array of numbers."""
    first = raw[0]
    if first == ord("["):
        return _nested(name, raw, structure)
    if first in b"-0123456789":
        return _from_numbers(name, [cast("int | float", plain_value(name, raw))], ())
    if (word := raw.tobytes().strip(b'"').decode()) in NON_FINITE:
        return _from_numbers(name, [NON_FINITE[word]], ())
    if misspelt := _misspelt(name, (), raw.tobytes()):
        raise misspelt
    raise DtypeMismatch("tensor", pointer="/" + name, name=name, got=kind_of(raw[:1].tobytes()))


def _nested(name: str, raw: memoryview, structure: Structure) -> WireTensor:
    """Read a nested array of numbers into one numeric buffer."""
    text = raw.tobytes()
    numeric = text
    if b'"' in text:
        for word in NON_FINITE:
            numeric = numeric.replace(b'"%b"' % word.encode(), b"0.0")
    if b'"' in numeric or structure.holds_objects:
        raise _not_a_number(name, numeric)
    shape = array_shape(structure, numeric, name)
    is_integral = not (b"." in numeric or b"e" in numeric or b"E" in numeric)
    try:
        array = cast(simdjson.Array, simdjson.Parser().parse(numeric))
        buffer = array.as_buffer(of_type="i" if is_integral else "d")
    except (ValueError, TypeError, RuntimeError):
        tensor = _unusual(name, numeric, shape)
    else:
        numbers = np.frombuffer(buffer, np.int64 if is_integral else np.float64).copy()
        tensor = WireTensor(torch.from_numpy(numbers).reshape(shape), is_literal=True)
    if numeric is not text:
        _put_non_finite(tensor.values.view(-1).numpy(), np.frombuffer(text, np.uint8))
    return tensor


def _put_non_finite(numbers: NDArray[np.generic], text: NDArray[np.uint8]) -> None:
    """Put the non-finite numbers where `text` has their names; an element's number is that of the commas before it."""
    opening = np.flatnonzero(text == ord('"'))[::2]
    elements = np.cumsum(text == ord(","), dtype=np.int32)[opening]
    first_letters = text[opening + 1]
    for word, value in NON_FINITE.items():
        numbers[elements[first_letters == ord(word[0])]] = value


def _unusual(name: str, numeric: bytes, shape: tuple[int, ...]) -> WireTensor:
    """Read what a numeric buffer cannot hold: integers beyond int64 are legal, anything but numbers is not."""
    if _NOT_A_NUMBER.search(numeric):
        raise _not_a_number(name, numeric)
    values = plain_value(name, memoryview(numeric))
    for _ in shape[1:]:
        values = list(itertools.chain.from_iterable(cast("list[list[object]]", values)))
    return _from_numbers(name, cast("list[int | float]", values), shape)


_NOT_A_NUMBER = re.compile(rb'["{tfn]')


def _not_a_number(name: str, numeric: bytes) -> DtypeMismatch:
    """Return the error that names the first element of a nested array that is no number; there is one."""
    found = cast("re.Match[bytes]", _NOT_A_NUMBER.search(numeric))
    index = scan(numeric[: found.start()]).index_of_next()
    if misspelt := _misspelt(name, index, numeric[found.start() :]):
        return misspelt
    return DtypeMismatch(
        "null" if found[0] == b"n" else "element",
        pointer=element_pointer(name, index),
        element=element_name(name, index),
        expected="a number",
        got=kind_of(found[0]),
    )


_MISSPELT = re.compile(rb'"([+-]?)(nan|inf|infinity)"', re.IGNORECASE)


def _misspelt(name: str, index: tuple[int, ...], text: bytes) -> DtypeMismatch | None:
    """Return the error for a text that begins with a non-finite number as other languages write it."""
    if (found := _MISSPELT.match(text)) is None:
        return None
    similar = "NaN" if found[2].lower() == b"nan" else "-Infinity" if found[1] == b"-" else "Infinity"
    return DtypeMismatch(
        "spelling",
        pointer=element_pointer(name, index),
        element=element_name(name, index),
        expected="a number",
        got=found[0].decode().strip('"'),
        similar=similar,
    )


def _from_numbers(name: str, values: list[int | float], shape: tuple[int, ...]) -> WireTensor:
    """Make a tensor from Python numbers, integers of any size among them."""
    is_integral = all(type(value) is int for value in values)
    beyond = [position for position, value in enumerate(values) if is_integral and not -(2**63) <= value < 2**63]
    try:
        numbers = np.array(values, np.int64 if is_integral and not beyond else np.float64)
    except OverflowError as error:
        raise MalformedJson("number", pointer="/" + name, name=name) from error
    return WireTensor(
        torch.from_numpy(numbers).reshape(shape), is_literal=True, beyond_int64=beyond[0] if beyond else None
    )


def _compact(name: str, raw: memoryview, structure: Structure) -> WireTensor:
    """Read {"dtype": ..., "shape": ..., "base64": ...}."""
    fields = Fields(owner=f"The compact tensor '{name}'", tensors=(), options=("dtype", "shape", "base64"))
    parts = split(raw, structure, fields, "/" + name)
    for part in fields.options:
        if part not in parts:
            raise MissingField("part", pointer=f"/{name}/{part}", owner=fields.owner, name=part)
    dtype = _compact_dtype(name, parts["dtype"][0])
    shape = _compact_shape(name, parts["shape"][0])
    data = _compact_bytes(name, parts["base64"][0])
    expected = math.prod(shape) * dtype.item_size
    if len(data) != expected:
        raise MalformedTensor(
            "size",
            pointer=f"/{name}/base64",
            name=name,
            needed=counted(expected, "byte"),
            expected=expected,
            got=len(data),
        )
    return WireTensor(tensor_from_bytes(data, dtype, shape))


def _compact_dtype(name: str, raw: memoryview) -> DType:
    value = option(f"{name}/dtype", raw)
    if isinstance(value, str) and value in DTYPES:
        return DTYPES[value]
    raise unknown_dtype(name, raw, DTYPES)


def _compact_shape(name: str, raw: memoryview) -> tuple[int, ...]:
    return shape_of(name, option(f"{name}/shape", raw))


def _compact_bytes(name: str, raw: memoryview) -> bytearray:
    try:
        return bytearray(binascii.a2b_base64(_text.decode(raw), strict_mode=True))
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise MalformedTensor("base64", pointer=f"/{name}/base64", name=name) from error


BYTES_PER_NUMBER = {torch.float64: 25, torch.float32: 16, torch.float16: 16, torch.bfloat16: 16}
"""Most characters that a number of a type takes, its comma too: what an answer is reckoned by before it exists."""

PIECE_ELEMENTS = 1 << 14
"""Numbers written in one call: about 256 KiB of text."""

ENVELOPE_BYTES = 128
"""Reckoned for the name, the brackets and the description of a tensor."""


def largest_answer(outputs: Iterable[tuple[tuple[int, ...], torch.dtype]], encoding: str) -> int:
    """Return how many bytes an answer with outputs of these shapes and types can take at most."""
    size = 0
    for shape, dtype in outputs:
        elements = math.prod(shape)
        if encoding == "base64":
            size += 4 * -(-elements * dtype.itemsize // 3) + ENVELOPE_BYTES
        else:
            brackets = 2 * sum(math.prod(shape[:rank]) for rank in range(1, len(shape)))
            size += elements * BYTES_PER_NUMBER[dtype] + brackets + ENVELOPE_BYTES
    return size


def encode(tensors: Mapping[str, Tensor], encoding: str) -> list[bytes]:
    """Write the tensors as one JSON object, as nested arrays or (`base64`) compact, in pieces to be sent in order.

    No call into a library that holds the interpreter lock covers more than a piece.
    """
    pieces: list[bytes] = []
    for name, tensor in tensors.items():
        pieces.append(b'%b"%b":' % (b"," if pieces else b"{", name.encode()))
        if encoding == "base64":
            pieces += _compact_pieces(tensor.contiguous())
        elif tensor.ndim == 0:
            pieces.append(_numbers(tensor.reshape(1))[1:-1])
        else:
            pieces += array_pieces(tensor.contiguous())
    return [*pieces, b"}"]


def _compact_pieces(tensor: Tensor) -> list[bytes]:
    description = orjson.dumps({"dtype": dtype_of(tensor).name, "shape": list(tensor.shape)})
    return [description[:-1], b',"base64":"', binascii.b2a_base64(array_of(tensor).data, newline=False), b'"}']


def array_pieces(tensor: Tensor, quote: bytes = b'"') -> list[bytes]:
    """Write a contiguous tensor of one dimension or more, a few rows at a time; names of numbers stand in `quote`."""
    if tensor.numel() <= PIECE_ELEMENTS:
        return [_numbers(tensor, quote)]
    within = tensor.numel() // len(tensor)
    if within > PIECE_ELEMENTS:
        rows = [array_pieces(row, quote) for row in tensor]
    else:
        rows = [[_numbers(part, quote)[1:-1]] for part in torch.split(tensor, PIECE_ELEMENTS // within)]
    separated = [piece for row in rows for piece in (*row, b",")]
    return [b"[", *separated[:-1], b"]"]


def _numbers(tensor: Tensor, quote: bytes = b'"') -> bytes:
    # float16 and bfloat16 are written as the float32 of the same value: the shortest text that gives it back.
    values: NDArray[np.floating] = (tensor.float() if tensor.dtype.itemsize == 2 else tensor).numpy()
    text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)
    finite = np.isfinite(values)
    return text if finite.all() else _name_non_finite(text, values[~finite], quote)


def _name_non_finite(text: bytes, values: NDArray[np.floating], quote: bytes) -> bytes:
    """Replace each `null` that orjson wrote by the name of the value it stands for, in order."""
    nan, above, below = (b"%b%b%b" % (quote, name.encode(), quote) for name in NON_FINITE)
    names = np.where(np.isnan(values), nan, np.where(values > 0, above, below))
    pieces = text.split(b"null")
    return b"".join(itertools.chain.from_iterable(zip(pieces, [*names.tolist(), b""], strict=True)))
