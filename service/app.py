"""Puts the parts together: engine, routes, pages, and what surrounds every request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from service import __version__, metrics
from service.engine.budget import Budget
from service.engine.buffers import trim
from service.engine.device import choose_device
from service.engine.scheduler import Engine
from service.http.auth import Keys, read_keys
from service.http.docs import install_openapi
from service.http.envelope import ALWAYS_ANSWERED, Envelope
from service.http.explore import explorer_routes
from service.http.hosts import Hosts
from service.http.infer import infer_endpoints
from service.http.intake import Intake
from service.http.oip_routes import OpenInference, refuse_other_pages
from service.http.pages import page_routes
from service.http.permits import Gate
from service.http.probes import check_examples, probe_router
from service.http.problems import check_path, install_handlers
from service.http.routes import Endpoint, OnlyPost, operator_endpoints
from service.http.state import State
from service.http.telemetry import configuration as telemetry
from service.http.telemetry import is_traced
from service.ops import OPERATORS
from service.ops.spec import Operator
from service.settings import Settings
from service.wire.shared_memory import SharedMemory

logger = logging.getLogger("service")


UNUSED_SECONDS = 2.0
"""How long a pooled buffer lies unused before its memory is handed back."""

TIDY_BYTES = 1 << 24
"""Once so much has been handled and nothing is in flight, what the C library keeps of it is handed back, too."""


async def _tidy(engine: Engine, state: State, note_state: Callable[[], None]) -> None:
    """Hand memory back that lies unused, and tell the metrics what other processes are to show."""
    while True:
        await asyncio.sleep(UNUSED_SECONDS / 2)
        note_state()
        dropped = engine.buffers.drop_unused(UNUSED_SECONDS)
        if dropped or (state.handled_bytes >= TIDY_BYTES and not state.in_flight):
            state.handled_bytes = 0
            await asyncio.to_thread(trim)


def _restart(state: State) -> None:
    logger.critical("the device is lost; this process answers what it has, and ends")
    state.begin_restarting()


def create_app(settings: Settings | None = None, operators: Mapping[str, Operator] = OPERATORS) -> FastAPI:
    """Return the application, with its engine.

    Raises DeviceUnavailableError when the device is not there, KeysUnusableError when the file of API keys is no good.
    """
    settings = settings or Settings()
    checks = [Hosts(settings.host_names).check]
    if settings.api_keys is not None:
        checks.append(Keys(read_keys(settings.api_keys), settings.rate_per_key, workers=settings.workers).check)
    if settings.shared_memory:
        checks.append(refuse_other_pages)
    checks.append(check_path)
    operators = dict(operators)
    engine = Engine(choose_device(settings.device), threads=settings.threads, queue_seconds=settings.queue_seconds)
    budget = Budget(settings.memory_budget, settings.queue_seconds)
    state = State()
    gate = Gate(
        budget, engine.backlog, Intake(settings.queue_seconds, lambda: engine.is_backed_up), settings.deadline_seconds
    )
    regions = SharedMemory()
    endpoints: dict[str, Endpoint[Any]] = {
        **operator_endpoints(operators, engine, gate, settings, state),
        **infer_endpoints(operators, engine, gate, settings, state, regions=regions),
    }

    def note_state() -> None:
        engine.note_state()
        budget.note_state()
        metrics.IN_FLIGHT.set(state.in_flight)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        engine.on_failure = lambda: loop.call_soon_threadsafe(_restart, state)
        self_test = asyncio.create_task(_become_ready(engine, state))
        tidying = asyncio.create_task(_tidy(engine, state, note_state))
        yield
        tidying.cancel()
        await self_test
        await asyncio.to_thread(engine.close)
        metrics.count_noted()

    async def _become_ready(engine: Engine, state: State) -> None:
        try:
            await check_examples(operators, engine)
            if state.readiness == "starting":
                state.readiness = "ok"
        except Exception:
            logger.exception("an operator does not answer its own example; the service stays unready")
            if not state.is_restarting:
                state.readiness = "failed"

    app = FastAPI(
        title="Loss Service",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry=telemetry(unseen=ALWAYS_ANSWERED),
    )
    app.router.routes.append(OnlyPost(endpoints))
    app.include_router(probe_router(operators, note_state, settings, state))
    app.router.routes.extend(OpenInference(operators, settings, state, regions).routes())
    app.router.routes.extend(page_routes(has_keys=settings.api_keys is not None))
    app.router.routes.extend(explorer_routes(has_keys=settings.api_keys is not None))
    install_handlers(app, operators)
    install_openapi(app, operators, settings)
    app.add_middleware(
        Envelope,
        state=state,
        checks=checks,
        origins=settings.origins,
        endpoints=endpoints,
        is_traced=is_traced(),
    )
    app.state.service = state
    app.state.engine = engine
    app.state.budget = budget
    return app
