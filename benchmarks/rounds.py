"""Interleaved rounds: on a machine that others use too, only ratios taken side by side mean anything."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Contestants = Mapping[str, Callable[[], object]]


def medians(contestants: Contestants, *, seconds: float, most_rounds: int = 3000) -> dict[str, float]:
    """Return the median seconds that each contestant takes, all of them taking a turn in every round.

    Rounds end when `seconds` have passed (at least 5, at most `most_rounds`). A turn is a run that is not counted,
    which brings caches and threads back from the others, and one that is.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    until = time.perf_counter() + seconds
    for played in range(most_rounds):
        if played >= 5 and time.perf_counter() > until:
            break
        for name, run in contestants.items():
            run()
            started = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in taken.items()}


def duration(seconds: float) -> str:
    """Return a duration as a person reads it: `12.3 us` or `4.56 ms`."""
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
