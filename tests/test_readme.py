"""The README is true: its commands are run against a real service, its tables name what exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from service.ops import OPERATORS
from service.settings import Settings
from tests.support.closeness import assert_close
from tests.support.running import RunningService, running_service

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CLIENT_README = (ROOT / "clients" / "python" / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(text: str, kind: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the blocks of a kind, each with the block after it."""
    blocks: list[tuple[str, str]] = BLOCK.findall(text)
    return [(code, blocks[place + 1 : place + 2]) for place, (found, code) in enumerate(blocks) if found == kind]


COMMANDS = blocks_of(README, "sh")

RUNNERS = {
    "python": ("main.py", [sys.executable]),
    "js": ("main.mjs", ["node"]),
    "go": ("main.go", ["go", "run"]),
    "java": ("Main.java", ["java"]),
    "bash": ("main.sh", ["bash", "-e"]),
}
"""How a program in each language is run: the name of its file, and what is called with it."""

PROGRAMS = [
    (kind, program, output)
    for kind in RUNNERS
    for text in (README, CLIENT_README)
    for program, output in blocks_of(text, kind)
]

NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def path_in(text: str) -> str:
    return text.partition(ADDRESS)[2].partition(" ")[0]


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service() as running:
        running.wait_until_ready()
        yield running


@pytest.mark.parametrize(("command", "answer"), COMMANDS, ids=[path_in(command) for command, _ in COMMANDS])
def test_a_command_is_answered_as_the_readme_says(
    service: RunningService, command: str, answer: list[tuple[str, str]]
) -> None:
    assert shutil.which("curl"), "curl is needed to try what the README says"
    assert command.startswith("curl ")
    assert [kind for kind, _ in answer] == ["json"], "a command must be followed by its answer"
    quiet = command.replace(ADDRESS, service.address).replace("curl ", "curl --silent --show-error ", 1)

    done = subprocess.run(["bash", "-c", quiet], capture_output=True, text=True, timeout=60, check=True)

    assert_close(orjson.loads(done.stdout), orjson.loads(answer[0][1]))


@pytest.mark.parametrize(("kind", "program", "output"), PROGRAMS)
def test_a_program_prints_what_the_readme_says(
    service: RunningService, tmp_path: Path, kind: str, program: str, output: list[tuple[str, str]]
) -> None:
    name, command = RUNNERS[kind]
    if kind not in ("python", "bash") and shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    assert [kind for kind, _ in output] == ["text"], "a program must be followed by what it prints"
    place = service.address.removeprefix("http://")
    program = program.replace(ADDRESS, service.address).replace(ADDRESS.removeprefix("http://"), place)
    (tmp_path / name).write_text(program)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GOCACHE": str(tmp_path / "cache")}

    done = subprocess.run(
        [*command, name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.stderr == ""
    # Numbers as numbers, however wide their column; the last digit is the processor's.
    assert NUMBER.sub("#", done.stdout).split() == NUMBER.sub("#", output[0][1]).split()
    numbers, expected = (list(map(float, NUMBER.findall(text))) for text in (done.stdout, output[0][1]))
    assert numbers == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", RUNNERS)
def test_every_language_has_a_program(kind: str) -> None:
    assert blocks_of(README, kind)


def test_every_operator_and_its_gradient_has_a_command() -> None:
    expected = {f"/v1/{name}{suffix}" for name in OPERATORS for suffix in ("", "/gradient")}

    assert expected <= {path_in(command) for command, _ in COMMANDS}


def test_the_loss_is_the_same_in_one_step_and_in_two() -> None:
    losses = {path_in(command): orjson.loads(answer[0][1]).get("loss") for command, answer in COMMANDS[:4]}

    assert losses["/v1/cross-entropy"] == pytest.approx(0.8107, abs=5e-5)
    assert losses["/v1/nll-loss"] == pytest.approx(0.8107, abs=5e-5)


OPTIONS = README.partition("\n## Options\n")[2].partition("\n## ")[0]


def test_the_options_table_names_every_option_with_its_default() -> None:
    table = dict(re.findall(r"^\| `([a-z_]+)` \| [^|]+ \| ([^|]+) \|", OPTIONS, re.MULTILINE))
    options = {name: field for operator in OPERATORS.values() for name, field in operator.options.model_fields.items()}

    assert set(table) == set(options)
    for name, option in options.items():
        if option.default is not None:
            assert table[name].strip("` ") == str(option.default)


def test_the_settings_table_names_settings_with_their_defaults() -> None:
    rows = re.findall(r"^\| (`LOSS_[^|]+) \| ([^|]+) \|", README, re.MULTILINE)

    assert rows
    for names, defaults in rows:
        for name, default in zip(re.findall(r"`LOSS_(\w+)`", names), defaults.split(", "), strict=True):
            declared = Settings.model_fields[name.lower()].default
            if isinstance(declared, (int, str)) and declared:
                assert default.strip("` ") == str(declared)


@pytest.mark.parametrize(
    ("given", "flags"),
    [([], ""), (["PORT=8141"], "--port '8141'"), (["HOST=::1", "PORT=1"], "--host '::1' --port '1'")],
)
def test_make_serve_listens_where_it_is_told(given: list[str], flags: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HOST": "x86_64-linux-gnu"}

    done = subprocess.run(
        ["make", "--dry-run", "serve", *given], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1].split() == [".venv/bin/loss-service", "serve", *flags.split()]


def test_every_target_of_make_that_the_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()

    for target in set(re.findall(r"\bmake ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
