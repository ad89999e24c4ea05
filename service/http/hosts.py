"""By what name the service may be called: a page of another site must not reach it through a name of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address

from starlette.types import Scope

from service.errors import MalformedRequest, clip

_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")


KNOWN_HOSTS = 64
"""So many Host headers are remembered: callers send the same again and again."""


class Hosts:
    """The names that the Host header may hold: in lower case, without ports; `*.` begins a whole domain, `*` is any."""

    def __init__(self, names: Iterable[str]) -> None:
        names = list(names)
        self._any = "*" in names
        self._names = frozenset(_canonical(name) for name in names)
        self._endings = tuple(name[1:] for name in names if name.startswith("*."))
        self._listed = clip(", ".join(names))
        self._is_allowed = lru_cache(KNOWN_HOSTS)(self._allows)

    def check(self, scope: Scope) -> None:
        """Raise MalformedRequest unless the request has one Host header, and it holds one of the names.

        HTTP/1.0 knows requests without one, and a browser never sends those.
        """
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1:
            if hosts:
                raise MalformedRequest("two-hosts", got=len(hosts))
            if scope["http_version"] != "1.0":
                raise MalformedRequest("no-host")
        elif not self._any and not self._is_allowed(hosts[0]):
            raise MalformedRequest("host", expected=self._listed, got=clip(hosts[0].decode("latin-1")))

    def _allows(self, host: bytes) -> bool:
        found = _HOST.fullmatch(host.decode("latin-1"))
        if found is None:
            return False
        name = _canonical(found[1].lower().removesuffix("."))
        return name in self._names or name.endswith(self._endings)


def _canonical(name: str) -> str:
    """Return the one way to write an IPv6 address in brackets; other names are their own."""
    try:
        return f"[{ip_address(name[1:-1]).compressed}]" if name.startswith("[") else name
    except ValueError:
        return name
