"""The pydantic model of a request: tensor descriptions and options, checked together; elements never come here."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, create_model, model_validator
from pydantic.fields import FieldInfo

from service.errors import (
    DtypeMismatch,
    InvalidOption,
    MissingField,
    Quoted,
    ShapeMismatch,
    clip,
    element_name,
    quoted,
)
from service.ops.layout import Layout
from service.ops.spec import UPSTREAM, ClassOptions, Input, LossOptions, Operator, Options
from service.tensors import MAX_RANK, Kind, LongText


class TensorDescription(BaseModel):
    """What is known of a tensor without looking at its elements."""

    model_config = ConfigDict(frozen=True)

    shape: tuple[int, ...]
    kind: Kind
    type_name: str
    is_literal: bool = False


class Request(BaseModel):
    """Base of the request models; the fields are made from an operator's inputs and its options.

    A subclass is also a subclass of the operator's options, so that a validated request *is* those options.
    """

    _layout: Layout = PrivateAttr()
    _is_soft: bool = PrivateAttr(default=False)

    @property
    def layout(self) -> Layout:
        return self._layout

    @property
    def is_soft(self) -> bool:
        """Whether the target holds class probabilities."""
        return self._is_soft


@cache
def request_model(operator: Operator, *, gradient: bool) -> type[Request]:
    """Return the model of the requests that an endpoint takes."""
    tensors: dict[str, Any] = {tensor.name: _tensor_field(tensor) for tensor in operator.inputs}
    if gradient:
        tensors[UPSTREAM] = _tensor_field(upstream_input(operator))

    def check(request: Request) -> Request:
        _Checker(operator, gradient=gradient, request=request).check()
        return request

    model = create_model(
        operator.name.title().replace("-", "") + ("GradientRequest" if gradient else "Request"),
        __base__=(Request, operator.options),
        __validators__={"check": cast(Any, model_validator(mode="after")(check))},
        **tensors,
    )
    return cast("type[Request]", model)


def upstream_input(operator: Operator) -> Input:
    """Return `grad_output` as an input: required unless it defaults to 1."""
    shape = f"the shape of `{operator.upstream_like.name}`"
    if operator.is_loss:
        return Input(UPSTREAM, "loss", f"Upstream gradient, {shape}; 1 unless given.", required=False)
    return Input(UPSTREAM, "classes", f"Upstream gradient, {shape}.")


def _tensor_field(tensor: Input) -> tuple[Any, Any]:
    if tensor.required:
        return TensorDescription, Field(description=tensor.description)
    return TensorDescription | None, Field(None, description=tensor.description)


def validate(
    operator: Operator, descriptions: dict[str, TensorDescription], options: dict[str, object], *, gradient: bool
) -> Request:
    """Check a request by its descriptions and options, and return it; raises the first error found."""
    model = request_model(operator, gradient=gradient)
    try:
        return model.model_validate({**options, **descriptions})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=True)[0]
    name = str(first["loc"][0])
    field = model.model_fields[name]
    if first["type"] == "missing":
        sentence, like = "upstream" if name == UPSTREAM else "tensor", operator.upstream_like.name
        raise MissingField(sentence, pointer="/" + name, owner=operator.name, name=name, like=like)
    if len(first["loc"]) > 1:
        position = int(first["loc"][1])
        raise InvalidOption(
            "output-name",
            pointer=f"/{name}/{position}",
            element=element_name(name, (position,)),
            expected="the name of an output",
            got=shown(first["input"]),
        )
    value = options[name]
    raise InvalidOption(
        "list" if name == "outputs" and isinstance(value, str) and value.startswith("[") else "value",
        pointer="/" + name,
        name=name,
        expected=describe_bounds(field),
        got=shown(value),
        similar=operator.outputs[0].name,
    )


def shown(value: object) -> object:
    """Return an option's value as a sentence shows it: a number or a word, never anything long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return value if abs(value) < _LARGEST_SHOWN else clip(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return str(value) if isinstance(value, LongText) else "an object"


_LARGEST_SHOWN = 2**63
"""Numbers from here on are shown as text: they are long, or no number of an answer in JSON."""


def describe_bounds(field: FieldInfo) -> str:
    """Return in words what an option's value must be, from its declaration."""
    annotation, bounds = _unwrap(field)
    if get_origin(annotation) is Literal:
        return "one of " + listed(get_args(annotation))
    if annotation not in (int, float):
        return "a list of output names, not empty"
    words = {int: "an integer", float: "a finite number"}[annotation]
    if "ge" in bounds and "le" in bounds:
        return f"{words} from {bounds['ge']} to {bounds['le']}"
    return f"{words} greater than {bounds['gt']}" if "gt" in bounds else words


def listed(names: Iterable[object]) -> str:
    """Return names as a sentence lists them: 'a', 'b' or 'c'."""
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _unwrap(field: FieldInfo) -> tuple[Any, dict[str, Any]]:
    """Return the type of an option without `None`, and its numeric bounds."""
    annotation: Any = field.annotation
    metadata = list(field.metadata)
    for argument in get_args(annotation):
        if argument is not type(None) and type(None) in get_args(annotation):
            annotation = argument
    if hasattr(annotation, "__metadata__"):
        for inner in annotation.__metadata__:
            metadata += inner.metadata if isinstance(inner, FieldInfo) else [inner]
        annotation = get_args(annotation)[0]
    bounds = {name: getattr(item, name) for item in metadata for name in ("ge", "le", "gt") if hasattr(item, name)}
    return annotation, bounds


class _Checker:
    """The rules between descriptions and options of one request."""

    def __init__(self, operator: Operator, *, gradient: bool, request: Request) -> None:
        self.operator = operator
        self.gradient = gradient
        self.request = request
        self.options = cast(Options, request)
        self.first = operator.inputs[0]

    def check(self) -> None:
        self._check_outputs()
        self.layout = self._find_layout()
        self.request._layout = self.layout
        for tensor in self.operator.inputs:
            if (description := self._described(tensor.name)) is not None:
                self._check_input(tensor, description)
        self._check_loss_options()
        self._check_upstream()

    def _described(self, name: str) -> TensorDescription | None:
        return cast("TensorDescription | None", getattr(self.request, name, None))

    def _check_outputs(self) -> None:
        wanted = self.options.outputs
        if wanted is None:
            return
        known = [output.name for output in self.operator.outputs_of(gradient=self.gradient)]
        for position, name in enumerate(wanted):
            if name not in known:
                only_gradient = name in [output.name for output in self.operator.outputs]
                sentence = "gradient-output" if only_gradient else "output"
                raise InvalidOption(
                    sentence,
                    pointer=f"/outputs/{position}",
                    owner=self.operator.name,
                    got=quoted(name),
                    expected=listed(known),
                )
            if name in wanted[:position]:
                raise InvalidOption("repeated-output", pointer=f"/outputs/{position}", got=Quoted(name))

    def _find_layout(self) -> Layout:
        description = cast(TensorDescription, self._described(self.first.name))
        name, shape = self.first.name, description.shape
        _check_rank(name, shape)
        if not shape:
            raise ShapeMismatch("scalar", pointer="/" + name, name=name, got=[])
        class_dim = cast(ClassOptions, self.options).class_dim
        if class_dim is None:
            class_dim = 0 if len(shape) == 1 else 1
        if not -len(shape) <= class_dim < len(shape):
            raise InvalidOption(
                "class-dim",
                pointer="/class_dim",
                expected=f"from {-len(shape)} to {len(shape) - 1}",
                like=name,
                shape=list(shape),
                got=shown(class_dim),
            )
        layout = Layout(shape, class_dim % len(shape))
        if layout.classes == 0:
            raise ShapeMismatch("classes", pointer="/" + name, name=name, got=list(shape), dimension=layout.class_dim)
        return layout

    def _check_input(self, tensor: Input, description: TensorDescription) -> None:
        _check_rank(tensor.name, description.shape)
        if tensor.role == "classes":
            self._check_shape(tensor.name, description, self.layout.shape, f"that of '{self.first.name}'")
        elif tensor.role == "weight":
            reason = f"one number for each class of '{self.first.name}'"
            self._check_class_last(tensor.name, description, self.layout.shape[-1:], (self.layout.classes,))
            self._check_shape(tensor.name, description, (self.layout.classes,), reason)
        elif tensor.role == "target":
            self.request._is_soft = self._target_is_soft(tensor.name, description)
        if tensor.role == "indices" or (tensor.role == "target" and not self.request.is_soft):
            self._check_indices(tensor.name, description)
        elif tensor.role == "target":
            self._check_probabilities(tensor.name, description)
        else:
            self._check_floating(tensor.name, description)

    def _target_is_soft(self, name: str, description: TensorDescription) -> bool:
        kind = getattr(self.options, "target_kind", "auto")
        if kind == "auto":
            if description.shape == self.layout.shape:
                return True
            if description.shape != self.layout.rows_shape:
                self._check_class_last(name, description, self.layout.shape[:-1], self.layout.rows_shape)
                raise ShapeMismatch(
                    "target",
                    pointer="/" + name,
                    name=name,
                    got=list(description.shape),
                    like=self.first.name,
                    like_shape=list(self.layout.shape),
                    rows=list(self.layout.rows_shape),
                    expected=[list(self.layout.rows_shape), list(self.layout.shape)],
                )
            return False
        if kind == "probs":
            reason = f"that of '{self.first.name}', a probability for each"
            self._check_shape(name, description, self.layout.shape, reason)
        return cast(str, kind) == "probs"

    def _check_indices(self, name: str, description: TensorDescription) -> None:
        expected = self.layout.rows_shape
        if description.shape != expected:
            self._check_class_last(name, description, self.layout.shape[:-1], expected)
            reason = f"that of '{self.first.name}' without the dimension of the classes"
            self._check_shape(name, description, expected, reason)
        if description.kind != "integer":
            raise DtypeMismatch(
                "indices", pointer="/" + name, name=name, expected="integers", got=description.type_name
            )

    def _check_probabilities(self, name: str, description: TensorDescription) -> None:
        if description.kind == "integer" and not description.is_literal:
            like, got = self.first.name, description.type_name
            raise DtypeMismatch("probabilities", pointer="/" + name, name=name, like=like, got=got)

    def _check_class_last(
        self, name: str, description: TensorDescription, fitting: tuple[int, ...], expected: tuple[int, ...]
    ) -> None:
        """Raise ShapeMismatch for a shape that is not the one expected, but would be `fitting` with class_dim -1."""
        shape = self.layout.shape
        if self.layout.class_dim != len(shape) - 1 and expected != description.shape == fitting:
            raise ShapeMismatch(
                "class-last",
                pointer="/" + name,
                name=name,
                got=list(description.shape),
                like=self.first.name,
                like_shape=list(shape),
                expected=list(expected),
            )

    def _check_shape(self, name: str, description: TensorDescription, expected: tuple[int, ...], reason: str) -> None:
        if description.shape != expected:
            raise ShapeMismatch(
                "shape",
                pointer="/" + name,
                name=name,
                got=list(description.shape),
                reason=reason,
                expected=list(expected),
            )

    def _check_floating(self, name: str, description: TensorDescription) -> None:
        if description.kind == "floating" or description.is_literal:
            return
        raise DtypeMismatch("floating", pointer="/" + name, name=name, got=description.type_name)

    def _check_loss_options(self) -> None:
        options = self.options
        if not isinstance(options, LossOptions):
            return
        if options.normalizer is not None and options.reduction != "mean":
            raise InvalidOption("normalizer", pointer="/normalizer", got=Quoted(options.reduction))
        if self.request.is_soft and "ignore_index" in options.model_fields_set and options.ignore_index >= 0:
            raise InvalidOption("soft-ignore", pointer="/ignore_index", got=options.ignore_index)
        if not self.request.is_soft and "grad_target" in (options.outputs or ()):
            raise InvalidOption("soft-output", pointer="/outputs")

    def _check_upstream(self) -> None:
        description = self._described(UPSTREAM) if self.gradient else None
        if description is None:
            return
        _check_rank(UPSTREAM, description.shape)
        like = self.operator.upstream_like
        expected = self.layout.shape
        if like.shape == "reduced":
            is_of_rows = cast(LossOptions, self.options).reduction == "none"
            expected = self.layout.rows_shape if is_of_rows else ()
            if is_of_rows:
                self._check_class_last(UPSTREAM, description, self.layout.shape[:-1], expected)
        self._check_shape(UPSTREAM, description, expected, f"that of the output '{like.name}'")
        self._check_floating(UPSTREAM, description)


def _check_rank(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) > MAX_RANK:
        raise ShapeMismatch("rank", pointer="/" + name, name=name, got=len(shape), expected=MAX_RANK)
