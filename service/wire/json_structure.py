"""The brackets and commas of a JSON text, found by a vectorised scan before anything is built.

Depth is refused here, and the shape of a nested array is read here: a parser that fills a numeric buffer would silently
flatten `[[1, 2], [3]]`, and a Python loop over its rows would take longer than the parsing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import RaggedArray, ShapeMismatch, TooDeep, counted, element_name, element_pointer

MAX_DEPTH = 10
"""Deepest nesting accepted, the outer object counted."""

WHITESPACE = b" \t\n\r"

STRUCTURAL = b'"[],:{}'
QUOTE, OPEN, CLOSE, COMMA, COLON, OPEN_OBJECT, CLOSE_OBJECT = range(len(STRUCTURAL))

_KIND = bytes(max(STRUCTURAL.find(byte), 0) for byte in range(256))
_KINDS = np.frombuffer(_KIND, np.uint8)
_NOT_STRUCTURAL = bytes(byte for byte in range(256) if byte not in STRUCTURAL)
_STEP = np.zeros(len(STRUCTURAL), np.int8)
_STEP[[OPEN, OPEN_OBJECT]] = 1
_STEP[[CLOSE, CLOSE_OBJECT]] = -1


def _table_of(*kinds: int) -> NDArray[np.bool_]:
    """Return which kinds of characters are among those given, by kind."""
    return np.isin(np.arange(len(STRUCTURAL)), kinds)


_BEFORE_MEMBER, _AFTER_MEMBER = _table_of(COLON), _table_of(COMMA, CLOSE_OBJECT)
_BEFORE_ITEM, _AFTER_ITEM = _table_of(OPEN, COMMA), _table_of(COMMA, CLOSE)


@dataclass(frozen=True, slots=True)
class Structure:
    """The structural characters of a text outside its strings.

    Attributes:
        kinds: which character each is.
        levels: how many brackets are open around it, a bracket counted into its own level.
    """

    kinds: NDArray[np.uint8]
    levels: NDArray[np.int32]

    @property
    def holds_objects(self) -> bool:
        return bool((self.kinds >= OPEN_OBJECT).any())

    @property
    def member_count(self) -> int:
        """How many names the outer object has, repeated ones counted again."""
        return int(np.count_nonzero((self.levels == 1) & (self.kinds == COLON)))

    @property
    def depth(self) -> int:
        """How many brackets are open at most."""
        return int(self.levels.max(initial=0))

    def index_of_next(self) -> tuple[int, ...]:
        """Return the index of what follows the end of this text, the beginning of a nested array."""
        depth = np.count_nonzero(self.kinds == OPEN) - np.count_nonzero(self.kinds == CLOSE)
        index = []
        for level in range(1, depth + 1):
            start = int(np.flatnonzero((self.levels == level) & (self.kinds == OPEN))[-1])
            index.append(int(np.count_nonzero((self.levels[start:] == level) & (self.kinds[start:] == COMMA))))
        return tuple(index)

    def members(self) -> list[Structure]:
        """Return the structure of each value of the outer object, in order, a repeated name's too."""
        return self._between(_BEFORE_MEMBER, _AFTER_MEMBER)

    def items(self) -> list[Structure]:
        """Return the structure of each item of the outer array, which is not empty, in order."""
        return self._between(_BEFORE_ITEM, _AFTER_ITEM)

    def _between(self, opening: NDArray[np.bool_], closing: NDArray[np.bool_]) -> list[Structure]:
        """Return the structures of the values between characters of the outer level, of kinds that tables name."""
        outer = np.flatnonzero(self.levels == 1)
        kinds = self.kinds[outer]
        starts, ends = outer[opening[kinds]] + 1, outer[closing[kinds]]
        return [
            Structure(self.kinds[start:end], self.levels[start:end] - 1)
            for start, end in zip(starts.tolist(), ends.tolist(), strict=False)
        ]


def scan(text: bytes | memoryview, deepest: int = MAX_DEPTH) -> Structure:
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
    if len(levels) and levels.max() > deepest:
        raise TooDeep("depth", limit=deepest)
    return Structure(kinds, levels)


def repeated_name(text: bytes | memoryview) -> str:
    """Return the first name of an object that has appeared before in it, escaped or not; there must be one."""
    seen: set[str] = set()
    for start, end in _name_spans(text):
        name = _text.decode(text[start:end])
        if name in seen:
            return name
        seen.add(name)
    raise AssertionError("no name appears twice")


_text = msgspec.json.Decoder(str)


def _name_spans(text: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Yield where each name of the outer object of a valid text begins and ends, quotes included."""
    plain = bytes(text)
    if b"\\" in plain:
        plain = plain.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    characters = np.frombuffer(plain, np.uint8)
    quotes = np.flatnonzero(characters == ord('"'))
    kinds = _KINDS[characters]
    kinds[np.cumsum(characters == ord('"'), dtype=np.int32) & 1 == 1] = QUOTE
    colons = np.flatnonzero((kinds == COLON) & (np.cumsum(_STEP[kinds], dtype=np.int32) == 1))
    for closing in np.searchsorted(quotes, colons) - 1:
        yield int(quotes[closing - 1]), int(quotes[closing]) + 1


def array_shape(structure: Structure, text: bytes, name: str) -> tuple[int, ...]:
    """Return the shape of the nested array of numbers `text`, whose scan is `structure`.

    Raises RaggedArray with the first array that is longer or shorter than those before it, and ShapeMismatch when the
    innermost arrays are empty (the shape of `[[], []]` may mean anything).
    """
    kinds, levels = structure.kinds, structure.levels
    rank = int(levels.max())
    shape: list[int] = []
    arrays = 1
    for level in range(1, rank + 1):
        inside = kinds[(levels == level) & (kinds != OPEN)]
        size = int(np.argmax(inside == CLOSE)) + 1
        if len(inside) != arrays * size or not (inside[size - 1 :: size] == CLOSE).all():
            raise _ragged(structure, text, name, level)
        arrays *= size
        if level < rank and np.count_nonzero((levels == level + 1) & (kinds == OPEN)) != arrays:
            if _empty(text)[levels[kinds == OPEN] == level].any():
                raise _ragged(structure, text, name, level)
            raise _mixed(structure, name, level)
        shape.append(size)
    # An array that is empty has no comma, just as one that holds one element: only the text can tell.
    if shape[-1] == 1 and (empty := _empty(text)).any():
        if not empty[levels[kinds == OPEN] == rank].all():
            raise _ragged(structure, text, name, rank)
        if rank > 1:
            raise ShapeMismatch("empty-rows", pointer="/" + name, name=name)
        return (0,)
    return tuple(shape)


def _empty(text: bytes) -> NDArray[np.bool_]:
    """Return for each array of a nested array of numbers, in the order they open, whether it is empty."""
    characters = np.frombuffer(text.translate(None, WHITESPACE), np.uint8)
    opening = np.flatnonzero(characters == ord("["))
    return np.equal(characters[opening + 1], ord("]"))


def _ragged(structure: Structure, text: bytes, name: str, level: int) -> RaggedArray:
    """Return the error that names the first array at `level` whose length is not that of the first."""
    kinds, levels = structure.kinds, structure.levels
    at_level = levels == level
    opening = np.flatnonzero(at_level & (kinds == OPEN))
    closing = np.flatnonzero(at_level & (kinds == CLOSE))
    commas = np.cumsum(at_level & (kinds == COMMA))
    lengths = commas[closing] - commas[opening] + ~_empty(text)[levels[kinds == OPEN] == level]
    first = int(np.flatnonzero(lengths != lengths[0])[0])
    index = Structure(kinds[: opening[first]], levels[: opening[first]]).index_of_next()
    return RaggedArray(
        "length",
        pointer=element_pointer(name, index),
        element=element_name(name, index),
        elements=counted(int(lengths[first]), "element"),
        expected=int(lengths[0]),
        got=int(lengths[first]),
    )


def _mixed(structure: Structure, name: str, level: int) -> RaggedArray:
    """Return the error that names the first number among arrays at `level`, or array among numbers; none is empty."""
    kinds, levels = structure.kinds, structure.levels
    before = np.flatnonzero((levels == level) & ((kinds == OPEN) | (kinds == COMMA)))
    are_arrays = kinds[before + 1] == OPEN
    first = int(np.flatnonzero(are_arrays != are_arrays[0])[0])
    end = before[first] + 1
    index = Structure(kinds[:end], levels[:end]).index_of_next()
    got, expected = ("an array", "numbers") if are_arrays[first] else ("a number", "arrays")
    return RaggedArray(
        "mixed",
        pointer=element_pointer(name, index),
        element=element_name(name, index),
        expected=expected,
        got=got,
    )


def structural_count(text: bytes) -> int:
    """Return how many commas, opening brackets and quotes a text has: at least as many as it has numbers, less one."""
    return len(text) - len(text.translate(None, b',["'))
