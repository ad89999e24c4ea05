"""Are the checks tested? Take one away, run the tests, and see whether any of them notices.

`python -m tests.mutate` copies the repository into a temporary directory and there, one at a time, replaces every
`raise` of the modules below by `pass`, then runs the fast tests of the two rooms up to the first failure.
What no test notices *survives*, and is printed with its line; the exit status is 1 if anything does. Paths as arguments
choose other modules. It takes some minutes.
"""

from __future__ import annotations

import ast
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MODULES = (
    "service/ops/request.py",
    "service/ops/bind.py",
    "service/wire/json_codec.py",
    "service/wire/json_structure.py",
    "service/wire/json_values.py",
    "service/wire/safetensors_codec.py",
    "service/wire/oip_codec.py",
    "service/wire/shared_memory.py",
    "service/http/infer.py",
    "service/http/compression.py",
    "service/tensors.py",
    "service/http/body.py",
    "service/http/formats.py",
    "service/http/auth.py",
    "service/http/hosts.py",
)

TESTS = (
    "tests/http/test_sentences.py",
    "tests/http/test_protocol.py",
    "tests/http/test_auth.py",
    "tests/http/test_hosts.py",
    "tests/http/test_infer.py",
    "tests/http/test_shared_memory.py",
    "tests/wire",
    "tests/http/test_hostile_json.py",
)

PRELOADED = ("fastapi", "httpx", "hypothesis", "msgspec", "numpy", "orjson", "pydantic_settings", "simdjson", "torch")
"""What the tests import of others: loaded once here, so that a run need not."""

LONGEST_RUN_SECONDS = 300


@dataclass(frozen=True)
class Mutation:
    """A statement to be replaced by `pass`: its lines, from 1, the last included."""

    path: str
    first: int
    last: int
    indent: int

    def applied_to(self, text: str) -> str:
        lines = text.splitlines(keepends=True)
        return "".join([*lines[: self.first - 1], " " * self.indent + "pass\n", *lines[self.last :]])


def mutations(path: str, text: str) -> Iterator[Mutation]:
    """Yield every `raise` of a module, those apart that pass on what they caught or that no request can reach."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Raise) and node.exc is not None and "AssertionError" not in ast.unparse(node.exc):
            yield Mutation(path, node.lineno, node.end_lineno or node.lineno, node.col_offset)


def is_noticed(root: Path) -> bool:
    """Run the tests in a copy, in a child that has imported nothing of it yet, and return whether one fails."""
    child = multiprocessing.get_context("fork").Process(target=_run_tests, args=(root,))
    child.start()
    child.join(LONGEST_RUN_SECONDS)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode != 0


def _run_tests(root: Path) -> None:
    os.chdir(root)
    sys.path[0] = str(root)
    sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "service")]:
        del sys.modules[name]
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", "--assert=plain", *TESTS]))


def main(paths: list[str]) -> int:
    """Try every mutation and return how many survive."""
    here = Path(__file__).parents[1]
    for name in PRELOADED:
        importlib.import_module(name)
    survivors, count = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(here / "service", root / "service")
        shutil.copytree(here / "tests", root / "tests", ignore=shutil.ignore_patterns("node_modules"))
        shutil.copy(here / "pyproject.toml", root)
        if is_noticed(root):
            print("the tests fail without any mutation")
            return 1
        for path in paths or MODULES:
            original = (root / path).read_text()
            for mutation in mutations(path, original):
                (root / path).write_text(mutation.applied_to(original))
                count += 1
                if not is_noticed(root):
                    survivors += 1
                    line = original.splitlines()[mutation.first - 1].strip()
                    print(f"{path}:{mutation.first} survives: {line}", flush=True)
            (root / path).write_text(original)
    print(f"{count} mutations, {survivors} survive")
    return survivors


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
