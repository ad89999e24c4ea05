"""The command line: `loss-service serve`."""

from __future__ import annotations

import argparse
import json
import socket
import sys

import uvicorn
from pydantic import ValidationError
from pydantic_settings import SettingsError

from service import __version__
from service.app import create_app
from service.engine.device import DeviceUnavailableError
from service.ops import OPERATORS
from service.settings import Settings

PROGRAM = "loss-service"

EXIT_CONFIGURATION = 78
"""Exit status for settings that cannot be used (EX_CONFIG of sysexits.h)."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(PROGRAM, description="Losses and their gradients over HTTP.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="start the service", add_help=False)
    command, rest = parser.parse_known_args(arguments)
    return {"serve": serve}[command.command](rest)


def serve(arguments: list[str]) -> int:
    """Start the service with settings from flags and `LOSS_` variables; returns the exit status."""
    try:
        settings = Settings(_cli_parse_args=arguments, _cli_prog_name=f"{PROGRAM} serve", _cli_kebab_case=True)
        app = create_app(settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        return _refuse(f"{name} (LOSS_{name.upper()}): {first['msg']}, got {str(first['input'])!r}")
    except (SettingsError, DeviceUnavailableError) as error:
        return _refuse(str(error))
    if (settings.tls_cert is None) != (settings.tls_key is None):
        return _refuse("tls_cert and tls_key go together; only one is set")
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        uds=None if settings.uds is None else str(settings.uds),
        http="httptools",
        ws="none",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_level=settings.log_level,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    Server(config, settings).run()
    return 0


class Server(uvicorn.Server):
    """A server that says how to call it once it listens."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then print the greeting."""
        await super().startup(sockets)
        if self.started:
            print(greeting(self._address(), self._settings), flush=True)

    def _address(self) -> str:
        host, port = self.servers[0].sockets[0].getsockname()[:2] if self._settings.uds is None else ("localhost", None)
        host = f"[{host}]" if ":" in host else host
        return f"{(self.config.is_ssl and 'https') or 'http'}://{host}" + (f":{port}" if port else "")


def greeting(address: str, settings: Settings) -> str:
    """Return what a person who has just started the service wants to paste."""
    example = json.dumps(OPERATORS["cross-entropy"].gradient_example)
    socket_flag = "" if settings.uds is None else f"--unix-socket {settings.uds} "
    return (
        f"\nLoss Service {__version__} is listening. Try it:\n\n"
        f"  curl {socket_flag}{address}{settings.root_path}/v1/cross-entropy/gradient "
        f"-H 'Content-Type: application/json' \\\n    -d '{example}'\n\n"
        f"API documentation: {address}{settings.root_path}/docs\n"
    )


def _refuse(reason: str) -> int:
    print(f"{PROGRAM}: {reason}", file=sys.stderr)
    return EXIT_CONFIGURATION


if __name__ == "__main__":
    sys.exit(main())
