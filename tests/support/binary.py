"""Requests in safetensors, written by the format's own library."""

from __future__ import annotations

import safetensors.torch
import torch
from torch import Tensor

from tests.support.raw_http import request

BINARY = "Content-Type: application/x-safetensors"


def binary_request(path: str, tensors: dict[str, Tensor], *lines: str, **options: str) -> bytes:
    """Return head and body of a request; `lines` are further header lines."""
    body = safetensors.torch.save(tensors, metadata=options or None)
    return request("POST", path, BINARY, *lines, body=body)


def cross_entropy_request(
    rows: int, classes: int, *lines: str, path: str = "/v1/cross-entropy", seed: int = 0
) -> bytes:
    """Return a request of float32 logits and class indices."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=random)
    return binary_request(path, {"logits": logits, "target": torch.randint(classes, (rows,), generator=random)}, *lines)
