"""Generated bad requests: every one is answered, none with a fault of the service, all in a sentence."""

from __future__ import annotations

import ast
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest

import service as package
from service.app import create_app
from service.settings import Settings
from tests.faults.conftest import Tell
from tests.http.calling import check_problem
from tests.support.mutations import generated
from tests.support.programs import listening_as
from tests.support.raw_http import Answer, Listening, read_answer
from tests.support.straight import ask_straight

REFUSED_BY_PROTOCOL = "malformed-request"


def check(answer: Answer) -> str:
    """Assert what holds for every answer, and return its code."""
    if answer.status == 200:
        assert answer.headers["content-type"] in ("application/json", "application/x-safetensors")
        return "ok"
    assert 400 <= answer.status < 500, answer
    response = httpx.Response(answer.status, headers=answer.headers, content=answer.body)
    return str(check_problem(response)["code"])


@pytest.mark.anyio
@pytest.mark.parametrize("count", [3_000, pytest.param(120_000, marks=pytest.mark.faults)], ids=["short", "long"])
async def test_generated_bad_requests_are_no_fault_of_the_service(count: int, tell: Tell) -> None:
    app = create_app(Settings(device="cpu", threads=1))
    codes: Counter[str] = Counter()
    for number, request in enumerate(generated(count, count)):
        answer = await ask_straight(app, request)
        try:
            codes[check(answer)] += 1
        except AssertionError as error:
            raise AssertionError(f"request {number}: {request[:2000]!r}") from error
    tell(f"{count} requests, {count - codes['ok']} of them bad: {dict(codes.most_common())}")

    assert codes["ok"] < count / 2
    assert len(codes) >= 16


@pytest.mark.faults
def test_generated_bad_requests_over_connections_are_no_fault_of_the_service(service: Listening, tell: Tell) -> None:
    count = 10_000
    codes = over_connections(service, generated(1, count))
    tell(f"{count} requests: {dict(codes.most_common())}")


def over_connections(running: Listening, requests) -> Counter[str]:
    """Send requests, on one connection for as long as the service keeps it open, and count the codes."""
    codes: Counter[str] = Counter()
    connection = running.connect()
    for request in requests:
        connection.sendall(request)
        answer = read_answer(connection)
        codes[check(answer)] += 1
        if answer.headers.get("connection") == "close":
            connection.close()
            connection = running.connect()
    connection.close()
    return codes


NEVER = (
    "pickle.", "marshal.", "exec", "compile", "socket.connect", "socket.bind", "subprocess.", "os.system", "os.exec",
    "os.posix_spawn", "os.spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "shutil.", "ctypes.dlopen",
)  # fmt: skip
"""Audit events that no request may cause, by how they begin; opening a file to write it is another."""

AUDITED = f"""
import os, signal, sys
NEVER, armed = {NEVER!r}, False
def watch(event, arguments):
    if not armed:
        return
    writes = event == "open" and (set(str(arguments[1])) & set("wax+") or arguments[2] & (os.O_WRONLY | os.O_RDWR))
    if event.startswith(NEVER) or writes:
        os.write(2, f"AUDIT {{event}} {{str(arguments)[:200]!r}}\\n".encode())
def arm(*_):
    global armed
    armed = True
    os.write(2, b"ARMED\\n")
sys.addaudithook(watch)
signal.signal(signal.SIGUSR2, arm)
from service.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("count", [500, pytest.param(20_000, marks=pytest.mark.faults)], ids=["short", "long"])
def test_bad_requests_run_no_code_and_touch_neither_files_nor_network(count: int, tell: Tell) -> None:
    with listening_as(AUDITED, "--device=cpu", "--log-level=warning") as running:
        over_connections(running, generated(2, 200))  # what is imported late is imported now
        running.service.process.send_signal(signal.SIGUSR2)
        codes = over_connections(running, generated(3, count))
        log = running.service.log()

        tell(f"{count} requests, {log.count('AUDIT')} audit events; {dict(codes.most_common(5))}")
        assert "ARMED" in log
        assert "AUDIT" not in log


SOURCES = sorted(Path(package.__file__).parent.rglob("*.py"))

BANNED_MODULES = {
    "cPickle", "cloudpickle", "code", "dill", "ftplib", "httpx", "jinja2", "joblib", "mako", "marshal", "pickle",
    "requests", "shelve", "smtplib", "subprocess", "telnetlib", "urllib.request", "xmlrpc", "yaml",
}  # fmt: skip
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
BANNED_ATTRIBUTES = {
    "torch.load", "torch.save", "torch.hub", "np.load", "numpy.load", "np.save", "numpy.save", "os.system", "os.popen",
    "torch.jit", "np.fromfile", "numpy.fromfile",
}  # fmt: skip


def banned_in(tree: ast.AST) -> list[str]:
    """Return everything in a module that could run what somebody sent, or fetch it."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if {alias.name, alias.name.split(".")[0]} & BANNED_MODULES]
        elif isinstance(node, ast.ImportFrom) and {node.module, (node.module or "").split(".")[0]} & BANNED_MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
            found.append(node.func.id)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in BANNED_ATTRIBUTES:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append(node.arg)
    return found


OF_THE_COMMAND_LINE = {"np.load", "np.save"}
"""Allowed where no request comes: whoever is at the command line names the files, and they are never pickles."""


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_no_module_can_run_or_fetch_what_somebody_sent(source: Path) -> None:
    allowed = OF_THE_COMMAND_LINE if source.parent.name == "cli" else set()

    assert [name for name in banned_in(ast.parse(source.read_text())) if name not in allowed] == []


def test_what_is_banned_is_found() -> None:
    bad = "import pickle\nfrom yaml import load\nimport urllib.request\ntorch.load(x)\neval(x)\nre.compile(x)\n"
    bad += "f(allow_pickle=True)\n"

    assert banned_in(ast.parse(bad)) == ["pickle", "yaml", "urllib.request", "eval", "torch.load", "allow_pickle"]
