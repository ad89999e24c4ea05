"""The memory a process may use is what its control groups allow, whatever their version and mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.machine import usable_memory
from service.settings import Settings

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
LESS = MACHINE // 4


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/a/b\n", {"a/b/memory.max": str(LESS)}, LESS),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": str(LESS)}, LESS),
        ("0::/a/b\n", {"a/b/memory.max": str(LESS), "a/memory.max": str(LESS // 2)}, LESS // 2),
        ("0::/a/b\n", {"a/b/memory.max": "max"}, MACHINE),
        ("0::/\n", {"memory.max": str(LESS)}, LESS),
        ("0::/host/path/not/mounted/here\n", {"memory.max": str(LESS)}, LESS),
        ("3:cpu,memory:/x\n1:name=systemd:/x\n", {"memory/x/memory.limit_in_bytes": str(LESS)}, LESS),
        ("3:memory:/x\n", {"memory/memory.limit_in_bytes": str(LESS)}, LESS),
        ("3:memory:/x\n", {"memory/x/memory.limit_in_bytes": "9223372036854771712"}, MACHINE),
        ("3:cpu:/x\n", {"memory/x/memory.limit_in_bytes": str(LESS)}, MACHINE),
        ("", {}, MACHINE),
        (None, {}, MACHINE),
    ],
)
def test_the_least_limit_holds(groups: str | None, limits: dict[str, str], expected: int, tmp_path: Path) -> None:
    of_process = tmp_path / "cgroup"
    if groups is not None:
        of_process.write_text(groups)
    for name, text in limits.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    assert usable_memory(tmp_path / "mount", of_process) == expected


def test_the_budget_is_a_part_of_it_and_shared_among_workers() -> None:
    assert Settings().memory_budget == int(usable_memory() * 0.6)
    assert Settings(memory_budget=1 << 30, workers=4).share().memory_budget == 1 << 28
