"""`loss-service compute`: an operator over tensors in files, in this process or by a running service."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from service import describe
from service.cli import files, table
from service.cli.guess import KEY_VARIABLE
from service.cli.progress import Bar
from service.engine.device import DeviceUnavailableError, choose_device
from service.engine.scheduler import Engine
from service.errors import RequestError
from service.ops import OPERATORS
from service.ops.bind import Job, bind, fields_of
from service.ops.request import describe_bounds
from service.ops.spec import UPSTREAM, Operator, Rows
from service.settings import Settings
from service.tensors import Message

EXIT_REFUSED = 65
"""Exit status when what the files hold cannot be computed (EX_DATAERR of sysexits.h)."""
EXIT_FILE = 66
"""Exit status when a file cannot be read or written (EX_NOINPUT)."""
EXIT_UNAVAILABLE = 69
"""Exit status when the device is not there, or the service does not answer (EX_UNAVAILABLE)."""

ABOUT = """\
Files hold tensors by name: .safetensors and .npz as they are, .json as the service takes it (with options, too), and
- stands for JSON on the standard input. A .npy file holds one tensor: --tensor logits=logits.npy.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the command line: one command below it for every operator of the table."""
    summary = "compute losses of tensors in files"
    parser = commands.add_parser("compute", help=summary, description=f"{summary.capitalize()}. {ABOUT}")
    operators = parser.add_subparsers(dest="operator", required=True, metavar="operator")
    for operator in OPERATORS.values():
        _add_operator(operators, operator)


def _add_operator(operators: Any, operator: Operator) -> None:
    tensors = ", ".join(
        tensor.name + ("" if tensor.required else " (optional)")
        for tensor in describe.inputs_of(operator, gradient=False)
    )
    parser = operators.add_parser(
        operator.name,
        help=operator.title,
        description=f"{operator.title}. Tensors: {tensors}; with --gradient also {UPSTREAM}. {ABOUT}",
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("files", nargs="*", metavar="FILE", help="files that hold tensors by name")
    parser.add_argument(
        "--tensor", action="append", default=[], type=_named, metavar="NAME=FILE", help="a .npy file, and its tensor"
    )
    parser.add_argument("--gradient", action="store_true", help="compute the gradient, too")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=f"where the results go, in the format of its ending ({', '.join(files.OUTPUT_ENDINGS)}; - for JSON on the "
        "standard output); a table is printed unless given",
    )
    where = parser.add_argument_group("where it is computed")
    where.add_argument(
        "--url",
        help="address of a running service that computes, instead of this process; needs the Python client "
        f"(loss-client). An API key goes into the variable {KEY_VARIABLE}.",
    )
    where.add_argument("--timeout", type=_seconds, default=60.0, metavar="SECONDS", help="longest wait for it (60)")
    where.add_argument("--device", default="auto", help="device of this process: auto, cpu, cuda or cuda:N")
    where.add_argument("--threads", type=int, metavar="N", help="workers of this process; all cores unless given")
    options = parser.add_argument_group("options")
    for name, option in operator.options.model_fields.items():
        options.add_argument(
            "--" + name.replace("_", "-"),
            dest=f"option_{name}",
            type=_value,
            metavar="NAME,..." if name == "outputs" else "VALUE",
            help=f"{option.description} ({describe_bounds(option)})".replace("%", "%%").replace("`", ""),
        )


def _named(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not (name and equals and file.lower().endswith(".npy")):
        raise argparse.ArgumentTypeError("must be NAME=FILE with a .npy file")
    return name, file


def _seconds(text: str) -> float:
    if not (seconds := float(text)) > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return seconds


def _value(text: str) -> object:
    """Return a number where the text is one; whether an option can be that is the operator's to say."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def run(arguments: argparse.Namespace) -> int:
    """Compute and show or write the results; returns the exit status."""
    try:
        _compute(arguments)
    except RequestError as error:
        return _refuse(error.detail, EXIT_REFUSED)
    except files.FileUnusableError as error:
        return _refuse(str(error), EXIT_FILE)
    except (DeviceUnavailableError, RemoteError) as error:
        return _refuse(str(error), getattr(error, "status", EXIT_UNAVAILABLE))
    return 0


def _refuse(reason: str, status: int) -> int:
    print(f"loss-service: {reason}", file=sys.stderr)
    return status


def _compute(arguments: argparse.Namespace) -> None:
    if not (arguments.files or arguments.tensor):
        raise files.FileUnusableError("there are no tensors; name a file, or - for JSON on the standard input")
    bar = Bar()
    count = _Count(bar)
    operator = count.watched(OPERATORS[arguments.operator])
    request = files.read_request(arguments.files, arguments.tensor, fields_of(operator, gradient=arguments.gradient))
    request.options.update(_options(arguments))
    job = bind(operator, request, gradient=arguments.gradient)
    count.rows = job.layout.rows
    if arguments.output is not None:
        files.check_output(arguments.output, job.plan.dtypes)
    try:
        results = _by_service(request, job, arguments, bar) if arguments.url else _here(job, arguments)
    finally:
        bar.close()
    if arguments.output is None:
        print(table.of_tensors(results))
    else:
        files.write_answer(arguments.output, results, job.options.encoding)


def _options(arguments: argparse.Namespace) -> dict[str, object]:
    given = {
        name.removeprefix("option_"): value
        for name, value in vars(arguments).items()
        if name.startswith("option_") and value is not None
    }
    if "outputs" in given:
        given["outputs"] = str(given["outputs"]).split(",")
    return given


def _here(job: Job, arguments: argparse.Namespace) -> Mapping[str, Tensor]:
    """Compute in this process."""
    threads = arguments.threads or Settings.model_fields["threads"].get_default(call_default_factory=True)
    engine = Engine(choose_device(arguments.device), threads=max(1, threads))
    try:
        return engine.compute(job).tensors
    finally:
        engine.close()


class _Count:
    """Counts the rows that are done, of `rows` in all, and shows them."""

    def __init__(self, bar: Bar) -> None:
        self.rows = 0
        self._bar = bar
        self._done = 0
        self._lock = threading.Lock()

    def watched(self, operator: Operator) -> Operator:
        """Return an operator that counts what it computes: it is a value, so the engine need not know."""
        return dataclasses.replace(
            operator,
            forward=self._watched(operator.forward),
            value_and_gradient=self._watched(operator.value_and_gradient),
        )

    def _watched(self, function: Callable[..., bool | None]) -> Callable[..., bool | None]:
        def compute(block: Rows, *rest: Any) -> bool | None:
            are_defined = function(block, *rest)
            with self._lock:
                self._done += block.count
                self._bar.show(self._done / self.rows)
            return are_defined

        return compute


class RemoteError(Exception):
    """The service at the address did not compute it."""

    def __init__(self, reason: str, status: int = EXIT_UNAVAILABLE) -> None:
        super().__init__(reason)
        self.status = status


def _by_service(request: Message, job: Job, arguments: argparse.Namespace, bar: Bar) -> Mapping[str, Tensor]:
    """Have it computed by the service at `--url`; what could be seen to be wrong here was not sent."""
    try:
        import loss_client  # noqa: PLC0415 - a distribution of its own, which only --url needs
    except ModuleNotFoundError as error:
        raise RemoteError("--url needs the Python client; install loss-client (clients/python)") from error
    options = {name: value for name, value in request.options.items() if name not in describe.JSON_ONLY}
    try:
        with loss_client.LossClient(
            arguments.url, api_key=os.environ.get(KEY_VARIABLE), timeout=arguments.timeout
        ) as client:
            return client.compute(
                job.operator.name,
                _typed(request, job),
                options,
                gradient=job.gradient,
                progress=lambda progress: bar.show(progress.fraction),
            )
    except loss_client.problems.UnauthorizedError as error:
        raise RemoteError(f"{error}; an API key goes into the variable {KEY_VARIABLE}", EXIT_REFUSED) from error
    except loss_client.RequestRefusedError as error:
        raise RemoteError(str(error), EXIT_REFUSED) from error
    except (loss_client.LossClientError, ValueError) as error:
        raise RemoteError(str(error)) from error


def _typed(request: Message, job: Job) -> dict[str, Tensor]:
    """Return the tensors of a request in the types that they have: numbers of JSON took theirs when they were bound."""
    tensors = {name: wire.values for name, wire in request.tensors.items()}
    for name, wire in request.tensors.items():
        bound = job.upstream if name == UPSTREAM else job.tensors[name]
        if wire.is_literal and bound is not None and bound.is_floating_point():
            tensors[name] = bound.reshape(wire.shape)
    return tensors
