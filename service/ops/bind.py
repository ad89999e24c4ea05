"""Bind a message to an operator: the only validator, whatever the format was.

Names, kinds, shapes, types, option values and the range of the targets are checked here; after it only the values can
be at fault (`non-finite`, `undefined-mean`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor

from service.errors import DtypeMismatch, TargetOutOfRange, counted, element_name, element_pointer
from service.ops.layout import Layout, unravel
from service.ops.request import TensorDescription, upstream_input, validate
from service.ops.spec import UPSTREAM, Input, LossOptions, Operator, Options, Output
from service.tensors import DTYPES, Fields, Message, WireTensor, array_of

LARGEST_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All that follows from a request's names, types, shapes and options, but from no element: the same for many.

    Attributes:
        outputs: those wanted, in the operator's order.
        shapes: of the outputs wanted, as the caller gets them, by name.
        dtypes: their element types.
        is_soft: whether the target holds class probabilities.
    """

    operator: Operator
    options: Options
    gradient: bool
    layout: Layout
    is_soft: bool
    outputs: tuple[Output, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A valid request, ready to be computed.

    Attributes:
        plan: what it has in common with other requests like it.
        tensors: by input name, contiguous: `classes` inputs and soft targets as [outer, classes, inner] in their own
            type, class indices as int64 [rows] (0 where skipped), weight as float64 [classes].
        kept: bool [rows], False where a row is skipped; None when all are kept.
        upstream: `grad_output` as [outer, classes, inner], or as float64 in the shape of the loss; None when it is 1.
        owns_memory: whether the inputs lie in memory that may be overwritten.
        destinations: where the caller wants outputs, by name, as uint8 tensors of their size.
    """

    plan: Plan
    tensors: dict[str, Tensor]
    kept: Tensor | None
    upstream: Tensor | None
    owns_memory: bool = False
    destinations: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def operator(self) -> Operator:
        return self.plan.operator

    @property
    def options(self) -> Options:
        return self.plan.options

    @property
    def layout(self) -> Layout:
        return self.plan.layout

    @property
    def gradient(self) -> bool:
        return self.plan.gradient

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The outputs wanted, in the operator's order."""
        return self.plan.outputs

    @property
    def first(self) -> Tensor:
        """The input that rows and classes are counted by, [outer, classes, inner]."""
        return self.tensors[self.plan.operator.inputs[0].name]

    @property
    def input_bytes(self) -> int:
        """How much memory the inputs take."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def bytes_of(self, output: Output) -> int:
        """Return how many bytes an output has."""
        return math.prod(self.plan.shapes[output.name]) * self.plan.dtypes[output.name].itemsize


def fields_of(operator: Operator, *, gradient: bool) -> Fields:
    """Return the names that a request to the endpoint may use."""
    return Fields(
        owner=operator.name,
        tensors=operator.tensors_of(gradient=gradient),
        options=tuple(operator.options.model_fields),
        only_gradient=() if gradient else (UPSTREAM,),
    )


def bind(operator: Operator, message: Message, *, gradient: bool) -> Job:
    """Check the message against the operator and return the job; raises the first error found."""
    plan = _planned(operator, message, gradient=gradient)
    tensors: dict[str, Tensor] = {}
    kept: Tensor | None = None
    for tensor in operator.inputs:
        if (wire := message.tensors.get(tensor.name)) is None:
            continue
        if tensor.role == "indices" or (tensor.role == "target" and not plan.is_soft):
            tensors[tensor.name], kept = _bind_indices(tensor, wire, plan)
        else:
            tensors[tensor.name] = _bind_floating(tensor, wire, plan)
    return Job(plan, tensors, kept, _bind_upstream(message, plan), message.owns_memory)


def _planned(operator: Operator, message: Message, *, gradient: bool) -> Plan:
    """Return the plan of a message, the one made before for a request that differs in its elements only."""
    described = tuple(
        (name, tensor.values.shape, tensor.values.dtype, tensor.is_literal, tensor.beyond_int64 is None)
        for name, tensor in message.tensors.items()
    )
    # The options as text, because 1, 1.0 and True are equal but not equally valid.
    key = (operator, gradient, described, repr(message.options) if message.options else "")
    if (known := _known_plans.get(key)) is not None:
        return known
    plan = _plan(operator, message, gradient=gradient)
    if len(_known_plans) >= MOST_KNOWN_PLANS:
        _known_plans.clear()
    _known_plans[key] = plan
    return plan


MOST_KNOWN_PLANS = 1024
"""So many plans are remembered: callers send the same shapes and options again and again."""

_known_plans: dict[object, Plan] = {}


def _plan(operator: Operator, message: Message, *, gradient: bool) -> Plan:
    request = validate(operator, _descriptions(message), message.options, gradient=gradient)
    options, layout = cast(Options, request), request.layout
    possible = operator.outputs_of(gradient=gradient)
    wanted = [each for each in possible if (each.default if options.outputs is None else each.name in options.outputs)]
    types = {
        name: DTYPES[options.dtype].torch if tensor.is_literal else tensor.values.dtype
        for name, tensor in message.tensors.items()
    }
    loss_type = torch.float64 if types[operator.inputs[0].name] == torch.float64 else torch.float32
    return Plan(
        operator=operator,
        options=options,
        gradient=gradient,
        layout=layout,
        is_soft=request.is_soft,
        outputs=tuple(wanted),
        shapes={output.name: _shape_of(output, layout, options) for output in wanted},
        dtypes={output.name: types[output.type_of] if output.type_of else loss_type for output in wanted},
    )


def _shape_of(output: Output, layout: Layout, options: Options) -> tuple[int, ...]:
    if output.shape == "classes":
        return layout.shape
    if output.shape == "scalar" or (output.shape == "reduced" and cast(LossOptions, options).reduction != "none"):
        return ()
    return layout.rows_shape


def _descriptions(message: Message) -> dict[str, TensorDescription]:
    return {
        name: TensorDescription.model_construct(
            shape=tensor.shape, kind=tensor.kind, type_name=tensor.type_name, is_literal=tensor.is_literal
        )
        for name, tensor in message.tensors.items()
    }


def _bind_floating(tensor: Input, wire: WireTensor, plan: Plan) -> Tensor:
    values = read_as(tensor.name, wire, plan.options.dtype, "too-large") if wire.is_literal else wire.values
    return values.double() if tensor.role in ("weight", "loss") else plan.layout.view(values)


def _bind_upstream(message: Message, plan: Plan) -> Tensor | None:
    wire = message.tensors.get(UPSTREAM)
    return None if wire is None else _bind_floating(upstream_input(plan.operator), wire, plan)


def read_as(name: str, wire: WireTensor, dtype_name: str, sentence: str = "overflow") -> Tensor:
    """Give written-out numbers the type that the caller asked for; a finite number must stay finite.

    `sentence` is that of the DtypeMismatch for one that would not.
    """
    dtype = DTYPES[dtype_name].torch
    values = wire.values.to(dtype)
    overflowed = values.isinf()
    if overflowed.any():
        overflowed &= wire.values.isfinite()
        if overflowed.any():
            position = int(overflowed.reshape(-1).nonzero()[0])
            index = unravel(position, wire.shape)
            value = wire.values.reshape(-1)[position].item()
            raise DtypeMismatch(
                sentence,
                pointer=element_pointer(name, index),
                element=element_name(name, index),
                expected=dtype_name,
                got=f"{value:.15g}",
                wider="float32" if abs(value) <= torch.finfo(torch.float32).max else "float64",
            )
    return values


def _bind_indices(tensor: Input, wire: WireTensor, plan: Plan) -> tuple[Tensor, Tensor | None]:
    """Return class indices as int64 [rows], 0 where the row is skipped, and which rows are kept."""
    classes = plan.layout.classes
    if wire.beyond_int64 is not None:
        raise _out_of_range("int64", tensor, wire, plan, wire.beyond_int64)
    numbers = array_of(wire.values).reshape(-1)
    if numbers.dtype == np.uint64 and (beyond := numbers > LARGEST_INT64).any():
        raise _out_of_range("int64", tensor, wire, plan, int(beyond.argmax()))
    numbers = numbers.astype(np.int64, copy=False)
    if not len(numbers):
        return torch.from_numpy(numbers), None
    ignored = cast(LossOptions, plan.options).ignore_index
    # Extremes are a fraction of the price of comparing every element, and mostly they are all there is to know.
    lowest, highest = np.minimum.reduce(numbers), np.maximum.reduce(numbers)
    kept = None
    if lowest <= ignored <= highest and (skipped := numbers == ignored).any():
        numbers, kept = np.where(skipped, 0, numbers), torch.from_numpy(~skipped)
        lowest, highest = np.minimum.reduce(numbers), np.maximum.reduce(numbers)
    if lowest < 0 or highest >= classes:
        position = int(((numbers < 0) | (numbers >= classes)).argmax())
        got = int(numbers[position])
        raise _out_of_range("negative" if got < 0 else "range", tensor, wire, plan, position, got=got)
    return torch.from_numpy(numbers), kept


def _out_of_range(
    sentence: str, tensor: Input, wire: WireTensor, plan: Plan, position: int, *, got: int | None = None
) -> TargetOutOfRange:
    index, classes = unravel(position, wire.shape), plan.layout.classes
    return TargetOutOfRange(
        sentence,
        pointer=element_pointer(tensor.name, index),
        element=element_name(tensor.name, index),
        expected="only 0" if classes == 1 else f"0 to {classes - 1}",
        got=got,
        like=plan.operator.inputs[0].name,
        classes=counted(classes, "class", "classes"),
        ignored=cast(LossOptions, plan.options).ignore_index,
    )
