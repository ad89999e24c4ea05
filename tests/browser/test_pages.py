"""What people see, in a real browser: nothing foreign is loaded, nothing complains, every example runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service import describe
from service.http.docs import operation_id
from service.ops import OPERATORS
from tests.support.running import running_service

pytestmark = pytest.mark.browser

HERE = Path(__file__).parent


def find_tools() -> tuple[str, str]:
    """Return where Node and Chromium are."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    node = shutil.which("node")
    assert chromium, "no Chromium found; install it or set CHROMIUM"
    assert node, "no node found"
    return node, chromium


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser saw of every page."""
    node, chromium = find_tools()
    folder = tmp_path_factory.mktemp("screenshots")
    with running_service() as service:
        service.wait_until_ready()
        command = [node, str(HERE / "drive.mjs"), service.address, chromium, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_no_request_leaves_the_host(seen: dict[str, Any]) -> None:
    assert seen["foreign"] == []


def test_nothing_complains_and_no_policy_is_violated(seen: dict[str, Any]) -> None:
    assert seen["complaints"] == []


def test_no_page_is_wider_than_its_window(seen: dict[str, Any]) -> None:
    assert seen["overflowing"] == []


def test_every_step_of_the_keyboard_is_visible(seen: dict[str, Any]) -> None:
    assert seen["unfocused"] == []


def test_links_of_the_front_page_open_the_operator_that_they_name(seen: dict[str, Any]) -> None:
    assert seen["closed"] == []


def test_every_example_is_executed_and_answered(seen: dict[str, Any]) -> None:
    examples = [
        f"{operation_id(operator, gradient=gradient)}: {example.name}"
        for operator in OPERATORS.values()
        for gradient in (False, True)
        for example in describe.examples(operator, gradient=gradient)
    ] + [
        f"infer{describe.schema_name(operator, gradient=gradient)}: {example.name}"
        for operator, gradient in describe.models(OPERATORS)
        for example in describe.examples(operator, gradient=gradient)
        if describe.is_inferable(example.request)
    ]

    executed = {entry["name"]: (entry["status"], entry["shown"]) for entry in seen["executed"]}

    assert [name for name in executed if ":" in name] == examples
    assert set(executed.values()) == {(200, 200)}
