"""The log: one line an event, as text for people or JSON for machines, and one line a request."""

from __future__ import annotations

import json
import logging
import logging.config
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from starlette.types import Scope

from service.errors import clip
from service.http.exchange import Exchange

LogFormat = Literal["text", "json"]

_requests = logging.getLogger("service.request")


def choose_format(wanted: LogFormat | None) -> LogFormat:
    """Return the format asked for; unless one is, text on a terminal and JSON elsewhere."""
    return wanted or ("text" if sys.stderr.isatty() else "json")


def configuration(log_format: LogFormat, level: str) -> dict[str, Any]:
    """Return a `logging.config` dictionary; everything goes to standard error."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": JsonFormatter if log_format == "json" else TextFormatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "root": {"handlers": ["stderr"], "level": level.upper()},
    }


def log_request(scope: Scope, exchange: Exchange) -> None:
    """Write the line of a request that has been answered; nothing of what the caller sent but method and path."""
    if not _requests.isEnabledFor(logging.INFO):
        return
    fields = {
        "method": clip(scope["method"]),
        "path": clip(scope["path"]),
        "status": exchange.status,
        "code": exchange.code,
        "ms": round(exchange.seconds * 1e3, 3),
        "received": exchange.received,
        "sent": exchange.sent,
        "rows": exchange.rows,
        "request_id": exchange.request_id,
    }
    if exchange.trace_id is not None:
        fields["trace_id"] = exchange.trace_id
    _requests.info("request", extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and what else the event tells."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        event: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event)


class TextFormatter(logging.Formatter):
    """Time, level and message; control characters are escaped, so that an event stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record; a traceback follows on lines of its own."""
        fields = getattr(record, "fields", None)
        message = (
            record.getMessage() if fields is None else " ".join(f"{name}={value}" for name, value in fields.items())
        )
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        line = f"{time} {record.levelname.lower():7} {printable}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
