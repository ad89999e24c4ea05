"""Speed beside torch, a bare server and pydantic, in interleaved rounds: `python -m benchmarks.bench`."""

from __future__ import annotations

import argparse
import os
import platform

import torch

from benchmarks import in_process, json_speed, loopback, open_inference


def main() -> None:
    """Print the facts of the machine and all tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--device", default="cpu", help="where the service computes: cpu, cuda or cuda:N")
    parser.add_argument("--quick", action="store_true", help="a few rounds only, for a first look")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    print(f"{platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}, {device} ({name})")
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads by default\n"
    )
    in_process.measure(device, quick=arguments.quick)
    print()
    loopback.measure(device, quick=arguments.quick)
    print()
    open_inference.measure(device, quick=arguments.quick)
    print()
    json_speed.measure(quick=arguments.quick)


if __name__ == "__main__":
    main()
