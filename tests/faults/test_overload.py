"""More is asked than can be computed: what can be is, the rest is refused at once, and nobody waits in vain."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import pytest
import torch

from tests.faults.conftest import Tell
from tests.support.binary import BINARY, binary_request, cross_entropy_request
from tests.support.open_loop import Load, Order, Outcome, offer, quantile
from tests.support.probing import probing
from tests.support.raw_http import Listening, listening, request

QUEUE_SECONDS = 0.5
"""Some times the service time: with room for one, an engine is idle whenever nobody comes while it computes."""
TICK = os.sysconf("SC_CLK_TCK")

ASKING = "Expect: 100-continue"
"""A caller who asks first is refused before he sends; next to taking and computing megabytes, that costs little."""


def costly_to_compute(rows: int) -> bytes:
    """Return a request whose answer takes a worker 2 us a row, and whose 200 bytes a row are soon received."""
    random = torch.Generator().manual_seed(0)
    tensors = {
        "logits": torch.randn(rows, 100, generator=random).half(),
        "target": torch.randint(100, (rows,), generator=random),
    }
    options = {"accuracy": "accurate", "label_smoothing": "0.1", "temperature": "2.0"}
    return binary_request("/v1/cross-entropy", tensors, ASKING, **options)


def costly_to_receive(rows: int) -> bytes:
    """Return a request of 128 KB a row, of which a compiled pass makes short work."""
    return cross_entropy_request(rows, 32_000, ASKING)


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
    """What is asked of a trial of some length.

    Attributes:
        request: head and body of what is asked again and again.
        rounds: of the peak and what goes beyond, each for some seconds.
        goodput: least part of the peak, by how many times the peak is offered.
        admitted: most that the 99th percentile may be of the queue bound and twice the service time, that of the round.
        refused_ms: most that the median refusal may take, or as long as an idle service takes to say that it lives.
    """

    request: Callable[[], bytes]
    rounds: int
    seconds: float
    goodput: dict[float, float]
    admitted: float
    refused_ms: float


TRIALS = {
    "short": Bounds(partial(costly_to_compute, 10_000), 1, 1.0, {10.0: 0.3}, admitted=4.0, refused_ms=1000.0),
    "computing": Bounds(
        partial(costly_to_compute, 80_000), 7, 4.0, {2.0: 0.95, 10.0: 0.9}, admitted=1.0, refused_ms=2.0
    ),
    # The three of them, who sends, who receives and who computes, share two cores.
    "receiving": Bounds(partial(costly_to_receive, 1024), 4, 6.0, {2.0: 0.8, 10.0: 0.7}, admitted=2.0, refused_ms=30.0),
}


@pytest.mark.parametrize(
    "name", [name if name == "short" else pytest.param(name, marks=pytest.mark.faults) for name in TRIALS]
)
def test_goodput_under_overload_is_that_of_the_peak(
    engine_of_one: Listening, name: str, tmp_path: Path, tell: Tell
) -> None:
    bounds, port = TRIALS[name], engine_of_one.service.port
    answered_path, refused_path = tmp_path / "answered", tmp_path / "refused"
    answered_path.write_bytes(bounds.request())
    refused_path.write_bytes(request("POST", "/v1/cross-entropy", BINARY, ASKING, length=TOO_LONG))

    with probing(port, "new", 10.0) as alone:
        time.sleep(bounds.seconds)
    alive = quantile(alone.latencies, 0.5)
    _closed(engine_of_one, answered_path, 0.5)  # what it learns from its first
    refusals, refused_seconds = _closed(engine_of_one, refused_path, bounds.seconds)
    assert set(refusals.counts) == {"413"}
    refusal_cost = refused_seconds / len(refusals.refused)
    services: list[float] = []
    costs: list[float] = []
    trials: dict[float, list[Outcome]] = {times: [] for times in bounds.goodput}
    parts: dict[float, list[float]] = {times: [] for times in bounds.goodput}
    with probing(port, "new", 10.0) as probes:
        for _ in range(bounds.rounds):  # the speed of a machine changes from minute to minute
            peak, processor = _closed(engine_of_one, answered_path, bounds.seconds)
            services.append(1 / peak.goodput)
            costs.append((processor - refusal_cost * len(peak.refused)) / len(peak.answered))
            for times in bounds.goodput:
                rate = times * peak.goodput
                order = Order(port, str(answered_path), bounds.seconds, rate=rate, patience=2.0, asks_first=True)
                trials[times].append(offer(order))
                parts[times].append(trials[times][-1].goodput / peak.goodput)

    tell(
        f"{name}: peak {1 / median(services):.1f}/s; a refusal costs 1/{median(costs) / refusal_cost:.0f} of an answer "
        f"({refusal_cost * 1e3:.2f} ms of processor); health: {len(probes.latencies)} probes, {probes.failures} failed,"
        f" p99 {quantile(probes.latencies, 0.99) * 1e3:.1f} ms, when idle p50 {alive * 1e3:.2f}"
    )
    for times, outcomes in trials.items():
        admitted = quantile([seconds for outcome in outcomes for seconds in outcome.answered], 0.99)
        part_of_bound = quantile(
            [seconds / (QUEUE_SECONDS + 2 / outcome.goodput) for outcome in outcomes for seconds in outcome.answered],
            0.99,
        )
        refused = quantile([seconds for outcome in outcomes for seconds in outcome.refused], 0.5)
        counts = sum((Counter(outcome.counts) for outcome in outcomes), Counter[str]())
        without_retry_after = sum(outcome.without_retry_after for outcome in outcomes)
        tell(
            f"{name}, {times:g} x: goodput {median(parts[times]):.0%} of the peak ("
            f"{', '.join(f'{part:.0%}' for part in parts[times])}), admitted p99 {admitted * 1e3:.0f} ms "
            f"({part_of_bound:.2f} of its bound), refused p50 {refused * 1e3:.2f} ms, {without_retry_after} without "
            f"Retry-After, {dict(counts)}"
        )
        assert median(parts[times]) >= bounds.goodput[times]
        assert part_of_bound <= bounds.admitted
        assert refused <= max(bounds.refused_ms / 1e3, alive)
        assert without_retry_after == 0
        assert set(counts) <= {"200", "503"}
    assert (probes.failures, bool(probes.latencies)) == (0, True)


def _closed(running: Listening, path: Path, seconds: float) -> tuple[Outcome, float]:
    """Ask as fast as answers come, and return what that cost in seconds of processor."""
    before = processor_seconds(running.service.process.pid)
    order = Order(running.service.port, str(path), seconds, connections=2, patience=10.0, asks_first=True)
    outcome = offer(order)
    return outcome, processor_seconds(running.service.process.pid) - before


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
