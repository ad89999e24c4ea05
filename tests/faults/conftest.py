"""What the trials share: one service with its defaults, and how a trial tells its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.raw_http import Listening, listening

Tell = Callable[[str], None]


@pytest.fixture(scope="session")
def service() -> Iterator[Listening]:
    with listening("tcp", "--device", "cpu", "--log-level", "warning") as running:
        yield running


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Print one line of figures; `make faults` shows it."""

    def tell(figures: str) -> None:
        print(f"\n{request.node.originalname.removeprefix('test_').replace('_', ' ')}: {figures}", end=" ")

    return tell
