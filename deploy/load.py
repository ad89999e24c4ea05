#!/usr/bin/env python3
"""Sends requests until the service is gone, and says how they ended; 1 when one was accepted and not answered.

Needs nothing but Python. A connection refused means that the service has stopped listening; that ends the load. A
request that was sent must be answered, with 200 or 503. The one exception cannot be avoided: a connection made in the
microseconds between the service's last look for connections and the closing of its socket is reset by the kernel, and
never reaches the service. Such a reset comes at once, on a new connection, and the next one is refused; at most one of
them is forgiven.
"""

from __future__ import annotations

import collections
import http.client
import json
import socket
import sys
import threading
import time
import urllib.parse

CONNECTIONS = 8
LONGEST_SECONDS = 120.0
NEVER_ACCEPTED = "never accepted"


def request_until_gone(address: str, outcomes: collections.Counter[str], lock: threading.Lock) -> None:
    """Send requests one after another, on one connection for as long as the service keeps it open."""
    host = urllib.parse.urlsplit(address).netloc
    body = json.dumps({"logits": [[0.1 * (i % 7), 0.2, -0.3] for i in range(500)], "target": [0] * 500})
    end = time.monotonic() + LONGEST_SECONDS
    connection = http.client.HTTPConnection(host, timeout=30)
    while time.monotonic() < end:
        is_new = connection.sock is None
        try:
            if is_new:
                connection.connect()
        except OSError:
            return
        try:
            connection.request("POST", "/v1/cross-entropy/gradient", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            outcome = str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            is_late = isinstance(error, ConnectionResetError) and is_new and not accepts(host)
            outcome = NEVER_ACCEPTED if is_late else f"no answer ({type(error).__name__})"
            connection.close()
        with lock:
            outcomes[outcome] += 1


def accepts(host: str) -> bool:
    """Return whether the service still listens."""
    name, _, port = host.rpartition(":")
    try:
        socket.create_connection((name, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def main() -> int:
    """Run the load and print the outcomes."""
    outcomes: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()
    threads = [
        threading.Thread(target=request_until_gone, args=(sys.argv[1], outcomes, lock)) for _ in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(", ".join(f"{outcome}: {count}" for outcome, count in sorted(outcomes.items())))
    forgiven = outcomes.pop(NEVER_ACCEPTED, 0)
    return 0 if set(outcomes) <= {"200", "503"} and outcomes["200"] and forgiven <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
