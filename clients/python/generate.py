"""Write the parts of the client that follow from the service's tables: its methods, and its errors by code.

    python clients/python/generate.py

The files are checked in, so that the client needs no service to be installed; a test says when they are stale.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from service.describe import JSON_ONLY, defaults, inputs_of, reference_shape, schema_name
from service.errors import ERRORS
from service.http.problems import STATUS
from service.ops import OPERATORS
from service.ops.request import describe_bounds
from service.ops.spec import Input, Operator

PACKAGE = Path(__file__).parent / "loss_client"

UNAVAILABLE = (429, 503)

WIDTH = 120

Code = Iterator[str]


def main() -> None:
    for name, text in rendered().items():
        (PACKAGE / name).write_text(text)


def rendered() -> dict[str, str]:
    """Return the text of every generated file, by name."""
    return {"operators.py": _formatted(operators_module()), "problems.py": _formatted(problems_module())}


def _formatted(lines: Code) -> str:
    source = "\n".join(lines) + "\n"
    for step in (["check", "--quiet", "--select", "I", "--fix"], ["format"]):
        command = [sys.executable, "-m", "ruff", *step, "--stdin-filename", str(PACKAGE / "generated.py"), "-"]
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=True)  # noqa: S603 - ruff
        source = done.stdout
    return source


def problems_module() -> Code:
    yield from (
        '"""Every way to be wrong that the service knows, as an exception.',
        "",
        'Generated from the service\'s table of errors by `generate.py`; not to be edited."""',
        "from __future__ import annotations",
        "from typing import ClassVar",
        "from loss_client.errors import RequestRefusedError, ServiceError, ServiceFaultError, UnavailableError",
    )
    for code, error in ERRORS.items():
        status = STATUS[error]
        base = "UnavailableError" if status in UNAVAILABLE else "ServiceFaultError" if status >= 500 else None
        bases = (base or "RequestRefusedError") + (", TimeoutError" if status == 504 else "")
        yield f"class {problem_name(code)}({bases}):"
        yield from docstring(4, error.title + ".", error.mend)
        yield f"    CODE: ClassVar[str] = {code!r}"
        yield f"    TITLE: ClassVar[str] = {error.title!r}"
        yield f"    STATUS: ClassVar[int] = {status}"
    yield "PROBLEMS: dict[str, type[ServiceError]] = {"
    yield f"    error.CODE: error for error in ({', '.join(map(problem_name, ERRORS))})"
    yield "}"
    yield '"""Every exception by its code."""'


def problem_name(code: str) -> str:
    return code.title().replace("-", "") + "Error"


def operators_module() -> Code:
    yield from (
        '"""Every operator of the service as a method.',
        "",
        'Generated from the service\'s operator table by `generate.py`; not to be edited."""',
        "from __future__ import annotations",
        "from abc import ABC, abstractmethod",
        "from collections.abc import Sequence",
        "from typing import TYPE_CHECKING, Literal",
        "from loss_client.answers import Answer",
        "from loss_client.arrays import ArrayT",
        "from loss_client.options import CLIENT_DEFAULT, Call, Outputs, ProgressOption, TimeoutOption",
        "from loss_client.splitting import Operator",
        "if TYPE_CHECKING:",
        "    from loss_client.arrays import ArrayLike",
        "OPERATORS: dict[str, Operator] = {",
    )
    for operator in OPERATORS.values():
        yield f"{operator.name!r}: {literal(operator)},"
    yield "}"
    yield '"""Every operator by name."""'
    for operator in OPERATORS.values():
        for gradient in (False, True):
            yield from answer_class(operator, gradient=gradient)
    for is_async in (False, True):
        yield from methods_class(is_async=is_async)


def literal(operator: Operator) -> str:
    """Return what the client has to know of an operator, as source."""
    inputs = {tensor.name: tensor.role for tensor in inputs_of(operator, gradient=True)}
    outputs = {output.name: output.shape for output in operator.outputs}
    values = {name: option.default for name, option in options_of(operator).items()}
    return (
        f"Operator(name={operator.name!r}, inputs={inputs!r}, outputs={outputs!r}, defaults={values!r}, "
        f"is_loss={operator.is_loss})"
    )


def options_of(operator: Operator) -> dict[str, FieldInfo]:
    return {name: option for name, option in operator.options.model_fields.items() if name not in JSON_ONLY}


def answer_class(operator: Operator, *, gradient: bool) -> Code:
    yield f"class {schema_name(operator, gradient=gradient)}Answer(Answer[ArrayT]):"
    given = " and ".join(f"`{name}`" for name in defaults(operator, gradient=gradient))
    yield from docstring(4, f"What {method_name(operator, gradient=gradient)} gives: {given}, unless told otherwise.")
    for output in operator.outputs_of(gradient=gradient):
        request = "" if output.default else " Given on request."
        yield "    @property"
        yield f"    def {output.name}(self) -> ArrayT:"
        yield from docstring(8, f"{output.description}{request} Shape: {reference_shape(output)}.")
        yield f"        return self._output({output.name!r})"


def method_name(operator: Operator, *, gradient: bool) -> str:
    return operator.name.replace("-", "_") + ("_gradient" if gradient else "")


def methods_class(*, is_async: bool) -> Code:
    prefix = "async " if is_async else ""
    yield f"class {'AsyncOperators' if is_async else 'BlockingOperators'}(ABC):"
    yield f'    """The operators as methods that {"are awaited" if is_async else "block"}."""'
    yield "    @abstractmethod"
    yield f"    {prefix}def _call(self, call: Call) -> Outputs:"
    yield '        """Compute an operator; returns its outputs and the ids of the requests."""'
    for operator in OPERATORS.values():
        for gradient in (False, True):
            yield from method(operator, gradient=gradient, is_async=is_async)


def method(operator: Operator, *, gradient: bool, is_async: bool) -> Code:
    name = method_name(operator, gradient=gradient)
    answer = f"{schema_name(operator, gradient=gradient)}Answer"
    # What is required comes first, as Python wants it.
    tensors = sorted(inputs_of(operator, gradient=gradient), key=lambda tensor: not tensor.required)
    yield f"    {'async ' if is_async else ''}def {name}("
    yield "        self,"
    for place, tensor in enumerate(tensors):
        kind = "ArrayT" if place == 0 else "ArrayLike" if tensor.required else "ArrayLike | None = None"
        yield f"        {tensor.name}: {kind},"
    yield "        *,"
    for option_name, option in options_of(operator).items():
        yield f"        {option_name}: {option_type(operator, option_name, option, gradient)} = {option.default!r},"
    yield "        timeout: TimeoutOption = CLIENT_DEFAULT,"
    yield "        progress: ProgressOption | None = None,"
    yield f"    ) -> {answer}[ArrayT]:"
    yield from method_docstring(operator, tensors, gradient=gradient)
    passed = ", ".join(f"{tensor.name!r}: {tensor.name}" for tensor in tensors)
    yield f"        tensors: dict[str, object] = {{{passed}}}"
    passed = ", ".join(f"{option!r}: {option}" for option in options_of(operator))
    yield f"        options: dict[str, object] = {{{passed}}}"
    call = f"self._call(Call({operator.name!r}, tensors, options, {gradient}, timeout, progress))"
    yield f"        return {answer}(*{f'await {call}' if is_async else call})"


def option_type(operator: Operator, name: str, option: FieldInfo, gradient: bool) -> str:
    if name == "outputs":
        names = ", ".join(repr(output.name) for output in operator.outputs_of(gradient=gradient))
        return f"Sequence[Literal[{names}]] | None"
    return type_text(option.annotation)


def type_text(annotation: Any) -> str:
    """Return the annotation of an option as source."""
    if get_origin(annotation) is Literal:
        return f"Literal[{', '.join(map(repr, get_args(annotation)))}]"
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(type_text(choice) for choice in get_args(annotation))
    if hasattr(annotation, "__metadata__"):
        return type_text(get_args(annotation)[0])
    return "None" if annotation is type(None) else str(annotation.__name__)


def method_docstring(operator: Operator, tensors: list[Input], *, gradient: bool) -> Code:
    arguments = [f"{tensor.name}: {tensor.description}" for tensor in tensors]
    for name, option in options_of(operator).items():
        bounds = describe_bounds(option)
        given = f" Must be {bounds}." if bounds.startswith(("an integer ", "a finite ")) else ""
        arguments.append(f"{name}: {option.description}{given}")
    arguments.append("timeout: Seconds within which each request must be answered, None for no bound.")
    arguments.append("progress: A function that is told how far the call has come, or True for a bar.")
    outputs = ", ".join(f"`{output.name}`" for output in operator.outputs_of(gradient=gradient))
    first, _, rest = operator.doc.strip().partition("\n\n")
    if gradient:
        first = f"{operator.title} and its gradient, in one pass. {first}"
    yield from docstring(
        8,
        first,
        *rest.split("\n\n"),
        "Args:\n" + "\n".join(arguments),
        f"Returns:\nThe outputs that were asked for, of {outputs}, in the kind of `{operator.inputs[0].name}`.",
        "Raises:\nServiceError: the service refused the request or could not answer; its class says how.\n"
        "LossClientError: there was no answer.",
    )


def docstring(indent: int, *paragraphs: str) -> Code:
    """Return a docstring, each paragraph wrapped anew; one that begins with `Args:` or the like has a line an entry."""
    lines: list[str] = []
    for paragraph in paragraphs:
        lines += ["", *_wrapped(paragraph, WIDTH - indent)] if lines else _wrapped('"""' + paragraph, WIDTH - indent)
    lines[-1:] = [lines[-1], '"""'] if len(lines) > 1 else [lines[0] + '"""']
    # Some descriptions hold backslashes; none is meant as an escape.
    yield from (textwrap.indent(line, " " * indent).replace("\\", "\\\\") for line in lines)


def _wrapped(paragraph: str, width: int) -> list[str]:
    head, _, entries = paragraph.partition("\n")
    if head.endswith(":") and head[:-1].isalpha():
        return [head, *(line for entry in entries.split("\n") for line in _filled(entry, width, "    ", "        "))]
    items = re.split(r"\n(?=- )", paragraph)
    return [line for item in items for line in _filled(item, width, "", "  " if item.startswith("- ") else "")]


def _filled(text: str, width: int, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    main()
