"""safetensors to named tensors and back: a strict reader of the header, and views instead of copies.

The format (source: the README of huggingface/safetensors): 8 bytes with the length N of the header, little-endian; N
bytes of JSON, `{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__": {...}}`; then
the data, row-major and little-endian, without gaps. The library's own reader copies every tensor, takes headers of
100 MB and lets pass what is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import torch
from torch import Tensor

from service.errors import DuplicateField, MalformedTensor, counted
from service.tensors import (
    BY_TORCH,
    DTYPES,
    DType,
    Fields,
    Message,
    WireTensor,
    address_of,
    bytes_of,
    tensor_in,
)
from service.wire import json_values
from service.wire.json_structure import Structure, repeated_name, scan

MEDIA_TYPE = "application/x-safetensors"

PREFIX_BYTES = 8
"""Bytes of the header's length."""

MAX_HEADER_BYTES = 1 << 16
"""Longest header accepted."""

MAX_TENSORS = 16
"""Most tensors accepted in a body."""

SHORT_HEADER_BYTES = 1 << 11
"""Headers up to this length are remembered."""

ALIGNMENT_BYTES = 64
"""What the data of a body is aligned to when there is a choice, and that of an answer within it: a cache line."""

OPTIONS = "__metadata__"
IGNORED_OPTIONS = ("format",)
"""Keys that libraries write of their own accord."""

PARTS = {"dtype", "shape", "data_offsets"}
"""What the description of a tensor has."""

_TYPES = {dtype.safetensors: dtype for dtype in DTYPES.values()}
_value = msgspec.json.Decoder(dict[str, Any])
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor as the header describes it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


def header_bytes(prefix: bytes | memoryview, body_bytes: int) -> int:
    """Return how long the header of a body of `body_bytes` is, from its first 8 bytes."""
    size = int.from_bytes(prefix[:PREFIX_BYTES], "little")
    if (len(prefix) < PREFIX_BYTES or size > MAX_HEADER_BYTES) and prefix[:1] in (b"{", b"["):
        raise MalformedTensor("json")
    if len(prefix) < PREFIX_BYTES:
        raise MalformedTensor("short", expected=PREFIX_BYTES, got=counted(len(prefix), "byte"))
    if size > MAX_HEADER_BYTES:
        raise MalformedTensor("long-header", got=counted(size, "byte"), limit=MAX_HEADER_BYTES)
    if size > body_bytes - PREFIX_BYTES:
        rest = counted(body_bytes - PREFIX_BYTES, "byte")
        raise MalformedTensor("header-beyond", expected=counted(size, "byte"), got=rest)
    return size


def padding_before(prefix: bytes | memoryview, body_bytes: int) -> int:
    """Return how many bytes to leave free before a body so that its data is aligned."""
    return -(PREFIX_BYTES + header_bytes(prefix, body_bytes)) % ALIGNMENT_BYTES


def last_tensor(fields: Fields, body: memoryview, there: int) -> int | None:
    """Return where the data of the last tensor of a body begins; None while its first `there` bytes do not tell.

    Raises what `decode` does.
    """
    if there < PREFIX_BYTES:
        return None
    size = header_bytes(body, len(body))
    if there < (data := PREFIX_BYTES + size):
        return None
    read = _read_short if size <= SHORT_HEADER_BYTES else _read
    entries, _ = read(bytes(body[PREFIX_BYTES:data]), fields, len(body) - data)
    return data + max((entry.begin for entry in entries if entry.end > entry.begin), default=0)


def decode(body: memoryview, fields: Fields) -> Message:
    """Read a request from writable memory; the tensors are views of it, but for those that lie askew.

    Nothing is allocated before the header has been found right and equal to the bytes that are there.
    """
    size = header_bytes(body, len(body))
    data = PREFIX_BYTES + size
    read = _read_short if size <= SHORT_HEADER_BYTES else _read
    entries, options = read(bytes(body[PREFIX_BYTES:data]), fields, len(body) - data)
    message = Message(options=dict(options), owns_memory=True)
    address = address_of(body)
    for entry in entries:
        part = body[data + entry.begin : data + entry.end]
        tensor = tensor_in(part, entry.dtype, entry.shape, address + data + entry.begin)
        message.tensors[entry.name] = WireTensor(tensor)
    return message


def _read(header: bytes, fields: Fields, data_bytes: int) -> tuple[list[_Entry], dict[str, object]]:
    """Return the tensors that a header describes, and its options."""
    described, options = _read_header(header, fields)
    entries = [_entry(name, parts) for name, parts in described.items()]
    _check_places(entries, data_bytes)
    return entries, {name: _option(name, text) for name, text in options.items() if name not in IGNORED_OPTIONS}


_read_short = lru_cache(maxsize=256)(_read)
"""The same, remembered: callers send the same header again and again."""


def _read_header(header: bytes, fields: Fields) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the descriptions by name, and the options; the header is JSON without repeated names.

    As in JSON, an unknown name is told before a repeated one.
    """
    try:
        structure = scan(header)
        members = _members.decode(header)
        values = _value.decode(header)
    except (msgspec.DecodeError, ValueError) as error:
        raise MalformedTensor("header") from error
    if not header.startswith(b"{"):
        raise MalformedTensor("header")
    options = values.pop(OPTIONS, {})
    if len(values) > MAX_TENSORS:
        raise MalformedTensor("count", got=len(values), limit=MAX_TENSORS)
    for name in values:
        _check_is_tensor(name, fields)
    if structure.member_count != len(members):
        name = repeated_name(header)
        raise DuplicateField("duplicate", pointer="/" + name, name=name)
    for (name, text), part in zip(members.items(), structure.members(), strict=True):
        if name == OPTIONS:
            _check_options(options, memoryview(text), part, fields)
        else:
            _check_description(name, values[name], memoryview(text), part)
    return values, options


def _check_is_tensor(name: str, fields: Fields) -> None:
    if name not in fields.tensors:
        fields.check(name)
        raise MalformedTensor("option-as-tensor", pointer="/" + name, name=name)


def _check_options(options: object, text: memoryview, structure: Structure, fields: Fields) -> None:
    """See that options map strings to strings, that the operator knows them, and that none is repeated."""
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise MalformedTensor("options")
    for name in options:
        if name not in fields.options and name not in IGNORED_OPTIONS:
            fields.check(name)
            raise MalformedTensor("tensor-as-option", pointer="/" + name, name=name)
    if structure.member_count != len(options):
        name = repeated_name(text)
        raise DuplicateField("duplicate", pointer="/" + name, name=name)


def _check_description(name: str, parts: object, text: memoryview, structure: Structure) -> None:
    """See that a description has all its parts, each once, and nothing else."""
    if not isinstance(parts, dict) or set(parts) != PARTS:
        raise MalformedTensor("description", pointer="/" + name, name=name)
    if structure.member_count != len(parts):
        part = repeated_name(text)
        raise DuplicateField("description", pointer=f"/{name}/{part}", tensor=name, name=part)


def _entry(name: str, parts: dict[str, Any]) -> _Entry:
    dtype, shape, offsets = parts["dtype"], parts["shape"], parts["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise json_values.unknown_dtype(name, msgspec.json.encode(dtype), _TYPES)
    shape = json_values.shape_of(name, shape)
    if not json_values.are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise MalformedTensor("offsets", pointer=f"/{name}/data_offsets", name=name)
    needed = math.prod(shape) * _TYPES[dtype].item_size
    if offsets[1] - offsets[0] != needed:
        got = counted(min(offsets[1] - offsets[0], 2**63), "byte")
        raise MalformedTensor(
            "span", pointer=f"/{name}/data_offsets", name=name, needed=counted(needed, "byte"), got=got
        )
    return _Entry(name, _TYPES[dtype], shape, offsets[0], offsets[1])


def _check_places(entries: list[_Entry], data_bytes: int) -> None:
    """See that the tensors lie one after another, and that they are the whole of the data."""
    end = 0
    for entry in sorted(entries, key=lambda each: (each.begin, each.end)):
        if entry.begin != end:
            pointer = f"/{entry.name}/data_offsets"
            raise MalformedTensor("place", pointer=pointer, name=entry.name, expected=end, got=min(entry.begin, 2**63))
        end = entry.end
    if end != data_bytes:
        raise MalformedTensor("data", expected=counted(end, "byte"), got=counted(data_bytes, "byte"))


def _option(name: str, text: str) -> object:
    """Return an option's value: the string, or JSON where it begins like a number or a list."""
    if text[:1] in tuple("-0123456789[") and json_values.is_json(text.encode()):
        return json_values.option(name, memoryview(text.encode()))
    return json_values.option(name, memoryview(msgspec.json.encode(text)))


def encode(tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """Write the tensors as a safetensors body, in pieces: the header, then views of the tensors' own memory."""
    # Wider types first, as the library writes them: then every tensor is aligned for its own type.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header = _header(tuple((name, tensor.dtype, tensor.shape) for name, tensor in ordered))
    return [header, *(bytes_of(tensor.contiguous()) for _, tensor in ordered if tensor.numel())]


@lru_cache(maxsize=256)
def _header(described: tuple[tuple[str, torch.dtype, torch.Size], ...]) -> bytes:
    """Return the beginning of a body with tensors of these names, types and shapes, in this order."""
    header: dict[str, object] = {}
    end = 0
    for name, dtype, shape in described:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": BY_TORCH[dtype].safetensors, "shape": list(shape), "data_offsets": [begin, end]}
    text = msgspec.json.encode(header)
    text += b" " * (-(PREFIX_BYTES + len(text)) % ALIGNMENT_BYTES)
    return len(text).to_bytes(PREFIX_BYTES, "little") + text


def answer_bytes(outputs: list[tuple[tuple[int, ...], torch.dtype]]) -> int:
    """Return about how many bytes an answer takes."""
    return sum(math.prod(shape) * dtype.itemsize + 128 for shape, dtype in outputs)
