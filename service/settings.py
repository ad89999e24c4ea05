"""Every setting once: its default, bounds, unit, environment variable and flag."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MEBIBYTE = 1 << 20


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseSettings):
    """What an operator of the service can choose, by flag (`--max-json-bytes`) or variable (`LOSS_MAX_JSON_BYTES`)."""

    model_config = SettingsConfigDict(env_prefix="LOSS_", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="Port to listen on; 0 takes a free one.")
    uds: Path | None = Field(None, description="Unix socket to listen on instead of host and port.")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        "auto", description="Where losses are computed: auto (CUDA when there is one), cpu, cuda or cuda:N."
    )
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        default_factory=_available_cores,
        description="Engine workers of one thread each. Unless given, the cores available.",
    )
    max_json_bytes: Annotated[int, Field(ge=1024)] = Field(
        8 * MEBIBYTE, description="Largest JSON body accepted, in bytes."
    )
    max_json_answer_bytes: Annotated[int, Field(ge=1024)] = Field(
        32 * MEBIBYTE, description="Largest JSON answer given, in bytes."
    )
    root_path: Annotated[str, Field(pattern=r"^(/[^/?#\s]+)*$")] = Field(
        "", description="Path prefix that a proxy in front strips, such as /loss."
    )
    tls_cert: Path | None = Field(None, description="Certificate file; with it the service speaks TLS.")
    tls_key: Path | None = Field(None, description="Private key of the certificate.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
