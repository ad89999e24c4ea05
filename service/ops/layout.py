"""How rows and classes lie in a tensor: which dimension holds the classes, and what is left of the shape without it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The shape of an operator's first input, seen as outer x classes x inner; a row is a pair (outer, inner).

    Attributes:
        shape: the shape as the caller gave it.
        class_dim: the dimension of the classes, from 0.
    """

    shape: tuple[int, ...]
    class_dim: int

    @cached_property
    def classes(self) -> int:
        return self.shape[self.class_dim]

    @cached_property
    def outer(self) -> int:
        return math.prod(self.shape[: self.class_dim])

    @cached_property
    def inner(self) -> int:
        return math.prod(self.shape[self.class_dim + 1 :])

    @cached_property
    def rows_shape(self) -> tuple[int, ...]:
        """The shape without the class dimension."""
        return self.shape[: self.class_dim] + self.shape[self.class_dim + 1 :]

    @cached_property
    def rows(self) -> int:
        return self.outer * self.inner

    def view(self, tensor: Tensor) -> Tensor:
        """View a contiguous tensor of `shape` as [outer, classes, inner]."""
        return tensor.reshape(self.outer, self.classes, self.inner)

    def row_index(self, row: int) -> tuple[int, ...]:
        """Return where a row lies in `rows_shape`."""
        return unravel(row, self.rows_shape)

    def row_pointer_index(self, row: int) -> tuple[int, ...]:
        """Return the leading indices that a row of the first input has before its class dimension."""
        return self.row_index(row)[: self.class_dim]


def unravel(position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the index of a flat row-major position in a tensor of `shape`."""
    index: list[int] = []
    for size in reversed(shape):
        position, within = divmod(position, size)
        index.append(within)
    return tuple(reversed(index))
