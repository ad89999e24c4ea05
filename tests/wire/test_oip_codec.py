"""The Open Inference codec: what a client writes is read to the bit, what breaks a rule is refused first of all."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.errors import ERRORS, MalformedTensor, RequestError
from service.tensors import DTYPES, Fields, Message, array_of, dtype_of
from service.wire import oip_codec
from service.wire.oip_codec import Entry, Head, Place, padding_before, with_numbers
from service.wire.shared_memory import SharedMemory
from tests.wire.test_json_codec import SHAPES, same_bits, sample

NAMES = ("values", "others", "more")
FIELDS = Fields(owner="test", tensors=NAMES, options=("word", "number", "outputs"), only_gradient=("slope",))
NO_REGIONS = SharedMemory().view


def decode(head: bytes | str, data: bytes = b"") -> Message:
    text = head.encode() if isinstance(head, str) else head
    return oip_codec.decode(oip_codec.read_head(text, FIELDS), memoryview(bytearray(data)), NO_REGIONS)


def described(name: str, tensor: Tensor, *, binary: bool) -> tuple[dict[str, Any], bytes]:
    entry: dict[str, Any] = {
        "name": name,
        "shape": list(tensor.shape),
        "datatype": dtype_of(tensor).open_inference,
    }
    data = array_of(tensor.contiguous()).tobytes()
    if binary:
        return entry | {"parameters": {"binary_data_size": len(data)}}, data
    return entry | {"data": tensor.reshape(-1).tolist()}, b""


def written(tensors: dict[str, Tensor], binary: dict[str, bool]) -> tuple[bytes, bytes]:
    parts = [described(name, tensor, binary=binary[name]) for name, tensor in tensors.items()]
    return json.dumps({"inputs": [entry for entry, _ in parts]}).encode(), b"".join(data for _, data in parts)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("binary", [False, True])
def test_a_tensor_is_read_to_the_bit(dtype: str, shape: tuple[int, ...], binary: bool) -> None:
    tensor = sample(dtype, shape)
    if not binary and tensor.is_floating_point():
        tensor = tensor.nan_to_num(nan=0.5) + 0.0  # a NaN has no bits in JSON
    if not binary and dtype == "uint64":
        tensor = torch.zeros(shape, dtype=torch.uint64)  # larger ones have no place in int64

    message = decode(*written({"values": tensor}, {"values": binary}))

    assert same_bits(message.tensors["values"].values, tensor)
    assert not message.tensors["values"].is_literal
    assert message.owns_memory


@st.composite
def tensor_sets(draw: st.DrawFn) -> dict[str, Tensor]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    return {
        name: sample(
            draw(st.sampled_from([dtype for dtype in DTYPES if dtype != "uint64"])),
            tuple(draw(st.lists(st.integers(0, 4), max_size=draw(st.integers(0, 8))))),
        )
        for name in names
    }


@settings(max_examples=100)
@given(tensors=tensor_sets(), data=st.data())
def test_any_tensors_survive_each_in_its_own_way(tensors: dict[str, Tensor], data: st.DataObject) -> None:
    finite = {
        name: tensor.nan_to_num(nan=0.5) + 0.0 if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    binary = {name: data.draw(st.booleans()) for name in finite}

    message = decode(*written(finite, binary))

    assert list(message.tensors) == list(finite)
    assert all(same_bits(message.tensors[name].values, tensor) for name, tensor in finite.items())


@settings(max_examples=100)
@given(tensors=tensor_sets(), binary=st.booleans())
def test_an_answer_is_what_the_client_reads(tensors: dict[str, Tensor], binary: bool) -> None:
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}

    pieces, json_bytes = oip_codec.encode("model", tensors, Head((), {}, is_binary=binary, id="7"), {})

    body = b"".join(pieces)
    assert (json_bytes is None) == (not binary or sum(tensor.numel() for tensor in tensors.values()) == 0)
    assert json_bytes is None or json_bytes % oip_codec.ALIGNMENT_BYTES == 0
    head, data = json.loads(body[:json_bytes]), body[json_bytes:] if json_bytes is not None else b""
    assert head["id"] == "7"
    assert [output["name"] for output in head["outputs"]] == list(tensors)
    for output in head["outputs"]:
        tensor = tensors[output["name"]]
        assert output["shape"] == list(tensor.shape)
        if binary:
            size = output["parameters"]["binary_data_size"]
            assert data[:size] == array_of(tensor.contiguous()).tobytes()
            data = data[size:]
        else:
            assert torch.tensor(output["data"], dtype=tensor.dtype).equal(tensor.reshape(-1)) or tensor.isnan().any()
    assert not data


def test_tensors_are_views_of_the_body_and_may_be_written_to() -> None:
    head, data = written({"values": torch.ones(64)}, {"values": True})
    body = bytearray(data)

    message = oip_codec.decode(oip_codec.read_head(head, FIELDS), memoryview(body), NO_REGIONS)
    message.tensors["values"].values.fill_(7.0)

    assert np.frombuffer(body, np.float32).tolist() == [7.0] * 64


def test_an_answer_is_a_view_of_its_tensors() -> None:
    tensor = torch.ones(64)

    pieces, _ = oip_codec.encode("model", {"values": tensor}, Head((), {}, is_binary=True), {})
    tensor.fill_(7.0)

    assert np.frombuffer(pieces[-1], np.float32).tolist() == [7.0] * 64


@settings(max_examples=150)
@given(
    json_bytes=st.integers(1, 500),
    inputs=st.lists(st.tuples(st.sampled_from(list(DTYPES)), st.integers(0, 60)), max_size=4),
)
def test_a_body_is_placed_so_that_the_fewest_bytes_lie_askew(json_bytes: int, inputs: list[tuple[str, int]]) -> None:
    entries, begin = [], 0
    for number, (dtype, count) in enumerate(inputs):
        entries.append(Entry(str(number), DTYPES[dtype], (count,), begin=begin))
        begin += entries[-1].size

    def askew(padding: int) -> int:
        return sum(entry.size for entry in entries if (padding + json_bytes + entry.begin) % entry.dtype.item_size)

    padding = padding_before(Head(tuple(entries), {}), json_bytes)

    assert 0 <= padding < oip_codec.ALIGNMENT_BYTES
    assert askew(padding) == min(map(askew, range(oip_codec.ALIGNMENT_BYTES)))


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("[NaN, Infinity, -Infinity]", '["NaN", "Infinity", "-Infinity"]'),
        ("[1,-Infinity,NaN,2]", '[1,"-Infinity","NaN",2]'),
        ('{"NaN": "Infinity", "x": NaN}', '{"NaN": "Infinity", "x": "NaN"}'),
        (r'{"\"NaN": "\\", "x": -Infinity}', r'{"\"NaN": "\\", "x": "-Infinity"}'),
        ("Infinity", '"Infinity"'),
        ("-Infinity", '"-Infinity"'),
        ("NaN", '"NaN"'),
        ("[Na, Infinit", "[Na, Infinit"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_literals_outside_strings_are_put_in_quotes(text: str, quoted: str) -> None:
    assert with_numbers(text.encode()) == quoted.encode()


@settings(max_examples=150)
@given(st.lists(st.sampled_from([0.5, math.nan, math.inf, -math.inf, 3]), min_size=1), st.text(max_size=20))
def test_any_literals_are_read_as_python_reads_them(numbers: list[float], word: str) -> None:
    entry = {"name": "values", "shape": [len(numbers)], "datatype": "FP64", "data": numbers}
    text = json.dumps({"inputs": [entry], "parameters": {"word": f"NaN {word} Infinity"}})

    message = decode(text)

    assert np.array_equal(message.tensors["values"].values.numpy(), np.array(numbers, float), equal_nan=True)
    assert message.options == {"word": f"NaN {word} Infinity"}


def test_one_head_means_different_things_to_different_operators() -> None:
    head, data = written({"values": torch.ones(2)}, {"values": True})

    for owner in ("one", "other"):
        oip_codec.read_head(head, Fields(owner=owner, tensors=("values",), options=()))
        with pytest.raises(RequestError) as caught:
            oip_codec.read_head(head, Fields(owner=owner, tensors=("logits",), options=()))
        assert owner in caught.value.detail
    assert len(data) == 8


def test_what_comes_of_a_head_that_comes_again_is_not_shared() -> None:
    head = json.dumps({"inputs": [{"name": "values", "shape": [1], "datatype": "FP32", "data": [1]}]})
    head = head[:-1] + ', "parameters": {"word": "mean"}}'

    first = decode(head)
    first.options["word"] = "sum"
    first.tensors["values"].values.fill_(7)

    assert decode(head).options == {"word": "mean"}
    assert decode(head).tensors["values"].values.tolist() == [1]


@pytest.mark.parametrize("name", ["a", "1b4e28ba-2fa1-11d2-883f-0016d3cca427", "", "\u20ac", 'x"y', "x\\", "7" * 200])
@pytest.mark.parametrize("place", ["first", "last"])
def test_every_request_keeps_its_own_id(name: str, place: str) -> None:
    for number in range(3):
        request: dict[str, Any] = {"id": name + str(number) if name else "", "inputs": [FITTING]}
        members = request if place == "first" else dict(reversed(request.items()))

        head = oip_codec.read_head(json.dumps(members).encode(), FIELDS)

        assert head.id == request["id"]
        assert len(head.entries) == 1


@pytest.mark.parametrize(
    "text",
    [
        '{"id": "a", "id": "b"}',
        '{"id": "a", "id": ""}',
        '{"parameters": {"id": "a"}}',
        '{"inputs": [{"id": "a"}]}',
        '{"id": "a"} {}',
        '{"id" "a": "id": "b"}',
    ],
)
def test_an_id_in_the_wrong_place_is_refused_whatever_it_is(text: str) -> None:
    for word in ("a", "c", ""):
        with pytest.raises(RequestError):
            oip_codec.read_head(text.replace('"a"', f'"{word}"').encode(), FIELDS)


@pytest.mark.parametrize(("timeout", "seconds"), [(None, None), (0, None), (1, 1e-6), (2_500_000, 2.5)])
def test_a_deadline_is_told_in_seconds(timeout: int | None, seconds: float | None) -> None:
    parameters = {} if timeout is None else {"timeout": timeout}

    head = oip_codec.read_head(json.dumps({"parameters": parameters}).encode(), FIELDS)

    assert head.timeout_seconds == seconds


FITTING: dict[str, Any] = {
    "name": "values",
    "shape": [2],
    "datatype": "FP32",
    "parameters": {"binary_data_size": 8},
}


def of_one(**parts: Any) -> bytes:
    return json.dumps({"inputs": [FITTING | parts]}).encode()


def at(**parameters: Any) -> bytes:
    return of_one(parameters=parameters)


DATA = b"\0" * 8
DEEP = b"[" * 60_000 + b"]" * 60_000

HOSTILE: dict[str, tuple[bytes, bytes, str]] = {
    "nothing": (b"", b"", "malformed-json"),
    "spaces": (b" " * 100_000, b"", "malformed-json"),
    "a mark": (b"\xef\xbb\xbf{}", b"", "malformed-json"),
    "not UTF-8": (b'{"id": "\xff"}', b"", "malformed-json"),
    "half a surrogate pair": (rb'{"id": "\ud800"}', b"", "malformed-json"),
    "two objects": (b"{}{}", b"", "malformed-json"),
    "an array": (b"[]", b"", "malformed-json"),
    "a literal alone": (b"NaN", b"", "malformed-json"),
    "literals run together": (b'{"inputs": NaNNaN}', b"", "malformed-json"),
    "a literal after a digit": (b'{"inputs": 1NaN}', b"", "malformed-json"),
    "a literal with two signs": (b'{"inputs": --Infinity}', b"", "malformed-json"),
    "a literal as name": (b"{NaN: 1}", b"", "unknown-field"),
    "a literal as inputs": (b'{"inputs": NaN}', b"", "malformed-json"),
    "an open string with literals": (b'{"id": "NaN', b"", "malformed-json"),
    "deep": (DEEP, b"", "too-deep"),
    "deep inputs": (b'{"inputs": ' + DEEP + b"}", b"", "too-deep"),
    "a deep id": (b'{"id": ' + DEEP + b"}", b"", "too-deep"),
    "a deep shape": (of_one(shape=json.loads("[" * 12 + "]" * 12)), DATA, "too-deep"),
    "a deep option": (b'{"parameters": {"word": ' + b"[" * 10 + b"]" * 10 + b"}}", b"", "too-deep"),
    "deep data": (of_one(parameters=None, data=json.loads("[" * 10 + "]" * 10)), b"", "too-deep"),
    "100 000 inputs": (b'{"inputs": [' + b"{}," * 99_999 + b"{}]}", b"", "malformed-tensor"),
    "100 000 outputs": (b'{"outputs": [' + b"{}," * 99_999 + b"{}]}", b"", "blocks"),
    "100 000 options": (
        json.dumps({"parameters": dict.fromkeys(map(str, range(100_000)), 1)}).encode(),
        b"",
        "unknown-field",
    ),
    "100 000 times the same option": (
        b'{"parameters": {' + b'"word": 1,' * 99_999 + b'"word": 1}}', b"", "duplicate-field"
    ),
    "inputs twice": (b'{"inputs": [], "inputs": []}', b"", "duplicate-field"),
    "inputs twice, escaped": (rb'{"inputs": [], "\u0069nputs": []}', b"", "duplicate-field"),
    "a part twice": (b'{"inputs": [{"shape": [], "shape": []}]}', b"", "duplicate-field"),
    "a size twice": (
        b'{"inputs": [{"name": "values", "shape": [2], "datatype": "FP32", '
        b'"parameters": {"binary_data_size": 8, "binary_data_size": 8}}]}',
        DATA,
        "duplicate-field",
    ),
    "a tensor twice": (json.dumps({"inputs": [FITTING, FITTING]}).encode(), DATA * 2, "duplicate-field"),
    "an unknown name": (of_one(name="value"), DATA, "unknown-field"),
    "no name": (of_one(name=""), DATA, "unknown-field"),
    "a path as name": (of_one(name="../../etc/\n\x1b[31m\0"), DATA, "unknown-field"),
    "a long name": (of_one(name="x" * 100_000), DATA, "malformed-json"),
    "a name for the gradient": (of_one(name="slope"), DATA, "unknown-field"),
    "an option as tensor": (of_one(name="word"), DATA, "malformed-tensor"),
    "a reserved name as tensor": (of_one(name="timeout"), DATA, "unknown-field"),
    "a tensor as option": (b'{"parameters": {"values": 1}}', b"", "malformed-tensor"),
    "an unknown part": (of_one(strides=[1]), DATA, "unknown-field"),
    "a parameter that nobody knows": (at(binary_data_size=8, x=1), DATA, "unknown-field"),
    "a parameter of Triton's own": (b'{"parameters": {"triton_x": 1}}', b"", "unknown-field"),
    **{
        f"the type {str(datatype)[:20]!r}": (of_one(datatype=datatype), DATA, "malformed-tensor")
        for datatype in ("F32", "fp32", "FP8", "BOOL", "BYTES", "", 32, ["FP32"], {}, True, 1.5, "x" * 100_000)
    },
    **{
        f"the shape {str(shape)[:30]}": (of_one(shape=shape), DATA, "malformed-tensor")
        for shape in (
            -1, 2, "2", {}, [-1], [1.0], [True, 2], [None], ["2"], [[2]], [2**63], [0, 2**63], [2**63, 0],
            [2**32, 2**32], [2**63 + 1, 2], [0, 2**40, 2**40], [10**300],
        )
    },
    "nine dimensions": (of_one(shape=[1] * 8 + [2]), DATA, "shape-mismatch"),
    "many dimensions": (of_one(shape=[0] * 2000), DATA, "malformed-tensor"),
    **{
        f"the size {str(size)[:20]}": (at(binary_data_size=size), DATA, "malformed-tensor")
        for size in (0, 7, 9, -8, 8.0, "8", True, [8], {}, 2**63, 2**64 + 8, 10**300)
    },
    "data too short": (of_one(), DATA[:-1], "malformed-tensor"),
    "data too long": (of_one(), DATA + b"\0", "malformed-tensor"),
    "data of nobody": (b"{}", b"\0", "malformed-tensor"),
    "data in two places": (of_one(data=[1, 2]), DATA, "malformed-tensor"),
    "data in a region and after": (
        at(binary_data_size=8, shared_memory_region="r", shared_memory_byte_size=8),
        DATA,
        "malformed-tensor",
    ),
    "data nowhere": (of_one(parameters={}), b"", "malformed-tensor"),
    "a region that is not there": (at(shared_memory_region="r", shared_memory_byte_size=8), b"", "malformed-tensor"),
    "a region without a size": (at(shared_memory_region="r"), b"", "missing-field"),
    "an offset alone": (at(shared_memory_offset=0), b"", "malformed-tensor"),
    "a region's offset before it": (
        at(shared_memory_region="r", shared_memory_byte_size=8, shared_memory_offset=-8),
        b"",
        "invalid-option",
    ),
    "a long region": (at(shared_memory_region="x" * 100_000, shared_memory_byte_size=8), b"", "invalid-option"),
    **{
        f"the data {str(data)[:20]}": (of_one(parameters=None, data=data), b"", code)
        for data, code in (
            ("12", "dtype-mismatch"),
            (True, "dtype-mismatch"),
            ({}, "dtype-mismatch"),
            ([1, "2"], "dtype-mismatch"),
            ([1, None], "dtype-mismatch"),
            ([[1], [2, 3]], "ragged-array"),
            ([1, [2]], "ragged-array"),
            ([[], []], "shape-mismatch"),
            ([1], "malformed-tensor"),
            ([1, 2, 3], "malformed-tensor"),
            ([[1, 2]], "malformed-tensor"),
            (1, "malformed-tensor"),
            ([1, 1e39], "dtype-mismatch"),
            ([1, 10**400], "malformed-json"),
        )
    },
    "an option beyond float64": (b'{"parameters": {"number": 1e999}}', b"", "malformed-json"),
    "a deadline before the request": (b'{"parameters": {"timeout": -1}}', b"", "invalid-option"),
    "a deadline of no number": (b'{"parameters": {"timeout": NaN}}', b"", "invalid-option"),
    "outputs in both places": (b'{"outputs": [{"name": "x"}], "parameters": {"outputs": []}}', b"", "duplicate-field"),
    "an output that is no object": (b'{"outputs": ["x"]}', b"", "malformed-json"),
    "an output without a name": (b'{"outputs": [{}]}', b"", "missing-field"),
    "an output of deep name": (b'{"outputs": [{"name": ' + b"[" * 9 + b"]" * 9 + b"}]}", b"", "too-deep"),
}  # fmt: skip


@pytest.mark.parametrize(("head", "data", "code"), HOSTILE.values(), ids=HOSTILE)
def test_a_body_that_breaks_a_rule_is_refused_again_and_again(head: bytes, data: bytes, code: str) -> None:
    if code == "blocks":  # for the binder to refuse: a list that is far too long
        assert len(str(decode(head, data).options["outputs"])) < 40
        return
    for _ in range(2):
        with pytest.raises(RequestError) as caught:
            decode(head, data)

        assert caught.value.code == code, caught.value.detail
        assert caught.value.detail.isprintable()
        assert len(caught.value.detail) < 300
        assert caught.value.pointer is None or caught.value.pointer.isprintable()


LYING: dict[str, bytes] = {
    "a large shape": of_one(shape=[2**40], parameters={"binary_data_size": 2**42}),
    "a large shape over little data": of_one(shape=[2**40], parameters={"binary_data_size": 8}),
    "a shape one too large": of_one(shape=[2**18 + 1], parameters={"binary_data_size": 2**20 + 4}),
    "a large shape of few numbers": of_one(shape=[2**40], parameters=None, data=[1, 2]),
    "a large empty shape": of_one(shape=[2**40, 0], parameters=None, data=[[], []]),
    "a large place": at(shared_memory_region="r", shared_memory_byte_size=2**62),
}


@pytest.mark.parametrize("head", LYING.values(), ids=LYING)
def test_nothing_is_allocated_for_a_head_that_lies(head: bytes) -> None:
    data = memoryview(bytearray(1 << 20))
    with pytest.raises(RequestError):  # what modules remember is not counted
        oip_codec.decode(oip_codec.read_head(head, FIELDS), data, NO_REGIONS)

    tracemalloc.start()
    try:
        with pytest.raises(MalformedTensor):
            oip_codec.decode(oip_codec.read_head(head, FIELDS), data[: 0 if b"data" not in head else None], NO_REGIONS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 1 << 16


def test_a_place_is_not_looked_at_before_it_is_known_to_be_there() -> None:
    regions = SharedMemory()

    for place in (Place("r", 0, 8), Place("", 0, 8), Place("../r", 2**62, 2**62)):
        with pytest.raises(MalformedTensor):
            regions.view(place, "values", 8)


VALID = [
    written({"values": torch.arange(6.0).reshape(2, 3), "others": torch.arange(3)}, {"values": True, "others": False}),
    written(
        {"values": torch.ones(2, 0, 3), "more": torch.tensor(2, dtype=torch.int8)}, {"values": False, "more": True}
    ),
    (b'{"id": "x", "parameters": {"word": "NaN", "number": -1.5, "timeout": 5}, "outputs": [{"name": "y"}]}', b""),
    (b'{"inputs": [{"name": "values", "datatype": "FP16", "shape": [3], "data": [NaN, -Infinity, 1e3]}]}', b""),
]


@st.composite
def damaged(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Draw a valid body with a few bits, bytes or lengths of it changed."""
    head, data = draw(st.sampled_from(VALID))
    body, size = bytearray(head + data), len(head)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(body) - 1)))
        change = draw(st.sampled_from(["flip", "put", "cut", "insert", "remove", "length"]))
        if change == "flip" and body:
            body[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "put" and body:
            body[place] = draw(st.sampled_from(b'{}[]",:0129-.e\\ uNaIy\0\xff'))
        elif change == "cut":
            del body[place:]
        elif change == "insert":
            body[place:place] = draw(st.sampled_from([b"NaN", b"-Infinity", b"[]", b"1e999", b'"', b"\\"]))
        elif change == "remove":
            del body[place : place + draw(st.integers(1, 8))]
        else:
            size = draw(st.integers(0, len(body)))
    return bytes(body[:size]), bytes(body[size:])


def python_reads(head: bytes) -> Any:
    try:
        return json.loads(head)
    except ValueError:
        return None


def read_or_refused(head: bytes, data: bytes) -> Message | RequestError:
    """Return the message or what is said instead; anything else that is raised is a failure."""
    try:
        return decode(head, data)
    except RequestError as error:
        return error


@settings(max_examples=1000)
@given(damaged())
def test_a_damaged_body_is_refused_or_read_as_python_reads_it(body: tuple[bytes, bytes]) -> None:
    head, data = body
    message = read_or_refused(head, data)
    if isinstance(message, RequestError):
        assert message.code in ERRORS
        assert message.detail.isprintable()
        return

    read = python_reads(head)
    assert read is not None
    inputs = {entry["name"]: entry for entry in read.get("inputs") or []}
    assert set(message.tensors) == set(inputs)
    for name, tensor in message.tensors.items():
        assert list(tensor.values.shape) == inputs[name]["shape"]
        assert dtype_of(tensor.values).open_inference == inputs[name]["datatype"]


@settings(max_examples=150)
@given(st.binary(max_size=200), st.binary(max_size=16))
def test_any_bytes_are_read_or_refused(head: bytes, data: bytes) -> None:
    found = read_or_refused(head, data)

    assert isinstance(found, Message) or found.detail.isprintable()
