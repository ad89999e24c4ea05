"""Loss Service on Ray Serve: `serve deploy deploy/ray/serve.yaml`, or `serve run loss_on_ray:application`.

Every replica is a whole service: its settings are the `LOSS_` variables of its runtime environment, its engine is its
own. Where it listens is Ray's business, and so is who stops it.
"""

from __future__ import annotations

import asyncio
import logging.config
import os
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.app import create_app
from service.http.logs import choose_format, configuration
from service.http.state import State
from service.settings import Settings

HEALTH_POLL_SECONDS = 0.05

BUDGET_PART = 0.3
"""Part of a replica's memory that requests may hold: half of what is usual, because Ray keeps copies of the bodies."""


class PickledAnswers:
    """The application, for a server that sends answers from one process to another: views cannot be pickled."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_bytes(message: Message) -> None:
            if isinstance(message.get("body"), memoryview):
                message["body"] = bytes(message["body"])
            await send(message)

        await self._app(scope, receive, send_bytes)


def build_app() -> PickledAnswers:
    """Return the application of one replica.

    Raises ValidationError when a variable is no good, DeviceUnavailableError when the device is not there.
    """
    settings = replica_settings(ray.get_runtime_context().get_assigned_resources())
    logging.config.dictConfig(configuration(choose_format(settings.log_format), settings.log_level))
    app = create_app(settings)
    return PickledAnswers(app, app.state.service)


def replica_settings(resources: Mapping[str, float]) -> Settings:
    """Return the settings of a replica to which Ray has assigned resources: `CPU`, `GPU`, `memory` in bytes.

    Ray keeps accounts but binds nobody to them: left alone, every replica would take the cores, the GPU and the memory
    of its whole node. What is not assigned, or given as a variable, is left as it is.
    """
    shares: dict[str, Any] = {"device": "cuda" if resources.get("GPU") else "cpu"}
    if "CPU" in resources:
        shares["threads"] = max(1, int(resources["CPU"]))
    if "memory" in resources:
        shares["memory_budget"] = int(resources["memory"] * BUDGET_PART)
    return Settings(**{name: value for name, value in shares.items() if not os.environ.get(f"LOSS_{name.upper()}")})


@serve.deployment(name="loss-service")
@serve.ingress(build_app)
class LossService:
    """One replica."""

    async def check_health(self) -> None:
        """Wait until every operator has answered its example; raise when one does not, or when the engine is lost.

        Ray gives a replica no work before this has returned once, and replaces one for which it raises.
        """
        state = self.app.state
        while state.readiness == "starting":  # noqa: ASYNC110  # a word that probes read, not an event
            await asyncio.sleep(HEALTH_POLL_SECONDS)
        if state.readiness != "ok":
            raise RuntimeError(f"the replica is {state.readiness}")


application = LossService.bind()
