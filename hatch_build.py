"""Compiles `service/ops/rows.c` when the package is built or installed; without a C compiler torch does its work."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("service", "ops")

FLAGS = ["-O3", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
# The bits of a result must not depend on the compiler: it may neither reorder nor contract.
FLAGS += ["-ffp-contract=off"]

VARIANTS = {
    "x86_64": {"avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"], "avx2": ["-march=x86-64-v3"]},
    "amd64": {"avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"], "avx2": ["-march=x86-64-v3"]},
    "aarch64": {"base": []},
    "arm64": {"base": []},
}
"""Compiler flags by machine and by the vector instructions that `service.ops.native` asks for."""


class CompileRows(BuildHookInterface):  # type: ignore[type-arg]
    """Puts one shared library for each kind of vector instructions beside the source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the files of the package are collected."""
        compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc") or ""]
        if not compiler[0] or sys.platform == "win32":
            self.app.display_warning("no C compiler found: rows are computed with torch alone, which is slower")
            return
        for name, flags in VARIANTS.get(platform.machine().lower(), {}).items():
            library = FOLDER / f"rows-{name}.so"
            made = Path(self.root, library)
            command = [*compiler, *FLAGS, *flags, str(Path(self.root, FOLDER, "rows.c")), "-o", str(made), "-lm"]
            done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603  # our own words
            if done.returncode:
                self.app.display_warning(f"{library} is left out, its compilation failed: {done.stderr.strip()}")
                continue
            build_data["artifacts"].append(str(library))
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
