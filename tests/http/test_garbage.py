"""Requests and connections leave nothing behind that only the garbage collector could free."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import collections, gc, json, os, socket, sys, threading, time
from service.app import create_app
from service.http.limits import Limits
from service.http.server import Config, Server
from service.settings import Settings
from tests.support.raw_http import read_answer, request

started = threading.Event()
addresses = []
config = Config(create_app, Settings(port=0, device="cpu", log_level="error"))
config.limits = Limits(first_byte_seconds=0.3, head_seconds=0.3, look_seconds=0.05)
server = Server(config, lambda address: (addresses.append(address), started.set()))

def talk(texts, answers):
    connection = socket.create_connection(("127.0.0.1", int(addresses[0].rpartition(":")[2])))
    received = bytearray()
    for text in texts:
        connection.sendall(text)
    for _ in range(answers):
        read_answer(connection, received=received)
    connection.close()

def left_by(texts, answers):
    texts = [text.encode("latin-1") for text in texts]
    for _ in range(3):
        talk(texts, answers)
    time.sleep(0.2)
    gc.collect()
    for _ in range(10):
        talk(texts, answers)
    time.sleep(0.2)
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = collections.Counter(type(each).__module__ + "." + type(each).__qualname__ for each in gc.garbage)
    gc.garbage.clear()
    return {name: count for name, count in found.items() if name.startswith(("service.", "uvicorn."))}

def drive():
    started.wait(60)
    time.sleep(0.5)
    gc.disable()
    print(json.dumps({kind: left_by(*asked) for kind, asked in json.loads(sys.argv[1]).items()}), flush=True)
    os._exit(0)

threading.Thread(target=drive, daemon=True).start()
server.run()
"""

BODY = b'{"logits": [[0, 1], [2, 3]], "target": [0, 1]}'


def posted(path: str, body: bytes, *fields: str) -> bytes:
    """Return the bytes of a request."""
    head = "\r\n".join((f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *fields))
    return head.encode() + b"\r\n\r\n" + body


JSON = "Content-Type: application/json"
KINDS = {
    "an answer": ([posted("/v1/cross-entropy/gradient", BODY, JSON)], 1),
    "a refusal": ([posted("/v1/cross-entropy", b"{}", JSON)], 1),
    "a page": ([b"GET /problems HTTP/1.1\r\nHost: localhost\r\n\r\n"], 1),
    "several at once": ([posted("/v1/cross-entropy", BODY, JSON) * 5], 5),
    "a header too late": ([b"GET / HTTP/1.1\r\n"], 1),
    "a caller who leaves": ([posted("/v1/softmax", b"x" * 100_000, JSON)[:1000]], 0),
}


def test_nothing_waits_for_the_garbage_collector() -> None:
    order = json.dumps(
        {kind: [[text.decode("latin-1") for text in texts], answers] for kind, (texts, answers) in KINDS.items()}
    )

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, order], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stdout, done.stderr
    assert json.loads(done.stdout) == {kind: {} for kind in KINDS}
