"""A batch that is larger than a request may be, cut along its rows and put together again.

Operators are row-wise, so every part has the numbers that the whole would have had. What a loss is divided by belongs
to the whole: it is counted here, and given to every part as its `normalizer`; the losses of the parts are then added.
Each of them was rounded once, and so is their sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from loss_client.arrays import WireArray
from loss_client.errors import Problem
from loss_client.problems import UndefinedMeanError

UPSTREAM = "grad_output"
NORMALIZER = "normalizer"

HEADER_BYTES = 1 << 11
"""What the header of a body takes at most."""

InputRole = Literal["classes", "indices", "target", "weight", "loss"]
OutputShape = Literal["classes", "rows", "reduced", "scalar"]

Box = tuple[slice, ...]
"""A box of rows: a slice for each dimension of the first input but that of the classes."""


@dataclass(frozen=True, slots=True)
class Operator:
    """What has to be known of an operator to call it, and to cut and join its batches.

    Attributes:
        name: as in the path, with dashes.
        inputs: the role of every tensor, by name; `classes` has the shape of the first, `indices` and `rows` that
            without the classes, `target` is one or the other, `weight` has one number a class, `loss` the shape of the
            loss.
        outputs: the shape of every output, by name; `reduced` is that of the loss.
        defaults: the value of every option unless it is given.
        is_loss: whether rows are reduced.
    """

    name: str
    inputs: Mapping[str, InputRole]
    outputs: Mapping[str, OutputShape]
    defaults: Mapping[str, object]
    is_loss: bool

    @property
    def first(self) -> str:
        """The input that rows and classes are counted by."""
        return next(iter(self.inputs))


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a batch, as a request of their own."""

    box: Box
    rows: int
    arrays: dict[str, WireArray]
    options: dict[str, object]


class Batch:
    """The tensors and options of a call."""

    def __init__(
        self, operator: Operator, arrays: Mapping[str, WireArray], options: Mapping[str, object], *, gradient: bool
    ) -> None:
        self.operator = operator
        self.arrays = dict(arrays)
        self.options = {name: value for name, value in options.items() if value != operator.defaults.get(name)}
        self.gradient = gradient
        self.first = self.arrays[operator.first]

    def option(self, name: str) -> Any:
        """Return the value of an option, given or by default."""
        return self.options.get(name, self.operator.defaults.get(name))

    @property
    def nbytes(self) -> int:
        """How many bytes a request for the whole batch takes at most."""
        return sum(array.nbytes for array in self.arrays.values()) + HEADER_BYTES

    @cached_property
    def class_dim(self) -> int:
        """The dimension of the classes, from 0; out of range when the request is wrong."""
        rank = len(self.first.shape)
        given: int | None = self.option("class_dim")
        if given is None:
            return 0 if rank == 1 else 1
        return given + rank if given < 0 else given

    @cached_property
    def rows_shape(self) -> tuple[int, ...]:
        """The shape of the first input without the classes."""
        return tuple(size for place, size in enumerate(self.first.shape) if place != self.class_dim)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return math.prod(self.rows_shape)

    @property
    def can_be_cut(self) -> bool:
        """Whether there are rows to cut, in tensors that fit each other; if not, the service says what is wrong."""
        return 0 <= self.class_dim < len(self.first.shape) and self.rows > 1 and all(map(self._fits, self.arrays))

    def _fits(self, name: str) -> bool:
        shape, role = self.arrays[name].shape, self.operator.inputs[name]
        if role == "weight":
            return shape == (self.first.shape[self.class_dim],)
        if role == "classes" or (role == "target" and self.is_soft):
            return shape == self.first.shape
        return shape == (() if role == "loss" and self.reduces else self.rows_shape)

    @property
    def reduces(self) -> bool:
        """Whether the loss is one number."""
        return self.operator.is_loss and self.option("reduction") != "none"

    @property
    def is_soft(self) -> bool:
        """Whether the target holds class probabilities."""
        kind = self.option("target_kind")
        target = self.arrays.get("target")
        return kind == "probs" or (kind == "auto" and target is not None and target.shape == self.first.shape)

    def whole(self) -> Part:
        """Return the batch as one request."""
        return Part(tuple(slice(0, size) for size in self.rows_shape), self.rows, self.arrays, self.options)

    def rows_within(self, nbytes: int) -> int:
        """Return how many rows a request of so many bytes can hold, 1 at least."""
        cut = sum(array.nbytes for name, array in self.arrays.items() if self._is_cut(name))
        fixed = self.nbytes - cut
        return max(1, (nbytes - fixed) * self.rows // cut if cut else self.rows)

    def _is_cut(self, name: str) -> bool:
        role = self.operator.inputs[name]
        return role != "weight" and not (role == "loss" and self.reduces)

    def cut(self, most_rows: int) -> list[Box]:
        """Return the boxes of at most so many rows that the batch is cut into, in row order."""
        return list(boxes(self.rows_shape, most_rows))

    def parts(self, boxes: Sequence[Box]) -> Iterator[Part]:
        """Yield the requests for the boxes; raises UndefinedMeanError where the whole would have no mean."""
        options, extra = self._options_of_parts()
        for box in boxes:
            arrays = {name: array[self._index(name, box)] for name, array in self.arrays.items()}
            rows = math.prod(side.stop - side.start for side in box)
            yield Part(box, rows, {**arrays, **extra}, options)

    def _index(self, name: str, box: Box) -> Box:
        """Return which part of an input belongs to a box of rows."""
        role = self.operator.inputs[name]
        if not self._is_cut(name):
            return ()
        return self.with_classes(box) if role == "classes" or (role == "target" and self.is_soft) else box

    def with_classes(self, box: Box) -> Box:
        """Return a box of rows with all their classes."""
        return (*box[: self.class_dim], slice(None), *box[self.class_dim :])

    def _options_of_parts(self) -> tuple[dict[str, object], dict[str, WireArray]]:
        """Return the options of every part, and `grad_output` where it has to stand for the division."""
        options = dict(self.options)
        if not self.operator.is_loss or self.option("reduction") != "mean" or self.option(NORMALIZER):
            return options, {}
        total = self.total_weight
        if 0.0 < total < math.inf:
            return {**options, NORMALIZER: total}, {}
        if total == 0.0 and self.option("non_finite") == "reject":
            raise UndefinedMeanError(
                Problem(
                    UndefinedMeanError.STATUS,
                    UndefinedMeanError.CODE,
                    UndefinedMeanError.TITLE,
                    "The mean is undefined: the summed weight of the kept rows is 0.",
                )
            )
        # A normalizer is positive: weights that sum to less go through the sum and its upstream gradient.
        options["reduction"] = "sum"
        if not self.gradient:
            return options, {}
        given = self.arrays.get(UPSTREAM)
        with np.errstate(divide="ignore", invalid="ignore"):
            upstream = np.asarray(np.float64(1.0 if given is None else given.as_float64()) / np.float64(total))
        return options, {UPSTREAM: WireArray("F64", upstream)}

    @cached_property
    def total_weight(self) -> float:
        """The denominator of `mean`: the summed weight of the kept rows, or the number of rows for soft targets."""
        if self.is_soft:
            return float(self.rows)
        target = self.arrays["target"].values
        kept = target != self.option("ignore_index")
        if (weight := self.arrays.get("weight")) is None:
            return float(np.count_nonzero(kept))
        kept &= (target >= 0) & (target < self.first.shape[self.class_dim])  # the service says which are wrong
        return float(weight.as_float64()[target[kept]].sum())

    def problem_in(self, part: Part, problem: Problem) -> Problem:
        """Return a problem that the service found in a part, with its pointer counted in the whole."""
        box = ", ".join(f"{side.start}:{side.stop}" for side in part.box)
        values = {name: getattr(problem, name) for name in Problem.__dataclass_fields__}
        return Problem(**{**values, "pointer": self._pointer(part, problem.pointer), "part": f"rows [{box}]"})

    def _pointer(self, part: Part, pointer: str | None) -> str | None:
        """Return a pointer to an element of a part as one to the same element of the whole."""
        name, *index = (pointer or "").removeprefix("/").split("/")
        if name not in self.operator.inputs or not self._is_cut(name) or not all(map(str.isdecimal, index)):
            return pointer
        starts = [side.start or 0 for side in self._index(name, part.box)]
        moved = [str(int(place) + start) for place, start in zip(index, starts, strict=False)]
        return "/" + "/".join([name, *moved])


def boxes(sizes: tuple[int, ...], most_rows: int) -> Iterator[Box]:
    """Cut a box of rows into boxes of at most `most_rows`, of about the same size, in row-major order."""
    if not sizes:
        yield ()
        return
    outer, inner = sizes[0], math.prod(sizes[1:])
    if inner > most_rows:
        for place in range(outer):
            for rest in boxes(sizes[1:], most_rows):
                yield (slice(place, place + 1), *rest)
        return
    pieces = -(-outer // (most_rows // max(1, inner)))
    full = tuple(slice(0, size) for size in sizes[1:])
    for piece in range(pieces):
        yield (slice(outer * piece // pieces, outer * (piece + 1) // pieces), *full)
