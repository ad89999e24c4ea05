"""More is asked than can be computed: what can be is, the rest is refused at once, and nobody waits in vain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from tests.faults.conftest import Tell
from tests.support.binary import BINARY, cross_entropy_request
from tests.support.open_loop import Load, Order, Outcome, offer, quantile
from tests.support.probing import probing
from tests.support.raw_http import Listening, listening, request

QUEUE_SECONDS = 0.5
"""Some times the service time: with room for one, an engine is idle whenever nobody comes while it computes."""
TICK = os.sysconf("SC_CLK_TCK")

CLASSES = 32_000
ASKING = "Expect: 100-continue"
"""A caller who asks first is refused before he sends; next to taking and computing megabytes, that costs little."""

TOO_LONG = 1 << 40
"""No service takes so much: to be told so costs what any refusal before the body costs."""


@pytest.fixture(scope="module")
def engine_of_one() -> Iterator[Listening]:
    """A service whose engine has one thread, so that the other core is left to whoever receives and refuses."""
    flags = ("--device=cpu", "--threads=1", f"--queue-seconds={QUEUE_SECONDS}", "--log-level=error")
    with listening("tcp", *flags) as running:
        yield running


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


@dataclass(frozen=True)
class Bounds:
    """What is asked of a trial of some length, with requests of some size."""

    rows: int
    seconds: float
    goodput: dict[float, float]
    """Least part of the peak, by how many times the peak is offered."""
    admitted: float
    """Most that the 99th percentile may be of the queue bound and twice the service time."""
    refused_ms: float


SHORT = Bounds(128, 1.5, {10.0: 0.3}, admitted=4.0, refused_ms=1000.0)
LONG = Bounds(1024, 20.0, {2.0: 0.95, 10.0: 0.9}, admitted=1.0, refused_ms=2.0)


@pytest.mark.parametrize("bounds", [SHORT, pytest.param(LONG, marks=pytest.mark.faults)], ids=["short", "long"])
def test_goodput_under_overload_is_that_of_the_peak(
    engine_of_one: Listening, bounds: Bounds, tmp_path: Path, tell: Tell
) -> None:
    port = engine_of_one.service.port
    answered_path, refused_path = tmp_path / "answered", tmp_path / "refused"
    answered_path.write_bytes(cross_entropy_request(bounds.rows, CLASSES, ASKING))
    refused_path.write_bytes(request("POST", "/v1/cross-entropy", BINARY, ASKING, length=TOO_LONG))

    _closed(engine_of_one, answered_path, 0.5)  # what it learns from its first
    refusals, refused_seconds = _closed(engine_of_one, refused_path, bounds.seconds / 2)
    refusal_cost = refused_seconds / len(refusals.refused)
    peak, peak_seconds = _closed(engine_of_one, answered_path, bounds.seconds)
    peak_cost = (peak_seconds - refusal_cost * len(peak.refused)) / len(peak.answered)
    service_seconds = 1 / peak.goodput
    bound = QUEUE_SECONDS + 2 * service_seconds
    tell(
        f"peak {peak.goodput:.1f}/s; a refusal costs 1/{peak_cost / refusal_cost:.0f} of an answer "
        f"({refusal_cost * 1e3:.2f} ms of processor)"
    )

    assert set(refusals.counts) == {"413"}
    for times, least in bounds.goodput.items():
        with probing(port, "new", 10.0) as probes:
            rate = times * peak.goodput
            outcome = offer(Order(port, str(answered_path), bounds.seconds, rate=rate, patience=2.0, asks_first=True))
        part, admitted, refused = outcome.goodput / peak.goodput, *_waits(outcome)
        tell(
            f"{times:g} x: goodput {part:.0%} of the peak, admitted p99 {admitted * 1e3:.0f} ms (bound "
            f"{bound * 1e3:.0f}), refused p50 {refused * 1e3:.2f} ms, {outcome.without_retry_after} without "
            f"Retry-After, {outcome.counts}; health: {len(probes.latencies)} probes, {probes.failures} failed, p99 "
            f"{quantile(probes.latencies, 0.99) * 1e3:.1f} ms"
        )
        assert part >= least
        assert admitted <= bounds.admitted * bound
        assert refused * 1e3 <= bounds.refused_ms
        assert outcome.without_retry_after == 0
        assert set(outcome.counts) <= {"200", "503"}
        assert (probes.failures, bool(probes.latencies)) == (0, True)


def _closed(running: Listening, path: Path, seconds: float) -> tuple[Outcome, float]:
    """Ask as fast as answers come, and return what that cost in seconds of processor."""
    before = processor_seconds(running.service.process.pid)
    order = Order(running.service.port, str(path), seconds, connections=2, patience=10.0, asks_first=True)
    outcome = offer(order)
    return outcome, processor_seconds(running.service.process.pid) - before


def _waits(outcome: Outcome) -> tuple[float, float]:
    return quantile(outcome.answered, 0.99), quantile(outcome.refused, 0.5)


KEYS = {"noisy": "noisy-key-0123456789", "quiet": "quiet-key-0123456789"}
RATE = 20.0
"""Ten times this, refused, is a small part of what one process can do."""


@pytest.mark.parametrize(
    ("rounds", "times"), [(1, 30.0), pytest.param(5, 1.5, marks=pytest.mark.faults)], ids=["short", "long"]
)
def test_a_noisy_key_takes_nothing_from_a_quiet_one(rounds: int, times: float, tmp_path: Path, tell: Tell) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\n".join(KEYS.values()))
    for name, key in KEYS.items():
        request = cross_entropy_request(64, 100, f"Authorization: Bearer {key}")
        (tmp_path / name).write_bytes(request)
    flags = (f"--api-keys={keys}", f"--rate-per-key={RATE}", "--device=cpu", "--log-level=error")
    seconds = 1.0 if rounds == 1 else 10.0
    p99: list[tuple[float, float]] = []
    with listening("tcp", *flags) as running:
        quiet = Order(running.service.port, str(tmp_path / "quiet"), seconds, rate=0.75 * RATE, patience=5.0)
        noise = Order(running.service.port, str(tmp_path / "noisy"), seconds + 1, rate=10 * RATE, patience=5.0)
        for _ in range(rounds):
            alone = offer(quiet)
            load = Load(noise)
            beside = offer(quiet)
            noisy = load.outcome()
            p99.append((quantile(alone.answered, 0.99), quantile(beside.answered, 0.99)))

            assert set(beside.counts) == {"200"}
            assert set(noisy.counts) == {"200", "429"}
            assert noisy.counts["200"] <= RATE * (seconds + 1) + RATE
            assert noisy.without_retry_after == 0

    part = median(beside / alone for alone, beside in p99)
    tell(
        f"quiet key p99 {median(each[0] for each in p99) * 1e3:.1f} ms alone, "
        f"{median(each[1] for each in p99) * 1e3:.1f} ms beside ({part:.2f} x); noisy key {noisy.counts}"
    )
    assert part <= times
