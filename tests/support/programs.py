"""A service started by a program of the test's own: with an operator that fails, say, or under an audit."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.raw_http import PATIENCE_SECONDS, Listening
from tests.support.running import running_service


@contextmanager
def listening_as(program: str, *flags: str) -> Iterator[Listening]:
    """Start a service by a program in Python that is given the command line `serve ...`."""
    with running_service(*flags, program=("-c", program)) as service:
        service.wait_until_ready()
        yield Listening(service, lambda: socket.create_connection(("127.0.0.1", service.port), PATIENCE_SECONDS), False)
