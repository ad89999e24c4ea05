"""safetensors in and out: what the library writes is read, what the service writes the library reads, and no more."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.errors import ERRORS, MalformedTensor, RequestError
from service.tensors import DTYPES, Fields, LongText, Message
from service.wire import safetensors_codec
from tests.http.calling import safetensors_file
from tests.wire.test_json_codec import SHAPES, same_bits, sample

NAMES = ("values", "others", "more")

FIELDS = Fields(owner="test", tensors=NAMES, options=("word", "number"), only_gradient=("slope",))


def decode(body: bytes, fields: Fields = FIELDS) -> Message:
    return safetensors_codec.decode(memoryview(bytearray(body)), fields)


def written(tensors: dict[str, Tensor]) -> bytes:
    return b"".join(safetensors_codec.encode(tensors))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_library_writes_is_read_to_the_bit(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = sample(dtype, shape)

    message = decode(safetensors.torch.save({"values": tensor}))

    assert same_bits(message.tensors["values"].values, tensor)
    assert not message.tensors["values"].is_literal


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_the_library_reads_to_the_bit(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = sample(dtype, shape)

    read = safetensors.torch.load(written({"values": tensor}))

    assert list(read) == ["values"]
    assert same_bits(read["values"], tensor)


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "bfloat16"])
def test_what_numpy_writes_is_read(dtype: str) -> None:
    array = np.arange(6, dtype=dtype).reshape(2, 3)

    message = decode(safetensors.numpy.save({"values": array}))

    assert np.array_equal(message.tensors["values"].values.numpy(), array)


@st.composite
def tensor_sets(draw: st.DrawFn) -> dict[str, Tensor]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    return {
        name: sample(
            draw(st.sampled_from(list(DTYPES))),
            tuple(draw(st.lists(st.integers(0, 4), max_size=draw(st.integers(0, 8))))),
        )
        for name in names
    }


@settings(max_examples=300)
@given(tensors=tensor_sets(), format_key=st.booleans())
def test_any_tensors_survive_the_way_through_the_library(tensors: dict[str, Tensor], format_key: bool) -> None:
    from_library = decode(safetensors.torch.save(tensors, {"format": "pt"} if format_key else None))
    to_library = safetensors.torch.load(written(tensors))

    assert set(from_library.tensors) == set(to_library) == set(tensors)
    assert from_library.options == {}
    for name, tensor in tensors.items():
        assert same_bits(from_library.tensors[name].values, tensor)
        assert same_bits(to_library[name], tensor)


def entry(dtype: str, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("padding", range(9))
def test_tensors_that_lie_askew_are_read(padding: int) -> None:
    first, second = torch.tensor([-3], dtype=torch.int8), torch.tensor([0.5, -2.0, math.inf])
    header = json.dumps({"values": entry("I8", [1], 0, 1), "others": entry("F32", [3], 1, 13)}) + " " * padding
    body = safetensors_file(header, first.numpy().tobytes() + second.numpy().tobytes())

    message = decode(body)

    assert same_bits(message.tensors["values"].values, first)
    assert same_bits(message.tensors["others"].values, second)


def test_tensors_may_be_described_in_any_order() -> None:
    header = json.dumps({"values": entry("F32", [1], 8, 12), "others": entry("F64", [1], 0, 8)})

    message = decode(safetensors_file(header, np.float64(2.5).tobytes() + np.float32(0.5).tobytes()))

    assert message.tensors["values"].values.tolist() == [0.5]
    assert message.tensors["others"].values.tolist() == [2.5]


def test_tensors_are_views_of_the_body_and_may_be_written_to() -> None:
    body = bytearray(safetensors.torch.save({"values": torch.ones(64)}))

    message = safetensors_codec.decode(memoryview(body), FIELDS)
    message.tensors["values"].values.fill_(7.0)

    assert message.owns_memory
    assert safetensors.torch.load(bytes(body))["values"].tolist() == [7.0] * 64


def test_an_answer_is_a_view_of_its_tensors() -> None:
    tensor = torch.ones(64)

    pieces = safetensors_codec.encode({"values": tensor})
    tensor.fill_(7.0)

    assert safetensors.torch.load(b"".join(pieces))["values"].tolist() == [7.0] * 64


@pytest.mark.parametrize("count", [0, 1, 10, 1000, 100_000])
def test_the_data_of_an_answer_is_aligned(count: int) -> None:
    pieces = safetensors_codec.encode({"values": torch.zeros(count), "others": torch.zeros(1)})

    assert len(pieces[0]) % safetensors_codec.ALIGNMENT_BYTES == 0


def test_every_tensor_of_an_answer_is_aligned_for_its_type() -> None:
    tensors = {"values": torch.zeros(3, dtype=torch.float16), "others": torch.zeros(1, dtype=torch.float64)}

    header = json.loads(safetensors_codec.encode(tensors)[0][8:])

    assert header["others"]["data_offsets"] == [0, 8]
    assert header["values"]["data_offsets"] == [8, 14]


@pytest.mark.parametrize("size", range(2, 140))
def test_a_body_is_placed_so_that_its_data_is_aligned(size: int) -> None:
    padding = safetensors_codec.padding_before(size.to_bytes(8, "little"), 1 << 20)

    assert (padding + 8 + size) % safetensors_codec.ALIGNMENT_BYTES == 0
    assert 0 <= padding < safetensors_codec.ALIGNMENT_BYTES


def test_nothing_is_a_message_too() -> None:
    assert decode(safetensors_file("{}")).tensors == {}
    assert safetensors.torch.load(written({})) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("mean", "mean"),
        ("", ""),
        ("2", 2),
        ("-1", -1),
        ("0.5", 0.5),
        ("1e3", 1000.0),
        ("9" * 40, int("9" * 40)),
        ('["loss", "probs"]', ["loss", "probs"]),
        ("[]", []),
        ("-Infinity", "-Infinity"),
        ("NaN", "NaN"),
        ("1,5", "1,5"),
        ("01", "01"),
        ("[1", "[1"),
        ("[1]]", "[1]]"),
        ('["\\ud800"]', '["\\ud800"]'),
        (" 1", " 1"),
        ("true", "true"),
        ("null", "null"),
        ("{}", "{}"),
        ('"mean"', '"mean"'),
        ("\x00\n\x1b", "\x00\n\x1b"),
        ("é😀", "é😀"),
        ("x" * 4094, "x" * 4094),
        ("x" * 4095, LongText("a string", 4097)),
        ("[" + "0," * 4000 + "0]", LongText("a list", 8003)),
        ("1" * 4097, LongText("a number", 4097)),
    ],
)
def test_an_option_is_its_text_or_json_for_numbers_and_lists(text: str, value: object) -> None:
    options = decode(safetensors.torch.save({}, {"word": text})).options

    assert options == {"word": value}
    assert type(options["word"]) is type(value)


def test_one_header_means_different_things_to_different_operators() -> None:
    body = safetensors.torch.save({"values": torch.ones(2)})

    for owner in ("one", "other"):
        decode(body, Fields(owner=owner, tensors=("values",), options=()))
        with pytest.raises(RequestError) as caught:
            decode(body, Fields(owner=owner, tensors=("logits",), options=()))
        assert owner in caught.value.detail


def test_options_of_a_header_that_comes_again_are_not_shared() -> None:
    body = safetensors.torch.save({}, {"word": "mean"})

    decode(body).options["word"] = "sum"

    assert decode(body).options == {"word": "mean"}


FITTING = entry("F32", [2], 0, 8)
DATA = b"\0" * 8


def described(**parts: object) -> str:
    """Return a header that describes `values` with some parts otherwise."""
    return json.dumps({"values": FITTING | parts})


def of_first(text: str) -> str:
    return f'{{"values": {text}}}'


DEEP = "[" * 60_000 + "]" * 5000

HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "malformed-tensor"),
    "7 bytes": (b"\0" * 7, "malformed-tensor"),
    "a length of 0": (b"\0" * 8, "malformed-tensor"),
    "a length of 2**64 - 1": (b"\xff" * 8 + b"{}", "malformed-tensor"),
    "a length of 2**63": (b"\0" * 7 + b"\x80" + b"{}", "malformed-tensor"),
    "a length beyond the body": ((9).to_bytes(8, "little") + b"{}      ", "malformed-tensor"),
    "a header of 65 537 bytes": (safetensors_file("{}".ljust(65_537)), "malformed-tensor"),
    "a header of spaces": (safetensors_file(" " * 65_536), "malformed-tensor"),
    "a header after a space": (safetensors_file(" {}"), "malformed-tensor"),
    "a header after a mark": (safetensors_file(b"\xef\xbb\xbf{}"), "malformed-tensor"),
    "a header in UTF-16": (safetensors_file("{}".encode("utf-16")), "malformed-tensor"),
    "a name that is not UTF-8": (safetensors_file(b'{"\xff": 1}'), "malformed-tensor"),
    "an option that is not UTF-8": (safetensors_file(b'{"__metadata__": {"word": "\xff"}}'), "malformed-tensor"),
    "half a surrogate pair": (safetensors_file(rb'{"__metadata__": {"word": "\ud800"}}'), "malformed-tensor"),
    "two objects": (safetensors_file("{}{}"), "malformed-tensor"),
    "a comma too many": (safetensors_file("{,}"), "malformed-tensor"),
    "a number as header": (safetensors_file("1"), "malformed-tensor"),
    "null as header": (safetensors_file("null"), "malformed-tensor"),
    "a string as header": (safetensors_file('"{}"'), "malformed-tensor"),
    "an array as header": (safetensors_file("[]"), "malformed-tensor"),
    "a deep header": (safetensors_file(DEEP), "too-deep"),
    "a deep value": (safetensors_file(of_first("[" * 10 + "]" * 10)), "too-deep"),
    "a deep option": (safetensors_file(json.dumps({"__metadata__": {"word": DEEP[:60_000]}})), "too-deep"),
    "a large number": (safetensors_file(of_first("1e999")), "malformed-tensor"),
    "a long number": (safetensors_file(of_first("9" * 60_000)), "malformed-tensor"),
    "NaN": (safetensors_file(of_first("NaN")), "malformed-tensor"),
    "17 tensors": (safetensors_file(json.dumps({str(number): FITTING for number in range(17)})), "malformed-tensor"),
    "4000 tensors": (safetensors_file(json.dumps({str(number): {} for number in range(4000)})), "malformed-tensor"),
    "an unknown name": (safetensors_file(json.dumps({"value": FITTING}), DATA), "unknown-field"),
    "no name": (safetensors_file(json.dumps({"": FITTING}), DATA), "unknown-field"),
    "a path as name": (safetensors_file(json.dumps({"../../etc/\n\x1b[31m\0": FITTING}), DATA), "unknown-field"),
    "a name for the gradient": (safetensors_file(json.dumps({"slope": FITTING}), DATA), "unknown-field"),
    "an unknown option": (safetensors_file(json.dumps({"__metadata__": {"\x1b[2J": "1"}})), "unknown-field"),
    "an unknown option twice": (safetensors_file('{"__metadata__": {"x": "", "x": ""}}'), "unknown-field"),
    "a tensor twice": (safetensors_file('{"values": {}, "values": {}}'), "duplicate-field"),
    "a tensor twice, escaped": (safetensors_file(r'{"values": {}, "v\u0061lues": {}}'), "duplicate-field"),
    "the options twice": (safetensors_file('{"__metadata__": {}, "__metadata__": {}}'), "duplicate-field"),
    "an option twice": (safetensors_file('{"__metadata__": {"word": "", "word": ""}}'), "duplicate-field"),
    "an ignored option twice": (safetensors_file('{"__metadata__": {"format": "", "format": ""}}'), "duplicate-field"),
    "a part twice": (
        safetensors_file(of_first('{"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'), DATA),
        "duplicate-field",
    ),
    "an option as tensor": (safetensors_file(json.dumps({"word": FITTING}), DATA), "malformed-tensor"),
    "a tensor as option": (safetensors_file('{"__metadata__": {"values": "1"}}'), "malformed-tensor"),
    **{
        f"options that are {options}": (safetensors_file(f'{{"__metadata__": {options}}}'), "malformed-tensor")
        for options in ("null", "[]", '"word"', "1", '{"word": 1}', '{"word": null}', '{"word": ["x"]}', '{"word": {}}')
    },
    "an option beyond float64": (safetensors_file('{"__metadata__": {"number": "1e999"}}'), "malformed-json"),
    "options in a list beyond float64": (safetensors_file('{"__metadata__": {"number": "[1e999]"}}'), "malformed-json"),
    **{
        f"a description that is {text}": (safetensors_file(of_first(text), DATA), "malformed-tensor")
        for text in ("null", "[]", "1", '"F32"', "{}", '{"dtype": "F32", "shape": [2]}')
    },
    "one part more": (safetensors_file(described(strides=[1]), DATA), "malformed-tensor"),
    **{
        f"the type {dtype!r}": (safetensors_file(described(dtype=dtype), DATA), "malformed-tensor")
        for dtype in ("F4", "F8_E4M3", "F8_E5M2", "BOOL", "C64", "f32", "float32", "", None, 32, ["F32"], {}, True, 1.5)
    },
    **{
        f"the shape {str(shape)[:30]}": (safetensors_file(described(shape=shape), DATA), "malformed-tensor")
        for shape in (
            -1, 2, None, "2", {}, [-1], [1.0], [True, 2], [None], ["2"], [[2]], [2**63], [0, 2**63], [2**63, 0],
        )
    },
    "the shape of 2**64 elements": (safetensors_file(described(shape=[2**32, 2**32]), DATA), "malformed-tensor"),
    "the shape that overflows to 2": (safetensors_file(described(shape=[2**63 + 1, 2]), DATA), "malformed-tensor"),
    "the shape that overflows beside 0": (
        safetensors_file(described(shape=[0, 2**40, 2**40], data_offsets=[0, 0])),
        "malformed-tensor",
    ),
    "nine dimensions": (safetensors_file(described(shape=[1] * 8 + [2]), DATA), "shape-mismatch"),
    "many dimensions": (safetensors_file(described(shape=[0] * 20_000), DATA), "shape-mismatch"),
    **{
        f"the offsets {str(offsets)[:30]}": (
            safetensors_file(described(data_offsets=offsets), DATA),
            "malformed-tensor",
        )
        for offsets in (
            None, 8, "0, 8", {}, [], [8], [0, 4, 8], [8, 0], [-8, 0], [-8, -16], [0.0, 8], [False, 8], ["0", "8"],
            [0, 7], [0, 9], [0, 0], [1, 9], [2**64 - 8, 2**64], [0, 2**64], [2**64, 8], [10**40, 10**40 + 8],
        )
    },
    "data that is cut short": (safetensors_file(described(), DATA[:-1]), "malformed-tensor"),
    "data that goes on": (safetensors_file(described(), DATA + b"\0"), "malformed-tensor"),
    "data of nobody": (safetensors_file("{}", b"\0"), "malformed-tensor"),
    "tensors that overlap": (
        safetensors_file(json.dumps({"values": FITTING, "others": FITTING}), DATA),
        "malformed-tensor",
    ),
    "tensors that overlap by half": (
        safetensors_file(json.dumps({"values": FITTING, "others": entry("F32", [2], 4, 12)}), b"\0" * 12),
        "malformed-tensor",
    ),
    "tensors with a hole between": (
        safetensors_file(json.dumps({"values": FITTING, "others": entry("F32", [1], 12, 16)}), b"\0" * 16),
        "malformed-tensor",
    ),
    "a hole at the start": (safetensors_file(described(data_offsets=[4, 12]), b"\0" * 12), "malformed-tensor"),
    "an empty tensor beyond the data": (
        safetensors_file(described(shape=[0], data_offsets=[8, 8]), DATA[:4]),
        "malformed-tensor",
    ),
    "an empty tensor within another": (
        safetensors_file(json.dumps({"values": FITTING, "others": entry("F32", [0], 4, 4)}), DATA),
        "malformed-tensor",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "code"), HOSTILE.values(), ids=HOSTILE)
def test_a_body_that_breaks_a_rule_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode(body)

    assert caught.value.code == code, caught.value.detail
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 300
    assert caught.value.pointer is None or caught.value.pointer.isprintable()


@pytest.mark.parametrize(("body", "code"), HOSTILE.values(), ids=HOSTILE)
def test_a_body_that_breaks_a_rule_is_refused_again(body: bytes, code: str) -> None:
    for _ in range(2):
        with pytest.raises(RequestError) as caught:
            decode(body)
        assert caught.value.code == code


LYING: dict[str, str] = {
    "a large shape": described(shape=[2**40], data_offsets=[0, 2**42]),
    "a large shape over little data": described(shape=[2**40], data_offsets=[0, 8]),
    "a large type": described(dtype="F64", shape=[2**17 + 1], data_offsets=[0, 2**20 + 8]),
    "an empty tensor of large sizes": described(shape=[0, 2**47], data_offsets=[0, 0]),
    "a shape one too large": described(shape=[2**18 + 1], data_offsets=[0, 2**20 + 4]),
}


@pytest.mark.parametrize("header", LYING.values(), ids=LYING)
def test_nothing_is_allocated_for_a_header_that_lies(header: str) -> None:
    body = memoryview(bytearray(safetensors_file(header, b"\0" * (1 << 20))))

    tracemalloc.start()
    try:
        with pytest.raises(MalformedTensor):
            safetensors_codec.decode(body, FIELDS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 1 << 16


VALID = [
    safetensors.torch.save({"values": torch.arange(6.0).reshape(2, 3), "others": torch.arange(3)}, {"word": "mean"}),
    safetensors.torch.save({"values": torch.ones(2, 0, 3), "more": torch.tensor(2, dtype=torch.int8)}),
    safetensors.torch.save({}, {"word": "mean", "number": "[1.5, -2]", "format": "pt"}),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a valid file with a few bits, bytes or lengths of it changed."""
    body = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(body) - 1)))
        change = draw(st.sampled_from(["flip", "put", "cut", "insert", "remove", "length"]))
        if change == "flip" and body:
            body[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "put" and body:
            body[place] = draw(st.sampled_from(b'{}[]",:0129-.e\\ u\0\xff'))
        elif change == "cut":
            del body[place:]
        elif change == "insert":
            body[place:place] = draw(st.binary(max_size=8))
        elif change == "remove":
            del body[place : place + draw(st.integers(1, 8))]
        else:
            body[:8] = draw(st.integers(0, len(body) + 9)).to_bytes(8, "little")
    return bytes(body)


def read_or_refused(body: bytes) -> Message | RequestError:
    """Return the message or what is said instead; anything else that is raised is a failure."""
    try:
        return decode(body)
    except RequestError as error:
        return error


@settings(max_examples=3000)
@given(damaged())
def test_a_damaged_file_is_refused_or_read_as_the_library_reads_it(body: bytes) -> None:
    found = read_or_refused(body)

    if isinstance(found, Message):
        expected = safetensors.torch.load(body)
        assert set(found.tensors) == set(expected)
        assert all(same_bits(tensor.values, expected[name]) for name, tensor in found.tensors.items())
    else:
        assert found.code in ERRORS
        assert found.detail.isprintable()


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(header: bytes) -> None:
    for body in (header, safetensors_file(header)):
        found = read_or_refused(body)

        assert isinstance(found, Message) or found.detail.isprintable()
