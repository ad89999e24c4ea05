#!/usr/bin/env python3
"""Sends requests until the service is gone, and says how they ended; 1 when one was accepted and not answered.

Needs nothing but Python. A connection refused, or closed before anything of the request could be sent, means that the
service has stopped listening; that ends the load. A request that was sent must be answered, with 200 or 503.
"""

from __future__ import annotations

import collections
import http.client
import json
import sys
import threading
import time
import urllib.parse

CONNECTIONS = 8
LONGEST_SECONDS = 120.0


def request_until_gone(address: str, outcomes: collections.Counter[str], lock: threading.Lock) -> None:
    """Send requests one after another, on one connection for as long as the service keeps it open."""
    host = urllib.parse.urlsplit(address).netloc
    body = json.dumps({"logits": [[0.1 * (i % 7), 0.2, -0.3] for i in range(500)], "target": [0] * 500})
    end = time.monotonic() + LONGEST_SECONDS
    connection = http.client.HTTPConnection(host, timeout=30)
    while time.monotonic() < end:
        try:
            if connection.sock is None:
                connection.connect()
        except OSError:
            return
        try:
            connection.request("POST", "/v1/cross-entropy/gradient", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            outcome = str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            outcome = f"no answer ({type(error).__name__})"
            connection.close()
        with lock:
            outcomes[outcome] += 1


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
    return 0 if set(outcomes) <= {"200", "503"} and outcomes["200"] else 1


if __name__ == "__main__":
    sys.exit(main())
