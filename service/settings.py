"""Every setting once: its default, bounds, unit, environment variable and flag."""

from __future__ import annotations

import argparse
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from service.machine import available_cores, usable_memory

MEBIBYTE = 1 << 20

PREFIX = "LOSS_"
"""What the names of variables begin with."""

IN_WORDS = "in_words"
"""Under this name in the schema of a setting with a pattern: what it must be, for people."""

BUDGET_PART = 0.6
"""Part of the memory that the process may use which requests may hold: the rest is for torch and the code itself."""

LOOPBACK_NAMES = ("localhost", "*.localhost", "127.0.0.1", "[::1]")
"""What a service that only this machine can reach is called."""

_HOST_NAME = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")

_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]+)?")


class CommandLineError(Exception):
    """The flags are not such as the service has."""


class _Help(argparse.HelpFormatter):
    """Shows defaults, but not those that stand for something that the description tells."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return re.sub(r" \(default( factory: \w+|: (None)?)\)$", "", action.help or "")


def _memory_budget() -> int:
    return int(usable_memory() * BUDGET_PART)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lower() for part in text.split(","))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


class Settings(BaseSettings):
    """Start the service. Every setting is a flag (--max-json-bytes) and a variable (LOSS_MAX_JSON_BYTES); flags win."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="Port to listen on; 0 takes a free one.")
    uds: Path | None = Field(None, description="Unix socket to listen on instead of host and port.")
    workers: Annotated[int, Field(ge=1, le=256)] = Field(
        1,
        description=(
            "Processes; more than one come with a supervisor that replaces those that die. Threads and budgets are "
            "totals: each process holds its share."
        ),
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        "auto",
        description="Where losses are computed: auto (CUDA when there is one), cpu, cuda or cuda:N.",
        json_schema_extra={IN_WORDS: "`auto`, `cpu`, `cuda` or `cuda:N`"},
    )
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        default_factory=available_cores,
        description="Engine workers of one thread each. Unless given, the cores available.",
    )
    max_json_bytes: Annotated[int, Field(ge=1024)] = Field(
        8 * MEBIBYTE, description="Largest JSON body accepted, in bytes."
    )
    max_json_answer_bytes: Annotated[int, Field(ge=1024)] = Field(
        32 * MEBIBYTE, description="Largest JSON answer given, in bytes."
    )
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(
        1024 * MEBIBYTE, description="Largest binary body accepted, in bytes."
    )
    body_bytes_per_second: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] = Field(
        16384.0,
        description=(
            "Slowest that a body may be sent after 5 s (else 408), and an answer be taken after 10 s (else the "
            "connection is cut), in bytes a second."
        ),
    )
    memory_budget: Annotated[int, Field(ge=16 * MEBIBYTE)] = Field(
        default_factory=_memory_budget,
        description=(
            "Bytes of memory that requests may hold at once: bodies, results and answers. Unless given, 60 % of what "
            "the process may use (its control group's limit, or the machine's memory)."
        ),
    )
    queue_seconds: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = Field(
        1.0,
        description=(
            "Longest predicted wait for the engine that is admitted, and longest time that a request waits for memory."
        ),
    )
    deadline_seconds: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] = Field(
        60.0,
        description="Time after which a request is given up, where its X-Request-Timeout-Ms does not say so.",
    )
    shared_memory: bool = Field(
        False,
        description=(
            "Whether callers on this machine may register regions of its shared memory below /v2. Whoever can call the "
            "service can then read and write any of its shared memory objects that the service can; one worker only."
        ),
    )
    drain_seconds: Annotated[float, Field(ge=1, le=3600, allow_inf_nan=False)] = Field(
        30.0,
        description=(
            "Longest time between SIGTERM and the end, all phases together; connections are still accepted (and told "
            "to close) for the first fifth of it."
        ),
    )
    allowed_hosts: str | None = Field(
        None,
        description=(
            "Names, separated by commas and without ports, that the Host header may hold; *.example.org stands for "
            "every name below it and * for any. Unless given, the names of the loopback interface when listening "
            "there, and any elsewhere."
        ),
    )
    api_keys: Path | None = Field(
        None,
        description=(
            "File of API keys, one a line of 16 to 256 printable characters; blank lines and # comments are skipped. "
            "With it everything but pages for people and health checks needs the header Authorization: Bearer KEY."
        ),
    )
    rate_per_key: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = Field(
        None, description="Requests per second that each API key may send; a second's worth may come at once."
    )
    cors_origins: str | None = Field(
        None,
        description=(
            "Origins, such as https://example.org, separated by commas, whose pages may call the service from a "
            "browser; * for any. Unless given, none."
        ),
    )
    root_path: Annotated[str, Field(pattern=r"^(/[^/?#\s]+)*$")] = Field(
        "",
        description="Path prefix that a proxy in front strips, such as /loss.",
        json_schema_extra={IN_WORDS: "a path like `/loss`, or empty"},
    )
    tls_cert: Path | None = Field(None, description="Certificate file; with it and tls-key the service speaks TLS.")
    tls_key: Path | None = Field(None, description="Private key of the certificate.")
    log_format: Literal["text", "json"] | None = Field(
        None, description="How log lines are written. Unless given, text on a terminal and json elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: str | None) -> str | None:
        if value is not None and not all(map(_HOST_NAME.fullmatch, _listed(value))):
            raise PydanticCustomError(
                "hosts", "Input should be names without ports, such as 'example.org,[::1]', separated by commas"
            )
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: str | None) -> str | None:
        if value is not None and not all(map(_ORIGIN.fullmatch, _listed(value))):
            raise PydanticCustomError(
                "origins", "Input should be * or origins without a path, such as 'https://example.org'"
            )
        return value

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.rate_per_key is not None and self.api_keys is None:
            raise ValueError("LOSS_RATE_PER_KEY is set, but no LOSS_API_KEYS; a rate belongs to a key")
        return self

    @model_validator(mode="after")
    def _check_shared_memory(self) -> Self:
        if self.shared_memory and self.workers > 1:
            raise ValueError("LOSS_SHARED_MEMORY needs LOSS_WORKERS to be 1; a region is registered with one process")
        return self

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("LOSS_TLS_CERT and LOSS_TLS_KEY go together; only one is set")
        for name in ("tls_cert", "tls_key"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"LOSS_{name.upper()} names {path}, which is not a file")
        return self

    @classmethod
    def from_command_line(cls, program: str, arguments: list[str]) -> Self:
        """Return the settings of flags and environment; raises ValidationError, CommandLineError; exits on --help."""
        try:
            flags = CliSettingsSource[argparse.ArgumentParser](
                cls,
                cli_prog_name=program,
                cli_parse_args=arguments,
                cli_exit_on_error=False,
                formatter_class=_Help,
            )
        except SettingsError as error:
            raise CommandLineError(str(error).removeprefix("error parsing CLI: ")) from error
        return cls(_cli_settings_source=flags)

    @classmethod
    def flags(cls) -> list[str]:
        """Return the flags of all settings, in their order."""
        return [f"--{name.replace('_', '-')}" for name in cls.model_fields]

    @property
    def host_names(self) -> tuple[str, ...]:
        """The names that the Host header may hold, in lower case; `*` stands for any."""
        if self.allowed_hosts is not None:
            return _listed(self.allowed_hosts)
        if self.uds is not None or not _is_loopback(self.host):
            return ("*",)
        own = f"[{self.host}]" if ":" in self.host else self.host
        return tuple(dict.fromkeys((*LOOPBACK_NAMES, own.lower())))

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins whose pages may call the service, as browsers write them; `*` stands for any."""
        return _listed(self.cors_origins) if self.cors_origins is not None else ()

    def share(self) -> Self:
        """Return the settings of one worker: its part of what is a total."""
        rate = self.rate_per_key
        return self.model_copy(
            update={
                "threads": max(1, self.threads // self.workers),
                "memory_budget": self.memory_budget // self.workers,
                "rate_per_key": None if rate is None else rate / self.workers,
            }
        )
