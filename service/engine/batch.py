"""One job as blocks of rows: cut, run in any order by any number of workers, and put together again.

Rows do not depend on each other, so neither the cutting nor the workers change a bit of the result.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from service.engine.buffers import BufferPool
from service.errors import NonFinite, element_pointer
from service.ops import reduction, rowmath
from service.ops.bind import Job
from service.ops.layout import Layout
from service.ops.reduction import Denominator
from service.ops.spec import LossOptions, Output, Rows

UNCUT_ELEMENTS = 1 << 20
"""A job of fewer elements is one block."""

BLOCK_BYTES = 1 << 20
"""Bytes of logits in a block, so that it and its results stay in a core's cache."""

CUDA_BLOCK_BYTES = 1 << 26
"""The same on a GPU, where a block must be large enough to fill the device."""


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of rows: outer index from `outer.start`, inner index from `inner.start`."""

    outer: slice
    inner: slice


def cut(layout: Layout, rows_per_block: int) -> Iterator[Block]:
    """Cut the rows of a layout into blocks of about `rows_per_block` rows, in row order."""
    if layout.inner <= rows_per_block:
        step = max(1, rows_per_block // max(1, layout.inner))
        for start in range(0, layout.outer, step):
            yield Block(slice(start, min(start + step, layout.outer)), slice(0, layout.inner))
        return
    for outer, start in itertools.product(range(layout.outer), range(0, layout.inner, rows_per_block)):
        yield Block(slice(outer, outer + 1), slice(start, min(start + rows_per_block, layout.inner)))


@dataclass(slots=True)
class Answer:
    """The tensors that a job asked for, in the caller's shapes and types.

    They lie in pooled memory: call `release` once, after their bytes have been used.
    """

    tensors: dict[str, Tensor]
    pool: BufferPool
    buffers: list[Tensor] = field(default_factory=list)
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0

    def release(self) -> None:
        """Give the memory back; the tensors must not be used afterwards."""
        self.tensors.clear()
        while self.buffers:
            self.pool.give_back(self.buffers.pop())


class Execution:
    """A job being computed: `drain` until no block is left, in as many threads as wanted, then `finish`."""

    def __init__(self, job: Job, pool: BufferPool, device: torch.device) -> None:
        self.job = job
        self._pool = pool
        self._device = device
        layout = job.layout
        self._dtype = rowmath.computation_dtype(
            job.first.dtype, layout.classes, accurate=job.options.accuracy == "accurate"
        )
        self.blocks = tuple(cut(layout, self._rows_per_block()))
        self._next_block = itertools.count()
        self._denominator, self._upstream = self._prepare_reduction()
        self._buffers: list[Tensor] = []
        self._results = {output.name: self._allocate(output) for output in job.outputs if output.shape != "scalar"}
        self._nan_row: dict[str, int] = {}
        self._lock = threading.Lock()

    def _rows_per_block(self) -> int:
        layout = self.job.layout
        if layout.rows * layout.classes < UNCUT_ELEMENTS:
            return max(1, layout.rows)
        bytes_per_block = BLOCK_BYTES if self._device.type == "cpu" else CUDA_BLOCK_BYTES
        return max(1, bytes_per_block // (layout.classes * self._dtype.itemsize))

    def _prepare_reduction(self) -> tuple[Denominator | None, Tensor | None]:
        """Return what losses are divided by, and the derivative of the answer by each row's loss."""
        job = self.job
        if job.operator.row_weight is None:
            return None, None
        options = cast(LossOptions, job.options)
        by_row = {name: tensor for name, tensor in job.tensors.items() if tensor.ndim == 1}
        over = reduction.denominator(job.operator.row_weight(Rows(job.layout.rows, by_row, job.kept)), options)
        if any(output.shape == "reduced" or output.gradient for output in job.outputs):
            reduction.check_mean(over, options)
        return over, reduction.row_upstream(job.upstream, job.layout.rows, over) if job.gradient else None

    def _allocate(self, output: Output) -> Tensor:
        """Return where a result goes: [outer, classes, inner] in its own type, or float64 [rows]."""
        layout = self.job.layout
        if output.shape != "classes":
            return torch.empty(layout.rows, dtype=torch.float64)
        dtype = self.job.dtype_of(output)
        size = layout.rows * layout.classes * dtype.itemsize
        buffer = self._pool.take(size)
        self._buffers.append(buffer)
        return layout.view(buffer[:size].view(dtype))

    @torch.no_grad()
    def drain(self) -> None:
        """Compute blocks until none is left."""
        while (position := next(self._next_block)) < len(self.blocks):
            self._compute(self.blocks[position])

    def _compute(self, block: Block) -> None:
        job, operator = self.job, self.job.operator
        rows = self._rows(block)
        out = {name: self._buffer(name, block, rows.count) for name in self._results}
        if job.gradient:
            operator.value_and_gradient(rows, self._upstream_of(block), job.options, out)
        else:
            operator.forward(rows, job.options, out)
        if job.options.non_finite == "reject":
            self._note_nan(block, out)
        for name, values in out.items():
            self._store(name, block, values)

    def _rows(self, block: Block) -> Rows:
        layout = self.job.layout
        tensors: dict[str, Tensor] = {}
        for tensor in self.job.operator.inputs:
            values = self.job.tensors.get(tensor.name)
            if values is None:
                continue
            if values.ndim == 3:
                tensors[tensor.name] = self._classes_last(values, block)
            elif tensor.role == "weight":
                tensors[tensor.name] = values.to(self._device)
            else:
                tensors[tensor.name] = self._by_row(values, block)
        kept = None if self.job.kept is None else self._by_row(self.job.kept, block)
        count = (block.outer.stop - block.outer.start) * (block.inner.stop - block.inner.start)
        return Rows(count if layout.rows else 0, tensors, kept)

    def _classes_last(self, values: Tensor, block: Block) -> Tensor:
        """Return the block of an [outer, classes, inner] tensor as [rows, classes] in the type of the computation."""
        part = values[block.outer, :, block.inner].to(self._device, self._dtype)
        return part.transpose(1, 2).reshape(-1, self.job.layout.classes)

    def _by_row(self, values: Tensor, block: Block) -> Tensor:
        """Return the block of a [rows] tensor."""
        layout = self.job.layout
        return values.view(layout.outer, layout.inner)[block.outer, block.inner].reshape(-1).to(self._device)

    def _upstream_of(self, block: Block) -> Tensor:
        if self._upstream is not None:
            return self._by_row(self._upstream.contiguous(), block)
        return self._classes_last(cast(Tensor, self.job.upstream), block)

    def _buffer(self, name: str, block: Block, count: int) -> Tensor:
        """Return where the operator writes a result: the result's own memory when type and order allow it."""
        result, layout = self._results[name], self.job.layout
        shape = (count, layout.classes) if result.ndim == 3 else (count,)
        dtype = self._dtype if result.ndim == 3 else torch.float64
        if self._device.type == "cpu" and result.dtype == dtype and layout.inner == 1:
            return result[block.outer].view(shape)
        return torch.empty(shape, dtype=dtype, device=self._device)

    def _store(self, name: str, block: Block, values: Tensor) -> None:
        """Round a block's result once into the type of the answer, unless it was computed in place."""
        result, layout = self._results[name], self.job.layout
        if result.ndim == 3:
            destination = result[block.outer, :, block.inner].transpose(1, 2)
            values = values.view(destination.shape)
        else:
            destination = result.view(layout.outer, layout.inner)[block.outer, block.inner]
            values = values.view(destination.shape)
        if destination.data_ptr() != values.data_ptr():
            destination.copy_(values)

    def _note_nan(self, block: Block, out: dict[str, Tensor]) -> None:
        """Remember the first row of each result that holds a NaN (amax passes NaN on)."""
        inner = block.inner.stop - block.inner.start
        for name, values in out.items():
            by_row = values.amax(1) if values.ndim == 2 else values
            if values.numel() == 0 or not (found := by_row.isnan()).any():
                continue
            within = int(found.nonzero()[0])
            row = (block.outer.start + within // inner) * self.job.layout.inner + block.inner.start + within % inner
            with self._lock:
                self._nan_row[name] = min(row, self._nan_row.get(name, row))

    def finish(self) -> Answer:
        """Reduce, and return the answer; raises NonFinite when it would hold a NaN that the caller did not ask for."""
        tensors = {}
        for output in self.job.outputs:
            if output.name in self._nan_row:
                self._refuse(output, self._nan_row[output.name])
            tensor = self._finished(output)
            if tensor.ndim == 0 and self.job.options.non_finite == "reject" and tensor.isnan():
                self._refuse(output, None)
            tensors[output.name] = tensor
        return Answer(tensors, self._pool, self._buffers)

    def abandon(self) -> None:
        """Give the memory back without an answer."""
        self._results.clear()
        Answer({}, self._pool, self._buffers).release()

    def _finished(self, output: Output) -> Tensor:
        dtype, shape = self.job.dtype_of(output), self.job.shape_of(output)
        if output.shape == "scalar":
            return torch.tensor(cast(Denominator, self._denominator).total_weight, dtype=torch.float64).to(dtype)
        result = self._results[output.name]
        if output.shape == "reduced":
            result = reduction.reduced(
                result, cast(Denominator, self._denominator), cast(LossOptions, self.job.options)
            )
        return result.to(dtype).reshape(shape)

    def _refuse(self, output: Output, row: int | None) -> None:
        layout, name = self.job.layout, self.job.operator.inputs[0].name
        if row is None or not layout.rows_shape:
            raise NonFinite("whole", pointer="/" + name, name=output.name)
        index = layout.row_index(row)
        shown = index[0] if len(index) == 1 else index
        raise NonFinite(
            "row", pointer=element_pointer(name, layout.row_pointer_index(row)), name=output.name, row=shown
        )
