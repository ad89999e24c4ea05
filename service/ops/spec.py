"""What an operator is: its inputs, outputs, options and two functions over rows, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Reduction = Literal["none", "mean", "sum"]


class Options(BaseModel):
    """Options that every operator takes."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    outputs: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        strict=False,
        description="Names of the outputs wanted, without repeats. Unless given, the default outputs.",
    )
    dtype: Literal["float16", "bfloat16", "float32", "float64"] = Field(
        "float32",
        description=(
            "The type that numbers written out in JSON are read as (class indices apart). "
            "Compact tensors carry their own type."
        ),
    )
    encoding: Literal["array", "base64"] = Field(
        "array",
        description="How tensors are written in a JSON answer: as nested arrays, or compact with base64 bytes.",
    )
    non_finite: Literal["reject", "propagate"] = Field(
        "reject",
        description=(
            "What happens when an output would hold NaN: `reject` answers 422 and names the first such row, "
            "`propagate` returns the NaN that torch would return. Infinite losses are results either way."
        ),
    )
    accuracy: Literal["fast", "accurate"] = Field(
        "fast",
        description=(
            "`fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that "
            "results of float32 and below are within one unit in the last place."
        ),
    )


class ClassOptions(Options):
    """Options of operators whose rows lie along a dimension of classes."""

    class_dim: int | None = Field(
        None,
        description=(
            "The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for "
            "one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1."
        ),
    )


class TemperatureOptions(ClassOptions):
    """Options of operators over logits."""

    temperature: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Divides the logits everywhere in the operator, `logsumexp` included."
    )


class LossOptions(ClassOptions):
    """Options of operators that give one loss a row and reduce it."""

    ignore_index: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] = Field(
        -100,
        description="A row whose class index equals this is skipped: its loss and gradient are 0, whatever it holds.",
    )
    reduction: Reduction = Field(
        "mean",
        description=(
            "`none` gives the loss of every row, `sum` their sum, `mean` their sum divided by `total_weight` "
            "(index targets: the summed weight of the kept rows; probability targets: the number of rows)."
        ),
    )
    normalizer: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description=(
            "Replaces the denominator of `mean`, so that micro-batches can be recombined exactly: give every part "
            "the total weight of the whole and add the losses."
        ),
    )


Role = Literal["classes", "indices", "target", "weight", "loss"]
"""How an input lies to the rows.

`classes`: one number for every class of every row, in the shape of the operator's first input. `indices`: one class
index a row. `target`: either of the two. `weight`: one number a class, shape (C). `loss`: in the shape of the loss.
"""


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor that an operator takes."""

    name: str
    role: Role
    description: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor that an operator gives."""

    name: str
    shape: Literal["classes", "rows", "reduced", "scalar"]
    """`classes`: shape of the first input; `rows`: that without the class dimension; `reduced`: rows or scalar,
    as `reduction` says."""
    description: str
    type_of: str | None = None
    """The input whose element type it has; None: that of a loss (float32 for half types, else the first input's)."""
    default: bool = True
    gradient: bool = False
    """Whether only the gradient endpoint gives it."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A block of rows, class dimension last, as the functions of an operator see it.

    Attributes:
        count: how many rows there are.
        tensors: by input name: `classes` inputs and probability targets as [rows, classes] in the type of the
            computation, class indices as int64 [rows] (0 where a row is skipped), weight as float64 [classes].
        kept: bool [rows], False where the row is skipped; None when all are kept.
    """

    count: int
    tensors: Mapping[str, Tensor]
    kept: Tensor | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        """Return an optional input, None when the request has none."""
        return self.tensors.get(name)


Buffers = MutableMapping[str, Tensor]
"""Where results go, by output name, and only those wanted: [rows, classes] in the type of the computation, or float64
[rows]. When the gradient by the first input is the only one of [rows, classes], its buffer may be that input's own
memory: read what is needed of the input before writing."""


@dataclass(frozen=True, slots=True)
class Example:
    """A request that a reader can run, tensors as nested lists."""

    name: str
    """In the document; once for each endpoint."""
    summary: str
    request: Mapping[str, Any]
    gradient: bool | None = None
    """Which endpoint it is for; None: both."""


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """A row-wise operator: row `i` of every output depends on row `i` of the inputs only.

    Attributes:
        name: as in the path, with dashes.
        title: a few words.
        doc: the formula and what it means, in Markdown.
        formula: the formula alone, with e^(...) and sum_k; gradient_formula the same for the gradient, g upstream.
        inputs: the first is the one that rows and classes are counted by.
        outputs: in the order of the answer.
        options: the model that validates them.
        forward: computes a block of rows into the buffers, and returns True when it knows that no result holds a NaN
            (then nobody looks).
        value_and_gradient: the same and the gradient, in one pass. `upstream` is float64 [rows] for losses (the
            derivative of the answer by the row's loss, denominator included), else [rows, classes].
        row_weight: float64 [rows], what a row counts in `mean`, from class indices and weight alone (nothing of
            [rows, classes] is given to it), or None where every row counts 1; no function in operators that do not
            reduce.
        example: a request that a reader can run, tensors as nested lists; the service answers it before it is ready.
        gradient_example: the same for the gradient.
        examples: more of them, that show what the options are for.
    """

    name: str
    title: str
    doc: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    options: type[Options]
    forward: Callable[[Rows, Any, Buffers], bool | None]
    value_and_gradient: Callable[[Rows, Tensor, Any, Buffers], bool | None]
    example: Mapping[str, Any]
    gradient_example: Mapping[str, Any]
    row_weight: Callable[[Rows], Tensor | None] | None = None
    examples: tuple[Example, ...] = ()
    formula: str = ""
    gradient_formula: str = ""

    @property
    def is_loss(self) -> bool:
        """Whether rows are reduced to a loss, so that `grad_output` has the shape of `loss` and defaults to 1."""
        return self.row_weight is not None

    @property
    def upstream_like(self) -> Output:
        """The output whose shape `grad_output` has: the first."""
        return self.outputs[0]

    def outputs_of(self, *, gradient: bool) -> tuple[Output, ...]:
        """Return what the endpoint can give."""
        return tuple(output for output in self.outputs if gradient or not output.gradient)

    def tensors_of(self, *, gradient: bool) -> tuple[str, ...]:
        """Return the names of the tensors the endpoint takes."""
        return tuple(tensor.name for tensor in self.inputs) + ((UPSTREAM,) if gradient else ())


UPSTREAM = "grad_output"
"""Name of the upstream gradient, an input of every gradient endpoint."""
