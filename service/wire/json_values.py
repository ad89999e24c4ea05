"""Single values of JSON: options in every format, and the descriptions of tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeGuard

import msgspec

from service.errors import MalformedJson, MalformedTensor, ShapeMismatch, TooDeep, quoted
from service.tensors import MAX_ELEMENTS, MAX_RANK, LongText
from service.wire.json_structure import MAX_DEPTH, scan

LONGEST_OPTION_BYTES = 4096
"""No option's text is longer; what is longer is not looked into."""

_value = msgspec.json.Decoder()
_raw = msgspec.json.Decoder(msgspec.Raw)


def kind_of(first_character: bytes) -> str:
    """Return what a JSON value is, from the character it begins with."""
    kinds = {b"{": "an object", b"[": "an array", b'"': "a string", b"t": "true", b"f": "false", b"n": "null"}
    return kinds.get(first_character, "a number")


def option(name: str, raw: memoryview) -> object:
    """Return an option's value from its JSON text, which is valid."""
    if len(raw) > LONGEST_OPTION_BYTES:
        return LongText("a list" if raw[0] == ord("[") else kind_of(raw[:1].tobytes()), len(raw))
    return plain_value(name, raw)


def plain_value(name: str, raw: memoryview) -> object:
    """Return a value as Python objects."""
    try:
        return _value.decode(raw)
    except msgspec.DecodeError as error:
        raise MalformedJson("number", pointer="/" + name, name=name) from error


def is_json(text: bytes) -> bool:
    """Return whether a text of its own, inside an object, is JSON; raises TooDeep."""
    levels = scan(text).levels
    if len(levels) and levels.max() >= MAX_DEPTH:
        raise TooDeep("depth", limit=MAX_DEPTH)
    try:
        _raw.decode(text)
    except (msgspec.DecodeError, ValueError):
        return False
    return True


def are_sizes(value: object) -> TypeGuard[list[int]]:
    """Return whether a value is a list of integers from 0."""
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def shape_of(name: str, value: object) -> tuple[int, ...]:
    """Return the shape that a tensor's description gives; raises MalformedTensor and ShapeMismatch."""
    if not are_sizes(value):
        raise MalformedTensor("shape", pointer=f"/{name}/shape", name=name, expected=MAX_RANK)
    if len(value) > MAX_RANK:
        raise ShapeMismatch("rank", pointer="/" + name, name=name, got=len(value), expected=MAX_RANK)
    if math.prod(filter(None, value)) > MAX_ELEMENTS:  # sizes beside a 0 count too: torch multiplies them all
        raise MalformedTensor("elements", pointer=f"/{name}/shape", name=name, limit=MAX_ELEMENTS)
    return tuple(value)


def unknown_dtype(name: str, raw: bytes | memoryview, known: Iterable[str]) -> MalformedTensor:
    """Return the error for the type of a tensor, as JSON text, that is none of those known."""
    value = option(f"{name}/dtype", memoryview(raw))
    got = kind_of(bytes(raw[:1]))
    if isinstance(value, str | LongText):
        got = quoted(value) if isinstance(value, str) else str(value)
    return MalformedTensor("dtype", pointer=f"/{name}/dtype", name=name, got=got, expected=", ".join(known))
