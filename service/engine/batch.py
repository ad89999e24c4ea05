"""One job as blocks of rows: cut, run in any order by any number of workers, and put together again.

Rows do not depend on each other, so neither the cutting nor the workers change a bit of the result.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from service.engine.buffers import SMALLEST_POOLED_BYTES, BufferPool
from service.engine.device import lane
from service.errors import NonFinite, element_pointer
from service.ops import reduction, rowmath
from service.ops.bind import MOST_KNOWN_PLANS, Job, Plan
from service.ops.layout import Layout
from service.ops.reduction import Denominator
from service.ops.spec import LossOptions, Output, Rows

UNCUT_ELEMENTS = 1 << 20
"""A job of fewer elements is one block."""

BLOCK_BYTES = 1 << 21
"""Bytes of logits in a block: small enough for the caches, and large enough that the calls are few."""

CUDA_BLOCK_BYTES = 1 << 24
"""The same on a GPU: large enough to fill the device, and small enough that a large job has several, so that one is
uploaded and another comes back while a third is computed."""


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of rows: outer index from `outer.start`, inner index from `inner.start`."""

    outer: slice
    inner: slice


def cut(layout: Layout, rows_per_block: int) -> Iterator[Block]:
    """Cut the rows of a layout into blocks of about `rows_per_block` rows, in row order."""
    if layout.rows == 0:  # an empty inner dimension beside an outer one of 2**40 would make as many empty blocks
        return
    if layout.inner <= rows_per_block:
        step = max(1, rows_per_block // max(1, layout.inner))
        for start in range(0, layout.outer, step):
            yield Block(slice(start, min(start + step, layout.outer)), slice(0, layout.inner))
        return
    for outer, start in itertools.product(range(layout.outer), range(0, layout.inner, rows_per_block)):
        yield Block(slice(outer, outer + 1), slice(start, min(start + rows_per_block, layout.inner)))


def _share_bytes(one: Tensor, other: Tensor) -> bool:
    """Return whether two contiguous tensors have memory in common."""
    ends = [each.data_ptr() + each.numel() * each.element_size() for each in (one, other)]
    return one.data_ptr() < ends[1] and other.data_ptr() < ends[0]


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


def prepare_reduction(job: Job) -> tuple[Denominator | None, Tensor | None]:
    """Return what losses are divided by, and the derivative of the answer by each row's loss.

    Raises UndefinedMean when there is nothing to divide by.
    """
    if job.operator.row_weight is None:
        return None, None
    options = cast(LossOptions, job.options)
    by_row = {name: tensor for name, tensor in job.tensors.items() if tensor.ndim == 1}
    rows = Rows(job.layout.rows, by_row, job.kept)
    over = reduction.denominator(job.operator.row_weight(rows), rows.count, options)
    if over.divisor == 0.0 and any(output.shape == "reduced" or output.gradient for output in job.outputs):
        reduction.check_mean(over, options)
    return over, reduction.row_upstream(job.upstream, job.layout.rows, over) if job.gradient else None


def finish_output(job: Job, output: Output, result: Tensor | None, over: Denominator | None) -> Tensor:
    """Return an output as the caller gets it, from its rows (None for a scalar) and what losses are divided by.

    Raises NonFinite when it is one NaN that the caller did not ask for.
    """
    plan = job.plan
    if result is None:
        return _number(job, output, cast(Denominator, over).total_weight)
    if output.shape == "reduced" and cast(LossOptions, plan.options).reduction != "none":
        return _number(job, output, reduction.reduced(result.view(-1), cast(Denominator, over)))
    return result.to(plan.dtypes[output.name]).view(plan.shapes[output.name])


def _number(job: Job, output: Output, value: float) -> Tensor:
    if math.isnan(value) and job.options.non_finite == "reject":
        raise nan_error(job, output, None)
    dtype = job.plan.dtypes[output.name]
    if dtype == torch.float64 or abs(value) <= _LARGEST_FLOAT32:
        return torch.full((), value, dtype=dtype)
    # By way of float64: torch refuses to fill a float32 with what only rounds to infinity.
    return torch.full((), value, dtype=torch.float64).to(dtype)


_LARGEST_FLOAT32 = torch.finfo(torch.float32).max


def replaces_input(job: Job, output: Output) -> bool:
    """Whether a result may be written over the first input: it is the request's own, and nothing else needs it."""
    return job.owns_memory and _is_last_use(job, output)


def _is_last_use(job: Job, output: Output) -> bool:
    """Whether a result has the type of the first input, and nothing else needs that input."""
    others = [each for each in job.outputs if each.shape in ("classes", "rows") and each is not output]
    return not others and output.type_of == job.operator.inputs[0].name


ROW_BYTES = 32
"""What a row takes beside its classes: its target, its weight, its loss and its upstream gradient."""


def computing_bytes(job: Job) -> int:
    """Return how much memory computing a job takes beside its inputs, but for the blocks being worked on."""
    size = job.layout.rows * ROW_BYTES
    for output in job.outputs:
        if output.shape == "classes" and not replaces_input(job, output):
            size += job.layout.rows * job.layout.classes * job.plan.dtypes[output.name].itemsize
    return size


def nan_error(job: Job, output: Output, row: int | None) -> NonFinite:
    """Return the refusal of an output that would hold a NaN: in which row, where that can be said."""
    layout, name = job.layout, job.operator.inputs[0].name
    if row is None or not layout.rows_shape:
        return NonFinite("whole", pointer="/" + name, name=output.name)
    index = layout.row_index(row)
    shown = index[0] if len(index) == 1 else index
    return NonFinite("row", pointer=element_pointer(name, layout.row_pointer_index(row)), name=output.name, row=shown)


def first_nan_row(values: Tensor) -> int | None:
    """Return the first row of [rows, classes] or [rows] that holds a NaN."""
    # A sum is the fastest look at every element; what is finite in sum holds no NaN.
    if math.isfinite(values.sum().item()):
        return None
    by_row = values.isnan().any(1) if values.ndim == 2 else values.isnan()
    return int(by_row.nonzero()[0]) if by_row.any() else None


@lru_cache(maxsize=MOST_KNOWN_PLANS)
def _cutting(
    plan: Plan, dtype: torch.dtype, uncut_elements: int, block_bytes: int
) -> tuple[torch.dtype, tuple[Block, ...]]:
    """Return in which type rows of a type are computed, and in which blocks."""
    layout = plan.layout
    computed = rowmath.computation_dtype(dtype, layout.classes, accurate=plan.options.accuracy == "accurate")
    rows_per_block = layout.rows
    if layout.rows * layout.classes >= uncut_elements:
        rows_per_block = block_bytes // max(1, layout.classes * computed.itemsize)
    return computed, tuple(cut(layout, max(1, rows_per_block)))


class Scratch:
    """Memory for what one block needs beside the tensors of its job: of a CPU, pooled.

    The C library does not give aligned memory out again in place, and so holds many times what is in use.
    """

    def __init__(self, pool: BufferPool, device: torch.device) -> None:
        self._pool = pool
        self._device = device
        self._buffers: list[Tensor] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor with arbitrary contents."""
        size = math.prod(shape) * dtype.itemsize
        if self._device.type != "cpu" or size < SMALLEST_POOLED_BYTES:
            return torch.empty(shape, dtype=dtype, device=self._device)
        self._buffers.append(self._pool.take(size))
        return self._buffers[-1][:size].view(dtype).view(shape)

    def converted(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a copy of values of another type, on the device."""
        if self._device.type != "cpu":
            return values.to(self._device, dtype, non_blocking=True)
        return self.empty(tuple(values.shape), dtype).copy_(values)

    def give_back(self) -> None:
        """Give the memory back; the tensors must not be used afterwards."""
        while self._buffers:
            self._pool.give_back(self._buffers.pop())


class Execution:
    """A job being computed: `drain` until no block is left, in as many threads as wanted, then `finish`.

    Tensors are kept as blocks are taken from them: [rows, classes] and [rows] where the classes lie last (*flat*, one
    slice a block), else [outer, classes, inner] and [outer, inner].
    """

    def __init__(self, job: Job, pool: BufferPool, device: torch.device) -> None:
        self.job = job
        self._pool = pool
        self._device = device
        self._classes = job.layout.classes
        self._is_flat = job.layout.inner == 1
        block_bytes = BLOCK_BYTES if device.type == "cpu" else CUDA_BLOCK_BYTES
        self._dtype, self.blocks = _cutting(job.plan, job.first.dtype, UNCUT_ELEMENTS, block_bytes)
        self._next_block = itertools.count()
        self._denominator, upstream = prepare_reduction(job)
        self._inputs, self._weights = self._prepare_inputs()
        self._kept = None if job.kept is None else self._laid_out(job.kept)
        self._upstream = (
            self._laid_out(cast(Tensor, job.upstream) if upstream is None else upstream) if job.gradient else None
        )
        self._buffers: list[Tensor] = []
        self._results = {output.name: self._allocate(output) for output in job.outputs if output.shape != "scalar"}
        self._in_place = {name for name, result in self._results.items() if self._computes_in_place(result)}
        self._nan_row: dict[str, int] = {}
        self._lock = threading.Lock()

    def _prepare_inputs(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the inputs that are cut into blocks, and those that every block takes whole."""
        cut_up, whole = {}, {}
        for tensor in self.job.operator.inputs:
            if (values := self.job.tensors.get(tensor.name)) is None:
                continue
            if tensor.role == "weight":
                whole[tensor.name] = values.to(self._device)
            else:
                cut_up[tensor.name] = self._laid_out(values)
        return cut_up, whole

    def _laid_out(self, values: Tensor) -> Tensor:
        """Return an [outer, classes, inner] or [rows] tensor in the form that blocks are taken from."""
        if values.ndim == 3:
            return values.view(-1, self._classes) if self._is_flat else values
        layout = self.job.layout
        return values if self._is_flat else values.reshape(layout.outer, layout.inner)

    def _destination(self, output: Output) -> Tensor | None:
        """Return the memory in which the caller wants a result, when it can be computed there.

        It cannot where it lies askew, or shares bytes with anything else of the request: unless it is the first input.
        """
        job, dtype = self.job, self.job.plan.dtypes[output.name]
        if (memory := job.destinations.get(output.name)) is None or memory.data_ptr() % dtype.itemsize:
            return None
        others = [*job.tensors.values(), *(each for each in job.destinations.values() if each is not memory)]
        if job.upstream is not None:
            others.append(job.upstream)
        if _is_last_use(job, output) and memory.data_ptr() == job.first.data_ptr():
            others = [each for each in others if each is not job.first]
        return None if any(_share_bytes(memory, each) for each in others) else memory.view(dtype)

    def _allocate(self, output: Output) -> Tensor:
        """Return where a result goes, in its own type, or float64 when it has one number a row."""
        layout = self.job.layout
        if output.shape != "classes":
            rows = torch.empty(layout.rows, dtype=torch.float64)
            return rows if self._is_flat else self._laid_out(rows)
        if replaces_input(self.job, output):
            return self._laid_out(self.job.first)
        if (destination := self._destination(output)) is not None:
            return self._laid_out(layout.view(destination))
        dtype = self.job.plan.dtypes[output.name]
        size = layout.rows * self._classes * dtype.itemsize
        if size < SMALLEST_POOLED_BYTES:
            return self._laid_out(torch.empty((layout.outer, layout.classes, layout.inner), dtype=dtype))
        buffer = self._pool.take(size)
        self._buffers.append(buffer)
        return self._laid_out(layout.view(buffer[:size].view(dtype)))

    def _computes_in_place(self, result: Tensor) -> bool:
        """Whether an operator can write into the result's own memory: order and type are those of the computation."""
        dtype = self._dtype if result.ndim == 2 else torch.float64
        return self._is_flat and self._device.type == "cpu" and result.dtype == dtype

    def drain(self) -> None:
        """Compute blocks until none is left."""
        with torch.inference_mode(), lane(self._device):
            while (position := next(self._next_block)) < len(self.blocks):
                self._compute(self.blocks[position])

    def step(self) -> None:
        """Compute one block more; to be called once for each."""
        with torch.inference_mode(), lane(self._device):
            self._compute(self.blocks[next(self._next_block)])

    def _compute(self, block: Block) -> None:
        scratch = Scratch(self._pool, self._device)
        try:
            self._compute_in(block, scratch)
        finally:
            scratch.give_back()

    def _compute_in(self, block: Block, scratch: Scratch) -> None:
        job, operator = self.job, self.job.operator
        count = (block.outer.stop - block.outer.start) * (block.inner.stop - block.inner.start)
        tensors = {name: self._taken(values, block, scratch) for name, values in self._inputs.items()}
        tensors.update(self._weights)
        rows = Rows(count, tensors, None if self._kept is None else self._taken(self._kept, block, scratch))
        out = {name: self._buffer(name, block, count, scratch) for name in self._results}
        if self._upstream is not None:
            upstream = self._taken(self._upstream, block, scratch)
            are_defined = operator.value_and_gradient(rows, upstream, job.options, out)
        else:
            are_defined = operator.forward(rows, job.options, out)
        if not are_defined and job.options.non_finite == "reject":
            self._note_nan(block, out)
        for name, values in out.items():
            if name not in self._in_place:
                self._store(name, block, values)

    def _taken(self, values: Tensor, block: Block, scratch: Scratch) -> Tensor:
        """Return the block of a tensor as contiguous [rows, classes] in the type of the computation, or [rows]."""
        if self._is_flat:
            part = values if len(self.blocks) == 1 else values[block.outer]
            dtype = self._dtype if part.ndim == 2 else part.dtype
            if part.dtype == dtype and self._device.type == "cpu":
                return part
            return scratch.converted(part, dtype)
        if values.ndim == 2:
            return values[block.outer, block.inner].reshape(-1).to(self._device)
        part = values[block.outer, :, block.inner].to(self._device, self._dtype)
        # Contiguous, even where a view would do: in what order torch sums a row depends on its strides.
        return part.transpose(1, 2).reshape(-1, self._classes).contiguous()

    def _buffer(self, name: str, block: Block, count: int, scratch: Scratch) -> Tensor:
        """Return where the operator writes a result."""
        result = self._results[name]
        if name in self._in_place:
            return result if len(self.blocks) == 1 else result[block.outer]
        if self._has_classes(result):
            return scratch.empty((count, self._classes), self._dtype)
        return torch.empty(count, dtype=torch.float64, device=self._device)

    def _has_classes(self, result: Tensor) -> bool:
        return result.ndim == (2 if self._is_flat else 3)

    def _store(self, name: str, block: Block, values: Tensor) -> None:
        """Round a block's result once into the type of the answer."""
        result = self._results[name]
        if self._is_flat:
            destination = result[block.outer]
        elif self._has_classes(result):
            destination = result[block.outer, :, block.inner].transpose(1, 2)
        else:
            destination = result[block.outer, block.inner]
        destination.copy_(values.view(destination.shape), non_blocking=True)

    def _note_nan(self, block: Block, out: dict[str, Tensor]) -> None:
        """Remember the first row of each result that holds a NaN."""
        inner = block.inner.stop - block.inner.start
        for name, values in out.items():
            if (within := first_nan_row(values)) is None:
                continue
            row = (block.outer.start + within // inner) * self.job.layout.inner + block.inner.start + within % inner
            with self._lock:
                self._nan_row[name] = min(row, self._nan_row.get(name, row))

    @property
    def overwrites_input(self) -> bool:
        """Whether the job cannot be computed again, because a result lies in the memory of its input."""
        job = self.job
        return any(_share_bytes(memory, job.first) for memory in job.destinations.values()) or any(
            replaces_input(job, output) for output in job.outputs if output.shape == "classes"
        )

    def rows_of(self, name: str) -> Tensor:
        """Return a result before it is reduced and rounded: float64 [rows], or as it lies in memory."""
        return self._results[name]

    def finish(self) -> Answer:
        """Reduce, and return the answer; raises NonFinite when it would hold a NaN that the caller did not ask for."""
        tensors = {}
        for output in self.job.outputs:
            if output.name in self._nan_row:
                raise nan_error(self.job, output, self._nan_row[output.name])
            tensors[output.name] = finish_output(self.job, output, self._results.get(output.name), self._denominator)
        return Answer(tensors, self._pool, self._buffers)

    def abandon(self) -> None:
        """Give the memory back without an answer."""
        self._results.clear()
        Answer({}, self._pool, self._buffers).release()
