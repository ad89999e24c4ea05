"""What this process may use of its machine: cores and memory, as the kernel and its control groups allow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUPS_OF_PROCESS = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Return how many cores the process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_memory(root: Path = CGROUP_ROOT, of_process: Path = CGROUPS_OF_PROCESS) -> int:
    """Return how many bytes the process may use: the least of the machine's and those of its control groups."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_cgroup_limits(root, of_process)])


def _cgroup_limits(root: Path, of_process: Path) -> Iterator[int]:
    """Yield the limits of the process's control groups (version 1 and 2), those around them included."""
    try:
        lines = of_process.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _limits_along(root, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_along(root / "memory", path, "memory.limit_in_bytes")


def _limits_along(mount: Path, path: str, name: str) -> Iterator[int]:
    # In a container the path may be the host's, of which the mount shows only the lowest part: hence the mount itself.
    inner = PurePosixPath(path.lstrip("/"))
    for part in (inner, *inner.parents):
        try:
            text = (mount / part / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():  # otherwise "max"
            yield int(text)
