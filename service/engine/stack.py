"""Several small jobs in one launch: stacked row upon row, computed together, and each reduced by itself.

Rows do not depend on each other, so the company that a job has changes no bit of its answer. Inputs are copied: should
the launch fail, every job can be computed again alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from service.engine.batch import Answer, Execution, finish_output, first_nan_row, nan_error, prepare_reduction
from service.engine.buffers import BufferPool
from service.errors import RequestError
from service.ops.bind import MOST_KNOWN_PLANS, Job, Plan
from service.ops.layout import Layout
from service.ops.reduction import Denominator
from service.ops.spec import Options

MOST_ROWS = 1 << 14
MOST_ELEMENTS = 1 << 18
"""Most that is stacked: a launch of it is one block, and small enough that nobody waits for it."""

NOT_OF_ROWS = {
    "class_dim", "dtype", "encoding", "ignore_index", "non_finite", "normalizer", "outputs", "reduction"
}  # fmt: skip
"""Options that rows are computed the same with: they say how a request is read, reduced or written."""

_UNPOOLED = BufferPool(0)
"""For results that are cut up and copied at once."""


def stack_key(job: Job) -> Hashable | None:
    """Return what jobs must have in common to share a launch; None for a job that is computed alone."""
    if (of_plan := _plan_key(job.plan)) is None or "weight" in job.tensors:
        return None
    upstream = None if job.upstream is None or job.operator.is_loss else job.upstream.dtype
    return of_plan, upstream, *[(name, tensor.dtype) for name, tensor in job.tensors.items()]


@lru_cache(maxsize=MOST_KNOWN_PLANS)
def _plan_key(plan: Plan) -> Hashable | None:
    layout = plan.layout
    if layout.inner != 1 or not layout.rows or all(output.shape == "scalar" for output in plan.outputs):
        return None
    return (
        plan.operator,
        plan.gradient,
        layout.classes,
        plan.is_soft,
        tuple(output.name for output in plan.outputs),
        tuple(getattr(plan.options, name) for name in plan.operator.options.model_fields if name not in NOT_OF_ROWS),
    )


class Stack:
    """Jobs of one key, computed in one launch."""

    def __init__(self, jobs: Sequence[Job], device: torch.device) -> None:
        self.outcomes: list[Answer | RequestError | None] = [None] * len(jobs)
        """What became of each job; None before `compute`."""
        self._jobs = jobs
        self._device = device

    @torch.inference_mode()
    def compute(self) -> None:
        """Fill `outcomes`; raises what goes wrong with the launch as a whole."""
        prepared: dict[int, tuple[Job, Denominator | None, Tensor | None]] = {}
        for place, job in enumerate(self._jobs):
            try:
                prepared[place] = (job, *prepare_reduction(job))
            except RequestError as error:
                self.outcomes[place] = error
        if not prepared:
            return
        execution = Execution(_stacked(list(prepared.values())), _UNPOOLED, self._device)
        execution.drain()
        ends = itertools.accumulate(job.layout.rows for job, _, _ in prepared.values())
        for (place, (job, over, _)), end in zip(prepared.items(), ends, strict=True):
            try:
                self.outcomes[place] = _answer(job, over, execution, slice(end - job.layout.rows, end))
            except RequestError as error:
                self.outcomes[place] = error


def _stacked(members: Sequence[tuple[Job, Denominator | None, Tensor | None]]) -> Job:
    """Return one job with the rows of all: every row by itself, its part of the upstream gradient already reckoned."""
    first = members[0][0]
    rows = sum(job.layout.rows for job, _, _ in members)
    upstream = None
    if first.gradient:
        parts = [cast(Tensor, job.upstream) if part is None else part for job, _, part in members]
        upstream = torch.cat(parts)
    kept = None
    if any(job.kept is not None for job, _, _ in members):
        kept = torch.cat(
            [torch.ones(job.layout.rows, dtype=torch.bool) if job.kept is None else job.kept for job, _, _ in members]
        )
    plan = first.plan
    stacked = Plan(
        operator=plan.operator,
        options=_by_row(plan.options),
        gradient=plan.gradient,
        layout=Layout((rows, plan.layout.classes), 1),
        is_soft=plan.is_soft,
        outputs=tuple(output for output in plan.outputs if output.shape != "scalar"),
        shapes={},  # its results are cut up before anybody sees them
        dtypes=plan.dtypes,
    )
    tensors = {name: torch.cat([job.tensors[name] for job, _, _ in members]) for name in first.tensors}
    return Job(stacked, tensors, kept, upstream, owns_memory=True)


def _by_row(options: Options) -> Options:
    """Return options with which every row is given as it is."""
    changes: dict[str, object] = {"non_finite": "propagate"}
    if hasattr(options, "reduction"):
        changes |= {"reduction": "none", "normalizer": None}
    return options.model_copy(update=changes)


def _answer(job: Job, over: Denominator | None, execution: Execution, rows: slice) -> Answer:
    tensors = {}
    for output in job.outputs:
        if output.shape == "scalar":
            tensors[output.name] = finish_output(job, output, None, over)
            continue
        result = execution.rows_of(output.name)[rows]
        if job.options.non_finite == "reject" and (row := first_nan_row(result)) is not None:
            raise nan_error(job, output, row)
        # A copy, so that no job's answer keeps the memory of the others.
        tensors[output.name] = finish_output(job, output, result, over).clone()
    return Answer(tensors, _UNPOOLED)
