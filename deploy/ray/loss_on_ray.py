"""Loss Service on Ray Serve: `serve deploy deploy/ray/serve.yaml`, or `serve run loss_on_ray:application`.

Every replica is a whole service: its settings are the `LOSS_` variables of its runtime environment, its engine is its
own. Where it listens is Ray's business, and so is who stops it.
"""

from __future__ import annotations

import asyncio
import logging.config
import os

import ray
from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.app import create_app
from service.http.logs import choose_format, configuration
from service.http.state import State
from service.settings import Settings

HEALTH_POLL_SECONDS = 0.05


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
    settings = replica_settings(cores=ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0))
    logging.config.dictConfig(configuration(choose_format(settings.log_format), settings.log_level))
    app = create_app(settings)
    return PickledAnswers(app, app.state.service)


def replica_settings(cores: float) -> Settings:
    """Return the settings of a replica that was given so many cores.

    Ray reserves cores but binds nobody to them: left alone, every replica would start a thread for each core of its
    node.
    """
    if os.environ.get("LOSS_THREADS"):
        return Settings()
    return Settings(threads=max(1, int(cores)))


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
