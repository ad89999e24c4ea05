"""JSON in and out: the same numbers as a plain reader and writer would give, in every shape, type and form."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.errors import RaggedArray
from service.tensors import DTYPES, Fields
from service.wire import json_codec

FIELDS = Fields(owner="test", tensors=("values", "others"), options=("word",))

FLOATING = [name for name, dtype in DTYPES.items() if dtype.kind == "floating"]

SHAPES = [(), (1,), (0,), (3,), (2, 3), (0, 5), (5, 0), (1, 1, 1), (2, 1, 3, 2), (1, 2, 1, 2, 1, 2, 1, 2), (2, 0, 3)]


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are equal to the bit, type and shape included."""
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and torch.equal(
            torch.frombuffer(bytearray(raw(first) or b"\0"), dtype=torch.uint8),
            torch.frombuffer(bytearray(raw(second) or b"\0"), dtype=torch.uint8),
        )
    )


def raw(tensor: Tensor) -> bytes:
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.contiguous().numpy().tobytes()


def sample(dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor with the extremes of its type in it."""
    kind = getattr(torch, dtype)
    count = math.prod(shape)
    if kind.is_floating_point:
        limits = torch.finfo(kind)
        special = [math.nan, math.inf, -math.inf, -0.0, limits.max, limits.min, limits.tiny, limits.smallest_normal / 4]
        numbers = torch.cat(
            [torch.tensor(special, dtype=kind), torch.randn(count, generator=torch.Generator().manual_seed(0)).to(kind)]
        )
    else:
        limits = torch.iinfo(kind)
        numbers = torch.tensor(([limits.max, limits.min, 0, 1, 2] * (count + 1))[: count + 5], dtype=kind)
    return numbers[:count].reshape(shape)


def naive(value: Any) -> Any:
    """Read the numbers that JSON cannot write."""
    if isinstance(value, list):
        return [naive(item) for item in value]
    return float(value.replace("Infinity", "inf")) if isinstance(value, str) else value


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compact_tensor_survives_the_way_there_and_back_to_the_bit(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = sample(dtype, shape)

    text = b"".join(json_codec.encode({"values": tensor}, "base64"))

    written = json.loads(text)["values"]
    assert (written["dtype"], written["shape"]) == (dtype, list(shape))
    assert base64.b64decode(written["base64"], validate=True) == raw(tensor)
    read = json_codec.decode(text, FIELDS).tensors["values"]
    assert not read.is_literal
    assert same_bits(read.values, tensor)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 0 not in shape[:-1] and shape != (5, 0)], ids=str)
@pytest.mark.parametrize("dtype", FLOATING)
def test_a_nested_answer_reads_back_as_the_same_numbers(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = sample(dtype, shape)

    text = b"".join(json_codec.encode({"values": tensor}, "array"))

    plain = naive(json.loads(text)["values"])
    expected = torch.tensor(plain, dtype=torch.float64).to(tensor.dtype).reshape(shape)
    assert same_bits(canonical(expected), canonical(tensor))
    read = json_codec.decode(text, FIELDS).tensors["values"].values
    assert same_bits(canonical(read.to(tensor.dtype)), canonical(tensor))


def canonical(tensor: Tensor) -> Tensor:
    """Return the tensor with every NaN the same one: JSON knows no sign or payload of them."""
    return torch.where(tensor.isnan(), torch.tensor(math.nan, dtype=tensor.dtype), tensor)


@pytest.mark.parametrize(
    "shape", [(70_000,), (3, 40_000), (40_000, 3), (2, 3, 20_000), (20_000, 1, 4), (5, 4, 3, 2, 300)]
)
def test_a_large_answer_in_pieces_is_the_same_text_as_in_one(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tensor.view(-1)[::7919] = -math.inf

    pieces = json_codec.encode({"values": tensor, "others": torch.tensor(0.5)}, "array")

    assert max(map(len, pieces)) <= 1 << 19
    document = json.loads(b"".join(pieces))
    assert document["others"] == 0.5
    assert same_bits(torch.tensor(naive(document["values"])), tensor)


@pytest.mark.parametrize("encoding", ["array", "base64"])
@pytest.mark.parametrize("shape", [*SHAPES, (300, 7), (7, 300)], ids=str)
@pytest.mark.parametrize("dtype", FLOATING)
def test_an_answer_is_never_longer_than_reckoned(dtype: str, shape: tuple[int, ...], encoding: str) -> None:
    kind = getattr(torch, dtype)
    longest = -torch.finfo(kind).max * torch.rand(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    for tensor in (longest.to(kind), torch.full(shape, -math.inf, dtype=kind), sample(dtype, shape)):
        text = b"".join(json_codec.encode({"grad_log_probs": tensor}, encoding))

        assert len(text) <= json_codec.largest_answer([(tuple(shape), kind)], encoding)


numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(-5, 5),
    st.floats(width=64),
    st.sampled_from([1e20, -0.0, 5e-324, 1.7976931348623157e308, 2**63, 2**64, -(2**63), 2**63 - 1]),
)


@st.composite
def nested(draw: st.DrawFn) -> Any:
    """Return rectangular nested lists of any kind of number."""
    shape = draw(st.lists(st.integers(1, 3), max_size=4))
    kind = draw(st.sampled_from([numbers, st.integers(-9, 9), st.floats(allow_nan=False)]))

    def build(sizes: list[int]) -> Any:
        return draw(kind) if not sizes else [build(sizes[1:]) for _ in range(sizes[0])]

    return build(shape)


def written(value: Any) -> Any:
    if isinstance(value, list):
        return [written(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def flat(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, list) else [value]


@given(value=nested(), indent=st.sampled_from([None, 1, "\t"]), before=st.booleans())
def test_nested_numbers_are_read_as_a_plain_reader_reads_them(value: Any, indent: Any, before: bool) -> None:
    members = {"word": '[{,:\\"', "values": written(value)}
    text = json.dumps(members if before else dict(reversed(members.items())), indent=indent)

    read = json_codec.decode(text.encode(), FIELDS)

    tensor = read.tensors["values"]
    expected = np.array(naive(json.loads(text)["values"]), dtype=object).astype(np.float64)
    assert tensor.shape == expected.shape
    assert np.array_equal(tensor.values.double().numpy(), expected, equal_nan=True)
    leaves = flat(value)
    assert (tensor.kind == "integer") == all(type(leaf) is int for leaf in leaves)
    beyond = [place for place, leaf in enumerate(leaves) if not -(2**63) <= leaf < 2**63]
    if tensor.kind == "integer":
        assert tensor.beyond_int64 == (beyond[0] if beyond else None)
        if not beyond:
            assert tensor.values.reshape(-1).tolist() == leaves
    assert read.options == {"word": members["word"]}


@given(value=nested(), data=st.data())
def test_an_array_one_longer_or_shorter_is_ragged(value: Any, data: st.DataObject) -> None:
    """Rows of a rectangular array are changed by one; the pointer leads to the first that differs from the first."""
    if not (isinstance(value, list) and isinstance(value[0], list) and len(value) > 1):
        return
    row = data.draw(st.integers(1, len(value) - 1))
    if data.draw(st.booleans()):
        value[row].append(value[row][0])
    else:
        value[row].pop()

    with pytest.raises(RaggedArray) as refused:
        json_codec.decode(json.dumps({"values": written(value)}).encode(), FIELDS)

    assert refused.value.pointer == f"/values/{row}"
    assert (refused.value.expected, refused.value.got) == (len(value[0]), len(value[row]))
