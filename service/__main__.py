"""The command line: `loss-service serve`."""

from __future__ import annotations

import argparse
import json
import sys

from pydantic import ValidationError
from pydantic_settings import SettingsError

from service import __version__
from service.app import create_app
from service.engine.device import DeviceUnavailableError, choose_device
from service.http import server
from service.http.auth import KeysUnusableError, read_keys
from service.ops import OPERATORS
from service.settings import Settings

PROGRAM = "loss-service"

EXIT_CONFIGURATION = 78
"""Exit status for settings that cannot be used (EX_CONFIG of sysexits.h)."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(PROGRAM, description="Losses and their gradients over HTTP.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("serve", help="start the service", add_help=False)
    command, rest = parser.parse_known_args(arguments)
    return {"serve": serve}[command.command](rest)


def serve(arguments: list[str]) -> int:
    """Start the service with settings from flags and `LOSS_` variables; returns the exit status."""
    try:
        settings = Settings.from_command_line(f"{PROGRAM} serve", arguments)
        choose_device(settings.device)
        if settings.api_keys is not None:
            read_keys(settings.api_keys)
    except ValidationError as error:
        return _refuse(_sentence(error))
    except (SettingsError, DeviceUnavailableError, KeysUnusableError) as error:
        return _refuse(str(error))
    server.run(create_app, settings, lambda address: print(greeting(address, settings), flush=True))
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


def _sentence(error: ValidationError) -> str:
    """Return the first thing that is wrong with the settings, in one line."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
    name = str(first["loc"][0])
    wanted = first["msg"].removeprefix("Input should ").removeprefix("String should ")
    return f"LOSS_{name.upper()} (--{name.replace('_', '-')}) should {wanted}, but is {str(first['input'])[:64]!r}"


def _refuse(reason: str) -> int:
    print(f"{PROGRAM}: {reason}", file=sys.stderr)
    return EXIT_CONFIGURATION


if __name__ == "__main__":
    sys.exit(main())
