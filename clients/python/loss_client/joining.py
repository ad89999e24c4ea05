"""The results of parts, put together to those of the batch that they were cut from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loss_client.arrays import WireArray
from loss_client.splitting import NORMALIZER, Batch, Part


class Joining:
    """The results of a batch, put together from those of its parts."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._whole: dict[str, WireArray] = {}
        self._losses: list[float] = []

    def add(self, part: Part, outputs: Mapping[str, WireArray]) -> None:
        """Put the results of a part where they belong."""
        for name, output in outputs.items():
            shape = self._batch.operator.outputs[name]
            if shape == "scalar" or (shape == "reduced" and self._batch.reduces):
                self._whole.setdefault(name, output)
                if shape == "reduced":
                    self._losses.append(float(output.values))
                continue
            has_classes = shape == "classes"
            if name not in self._whole:
                whole_shape = self._batch.first.shape if has_classes else self._batch.rows_shape
                self._whole[name] = WireArray(output.type_name, np.empty(whole_shape, output.values.dtype))
            index = self._batch.with_classes(part.box) if has_classes else part.box
            self._whole[name].values[index] = output.values

    def finished(self) -> dict[str, WireArray]:
        """Return the results of the whole batch."""
        return {name: self._finished(name, output) for name, output in self._whole.items()}

    def _finished(self, name: str, output: WireArray) -> WireArray:
        shape = self._batch.operator.outputs[name]
        if shape == "scalar":
            return _scalar(output, self._batch.total_weight)
        if shape == "reduced" and self._losses:
            return _scalar(output, self._loss())
        return output

    def _loss(self) -> float:
        """Return the loss of the whole; the parts are divided already, unless only a sum could be asked for."""
        total = _sum(self._losses)
        batch = self._batch
        divided = batch.option("reduction") == "sum" or batch.option(NORMALIZER) or 0 < batch.total_weight < math.inf
        if divided:
            return total
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.float64(total) / np.float64(self._batch.total_weight))


def _sum(values: Sequence[float]) -> float:
    """Return the sum, rounded once."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # beyond float64, or infinities of both signs
        return float(np.sum(np.asarray(values, np.float64)))


def _scalar(like: WireArray, value: float) -> WireArray:
    result: NDArray[Any] = np.asarray(value, like.values.dtype)
    return WireArray(like.type_name, result)
