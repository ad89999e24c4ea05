"""What every call may be told beside its tensors and its operator's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from loss_client.progress import Report


class Default(Enum):
    """Stands for what the client was told."""

    CLIENT_DEFAULT = "what the client was told"


CLIENT_DEFAULT: Final = Default.CLIENT_DEFAULT
"""As the client was told."""

TimeoutOption = float | None | Default
"""Seconds, None for no bound, or as the client was told."""

ProgressOption = bool | Report
"""Whether a bar is drawn, or a function that is told."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call as the caller made it.

    Attributes:
        operator: its name, with dashes.
        tensors: arrays or tensors by name; None for those that are not given.
        options: values by name; None stands for the default.
    """

    operator: str
    tensors: Mapping[str, object]
    options: Mapping[str, object]
    gradient: bool
    timeout: TimeoutOption = CLIENT_DEFAULT
    progress: ProgressOption | None = None


Outputs = tuple[dict[str, Any], tuple[str, ...]]
"""What came of a call: outputs by name, and the ids of its requests."""
