"""A client for Loss Service: softmax, log-softmax, NLL, cross-entropy and their gradients, for NumPy and PyTorch."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from loss_client.answers import Answer
from loss_client.client import AsyncLossClient, LossClient
from loss_client.errors import (
    BadAnswerError,
    CallTimeoutError,
    LossClientError,
    NoAnswerError,
    Problem,
    RequestRefusedError,
    ServiceError,
    ServiceFaultError,
    UnavailableError,
)
from loss_client.progress import Progress, ProgressBar
from loss_client.retries import RetryBudget, RetryPolicy

if TYPE_CHECKING:
    from loss_client.nn import RemoteCrossEntropyLoss as RemoteCrossEntropyLoss

__version__ = version("loss-client")

# RemoteCrossEntropyLoss is not among them: `import *` would import torch, which need not be there.
__all__ = [
    "Answer",
    "AsyncLossClient",
    "BadAnswerError",
    "CallTimeoutError",
    "LossClient",
    "LossClientError",
    "NoAnswerError",
    "Problem",
    "Progress",
    "ProgressBar",
    "RequestRefusedError",
    "RetryBudget",
    "RetryPolicy",
    "ServiceError",
    "ServiceFaultError",
    "UnavailableError",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name == "RemoteCrossEntropyLoss":
        from loss_client.nn import RemoteCrossEntropyLoss  # noqa: PLC0415 - see above

        return RemoteCrossEntropyLoss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
