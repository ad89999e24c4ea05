"""One real service for all tests of the client; it needs a key, and takes small bodies only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from loss_client import LossClient

from tests.support.running import RunningService, running_service

KEY = "the-key-of-these-tests"
LIMIT = 1 << 18
"""Largest body that the service takes, in bytes: what is larger has to be cut."""


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    keys = Path(tmp_path_factory.mktemp("keys"), "keys")
    keys.write_text(KEY + "\n")
    with running_service("--max-body-bytes", str(LIMIT), "--api-keys", str(keys)) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="session")
def client(service: RunningService) -> Iterator[LossClient]:
    with LossClient(service.address, api_key=KEY) as opened:
        yield opened
