"""Are the checks tested? Take one away, run the tests, and see whether any of them notices.

`python -m tests.mutate` copies the repository into a temporary directory and there, one at a time, replaces every
`raise` of the modules below by `pass`, then runs the fast tests of the two rooms up to the first failure.
What no test notices *survives*, and is printed with its line; the exit status is 1 if anything does. Paths as arguments
choose other modules. It takes some minutes.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODULES = (
    "service/ops/request.py",
    "service/ops/bind.py",
    "service/wire/json_codec.py",
    "service/wire/json_structure.py",
    "service/tensors.py",
    "service/http/body.py",
)

TESTS = ("tests/wire", "tests/http/test_sentences.py", "tests/http/test_protocol.py", "tests/http/test_hostile_json.py")

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
    """Yield every `raise` of a module, those apart that pass on what they caught."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            yield Mutation(path, node.lineno, node.end_lineno or node.lineno, node.col_offset)


def is_noticed(root: Path) -> bool:
    """Run the tests in a copy and return whether one fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS]
    try:
        status = subprocess.run(
            command, cwd=root, capture_output=True, timeout=LONGEST_RUN_SECONDS, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return True
    return status != 0


def main(paths: list[str]) -> int:
    """Try every mutation and return how many survive."""
    here = Path(__file__).parents[1]
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
