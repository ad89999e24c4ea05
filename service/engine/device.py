"""Which device computes: the CPU, or one CUDA device."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)


class DeviceUnavailableError(RuntimeError):
    """The device that the settings ask for is not there."""


def choose_device(name: str) -> torch.device:
    """Return the device that `name` (`auto`, `cpu`, `cuda` or `cuda:N`) stands for.

    `auto` takes CUDA when there is one. Raises DeviceUnavailableError when the device is not there.
    """
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        logger.info("device auto: computing on %s", device)
        return device
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise DeviceUnavailableError(f"device is {name}, but torch {torch.__version__} finds no CUDA device")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise DeviceUnavailableError(
            f"device is {name}, but there are {count} CUDA devices (cuda:0 to cuda:{count - 1})"
        )
    return device
