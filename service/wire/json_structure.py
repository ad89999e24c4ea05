"""The brackets and commas of a JSON text, found by a vectorised scan before anything is built.

Depth is refused here, and the shape of a nested array is read here: a parser that fills a numeric buffer would silently
flatten `[[1, 2], [3]]`, and a Python loop over its rows would take longer than the parsing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import DtypeMismatch, RaggedArray, ShapeMismatch, TooDeep, element_name, element_pointer

MAX_DEPTH = 10
"""Deepest nesting accepted, the outer object counted."""

STRUCTURAL = b'"[],:{}'
QUOTE, OPEN, CLOSE, COMMA, COLON, OPEN_OBJECT, CLOSE_OBJECT = range(len(STRUCTURAL))

_KIND = bytes(max(STRUCTURAL.find(byte), 0) for byte in range(256))
_NOT_STRUCTURAL = bytes(byte for byte in range(256) if byte not in STRUCTURAL)
_STEP = np.zeros(len(STRUCTURAL), np.int8)
_STEP[[OPEN, OPEN_OBJECT]] = 1
_STEP[[CLOSE, CLOSE_OBJECT]] = -1


@dataclass(frozen=True, slots=True)
class Structure:
    """The structural characters of a text outside its strings.

    Attributes:
        kinds: which character each is.
        levels: how many brackets are open around it, a bracket counted into its own level.
    """

    kinds: NDArray[np.uint8]
    levels: NDArray[np.int32]

    def members(self) -> list[Structure]:
        """Return the structure of each value of the outer object, in order, a repeated name's too."""
        outer = self.levels == 1
        starts = np.flatnonzero(outer & (self.kinds == COLON)) + 1
        ends = np.flatnonzero(outer & ((self.kinds == COMMA) | (self.kinds == CLOSE_OBJECT)))
        return [
            Structure(self.kinds[start:end], self.levels[start:end] - 1)
            for start, end in zip(starts.tolist(), ends.tolist(), strict=False)
        ]


def scan(text: bytes | memoryview) -> Structure:
    """Find the structure of a JSON text; raises TooDeep. The text need not be valid: the parser decides that."""
    plain = bytes(text)
    if b"\\" in plain:
        # No quote that is escaped is left: from the left, each backslash goes with what follows it.
        plain = plain.replace(b"\\\\", b"").replace(b'\\"', b"")
    kinds = np.frombuffer(plain.translate(_KIND, _NOT_STRUCTURAL), np.uint8)
    quotes = kinds == QUOTE
    if quotes.any():
        kinds = kinds[~quotes & (np.cumsum(quotes, dtype=np.int32) & 1 == 0)]
    steps = _STEP[kinds]
    levels = np.cumsum(steps, dtype=np.int32)
    levels += steps == -1
    if len(levels) and levels.max() > MAX_DEPTH:
        raise TooDeep("depth", limit=MAX_DEPTH)
    return Structure(kinds, levels)


def array_shape(structure: Structure, name: str) -> tuple[int, ...]:
    """Return the shape of the nested array that `structure` is the scan of.

    Raises RaggedArray with the first array that is longer or shorter than those before it, and DtypeMismatch for
    objects. Empty arrays count as one element here: what they hold is not structure (see `check_not_empty`).
    """
    kinds, levels = structure.kinds, structure.levels
    if (kinds >= OPEN_OBJECT).any():
        raise DtypeMismatch("element", pointer="/" + name, element=f"an element of '{name}'", got="an object")
    rank = int(levels.max())
    shape: list[int] = []
    arrays = 1
    for level in range(1, rank + 1):
        inside = kinds[(levels == level) & (kinds != OPEN)]
        size = int(np.argmax(inside == CLOSE)) + 1
        if len(inside) != arrays * size or not (inside[size - 1 :: size] == CLOSE).all():
            raise _ragged(structure, name, level, size)
        arrays *= size
        if level < rank and np.count_nonzero((levels == level + 1) & (kinds == OPEN)) != arrays:
            raise RaggedArray("mixed", pointer="/" + name, name=name)
        shape.append(size)
    return tuple(shape)


def check_not_empty(name: str, shape: tuple[int, ...], elements: int) -> tuple[int, ...]:
    """Return the shape, corrected for empty arrays, given how many elements there really are."""
    if elements == _product(shape):
        return shape
    if elements:
        raise RaggedArray("mixed", pointer="/" + name, name=name)
    if len(shape) == 1:
        return (0,)
    raise ShapeMismatch("empty-rows", pointer="/" + name, name=name)


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _ragged(structure: Structure, name: str, level: int, size: int) -> RaggedArray:
    """Return the error that names the first array at `level` whose length is not `size`."""
    kinds, levels = structure.kinds, structure.levels
    opening = np.flatnonzero((levels == level) & (kinds == OPEN))
    closing = np.flatnonzero((levels == level) & (kinds == CLOSE))
    commas = np.cumsum((levels == level) & (kinds == COMMA))
    lengths = commas[closing] - commas[opening] + 1
    first = int(np.flatnonzero(lengths != size)[0])
    before = slice(0, int(opening[first]))
    index = []
    for outer in range(1, level):
        start = int(np.flatnonzero((levels[before] == outer) & (kinds[before] == OPEN))[-1])
        index.append(
            int(np.count_nonzero((levels[start : before.stop] == outer) & (kinds[start : before.stop] == COMMA)))
        )
    return RaggedArray(
        "length",
        pointer=element_pointer(name, tuple(index)),
        element=element_name(name, tuple(index)),
        expected=size,
        got=int(lengths[first]),
    )
