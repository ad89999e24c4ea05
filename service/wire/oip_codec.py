"""Open Inference bodies to named tensors and back: a head of JSON, then the bytes of tensors, one after the other.

The protocol (sources: kserve/open-inference-protocol, `inference_rest.md`; the binary tensor extension in
triton-inference-server/server, `extension_binary_data.md`): `{"id", "parameters", "inputs": [{"name", "shape",
"datatype", "parameters", "data"}, ...], "outputs": [{"name", "parameters"}, ...]}`. An input has its elements in
`data`, or in `binary_data_size` bytes after the JSON, or in a region of shared memory. In the JSON, and only there, the
literals NaN, Infinity and -Infinity are numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import msgspec
import numpy as np
import torch
from torch import Tensor

from service.errors import (
    DtypeMismatch,
    DuplicateField,
    InvalidOption,
    MalformedJson,
    MalformedTensor,
    MissingField,
    RequestError,
    TooDeep,
    counted,
    element_name,
    element_pointer,
)
from service.ops.bind import read_as
from service.ops.layout import unravel
from service.ops.request import shown
from service.tensors import (
    DTYPES,
    DType,
    Fields,
    LongText,
    Message,
    WireTensor,
    address_of,
    bytes_of,
    dtype_of,
    tensor_in,
)
from service.wire import json_codec, json_values
from service.wire.json_structure import COMMA, MAX_DEPTH, Structure, scan

MEDIA_TYPE = "application/octet-stream"

JSON_BYTES_HEADER = "Inference-Header-Content-Length"
"""The header that says how many bytes of a body are JSON, in a request or an answer with binary data."""

VERSION = "1"
"""The only version of every operator."""

MAX_INPUTS = 16
"""Most tensors accepted in a request."""

SHORT_HEAD_BYTES = 1 << 11
"""Heads up to this length are remembered."""

ALIGNMENT_BYTES = 64
"""What the tensors of a body are aligned to, as far as they can be, and the first of an answer: a cache line."""

RESERVED = ("binary_data_output", "timeout", "priority", "sequence_id", "sequence_start", "sequence_end")
"""Names of the protocol's own among the options of a request. Nothing here has a sequence or a priority."""

IGNORED_OF_INPUTS = ("content_type",)
"""Names that clients write of their own accord."""

LARGEST_INTEGER = 2**63 - 1

_REQUEST = Fields("The request", (), ("id", "parameters", "inputs", "outputs", "model_name", "model_version"))
_INPUT = ("name", "shape", "datatype", "parameters", "data")
_INPUT_PARAMETERS = (
    "binary_data_size",
    "shared_memory_region",
    "shared_memory_byte_size",
    "shared_memory_offset",
    *IGNORED_OF_INPUTS,
)
_OUTPUT = ("name", "parameters")
_OUTPUT_PARAMETERS = ("binary_data", "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")

_TYPES = {dtype.open_inference: dtype for dtype in DTYPES.values()}
_PLAIN_ID = re.compile(rb'"id"\s*:\s*"([A-Za-z0-9._-]{1,128})"')
_items = msgspec.json.Decoder(list[msgspec.Raw])
_DEEPEST = MAX_DEPTH + 3
"""A tensor stands three brackets deeper here than where it is a field of the request itself."""

Part = tuple[memoryview, Structure]
"""The text of a value and its structure."""


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a region of shared memory: `size` bytes from byte `offset`."""

    region: str
    offset: int
    size: int


Regions = Callable[[Place, str, int], memoryview]
"""Returns a place's memory for the tensor named, which needs so many bytes; raises MalformedTensor if it cannot."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An input as the head describes it; its elements are in one of `data`, `place` and the bytes after the JSON."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    data: Part | None = None
    place: Place | None = None
    begin: int = 0
    """Where its bytes begin after the JSON."""

    @property
    def size(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.item_size

    @property
    def is_binary(self) -> bool:
        """Whether its bytes come after the JSON."""
        return self.data is None and self.place is None


@dataclass(frozen=True, slots=True)
class Requested:
    """An output as the caller wants it."""

    is_binary: bool
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """What the JSON of a request says.

    Attributes:
        options: as in every other format; `outputs` among them.
        requested: the outputs that the caller named, in order; None when it named none.
        is_binary: whether outputs are binary that nothing else is said of.
        timeout_seconds: how long the caller waits; None for as long as it takes.
        data_bytes: how many bytes must come after the JSON.
    """

    entries: tuple[Entry, ...]
    options: Mapping[str, object]
    requested: Mapping[str, Requested] | None = None
    is_binary: bool = False
    id: str = ""
    timeout_seconds: float | None = None
    data_bytes: int = 0

    @property
    def is_all_binary(self) -> bool:
        """Whether no output is written as JSON."""
        if self.requested is None:
            return self.is_binary
        return all(wanted.is_binary or wanted.place is not None for wanted in self.requested.values())

    def requested_as(self, output: str) -> Requested:
        """Return how an output is wanted."""
        return Requested(self.is_binary) if self.requested is None else self.requested[output]


def read_head(text: bytes, fields: Fields) -> Head:
    """Return what the JSON of a request says; `fields` are the names that it may use."""
    if len(text) > SHORT_HEAD_BYTES:
        return _read(text, fields)
    # An id is new with every request where everything else is the same. A request has one in one place only.
    if (found := _PLAIN_ID.search(text)) is None or "id" in fields.options:
        return _read_short(text, fields)
    try:
        head = _read_short(text[: found.start(1)] + text[found.end(1) :], fields)
    except RequestError:
        return _read(text, fields)  # the sentence may name a place in the text
    return replace(head, id=found[1].decode())


def raw_head(body_bytes: int, fields: Fields, required: tuple[str, ...]) -> Head:
    """Return what a body without JSON means: the one input that is `required`, as float32, all of it one row."""
    if len(required) != 1:
        needed = " and ".join(f"'{name}'" for name in required)
        raise MalformedTensor("raw", owner=fields.owner, expected=needed)
    dtype = DTYPES["float32"]
    if body_bytes % dtype.item_size:
        each = counted(dtype.item_size, "byte")
        raise MalformedTensor("raw-bytes", expected=each, got=counted(body_bytes, "byte"))
    entry = Entry(required[0], dtype, (1, body_bytes // dtype.item_size))
    return Head((entry,), {}, is_binary=True, data_bytes=body_bytes)


def padding_before(head: Head, json_bytes: int) -> int:
    """Return how many bytes to leave free before a body so that as few bytes as can be lie askew for their types.

    Among equals the largest tensor begins a cache line.
    """
    begins = [(json_bytes + entry.begin, entry) for entry in head.entries if entry.is_binary]
    begins.sort(key=lambda pair: -pair[1].size)

    def askew(padding: int) -> int:
        return sum(entry.size for begin, entry in begins if (padding + begin) % entry.dtype.item_size)

    return min((-begin % ALIGNMENT_BYTES for begin, _ in begins), key=askew, default=0)


def decode(head: Head, data: memoryview, regions: Regions) -> Message:
    """Return the message of a request whose bytes after the JSON are `data`, writable memory.

    Tensors are views of it, but for those that lie askew. What lies in shared memory is viewed, too, but class indices
    are copied: what has been validated must stay as it was.
    """
    if len(data) != head.data_bytes:
        expected = counted(head.data_bytes, "byte")
        raise MalformedTensor("blocks", expected=expected, got=counted(len(data), "byte"))
    message = Message(options=dict(head.options), owns_memory=all(entry.place is None for entry in head.entries))
    for entry in head.entries:
        if entry.data is not None:
            message.tensors[entry.name] = _from_numbers(entry, *entry.data)
            continue
        if entry.place is not None:
            memory = regions(entry.place, entry.name, entry.size)
        else:
            memory = data[entry.begin : entry.begin + entry.size]
        values = tensor_in(memory, entry.dtype, entry.shape, address_of(memory))
        if entry.place is not None and entry.dtype.kind == "integer":
            values = values.clone()
        message.tensors[entry.name] = WireTensor(values)
    return message


def with_numbers(text: bytes) -> bytes:
    """Put the bare literals NaN, Infinity and -Infinity of a JSON text, outside its strings, in quotes."""
    if b"NaN" not in text and b"Infinity" not in text:
        return text
    opening, closing = _literals(text)
    return np.insert(np.frombuffer(text, np.uint8), np.concatenate([opening, closing]), ord('"')).tobytes()


def _literals(text: bytes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return where the bare literals of a JSON text begin and end."""
    plain = text.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in text else text
    characters = np.frombuffer(plain, np.uint8)
    is_outside = (np.cumsum(characters == ord('"'), dtype=np.int32) & 1) == 0
    begins, ends = [], []
    for word in (b"NaN", b"Infinity"):
        found = np.flatnonzero((characters == word[0]) & is_outside)
        found = found[found <= len(text) - len(word)]
        for place, letter in enumerate(word[1:], 1):
            found = found[characters[found + place] == letter]
        ends.append(found + len(word))
        has_sign = (word == b"Infinity") & (found > 0) & (characters[found - 1] == ord("-"))
        begins.append(found - has_sign)
    return np.concatenate(begins), np.concatenate(ends)


def _same_length(text: bytes) -> bytes:
    """Put strings in the place of the literals, so that every other byte stays where it is."""
    characters = np.frombuffer(text, np.uint8).copy()
    opening, closing = _literals(text)
    characters[opening] = ord('"')
    characters[closing - 1] = ord('"')
    return characters.tobytes()


def _read(text: bytes, fields: Fields) -> Head:
    json_codec.check_utf8(text)
    quoted = with_numbers(text)
    structure = scan(quoted, _DEEPEST)
    try:
        members = json_codec.split(quoted, structure, _REQUEST)
    except MalformedJson:
        if quoted is not text:
            json_codec.split(_same_length(text), structure, _REQUEST)
        raise
    members = {name: part for name, part in members.items() if not _is_null(part)}
    options, reserved = _read_parameters(members.get("parameters"), fields)
    entries = _read_inputs(members.get("inputs"), fields)
    is_binary = _flag("binary_data_output", reserved.get("binary_data_output"))
    requested = None
    if (outputs := members.get("outputs")) is not None:
        if "outputs" in options:
            raise DuplicateField("duplicate", pointer="/outputs", name="outputs")
        options["outputs"], requested = _read_outputs(*outputs, is_binary)
    timeout = _integer("timeout", reserved.get("timeout", 0))
    _integer("priority", reserved.get("priority", 0))
    return Head(
        entries=entries,
        options=options,
        requested=requested,
        is_binary=is_binary,
        id=_text("id", members["id"][0], "id") if "id" in members else "",
        timeout_seconds=timeout / 1e6 if timeout else None,
        data_bytes=sum(entry.size for entry in entries if entry.is_binary),
    )


_read_short = lru_cache(maxsize=256)(_read)
"""The same, remembered: callers send the same head again and again."""


def _read_parameters(part: Part | None, fields: Fields) -> tuple[dict[str, object], dict[str, object]]:
    """Return the options of a request, and what else stands among them by the protocol's own names."""
    if part is None:
        return {}, {}
    _expect("parameters", part[0], "{")
    options: dict[str, object] = {}
    reserved: dict[str, object] = {}
    for name, (raw, structure) in json_codec.split(*part, fields, known=RESERVED).items():
        if name in fields.tensors:
            raise MalformedTensor("input-as-option", pointer="/" + name, name=name)
        _check_depth(structure)
        (options if name in fields.options else reserved)[name] = json_values.option(name, raw)
    return options, reserved


def _read_inputs(part: Part | None, fields: Fields) -> tuple[Entry, ...]:
    if part is None:
        return ()
    if (count := _count("inputs", part)) > MAX_INPUTS:
        raise MalformedTensor("many", got=count, limit=MAX_INPUTS)
    entries: dict[str, Entry] = {}
    begin = 0
    for position, item in enumerate(_items_of(part)):
        entry = _read_input(f"inputs[{position}]", f"/inputs/{position}", item, fields, begin)
        if entry.name in entries:
            raise DuplicateField("duplicate", pointer="/" + entry.name, name=entry.name)
        entries[entry.name] = entry
        begin += entry.size if entry.is_binary else 0
    return tuple(entries.values())


def _read_input(owner: str, path: str, item: Part, fields: Fields, begin: int) -> Entry:
    members = _object(owner, path, item, _INPUT)
    for needed in ("name", "shape", "datatype"):
        if needed not in members:
            raise MissingField("part", pointer=f"{path}/{needed}", owner=owner, name=needed)
    name = _text(f"{owner}.name", members["name"][0], f"{path[1:]}/name")
    if name not in fields.tensors:
        fields.check(name)
        raise MalformedTensor("option-as-input", pointer="/" + name, name=name)
    datatype = json_values.option(f"{name}/datatype", members["datatype"][0])
    if not isinstance(datatype, str) or datatype not in _TYPES:
        raise json_values.unknown_dtype(name, members["datatype"][0], _TYPES)
    shape = json_values.shape_of(name, json_values.option(f"{name}/shape", members["shape"][0]))
    return _with_source(Entry(name, _TYPES[datatype], shape), owner, path, members, begin)


def _with_source(entry: Entry, owner: str, path: str, members: dict[str, Part], begin: int) -> Entry:
    """Return an entry that knows where its elements are."""
    parameters = _parameters(owner, path, members, _INPUT_PARAMETERS)
    data, size = members.get("data"), parameters.get("binary_data_size")
    place = _place(owner, path, parameters)
    if (count := sum(source is not None for source in (data, size, place))) != 1:
        raise MalformedTensor("source", pointer="/" + entry.name, name=entry.name, got=count or "none")
    if data is not None:
        _check_depth(data[1])
    elif place is None and (type(size) is not int or size != entry.size):
        needed = counted(entry.size, "byte")
        got = shown(size) if type(size) is not int or size < 0 else counted(min(size, LARGEST_INTEGER + 1), "byte")
        raise MalformedTensor("binary", pointer="/" + entry.name, name=entry.name, needed=needed, got=got)
    return Entry(entry.name, entry.dtype, entry.shape, data, place, begin)


def _read_outputs(raw: memoryview, structure: Structure, by_default: bool) -> tuple[object, dict[str, Requested]]:
    """Return the option `outputs`, whatever it holds, and how each output is wanted, by name."""
    if raw[0] != ord("[") or raw.tobytes()[1:-1].strip() == b"":
        return json_values.option("outputs", raw), {}
    if _count("outputs", (raw, structure)) > MAX_INPUTS:
        return LongText("a list", len(raw)), {}
    names: list[object] = []
    requested: dict[str, Requested] = {}
    for position, item in enumerate(_items_of((raw, structure))):
        owner, path = f"outputs[{position}]", f"/outputs/{position}"
        members = _object(owner, path, item, _OUTPUT)
        if "name" not in members:
            raise MissingField("part", pointer=f"{path}/name", owner=owner, name="name")
        _check_depth(members["name"][1], MAX_DEPTH - 1)
        name = json_values.option("name", members["name"][0])
        parameters = _parameters(owner, path, members, _OUTPUT_PARAMETERS)
        wanted = Requested(
            _flag("binary_data", parameters.get("binary_data", by_default)), _place(owner, path, parameters)
        )
        names.append(name)
        if isinstance(name, str):
            requested.setdefault(name, wanted)
    return names, requested


def _parameters(owner: str, path: str, members: dict[str, Part], known: tuple[str, ...]) -> dict[str, object]:
    if (part := members.get("parameters")) is None:
        return {}
    found = _object(owner, f"{path}/parameters", part, known)
    return {name: json_values.option(name, raw) for name, (raw, _) in found.items()}


def _place(owner: str, path: str, parameters: dict[str, object]) -> Place | None:
    """Return the place in shared memory that is spoken of, None when there is none."""
    if "shared_memory_region" not in parameters:
        return None
    if "shared_memory_byte_size" not in parameters:
        name = "shared_memory_byte_size"
        raise MissingField("part", pointer=f"{path}/parameters/{name}", owner=owner, name=name)
    region = parameters["shared_memory_region"]
    if not isinstance(region, str):
        raise InvalidOption(
            "value",
            pointer="/shared_memory_region",
            name="shared_memory_region",
            expected="the name of a region",
            got=shown(region),
        )
    return Place(
        region,
        _integer("shared_memory_offset", parameters.get("shared_memory_offset", 0)),
        _integer("shared_memory_byte_size", parameters["shared_memory_byte_size"]),
    )


def _object(owner: str, path: str, part: Part, known: tuple[str, ...]) -> dict[str, Part]:
    """Return the values of an object by name, those that are null apart."""
    _expect(path[1:], part[0], "{")
    members = json_codec.split(*part, Fields(owner, (), known), path)
    return {name: value for name, value in members.items() if not _is_null(value)}


def _is_null(part: Part) -> bool:
    return part[0][0] == ord("n")


def _count(name: str, part: Part) -> int:
    """Return how many items an array has; raises MalformedJson when it is none."""
    _expect(name, part[0], "[")
    if part[0].tobytes()[1:-1].strip() == b"":
        return 0
    return int(np.count_nonzero((part[1].levels == 1) & (part[1].kinds == COMMA))) + 1


def _items_of(part: Part) -> Iterable[Part]:
    """Return the items of an array."""
    texts = _items.decode(part[0])
    return [(memoryview(text), structure) for text, structure in zip(texts, part[1].items(), strict=False)]


def _expect(name: str, raw: memoryview, opening: str) -> None:
    """Raise MalformedJson unless a value begins with the bracket of an object or an array, or with a quote."""
    if raw[:1] != opening.encode():
        expected = {"{": "an object", "[": "an array", '"': "a string"}[opening]
        got = json_values.kind_of(raw[:1].tobytes())
        raise MalformedJson("kind", pointer="/" + name, name=name, expected=expected, got=got)


def _text(name: str, raw: memoryview, path: str) -> str:
    _expect(name, raw, '"')
    value = json_values.option(path, raw)
    if isinstance(value, LongText):
        expected = f"a string of at most {json_values.LONGEST_OPTION_BYTES} bytes"
        raise MalformedJson("kind", pointer="/" + path, name=name, expected=expected, got=str(value))
    return cast(str, value)


def _flag(name: str, value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        raise InvalidOption("value", pointer="/" + name, name=name, expected="true or false", got=shown(value))
    return bool(value)


def _integer(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST_INTEGER:
        expected = f"an integer from 0 to {LARGEST_INTEGER}"
        raise InvalidOption("value", pointer="/" + name, name=name, expected=expected, got=shown(value))
    return value


def _check_depth(structure: Structure, deepest: int = MAX_DEPTH) -> None:
    """Raise TooDeep where the same value would be too deep as a field of the request itself, or in its list."""
    if structure.depth >= deepest:
        raise TooDeep("depth", limit=MAX_DEPTH)


def _from_numbers(entry: Entry, raw: memoryview, structure: Structure) -> WireTensor:
    """Read the numbers of an input, nested as its shape is or flat, as its type."""
    count = math.prod(entry.shape)
    if count == 0:
        _check_empty(entry, raw)
        return WireTensor(torch.empty(entry.shape, dtype=entry.dtype.torch))
    read = json_codec.literal(entry.name, raw, structure)
    if read.values.numel() != count:
        needed = counted(count, "number")
        raise MalformedTensor(
            "numbers", pointer="/" + entry.name, name=entry.name, needed=needed, got=read.values.numel()
        )
    if read.shape not in (entry.shape, (count,)):
        raise MalformedTensor(
            "nesting", pointer="/" + entry.name, name=entry.name, got=list(read.shape), expected=list(entry.shape)
        )
    shaped = WireTensor(read.values.reshape(entry.shape), is_literal=True, beyond_int64=read.beyond_int64)
    if entry.dtype.kind == "floating":
        return WireTensor(read_as(entry.name, shaped, entry.dtype.name))
    return _as_integers(entry, shaped)


def _check_empty(entry: Entry, raw: memoryview) -> None:
    """See that the numbers of an empty tensor are none: [], or nested as its shape is."""
    outer = math.prod(entry.shape[: entry.shape.index(0)])
    value = json_values.plain_value(entry.name, raw)
    if value != [] and (2 * outer > len(raw) or value != torch.empty(entry.shape, dtype=torch.uint8).tolist()):
        raise MalformedTensor("numbers", pointer="/" + entry.name, name=entry.name, needed="0 numbers", got="others")


def _as_integers(entry: Entry, wire: WireTensor) -> WireTensor:
    """Give written-out numbers an integer type; each must be one that it holds."""
    values, bounds = wire.values, torch.iinfo(entry.dtype.torch)
    if wire.beyond_int64 is not None and entry.dtype.item_size == 8:
        return WireTensor(values, beyond_int64=wire.beyond_int64)
    held = values >= bounds.min
    if bounds.max < LARGEST_INTEGER:
        held &= values <= bounds.max
    if values.is_floating_point():
        # Of the numbers that float64 holds, 2**63 is the first beyond int64.
        held &= (values == values.floor()) & (values < 2.0**63)
    if not held.all():
        position = int((~held).reshape(-1).nonzero()[0])
        index = unravel(position, entry.shape)
        raise DtypeMismatch(
            "overflow",
            pointer=element_pointer(entry.name, index),
            element=element_name(entry.name, index),
            expected=entry.dtype.name,
            got=f"{values.reshape(-1)[position].item():.15g}",
        )
    return WireTensor(values.to(torch.int64).to(entry.dtype.torch))


def memory_at(regions: Regions, place: Place, name: str, size: int) -> Tensor:
    """Return the memory for an output of `size` bytes as uint8 tensor; raises MalformedTensor when there is none."""
    memory = regions(place, name, size)
    return torch.frombuffer(memory, dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)


def encode(
    model: str, tensors: Mapping[str, Tensor], head: Head, destinations: Mapping[str, Tensor]
) -> tuple[list[bytes | memoryview], int | None]:
    """Write the outputs as an answer, in pieces, and return how many bytes of it are JSON, None when all are.

    Binary outputs are views of the tensors' own memory; those with a destination in shared memory are copied there
    unless they are there already.
    """
    described: list[list[bytes]] = []
    blocks: list[memoryview] = []
    for name in tensors if head.requested is None else head.requested:
        tensor, wanted = tensors[name].contiguous(), head.requested_as(name)
        text = msgspec.json.encode(
            {"name": name, "datatype": dtype_of(tensor).open_inference, "shape": list(tensor.shape)}
        )
        size = tensor.numel() * tensor.dtype.itemsize
        if wanted.place is not None:
            if (destination := destinations[name]).data_ptr() != tensor.data_ptr():
                destination.copy_(tensor.reshape(-1).view(torch.uint8))
            described.append([text])
        elif wanted.is_binary:
            described.append([text[:-1], b',"parameters":{"binary_data_size":%d}}' % size])
            if size:
                blocks.append(bytes_of(tensor))
        else:
            # Flat, because the C++ client counts on it; and nothing but `binary_data_size` may stand in `parameters`.
            described.append([text[:-1], b',"data":', *json_codec.array_pieces(tensor.reshape(-1), b""), b"}"])
    about = {"model_name": model, "model_version": VERSION} | ({"id": head.id} if head.id else {})
    pieces: list[bytes | memoryview] = [msgspec.json.encode(about)[:-1], b',"outputs":[']
    for position, parts in enumerate(described):
        pieces += [b",", *parts] if position else parts
    pieces.append(b"]}")
    if not blocks:
        return pieces, None
    size = sum(map(len, pieces))
    padding = -size % ALIGNMENT_BYTES
    return [b"".join(pieces) + b" " * padding, *blocks], size + padding
