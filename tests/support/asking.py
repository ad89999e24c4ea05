"""The service without HTTP: bind a request, compute it, and keep the tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from service.engine.scheduler import Engine
from service.ops import OPERATORS
from service.ops.bind import Job, bind
from service.ops.spec import Operator
from service.tensors import Message, WireTensor

CPU = Engine(torch.device("cpu"), threads=1)


def message_of(fields: dict[str, object]) -> Message:
    """Return a request as a codec would: tensors by name, everything else an option; None stands for absent."""
    message = Message()
    for name, value in fields.items():
        if isinstance(value, Tensor):
            message.tensors[name] = WireTensor(value)
        elif isinstance(value, WireTensor):
            message.tensors[name] = value
        elif value is not None:
            message.options[name] = value
    return message


def job_of(operator: str | Operator, *, gradient: bool = False, **fields: object) -> Job:
    """Return the job that a request makes."""
    operator = OPERATORS[operator] if isinstance(operator, str) else operator
    return bind(operator, message_of(fields), gradient=gradient)


def ask(
    operator: str | Operator, *, gradient: bool = False, engine: Engine = CPU, **fields: object
) -> dict[str, Tensor]:
    """Return the answer to a request, in memory of its own; raises what the service would refuse it with."""
    answer = engine.compute(job_of(operator, gradient=gradient, **fields))
    try:
        return {name: tensor.clone() for name, tensor in answer.tensors.items()}
    finally:
        answer.release()


def all_outputs(operator: str, *, gradient: bool, soft: bool = False) -> list[str]:
    """Return the names of everything that an endpoint can give for a kind of target."""
    names = [output.name for output in OPERATORS[operator].outputs_of(gradient=gradient)]
    return [name for name in names if soft or name != "grad_target"]
