"""A service from its start to its end: what it prints, how it stops, what its workers do."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.__main__ import EXIT_CONFIGURATION, EXIT_START, main
from service.app import create_app
from service.cli.guess import doubtful_variables
from service.http.listening import CannotListenError, listen
from service.http.server import START_SECONDS
from service.metrics import COUNTED_AFTER_SECONDS
from service.settings import Settings
from tests.support.running import RunningService, running_service

LONGEST_LOAD_SECONDS = 60.0

EXAMPLE = {"logits": [[1.1316, -0.7943, 0.1328]], "target": [0]}


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service("--drain-seconds", "2", "--log-format", "json") as running:
        running.wait_until_ready()
        yield running


def test_every_answered_request_is_one_log_line_without_what_was_sent(service: RunningService) -> None:
    path = "/v1/cross-entropy/gradient"
    httpx.post(service.address + path + "?secret=hunter2", json=EXAMPLE, headers={"X-Request-Id": "line-1"})
    httpx.get(service.address + "/no%0Awhere%1B[31m", headers={"X-Request-Id": "line-2"})
    httpx.get(service.address + "/health/live")  # by its answer the lines before are written

    events = {event.get("request_id"): event for event in map(json.loads, service.log().splitlines())}

    assert events["line-1"]["path"] == path
    assert (events["line-1"]["status"], events["line-1"]["code"], events["line-1"]["rows"]) == (200, "ok", 1)
    assert (events["line-2"]["status"], events["line-2"]["code"]) == (404, "not-found")
    assert "hunter2" not in service.log()
    assert "1.1316" not in service.log()
    assert "\x1b" not in service.log()


def test_text_log_lines_hold_no_control_characters() -> None:
    with running_service("--log-format", "text", "--drain-seconds", "1") as service:
        httpx.get(service.address + "/no%0Awhere%1B[31m")
        assert service.stop() == 0

        line = next(line for line in service.log().splitlines() if "where" in line)

    assert "status=404" in line
    assert line.isprintable()


def test_metrics_count_requests_by_operator_format_and_code(service: RunningService) -> None:
    wrong = {"logits": [[1.0, 2.0]], "target": [2]}
    before = _samples(service)
    httpx.post(service.address + "/v1/cross-entropy", json=wrong)
    httpx.post(service.address + "/v1/cross-entropy", json=EXAMPLE)
    after = _samples(service)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0.0)

    labels = {"operator": "cross-entropy", "gradient": "false", "format": "json"}
    assert grown("loss_requests_total", code="target-out-of-range", **labels) == 1
    assert grown("loss_requests_total", code="ok", **labels) == 1
    assert grown("loss_rows_total", operator="cross-entropy", gradient="false") == 1
    assert grown("loss_phase_seconds_count", phase="compute") == 1
    assert grown("loss_request_bytes_total", **labels) > 50
    assert after[("loss_memory_reserved_bytes", ())] == 0
    assert after[("loss_in_flight_requests", ())] == 0


def test_series_of_metrics_do_not_grow_with_what_callers_make_up(service: RunningService) -> None:
    before = len(_samples(service))
    for number in range(50):
        httpx.post(f"{service.address}/v1/made-up-{number}", json={f"name-{number}": 1})
        httpx.post(f"{service.address}/v1/softmax", json={f"name-{number}": 1})

    assert len(_samples(service)) == before


def test_a_service_that_is_told_to_stop_turns_unready_then_ends_with_status_0() -> None:
    with running_service("--drain-seconds", "5") as service:
        service.wait_until_ready()
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)

        ready = httpx.get(service.address + "/health/ready")
        live = httpx.get(service.address + "/health/live")
        answer = httpx.post(service.address + "/v1/cross-entropy", json=EXAMPLE)

        assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
        assert live.status_code == 200
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
        assert service.process.wait(10) == 0


def test_a_half_sent_body_is_answered_with_draining_and_does_not_hold_the_end() -> None:
    with running_service("--drain-seconds", "10") as service, _half_sent_request(service) as sock:
        started = time.monotonic()
        assert service.stop() == 0

        answer = _received(sock)

        assert time.monotonic() - started < 10
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"draining"' in answer
        assert b"retry-after: 1" in answer.lower()
        assert b"connection: close" in answer.lower()


@pytest.mark.anyio
async def test_requests_are_refused_once_refusing_but_probes_and_metrics_answer() -> None:
    app = create_app(Settings(device="cpu"))
    app.state.service.begin_draining()
    app.state.service.begin_refusing()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        refused = await client.post("/v1/softmax", json={"logits": [1.0]})
        live = await client.get("/health/live")
        numbers = await client.get("/metrics")

    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["connection"] == "close"
    assert (live.status_code, numbers.status_code) == (200, 200)


def test_interrupting_at_a_terminal_does_not_wait_for_load_balancers() -> None:
    with running_service("--drain-seconds", "60") as service:
        started = time.monotonic()

        assert service.stop(signal.SIGINT) == 0
        assert time.monotonic() - started < 10


def test_requests_in_flight_when_told_to_stop_are_answered() -> None:
    outcomes: list[int | str] = []
    with running_service("--drain-seconds", "3") as service:
        service.wait_until_ready()
        callers = [threading.Thread(target=_call_until_gone, args=(service, outcomes)) for _ in range(4)]
        for caller in callers:
            caller.start()
        _wait_for(lambda: outcomes.count(200) > 20)
        assert service.stop() == 0
        for caller in callers:
            caller.join(30)

    assert set(outcomes) <= {200, 503}
    assert outcomes.count(200) > 20


@pytest.mark.faults
@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_times_told_to_stop_under_load_no_request_is_lost(workers: int) -> None:
    """Every request that reached the process is answered with 200 or 503, and it ends in time with status 0."""
    grace = 8
    print(f"\n{'workers':>7} {'round':>5} {'status':>6} {'seconds':>7}  outcomes")
    for number in range(20):
        with running_service("--workers", str(workers), "--drain-seconds", str(grace)) as service:
            service.wait_until_ready()
            command = [sys.executable, "deploy/load.py", service.address]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
                time.sleep(1.0)
                started = time.monotonic()
                status = service.stop()
                seconds = time.monotonic() - started
                outcomes, _ = load.communicate(timeout=LONGEST_LOAD_SECONDS)
        print(f"{workers:>7} {number:>5} {status:>6} {seconds:>7.2f}  {outcomes.strip()}")

        assert status == 0
        assert seconds < grace
        assert load.returncode == 0, outcomes


def test_a_killed_worker_is_replaced_and_the_service_goes_on() -> None:
    with running_service("--workers", "2", "--drain-seconds", "2") as service:
        service.wait_until_ready()
        for age in (0.0, 0.7, 0.7):  # the later ones while they start, when they answer nobody and are waited for
            time.sleep(age)
            killed = service.workers()[-1]
            os.kill(killed, signal.SIGKILL)

            end = time.monotonic() + START_SECONDS / 2
            while killed in (now := service.workers()) or len(now) < 2:
                assert time.monotonic() < end
                time.sleep(0.1)

        assert all(httpx.get(service.address + "/health/live").status_code == 200 for _ in range(10))
        assert service.stop() == 0


def test_metrics_of_several_workers_are_added_up() -> None:
    with running_service("--workers", "2", "--drain-seconds", "2") as service:
        service.wait_until_ready()
        for _ in range(20):
            httpx.post(service.address + "/v1/cross-entropy", json=EXAMPLE)

        time.sleep(5 * COUNTED_AFTER_SECONDS)
        samples = _samples(service)

    labels = (("code", "ok"), ("format", "json"), ("gradient", "false"), ("operator", "cross-entropy"))
    assert samples["loss_requests_total", labels] == 20
    assert samples["loss_memory_reserved_bytes", ()] == 0


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        (["--port", "70000"], {}, "LOSS_PORT (--port) should be less than or equal to 65535, but is '70000'"),
        ([], {"LOSS_PORT": "abc"}, "LOSS_PORT (--port) should be an integer, but is 'abc'"),
        ([], {"LOSS_THREADS": "0"}, "LOSS_THREADS (--threads) should be greater than or equal to 1, but is '0'"),
        ([], {"LOSS_DEVICE": "gpu"}, "LOSS_DEVICE (--device) should be auto, cpu, cuda or cuda:N, but is"),
        (["--drain-seconds", "soon"], {}, "LOSS_DRAIN_SECONDS (--drain-seconds) should be a number, but is 'soon'"),
        ([], {"LOSS_SHARED_MEMORY": "maybe"}, "(--shared-memory) should be true or false, but is 'maybe'"),
        ([], {"LOSS_DEVICE": "cuda:99"}, "device is cuda:99, but"),
        (["--root-path", "loss/"], {}, "LOSS_ROOT_PATH (--root-path) should be a path like /loss, or empty, but"),
        (
            ["--allowed-hosts", "a:80"],
            {},
            "LOSS_ALLOWED_HOSTS (--allowed-hosts) should be names without ports, such as",
        ),
        ([], {"LOSS_ALLOWED_HOSTS": "a,"}, "LOSS_ALLOWED_HOSTS (--allowed-hosts) should be names without ports"),
        (["--allowed-hosts", "http://a"], {}, "separated by commas, but is 'http://a'"),
        (["--cors-origins", "example.org"], {}, "LOSS_CORS_ORIGINS (--cors-origins) should be * or origins without"),
        (["--cors-origins", "https://a/"], {}, "such as 'https://example.org', but is 'https://a/'"),
        (["--rate-per-key", "5"], {}, "LOSS_RATE_PER_KEY is set, but no LOSS_API_KEYS"),
        (["--api-keys", "k", "--rate-per-key", "0"], {}, "LOSS_RATE_PER_KEY (--rate-per-key) should be greater than 0"),
        (["--api-keys", "k", "--rate-per-key", "nan"], {}, "(--rate-per-key) should be a finite number"),
        ([], {"LOSS_API_KEYS": "no-such-file"}, "LOSS_API_KEYS must name a file with one key a line; there is no"),
        (["--api-keys", "/"], {}, "LOSS_API_KEYS must name a file with one key a line; there is no such file"),
        (["--api-keys", "x" * 300], {}, "the file that LOSS_API_KEYS names cannot be read: File name too long"),
        (["--tls-key", "no-such-file"], {}, "LOSS_TLS_CERT and LOSS_TLS_KEY go together"),
        (["--tls-cert", "a", "--tls-key", "b"], {}, "LOSS_TLS_CERT names a, which is not a file"),
        (["--drain-seconds", "inf"], {}, "LOSS_DRAIN_SECONDS (--drain-seconds) should be a finite number"),
        (["--log-level", "loud"], {}, "LOSS_LOG_LEVEL (--log-level) should be 'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_bad_settings_end_with_one_clear_line(
    flags: list[str],
    environment: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    status = main(["serve", *flags])

    assert status == EXIT_CONFIGURATION
    output = capsys.readouterr().err
    assert output.startswith("loss-service: ")
    assert said in output
    assert output.count("\n") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_where_it_cannot_listen_nothing_is_started(workers: str, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        status = main(["serve", "--workers", workers, "--port", str(port)])

    said = f"loss-service: 127.0.0.1:{port} is in use; choose another with LOSS_PORT or --port\n"
    assert (status, capfd.readouterr()) == (EXIT_START, ("", said))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "no such host"], "cannot listen on no such host: "),
        (["--host", "192.0.2.1", "--port", "8000"], "cannot listen on 192.0.2.1:8000: Cannot assign requested address"),
        (["--uds", "/nowhere/s"], "cannot listen on /nowhere/s: No such file or directory"),
        (["--uds", __file__], f"{__file__} is in use; choose another with LOSS_UDS or --uds"),
    ],
)
def test_an_address_that_is_none_is_one_line(flags: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *flags]) == EXIT_START

    assert capfd.readouterr().err.partition(said)[0] == "loss-service: "


def test_a_socket_that_nobody_listens_on_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))

    (listener,) = listen(Settings(uds=path))

    with listener, pytest.raises(CannotListenError, match="is in use"):
        listen(Settings(uds=path))


def test_every_address_of_a_host_is_listened_on() -> None:
    listeners = listen(Settings(host="", port=0))
    families = {listener.family for listener in listeners}
    for listener in listeners:
        listener.close()

    assert socket.AF_INET in families
    assert (socket.AF_INET6 in families) == socket.has_dualstack_ipv6()


def test_variables_that_look_like_settings_are_warned_of_without_their_values() -> None:
    misspelt = {"LOSS_PROT": "8141", "LOSS_API_KEY": "secret-of-these-tests", "LOSS_XYZ": "1", "loss_log_level": "info"}
    with running_service("--log-format", "json", **misspelt) as service:
        events = map(json.loads, service.log().splitlines())
        warnings = [event["message"] for event in events if event["level"] == "warning"]

        assert warnings[0].startswith(
            "LOSS_API_KEY is the key that `loss-service compute --url` sends; LOSS_API_KEYS, "
        )
        assert warnings[1:] == ["LOSS_PROT is no setting; did you mean LOSS_PORT?", "LOSS_XYZ is no setting"]
        assert "secret" not in service.log()


def test_with_keys_the_key_of_the_command_line_is_nobodys_mistake() -> None:
    settings = Settings(api_keys=Path(__file__))

    assert list(doubtful_variables({"LOSS_API_KEY": "a", "LOSS_PORT": "1", "LOST": "x"}, settings)) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prot", "8141"], "unrecognized arguments: --prot 8141; did you mean --port? (--help lists all flags)"),
        (["--xyz"], "unrecognized arguments: --xyz (--help lists all flags)"),
        (["--port"], "argument --port: expected one argument (--help lists all flags)"),
    ],
)
def test_a_flag_that_does_not_exist_is_one_line(flags: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *flags]) == 2

    assert capfd.readouterr().err == f"loss-service: {said}\n"


def test_a_flag_wins_over_the_variable_and_an_empty_variable_is_none() -> None:
    with running_service(
        "--max-json-bytes", "2048", LOSS_MAX_JSON_BYTES="4096", LOSS_THREADS="", LOSS_DRAIN_SECONDS="1"
    ) as service:
        limits = httpx.get(service.address + "/v1/limits").json()

    assert limits["max_json_bytes"] == 2048


def test_help_tells_every_setting_with_its_default() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--help"], capture_output=True, text=True, timeout=60, check=True
    )

    for flag in ("--host", "--port", "--workers", "--device", "--threads", "--drain-seconds", "--log-format"):
        assert flag in result.stdout
    assert "(default: 8388608)" in " ".join(result.stdout.split())
    assert "factory" not in result.stdout
    assert "(default: None)" not in result.stdout


def test_a_unix_socket_is_listened_on(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with (
        running_service("--uds", str(path), "--drain-seconds", "1"),
        httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client,
    ):
        assert client.get("http://localhost/health/live").status_code == 200


def _samples(service: RunningService) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return the numbers of /metrics that start with `loss_`, by name and labels."""
    text = httpx.get(service.address + "/metrics").text
    found = re.findall(r"^(loss_\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE)
    return {
        (name, tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels)))): float(value) for name, labels, value in found
    }


def _half_sent_request(service: RunningService) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", service.port))
    sock.sendall(
        b"POST /v1/softmax HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 100\r\n\r\n{"logits'
    )
    time.sleep(0.2)
    return sock


def _received(sock: socket.socket) -> bytes:
    sock.settimeout(10)
    chunks = []
    while chunk := sock.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def _wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + LONGEST_LOAD_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def _call_until_gone(service: RunningService, outcomes: list[int | str]) -> None:
    """Send requests, each on a connection of its own, until the service no longer listens."""
    body = {"logits": [[0.1, 0.2, 0.3]] * 200, "target": [0] * 200}
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            outcomes.append(httpx.post(service.address + "/v1/cross-entropy/gradient", json=body).status_code)
        except httpx.ConnectError:
            return
        except httpx.HTTPError as error:
            outcomes.append(repr(error))


def test_behind_a_prefix_paths_and_suggestions_are_as_without() -> None:
    with running_service("--root-path", "/loss", "--drain-seconds", "1") as service:
        ready = httpx.get(service.address + "/health/live")
        wrong = httpx.post(service.address + "/v1/cros-entropy", json=EXAMPLE).json()

    assert ready.status_code == 200
    assert wrong["detail"] == "There is no operator 'cros-entropy'; did you mean 'cross-entropy'?"
