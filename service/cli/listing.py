"""`loss-service operators` and `loss-service openapi`: what there is, for people and for programs."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

import orjson

from service import describe
from service.app import create_app
from service.cli.table import of_cells
from service.ops import OPERATORS
from service.settings import Settings

WIDEST = 120
"""Longest line of text, in characters, however wide the terminal is."""


def add_parsers(commands: Any) -> None:
    """Add both commands to the command line."""
    operators = commands.add_parser("operators", help="list the operators", description="List the operators.")
    operators.add_argument("operator", nargs="?", choices=list(OPERATORS), help="one of them, with all its options")
    operators.add_argument("--json", action="store_true", help="print what GET /v1/operators answers")
    operators.set_defaults(run=show_operators, parser=operators)
    openapi = commands.add_parser(
        "openapi", help="print the OpenAPI document", description="Print the OpenAPI document as JSON."
    )
    openapi.set_defaults(run=show_openapi, parser=openapi)


def show_operators(arguments: argparse.Namespace) -> int:
    """Print the operator table, or one line of it in full; returns the exit status."""
    listing = describe.listing(OPERATORS)
    if arguments.operator:
        listing = [operator for operator in listing if operator["name"] == arguments.operator]
    if arguments.json:
        sys.stdout.write(orjson.dumps(listing, option=orjson.OPT_INDENT_2).decode() + "\n")
    elif arguments.operator:
        print(in_full(listing[0]))
    else:
        head = ("operator", "tensors (* optional)", "outputs (* on request)", "row")
        print(of_cells([head, *(_line(operator) for operator in listing)]))
    return 0


def _line(operator: dict[str, Any]) -> tuple[str, ...]:
    tensors = ", ".join(tensor["name"] + ("" if tensor["required"] else "*") for tensor in operator["tensors"])
    outputs = ", ".join(output["name"] + ("" if output["default"] else "*") for output in operator["outputs"])
    return operator["name"], tensors, outputs, OPERATORS[operator["name"]].formula


def in_full(operator: dict[str, Any]) -> str:
    """Return everything about an operator as text."""
    tensors = [
        (f"{tensor['name']} {tensor['shape']}" + ("" if tensor["required"] else ", optional"), tensor["description"])
        for tensor in operator["tensors"] + operator["gradient_tensors"]
    ]
    options = [
        (f"{option['name']}: {option['value']}; {_default(option['default'])}", option["description"])
        for option in operator["options"]
    ]
    outputs = [
        (
            f"{output['name']} {output['shape']}"
            + (", of the gradient" if output["gradient_only"] else "")
            + ("" if output["default"] else ", on request"),
            output["description"],
        )
        for output in operator["outputs"]
    ]
    blocks = {"Tensors": tensors, "Options": options, "Outputs": outputs}
    return "\n\n".join(
        (
            operator["description"],
            f"POST {operator['path']}, POST {operator['gradient_path']}",
            *(_block(name, entries) for name, entries in blocks.items()),
        )
    )


def _default(value: object) -> str:
    return "no default" if value is None else f"{value} by default"


def _block(name: str, entries: Iterable[tuple[str, str]]) -> str:
    width = min(shutil.get_terminal_size().columns, WIDEST)
    lines = [
        textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent + "  ")
        for head, description in entries
        for text, indent in ((head, "  "), (description, "      "))
    ]
    return "\n".join([name, *lines])


def show_openapi(_: argparse.Namespace) -> int:
    """Print the OpenAPI document of a service with the settings of the environment; returns the exit status."""
    print(json.dumps(create_app(Settings(device="cpu")).openapi(), indent=2, ensure_ascii=False))
    return 0
