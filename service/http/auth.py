"""Who may ask: which paths need an API key, whether a key is known, and how often it may be used."""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from starlette.types import Scope

from service.errors import RateLimited, Unauthorized
from service.http.exchange import path_of

OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/explore", "/problems", "/health/live", "/health/ready"})
"""Paths that need no key."""

OPEN_FOLDERS = ("/docs/", "/explore/", "/problems/", "/health/")
"""What lies directly below these needs none either."""

SHORTEST_KEY, LONGEST_KEY = 16, 256
"""Bounds on the length of a key, in characters."""

MOST_KEYS = 1000
"""Every request is compared with every key, which at this number takes a twentieth of a millisecond."""

_PRINTABLE = range(0x21, 0x7F)


class KeysUnusableError(Exception):
    """The file of API keys cannot be used. The message holds nothing of what is in it, nor its name.

    The name is left away because a key may have been given in its place.
    """


def read_keys(path: Path) -> list[bytes]:
    """Return the SHA-256 digests of the keys in a file, one key a line; blank lines and `#` comments are skipped."""
    try:
        if not path.is_file():
            raise KeysUnusableError("LOSS_API_KEYS must name a file with one key a line; there is no such file")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise KeysUnusableError(f"the file that LOSS_API_KEYS names cannot be read: {error.strerror}") from None
    digests: dict[bytes, None] = {}
    for number, line in enumerate(map(bytes.strip, lines), 1):
        if not line or line.startswith(b"#"):
            continue
        if not (SHORTEST_KEY <= len(line) <= LONGEST_KEY and all(character in _PRINTABLE for character in line)):
            raise KeysUnusableError(
                f"line {number} of the file that LOSS_API_KEYS names is not a key: "
                f"{SHORTEST_KEY} to {LONGEST_KEY} printable ASCII characters without spaces"
            )
        digests[sha256(line).digest()] = None
    if not digests:
        raise KeysUnusableError("the file that LOSS_API_KEYS names holds no key")
    if len(digests) > MOST_KEYS:
        raise KeysUnusableError(f"the file that LOSS_API_KEYS names holds more than {MOST_KEYS} keys")
    return list(digests)


def is_open(scope: Scope) -> bool:
    """Return whether a request needs no key: its path, as the router sees it, is one of those that are open.

    And it is spelt so: a path with anything percent-encoded is never open, so that nobody else's way to decode or
    normalise it matters.
    """
    if scope.get("raw_path") != scope["path"].encode():
        return False
    path = path_of(scope)
    return path in OPEN_PATHS or any(
        path.startswith(folder) and "/" not in path[len(folder) :] for folder in OPEN_FOLDERS
    )


class Bucket:
    """Lets `rate` requests a second through, and what a second has room for (at least one) at once."""

    __slots__ = ("_at", "_capacity", "_rate", "_tokens")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._capacity = self._tokens = max(1.0, rate)
        self._at = now

    def take(self, now: float) -> float:
        """Let one request through and return 0, or return how many seconds there are until the next may pass."""
        self._tokens = min(self._capacity, self._tokens + (now - self._at) * self._rate)
        self._at = now
        # A caller who waits as long as he was told must not be turned away for a rounding error.
        if self._tokens < 1.0 - 1e-9:
            return (1.0 - self._tokens) / self._rate
        self._tokens -= 1.0
        return 0.0


class Keys:
    """The API keys of the service, as SHA-256 digests; each may be used `rate` times a second, if there is a rate.

    Each of `workers` lets so many through.
    """

    def __init__(
        self,
        digests: Sequence[bytes],
        rate: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        workers: int = 1,
    ) -> None:
        self._digests = digests
        self._clock = clock
        self._total_rate = (rate or 0.0) * workers
        self._buckets = None if rate is None else [Bucket(rate, clock()) for _ in digests]

    def check(self, scope: Scope) -> None:
        """Raise Unauthorized unless a request brings a key or needs none, RateLimited if there are too many with it."""
        if is_open(scope):
            return
        place = self._place_of(_presented(scope))
        if place < 0:
            raise Unauthorized("unknown")
        if self._buckets is not None and (wait := self._buckets[place].take(self._clock())):
            raise RateLimited("rate", rate=f"{self._total_rate:g}", seconds=math.ceil(wait))

    def _place_of(self, key: bytes) -> int:
        """Return which key this is, or -1. Compares with all of them, so that the time taken tells nothing."""
        digest = sha256(key).digest()
        found = -1
        for place, known in enumerate(self._digests):
            found = place if hmac.compare_digest(digest, known) else found
        return found


def _presented(scope: Scope) -> bytes:
    """Return the key that a request brings; raises Unauthorized when it does not bring one."""
    values: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    if not values:
        raise Unauthorized("missing")
    scheme, _, key = values[0].partition(b" ")
    if len(values) > 1 or scheme.lower() != b"bearer" or not key.strip(b" "):
        raise Unauthorized("form")
    return key.strip(b" ")
