"""uvicorn with an orderly end: one process, or several under a supervisor that replaces those that die."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import multiprocess

from service import metrics
from service.http.guard import GuardedProtocol
from service.http.limits import Limits
from service.http.listening import BACKLOG, listen
from service.http.logs import choose_format, configuration
from service.http.state import State
from service.settings import Settings

logger = logging.getLogger(__name__)

ACCEPTING_PART = 1 / 5
"""Part of the drain time during which connections are still accepted, so that a load balancer can notice."""

UNFINISHED_BODY_SECONDS = 1.0
"""How long a body that is still arriving is waited for once new requests are refused."""

NEW_CONNECTION_SECONDS = 0.2
"""How long a connection accepted last may take to send its request; uvicorn would close it without an answer."""

QUIET_SECONDS = 0.002
"""How long nobody must have connected before the listening socket is closed."""

GARBAGE_THRESHOLDS = (700, 3, 300)
"""New objects before the youngest are looked through for garbage, collections of those before the younger ones are, and
of these before all are. Python's own are 700, 10 and 10."""

START_SECONDS = 30
"""How long the supervisor waits for a worker that does not answer, before it replaces it: on a busy machine importing
torch alone may take many seconds, during which a new worker is silent."""

RESTART_SECONDS = 1.0
"""Longest time for answering what is in flight once the device is lost."""

EXIT_DEVICE_LOST = 70
"""Exit status of a process whose device is lost (EX_SOFTWARE of sysexits.h): its supervisor starts another."""

LAST_WORD_SECONDS = 0.5
"""Part of the drain time left for telling those whose time is over."""


class Config(uvicorn.Config):
    """uvicorn's configuration, made from the service's settings."""

    def __init__(self, create_app: Callable[[Settings], FastAPI], settings: Settings) -> None:
        self.settings = settings
        self.limits = Limits(bytes_per_second=settings.body_bytes_per_second)
        super().__init__(
            partial(create_app, settings),
            factory=True,
            host=settings.host,
            port=settings.port,
            uds=None if settings.uds is None else str(settings.uds),
            workers=settings.workers,
            root_path=settings.root_path,
            http=GuardedProtocol,
            ws="none",
            proxy_headers=False,
            server_header=False,
            access_log=False,
            timeout_worker_healthcheck=START_SECONDS,
            log_config=configuration(choose_format(settings.log_format), settings.log_level),
            backlog=BACKLOG,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
        )


class Server(uvicorn.Server):
    """A server that drains before it stops, and then ends with status 0.

    On SIGTERM it turns unready but goes on accepting for a while, telling everyone to close their connection; then it
    stops listening and answers 503 on connections that are still open, waits for the requests it has, and cuts off
    those that are not done by the end of `drain_seconds`. SIGINT, from a terminal, skips the first step.
    """

    def __init__(self, config: Config, on_started: Callable[[str], None] | None = None) -> None:
        super().__init__(config)
        self._settings = config.settings
        self._on_started = on_started
        self._lingers = True

    @property
    def _state(self) -> State:
        return cast(State, cast(Any, self.config.loaded_app).state.service)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        # What is there now stays: looking through all of torch for garbage would hold every request up for 50 ms.
        # Requests and connections leave none, so that there is no need to look through those of thousands often.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GARBAGE_THRESHOLDS)
        await super().startup(sockets)
        if self.started and self._on_started is not None:
            self._on_started(address_of(self._settings, self.servers[0].sockets[0]))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; uvicorn would raise the signal again afterwards, and not end with status 0."""
        if sig == signal.SIGINT:
            self.force_exit = self.should_exit
            self._lingers = False
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Stop, too, when the device is lost."""
        return await super().on_tick(counter) or self._state.is_restarting

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop; raises SystemExit when the device was lost."""
        super().run(sockets)
        if self.started and self._state.is_restarting:
            sys.exit(EXIT_DEVICE_LOST)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then stop; at once, when the device is lost."""
        if self._state.is_restarting:
            self.config.timeout_graceful_shutdown = cast(int, RESTART_SECONDS)
            await super().shutdown(sockets)
            return
        total = self._settings.drain_seconds
        accepting = total * ACCEPTING_PART if self._lingers else 0.0
        self._state.begin_draining()
        await self._go_on_for(accepting)
        await self._stop_listening(sockets or [])
        await asyncio.sleep(NEW_CONNECTION_SECONDS)
        self._state.begin_refusing()
        cut = asyncio.get_running_loop().call_later(UNFINISHED_BODY_SECONDS, self._state.cut_unfinished_bodies)
        self.config.timeout_graceful_shutdown = cast(
            int, max(0.0, total - accepting - NEW_CONNECTION_SECONDS - LAST_WORD_SECONDS)
        )
        await super().shutdown(sockets)
        cut.cancel()

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Close the listening sockets, having accepted every connection that was waiting there.

        The kernel resets what still waits when the last descriptor of a listening socket is closed. So one more is
        kept until, within one step of the event loop, nobody has come for a while: those who were answered last come
        back at once, and all at the same time.
        """
        last = [socket.socket(fileno=os.dup(each.fileno())) for server in self.servers for each in server.sockets]
        for server in self.servers:
            server.close()
        for shared in sockets:
            shared.close()
        waiting: list[socket.socket] = []
        for listener in last:
            listener.settimeout(QUIET_SECONDS)
            with suppress(TimeoutError):
                while len(waiting) < self.config.backlog:
                    waiting.append(listener.accept()[0])
            os.close(listener.detach())  # at once: who connects after the last look is reset
        for connection in waiting:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._create_protocol, connection, ssl=self.config.ssl
            )

    def _create_protocol(self) -> asyncio.Protocol:
        protocol = cast("type[HttpToolsProtocol]", self.config.http_protocol_class)
        return protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def _go_on_for(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        ticks = 0
        while asyncio.get_running_loop().time() < end and self._lingers:
            await asyncio.sleep(0.1)
            ticks += 1
            await self.on_tick(ticks)


class WorkerProcess(multiprocess.Process):
    """One of several processes, with the server that drains."""

    @property
    def server(self) -> uvicorn.Server:
        """The server of this process, made in it."""
        if self._server is None:
            self._server = Server(cast(Config, self.config))
        return self._server

    def ping(self, timeout: float = START_SECONDS) -> bool:
        """Return whether the process answers in time; one that has ended is not waited for."""
        connection = self.parent_conn
        try:
            connection.send(b"ping")
            if connection not in wait([connection, self.process.sentinel], timeout):
                return False
            connection.recv()
        except (OSError, EOFError):
            return False
        return True

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, and stop in order should the supervisor be killed: nobody would replace or end this process then."""
        threading.Thread(target=_end_with_parent, daemon=True).start()
        super().target(sockets)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


class Supervisor(multiprocess.Multiprocess):
    """Starts and replaces the worker processes."""

    def terminate_all(self) -> None:
        """Tell the workers to stop, and leave the listening socket to them: what waits there is theirs to accept."""
        super().terminate_all()
        for listener in self.sockets:
            listener.close()


def run(
    create_app: Callable[[Settings], FastAPI],
    settings: Settings,
    on_started: Callable[[str], None],
    doubts: Sequence[str] = (),
) -> None:
    """Serve until told to stop; `on_started` is called with the address once it is listened on.

    `doubts` are sentences about how it was started, and go to the log. Raises CannotListenError before anything is
    started.
    """
    listeners = listen(settings)

    def tell(address: str) -> None:
        for doubt in doubts:
            logger.warning(doubt)
        logger.info("listening on %s (Ctrl-C ends it)", address)
        on_started(address)

    if settings.workers == 1:
        Server(Config(create_app, settings), tell).run(listeners)
        return
    with tempfile.TemporaryDirectory(prefix="loss-metrics-") as folder:
        os.environ[metrics.MULTIPROCESS_VARIABLE] = folder
        config = Config(create_app, settings.share())
        tell(address_of(settings, listeners[0]))
        # uvicorn's supervisor looks this name up when it starts a worker, and offers no other way to choose the class.
        multiprocess.Process = WorkerProcess  # type: ignore[misc]
        Supervisor(config, listeners).run()


def address_of(settings: Settings, listener: socket.socket) -> str:
    """Return the address that a listening socket is reached at, as a URL."""
    scheme = "https" if settings.tls_cert else "http"
    if settings.uds is not None:
        return f"{scheme}://localhost"
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  # said, not bound
        host = "localhost"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
