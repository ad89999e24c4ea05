"""The wheel holds everything that the service needs to run and to be passed on."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "service").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    packed = set(wheel.namelist())

    assert files <= packed
    assert "service/py.typed" in packed
    assert {"service/http/assets/swagger-ui-bundle.js", "service/explorer/assets/explore.js"} <= packed
    assert {name.partition("/")[0] for name in packed} == {"service", _folder(wheel)}


def test_the_wheel_holds_every_licence(wheel: zipfile.ZipFile) -> None:
    licences = {name.removeprefix(f"{_folder(wheel)}/licenses/") for name in wheel.namelist() if "/licenses/" in name}

    assert licences == {
        "LICENSE",
        "service/http/assets/LICENSE.txt",
        "service/http/assets/NOTICE.txt",
        "service/http/assets/swagger-ui-bundle.js.LICENSE.txt",
    }


def test_the_wheel_brings_the_command_and_the_readme(wheel: zipfile.ZipFile) -> None:
    metadata = message_from_string(wheel.read(f"{_folder(wheel)}/METADATA").decode())
    commands = wheel.read(f"{_folder(wheel)}/entry_points.txt").decode()

    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    assert "loss-service = service.__main__:main" in commands


def _folder(wheel: zipfile.ZipFile) -> str:
    """Return the folder of the wheel's own description."""
    (folder,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    return folder
