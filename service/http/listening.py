"""The sockets that the service listens on, bound before anything else is started."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from service.settings import Settings

BACKLOG = 2048
"""How many connections may wait to be accepted."""

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""What binding says of an address that this machine has not: `localhost` names one of IPv6 even where there is none."""


class CannotListenError(Exception):
    """The address of the settings cannot be listened on; the message is a sentence for whoever starts the service."""


def listen(settings: Settings) -> list[socket.socket]:
    """Return sockets that listen on every address that the settings name; raises CannotListenError.

    Connections wait there until somebody accepts them. A socket that was only bound would not do: another process could
    be bound to the same port (SO_REUSEADDR), and fail only later.
    """
    if settings.uds is not None:
        where, variable = str(settings.uds), "LOSS_UDS or --uds"
    else:
        where, variable = f"{settings.host}:{settings.port}", "LOSS_PORT or --port"
    try:
        return [_at_path(settings.uds)] if settings.uds is not None else _at_port(settings.host, settings.port)
    except socket.gaierror as error:
        raise CannotListenError(f"cannot listen on {settings.host}: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotListenError(f"{where} is in use; choose another with {variable}") from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise CannotListenError(f"cannot listen on {where}: {reason}") from error


def _at_port(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each address of a host; all of this machine's when it is empty."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        try:
            listeners.append(socket.create_server(address, family=family, backlog=BACKLOG))
        except OSError as error:
            failure = error
            if error.errno not in _NOT_HERE:
                break
    else:
        if listeners:
            return listeners
    for listener in listeners:
        listener.close()
    raise failure or OSError("it has no address")


def _at_path(path: Path) -> socket.socket:
    """Return a socket at a path that everybody may connect to, in place of one that nobody listens on any more."""
    with suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if not stat.S_ISSOCK(mode) or _is_listened_on(path):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True
