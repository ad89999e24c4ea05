"""A control group that limits memory, for a process to be started in."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryGroup:
    """A group of either version of the kernel's interface."""

    folder: Path
    is_unified: bool

    @property
    def program(self) -> tuple[str, ...]:
        """How `running_service` starts a service in it."""
        return (
            "-c",
            f"import os, sys; open({str(self.folder / 'cgroup.procs')!r}, 'w').write(str(os.getpid())); "
            "from service.__main__ import main; sys.exit(main(sys.argv[1:]))",
        )

    def most_used(self) -> int:
        """Return the most bytes that were in use at once."""
        return int((self.folder / ("memory.peak" if self.is_unified else "memory.max_usage_in_bytes")).read_text())

    def kills(self) -> int:
        """Return how many processes the kernel killed for want of memory."""
        text = (self.folder / ("memory.events" if self.is_unified else "memory.oom_control")).read_text()
        found = re.search(r"^oom_kill (\d+)", text, re.MULTILINE)
        assert found is not None
        return int(found[1])


@contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup]:
    """Make a group of at most `limit` bytes; raises OSError where that is not permitted."""
    is_unified = (ROOT / "cgroup.controllers").exists()
    name = f"loss-service-trial-{os.getpid()}"
    folder = (ROOT if is_unified else ROOT / "memory") / name
    folder.mkdir()
    try:
        (folder / ("memory.max" if is_unified else "memory.limit_in_bytes")).write_text(str(limit))
        yield MemoryGroup(folder, is_unified)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a group once the last of its processes is gone."""
    end = time.monotonic() + 10
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return
