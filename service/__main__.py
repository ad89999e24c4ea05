"""The command line: `loss-service serve`, and the commands of `service.cli`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import cast

from pydantic import ValidationError
from pydantic_settings import SettingsError

from service import __version__
from service.app import create_app
from service.cli import compute, listing
from service.cli.guess import doubtful_variables, with_flag
from service.engine.device import DeviceUnavailableError, choose_device
from service.http import server
from service.http.auth import KeysUnusableError, read_keys
from service.http.listening import CannotListenError
from service.ops import OPERATORS
from service.settings import IN_WORDS, CommandLineError, Settings

PROGRAM = "loss-service"

EXIT_CONFIGURATION = 78
"""Exit status for settings that cannot be used (EX_CONFIG of sysexits.h)."""

EXIT_USAGE = 2
"""Exit status for flags that do not exist, as argparse has it."""

EXIT_START = 3
"""Exit status when it cannot listen, or its start fails, as uvicorn has it."""

EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

EXIT_BROKEN_PIPE = 141
"""Exit status when the reader of the output has gone, as shells have it."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(PROGRAM, description="Losses and their gradients over HTTP.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("serve", help="start the service", add_help=False)
    compute.add_parser(commands)
    listing.add_parsers(commands)
    command, rest = parser.parse_known_args(arguments)
    if command.command == "serve":
        return serve(rest)
    if rest:
        used: argparse.ArgumentParser = command.parser
        used.error(with_flag(f"unrecognized arguments: {' '.join(rest)}", used._option_string_actions))
    return _run(command)


def _run(command: argparse.Namespace) -> int:
    """Run a command that is not `serve` and return its exit status."""
    try:
        status = cast(int, command.run(command))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough; what is left must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except ValidationError as error:
        return _refuse(_sentence(error))
    except (SettingsError, KeysUnusableError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


def serve(arguments: list[str]) -> int:
    """Start the service with settings from flags and `LOSS_` variables; returns the exit status."""
    try:
        settings = Settings.from_command_line(f"{PROGRAM} serve", arguments)
        choose_device(settings.device)
        if settings.api_keys is not None:
            read_keys(settings.api_keys)
    except ValidationError as error:
        return _refuse(_sentence(error))
    except CommandLineError as error:
        return _refuse(f"{with_flag(str(error), Settings.flags())} (--help lists all flags)", EXIT_USAGE)
    except (SettingsError, DeviceUnavailableError, KeysUnusableError) as error:
        return _refuse(str(error))
    doubts = list(doubtful_variables(os.environ, settings))
    try:
        server.run(create_app, settings, lambda address: print(greeting(address, settings), flush=True), doubts)
    except CannotListenError as error:
        return _refuse(str(error), EXIT_START)
    return 0


def greeting(address: str, settings: Settings) -> str:
    """Return what a person who has just started the service wants to paste."""
    example = json.dumps(OPERATORS["cross-entropy"].gradient_example)
    key_flag = "" if settings.api_keys is None else "-H 'Authorization: Bearer KEY' "
    socket_flag = "" if settings.uds is None else f"--unix-socket {settings.uds} "
    return (
        f"\nLoss Service {__version__} is listening. Try it:\n\n"
        f"  curl {socket_flag}{address}/v1/cross-entropy/gradient "
        f"{key_flag}-H 'Content-Type: application/json' \\\n    -d '{example}'\n\n"
        f"API documentation: {address}/docs\n"
    )


_WANTED = {"int_parsing": "be an integer", "float_parsing": "be a number", "bool_parsing": "be true or false"}
"""What a setting should be, where pydantic also tells what it could not do with it."""


def _sentence(error: ValidationError) -> str:
    """Return the first thing that is wrong with the settings, in one line."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
    name = str(first["loc"][0])
    wanted = _WANTED.get(first["type"]) or first["msg"].removeprefix("Input should ")
    if first["type"] == "string_pattern_mismatch":
        wanted = "be " + str(Settings.model_json_schema()["properties"][name][IN_WORDS]).replace("`", "")
    return f"LOSS_{name.upper()} (--{name.replace('_', '-')}) should {wanted}, but is {str(first['input'])[:64]!r}"


def _refuse(reason: str, status: int = EXIT_CONFIGURATION) -> int:
    print(f"{PROGRAM}: {reason}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
