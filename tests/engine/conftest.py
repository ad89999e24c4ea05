"""Ways to make the engine cut and spread even small jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from service.engine import batch
from service.engine.scheduler import Engine


@pytest.fixture
def cut_into(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make blocks of so many bytes of logits, however small the job is."""

    def cut(block_bytes: int) -> None:
        monkeypatch.setattr(batch, "UNCUT_ELEMENTS", 0)
        monkeypatch.setattr(batch, "BLOCK_BYTES", block_bytes)

    return cut


@pytest.fixture
def two_workers() -> Iterator[Engine]:
    """An engine of two worker threads."""
    engine = Engine(torch.device("cpu"), threads=2)
    yield engine
    engine.close()
