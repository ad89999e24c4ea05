"""The compose file starts the service with every setting that is given to it."""

from __future__ import annotations

from pathlib import Path

import yaml

from service.settings import Settings

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose.yaml"
OWN = {"LOSS_HOST", "LOSS_PORT", "LOSS_UDS"}
"""Where it listens inside of the container is not for the caller to choose."""


def test_every_setting_is_passed_on() -> None:
    environment = yaml.safe_load(COMPOSE.read_text())["services"]["loss-service"]["environment"]

    assert set(environment) == {f"LOSS_{name.upper()}" for name in Settings.model_fields} - OWN
    for name, value in environment.items():
        assert value.startswith(f"${{{name}:-"), name
