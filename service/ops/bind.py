"""Bind a message to an operator: the only validator, whatever the format was.

Names, kinds, shapes, types, option values and the range of the targets are checked here; after it only the values can
be at fault (`non-finite`, `undefined-mean`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from service.errors import DtypeMismatch, TargetOutOfRange, counted, element_name, element_pointer
from service.ops.layout import Layout, unravel
from service.ops.request import Request, TensorDescription, upstream_input, validate
from service.ops.spec import UPSTREAM, Input, LossOptions, Operator, Options, Output
from service.tensors import DTYPES, Fields, Message, WireTensor, array_of

LARGEST_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A valid request, ready to be computed.

    Attributes:
        tensors: by input name, contiguous: `classes` inputs and soft targets as [outer, classes, inner] in their own
            type, class indices as int64 [rows] (0 where skipped), weight as float64 [classes].
        kept: bool [rows], False where a row is skipped; None when all are kept.
        upstream: `grad_output` as [outer, classes, inner], or as float64 in the shape of the loss; None when it is 1.
        outputs: those wanted, in the operator's order.
        owns_memory: whether the inputs lie in memory that may be overwritten.
    """

    operator: Operator
    options: Options
    layout: Layout
    tensors: dict[str, Tensor]
    kept: Tensor | None
    upstream: Tensor | None
    gradient: bool
    outputs: tuple[Output, ...]
    owns_memory: bool = False

    @property
    def first(self) -> Tensor:
        """The input that rows and classes are counted by, [outer, classes, inner]."""
        return self.tensors[self.operator.inputs[0].name]

    def shape_of(self, output: Output) -> tuple[int, ...]:
        """Return the shape in which the caller gets an output."""
        if output.shape == "classes":
            return self.layout.shape
        if output.shape == "scalar" or (
            output.shape == "reduced" and cast(LossOptions, self.options).reduction != "none"
        ):
            return ()
        return self.layout.rows_shape

    def dtype_of(self, output: Output) -> torch.dtype:
        """Return the element type of an output."""
        if output.type_of is not None:
            return self.tensors[output.type_of].dtype
        return torch.float64 if self.first.dtype == torch.float64 else torch.float32


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
    request = _validated(operator, message, gradient=gradient)
    options = cast(Options, request)
    tensors: dict[str, Tensor] = {}
    kept: Tensor | None = None
    for tensor in operator.inputs:
        if (wire := message.tensors.get(tensor.name)) is None:
            continue
        if _holds_indices(tensor, request):
            tensors[tensor.name], kept = _bind_indices(tensor, wire, request, operator)
        else:
            tensors[tensor.name] = _bind_floating(tensor, wire, request)
    return Job(
        operator=operator,
        options=options,
        layout=request.layout,
        tensors=tensors,
        kept=kept,
        upstream=_bind_upstream(operator, message, request),
        gradient=gradient,
        outputs=_wanted(operator, options, gradient=gradient),
        owns_memory=message.owns_memory,
    )


def _validated(operator: Operator, message: Message, *, gradient: bool) -> Request:
    """Return the request model of a message, the one made before for a request that differs in its elements only."""
    described = tuple(
        (name, tensor.shape, tensor.kind, tensor.type_name, tensor.is_literal)
        for name, tensor in message.tensors.items()
    )
    # The options as text, because 1, 1.0 and True are equal but not equally valid.
    key = (operator, gradient, described, repr(message.options))
    if (known := _known_requests.get(key)) is not None:
        return known
    request = validate(operator, _descriptions(message), message.options, gradient=gradient)
    if len(_known_requests) >= MOST_KNOWN_REQUESTS:
        _known_requests.clear()
    _known_requests[key] = request
    return request


MOST_KNOWN_REQUESTS = 1024
"""So many validated requests are remembered: callers send the same shapes and options again and again."""

_known_requests: dict[object, Request] = {}


def _descriptions(message: Message) -> dict[str, TensorDescription]:
    return {
        name: TensorDescription.model_construct(
            shape=tensor.shape, kind=tensor.kind, type_name=tensor.type_name, is_literal=tensor.is_literal
        )
        for name, tensor in message.tensors.items()
    }


def _wanted(operator: Operator, options: Options, *, gradient: bool) -> tuple[Output, ...]:
    possible = operator.outputs_of(gradient=gradient)
    if options.outputs is None:
        return tuple(output for output in possible if output.default)
    return tuple(output for output in possible if output.name in options.outputs)


def _holds_indices(tensor: Input, request: Request) -> bool:
    return tensor.role == "indices" or (tensor.role == "target" and not request.is_soft)


def _bind_floating(tensor: Input, wire: WireTensor, request: Request) -> Tensor:
    values = _read_as(tensor.name, wire, cast(Options, request).dtype) if wire.is_literal else wire.values
    return values.double() if tensor.role in ("weight", "loss") else request.layout.view(values)


def _bind_upstream(operator: Operator, message: Message, request: Request) -> Tensor | None:
    wire = message.tensors.get(UPSTREAM)
    return None if wire is None else _bind_floating(upstream_input(operator), wire, request)


def _read_as(name: str, wire: WireTensor, dtype_name: str) -> Tensor:
    """Give written-out numbers the type that the caller asked for; a finite number must stay finite."""
    dtype = DTYPES[dtype_name].torch
    values = wire.values.to(dtype)
    overflowed = values.isinf()
    if overflowed.any():
        overflowed &= wire.values.isfinite()
        if overflowed.any():
            position = int(overflowed.reshape(-1).nonzero()[0])
            index = unravel(position, wire.shape)
            raise DtypeMismatch(
                "overflow",
                pointer=element_pointer(name, index),
                element=element_name(name, index),
                expected=dtype_name,
                got=f"{wire.values.reshape(-1)[position].item():.15g}",
            )
    return values


def _bind_indices(
    tensor: Input, wire: WireTensor, request: Request, operator: Operator
) -> tuple[Tensor, Tensor | None]:
    """Return class indices as int64 [rows], 0 where the row is skipped, and which rows are kept."""
    name, like, classes = tensor.name, operator.inputs[0].name, request.layout.classes

    def refuse(sentence: str, position: int, got: int | None) -> TargetOutOfRange:
        index = unravel(position, wire.shape)
        return TargetOutOfRange(
            sentence,
            pointer=element_pointer(name, index),
            element=element_name(name, index),
            expected="only 0" if classes == 1 else f"0 to {classes - 1}",
            got=got,
            like=like,
            classes=counted(classes, "class", "classes"),
        )

    if wire.beyond_int64 is not None:
        raise refuse("int64", wire.beyond_int64, None)
    numbers = array_of(wire.values).reshape(-1)
    if numbers.dtype == np.uint64 and (beyond := numbers > LARGEST_INT64).any():
        raise refuse("int64", int(beyond.argmax()), None)
    indices = torch.from_numpy(numbers.astype(np.int64, copy=False))
    skipped = indices == cast(LossOptions, request).ignore_index
    any_skipped = bool(skipped.any())
    if any_skipped:
        indices = indices.masked_fill(skipped, 0)
    if len(indices):
        lowest, highest = torch.aminmax(indices)
        if lowest < 0 or highest >= classes:
            position = int(((indices < 0) | (indices >= classes)).nonzero()[0])
            raise refuse("range", position, int(indices[position]))
    return indices, ~skipped if any_skipped else None
