"""Two instances behind nginx, restarted one after the other under load."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from service.ops import OPERATORS
from tests.support.patient import Tally, patient_callers
from tests.support.running import RunningService, running_service

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
CONFIG = Path(__file__).parents[2] / "deploy" / "nginx" / "loss-service.conf"

SHIPPED = "proxy_next_upstream error timeout http_503 non_idempotent;"
STRICT = "proxy_next_upstream error timeout;"
"""nginx's own: the other instance gets what could not be sent, but nothing that was sent and not answered."""

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def test_an_instance_behind_nginx_is_stopped_and_no_request_is_lost(tmp_path: Path) -> None:
    with _two_instances(tmp_path, drain_seconds=1.5, policy=SHIPPED, callers=2) as (instances, tally):
        assert instances[0].stop() == 0
        time.sleep(0.2)

    assert not tally.lost, tally
    assert tally.answered > 100, tally


@pytest.mark.faults
@pytest.mark.parametrize("policy", [SHIPPED, STRICT], ids=["as shipped", "nothing sent twice"])
def test_ten_times_both_instances_behind_nginx_are_restarted_and_no_request_is_lost(
    tmp_path: Path, policy: str
) -> None:
    print()
    for number in range(5):
        (folder := tmp_path / str(number)).mkdir()
        with _two_instances(folder, drain_seconds=4, policy=policy, callers=8) as (instances, tally):
            for instance in instances:
                instance.restart()
                time.sleep(0.5)
        print(f"round {number}, both restarted: {tally}")

        assert not tally.lost, tally
        assert tally.answered > 500, tally


class Instance:
    """One of the services behind nginx; it comes back at the same port."""

    def __init__(self, stack: ExitStack, drain_seconds: float) -> None:
        self._flags = ("--drain-seconds", str(drain_seconds), "--threads", "1", "--log-level", "warning")
        self._end = stack.enter_context(ExitStack())
        self.port = _free_port()
        self.service = self._start()

    def stop(self) -> int:
        """Tell it to stop; return its exit status."""
        return self.service.stop()

    def restart(self) -> None:
        """Stop it in good order, and start it again."""
        assert self.stop() == 0
        self._end.close()
        self.service = self._start()
        self.service.wait_until_ready()

    def _start(self) -> RunningService:
        return self._end.enter_context(running_service("--port", str(self.port), *self._flags))


@contextmanager
def _two_instances(
    folder: Path, *, drain_seconds: float, policy: str, callers: int
) -> Iterator[tuple[list[Instance], Tally]]:
    """Run two instances behind nginx, with callers; gives the instances and how the callers fare."""
    operator = OPERATORS["cross-entropy"]
    with ExitStack() as stack:
        instances = [Instance(stack, drain_seconds) for _ in range(2)]
        for instance in instances:
            instance.service.wait_until_ready()
        address = stack.enter_context(_nginx(folder, [instance.port for instance in instances], policy))
        request = httpx.Request("POST", address + "/v1/cross-entropy/gradient", json=operator.gradient_example)
        direct = instances[0].service.address + request.url.path
        expected = httpx.post(direct, json=operator.gradient_example).content
        with patient_callers(address, callers, request, expected) as tally:
            time.sleep(0.5)
            yield instances, tally


@contextmanager
def _nginx(folder: Path, ports: list[int], policy: str) -> Iterator[str]:
    """Run nginx with the shipped configuration, but for the addresses and what it does when an instance fails."""
    port = _free_port()
    site = CONFIG.read_text()
    for shipped, here in (
        ("server 10.0.0.1:8000", f"server 127.0.0.1:{ports[0]}"),
        ("server 10.0.0.2:8000", f"server 127.0.0.1:{ports[1]}"),
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        (SHIPPED, policy),
    ):
        assert site.count(shipped) == 1
        site = site.replace(shipped, here)
    (folder / "nginx.conf").write_text(
        f"pid {folder}/pid;\nerror_log {folder}/error.log;\nworker_processes 1;\ndaemon off;\n"
        f"events {{ worker_connections 256; }}\nhttp {{\naccess_log off;\n{_scratch_folders(folder)}{site}}}\n"
    )
    command = [str(NGINX), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command) as process:
        try:
            _wait_until_listening(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _scratch_folders(folder: Path) -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)


def _wait_until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        else:
            return


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
