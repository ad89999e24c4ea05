"""A real service in a process of its own, on a free loopback port, stopped by its process id."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

LONGEST_START_SECONDS = 60.0
LONGEST_STOP_SECONDS = 60.0


@dataclass
class RunningService:
    """A service that listens."""

    process: subprocess.Popen[str]
    address: str
    log_path: Path

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def log(self) -> str:
        """Return what it has written to standard error so far."""
        return self.log_path.read_text()

    def workers(self) -> list[int]:
        """Return the processes that answer, where there are several."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children if b"spawn_main" in _command_of(child)]

    def wait_until_ready(self) -> None:
        """Wait until every operator has answered its example."""
        end = time.monotonic() + LONGEST_START_SECONDS
        while httpx.get(self.address + "/health/ready", timeout=LONGEST_START_SECONDS).status_code != 200:
            assert time.monotonic() < end, self.log()
            time.sleep(0.05)

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to the process and return its exit status."""
        self.process.send_signal(sig)
        return self.process.wait(LONGEST_STOP_SECONDS)


def _command_of(process: str) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""


@contextmanager
def running_service(
    *flags: str, program: Sequence[str] = ("-m", "service"), **environment: str
) -> Iterator[RunningService]:
    """Start `loss-service serve` with these flags and variables, and end it afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder, "log")
        with (
            log_path.open("w") as log,
            subprocess.Popen(
                [sys.executable, *program, "serve", "--port", "0", *flags],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **environment},
            ) as process,
        ):
            try:
                yield RunningService(process, _address(process, log_path), log_path)
            finally:
                if process.poll() is None:
                    process.kill()


def _address(process: subprocess.Popen[str], log_path: Path) -> str:
    """Read the greeting up to the address in it."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"documentation: (\S+)/docs", line):
            return found[1]
    raise AssertionError(f"the service did not start: {log_path.read_text()}")
