"""What the running service knows of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True)
class State:
    """Shared by the probes and the part that starts and stops the service."""

    readiness: Literal["starting", "ok", "failed"] = "starting"
