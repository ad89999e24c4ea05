"""Are the checks tested? Take one away, run the tests, and see whether any of them notices.

`python -m tests.mutate` copies the repository into a temporary directory and there, one at a time, replaces every
`raise` of the modules below, and whatever stops a parser, by `pass`, then runs the module's tests up to the first
failure. What no test notices *survives*, and is printed with its line; the exit status is 1 if anything does. Paths as
arguments choose among the modules. It takes some minutes.
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

FORMATS = (
    "tests/http/test_sentences.py",
    "tests/http/test_protocol.py",
    "tests/http/test_auth.py",
    "tests/http/test_hosts.py",
    "tests/http/test_infer.py",
    "tests/http/test_shared_memory.py",
    "tests/wire",
    "tests/http/test_hostile_json.py",
)
LOAD = (
    "tests/engine/test_admission.py",
    "tests/engine/test_budget.py",
    "tests/http/test_intake.py",
    "tests/http/test_overload.py",
    "tests/http/test_disconnects.py",
)
CONNECTIONS = ("tests/http/test_raw_requests.py", "tests/http/test_connections.py", "tests/http/test_disconnects.py")

TESTS = {
    "service/ops/request.py": FORMATS,
    "service/ops/bind.py": FORMATS,
    "service/wire/json_codec.py": FORMATS,
    "service/wire/json_structure.py": FORMATS,
    "service/wire/json_values.py": FORMATS,
    "service/wire/safetensors_codec.py": FORMATS,
    "service/wire/oip_codec.py": FORMATS,
    "service/wire/shared_memory.py": FORMATS,
    "service/http/infer.py": FORMATS,
    "service/http/compression.py": FORMATS,
    "service/tensors.py": FORMATS,
    "service/http/body.py": FORMATS,
    "service/http/formats.py": FORMATS,
    "service/http/auth.py": FORMATS,
    "service/http/hosts.py": FORMATS,
    "service/engine/admission.py": LOAD,
    "service/engine/budget.py": LOAD,
    "service/http/intake.py": LOAD,
    "service/http/permits.py": LOAD,
    "service/http/guard.py": CONNECTIONS,
}
"""The modules, and for each the tests that are to notice."""

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
    """Yield every check of a module: each `raise` but for those that pass on what they caught or that no request can
    reach, and each `self._stop(...)`.
    """
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Raise(exc=ast.expr() as raised) if "AssertionError" not in ast.unparse(raised):
                pass
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr="_stop"))):
                pass
            case _:
                continue
        yield Mutation(path, node.lineno, node.end_lineno or node.lineno, node.col_offset)


def is_noticed(root: Path, tests: tuple[str, ...]) -> bool:
    """Run tests in a copy, in a child that has imported nothing of it yet, and return whether one fails."""
    child = multiprocessing.get_context("fork").Process(target=_run_tests, args=(root, tests))
    child.start()
    child.join(LONGEST_RUN_SECONDS)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode != 0


def _run_tests(root: Path, tests: tuple[str, ...]) -> None:
    os.chdir(root)
    sys.path[0] = str(root)
    sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "service")]:
        del sys.modules[name]
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", "--assert=plain", *tests]))


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
        paths = paths or list(TESTS)
        for tests in {TESTS[path] for path in paths}:
            if is_noticed(root, tests):
                print(f"{' '.join(tests)} fail without any mutation")
                return 1
        for path in paths:
            original = (root / path).read_text()
            for mutation in mutations(path, original):
                (root / path).write_text(mutation.applied_to(original))
                count += 1
                if not is_noticed(root, TESTS[path]):
                    survivors += 1
                    line = original.splitlines()[mutation.first - 1].strip()
                    print(f"{path}:{mutation.first} survives: {line}", flush=True)
            (root / path).write_text(original)
    print(f"{count} mutations, {survivors} survive")
    return survivors


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
