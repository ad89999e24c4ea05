"""The explorer in a real browser: what it shows are torch's numbers, whatever is moved, typed or pressed."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.browser.test_pages import find_tools
from tests.support.running import running_service

pytestmark = pytest.mark.browser

HERE = Path(__file__).parent
KEY = "the-key-of-the-explorer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("SCREENSHOTS")
    return Path(kept) if kept else tmp_path_factory.mktemp("screenshots")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The addresses of a service, and of one with API keys."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    with running_service() as service, running_service("--api-keys", str(keys)) as closed:
        service.wait_until_ready()
        closed.wait_until_ready()
        yield service.address, closed.address


@pytest.fixture(scope="module")
def seen(services: tuple[str, str], folder: Path) -> dict[str, Any]:
    """What the explorer showed."""
    node, chromium = find_tools()
    command = [node, str(HERE / "explore.mjs"), *services, KEY, chromium, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def request_in(snippet: str) -> dict[str, Any]:
    """Return the body that a curl snippet posts."""
    body: dict[str, Any] = json.loads(snippet[snippet.index("'{") + 1 : snippet.rindex("'")])
    return body


def tensor_of(values: Any) -> torch.Tensor:
    """Return numbers as float32 holds them, in float64."""
    plain = [[float(value) for value in row] for row in values] if isinstance(values[0], list) else values
    return torch.tensor(plain, dtype=torch.float32).double()


def torch_answer(body: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return what torch says about a request for cross-entropy."""
    body = dict(body)
    logits = tensor_of(body.pop("logits")).requires_grad_()
    target = body.pop("target")
    target = tensor_of(target) if isinstance(target[0], list) else torch.tensor(target)
    tempered = logits / body.pop("temperature", 1.0)
    if "weight" in body:
        body["weight"] = tensor_of(body["weight"])
    reduction = body.pop("reduction", "mean")
    loss = functional.cross_entropy(tempered, target, reduction=reduction, **body)
    return {
        "loss": loss.detach(),
        "row_losses": functional.cross_entropy(tempered, target, reduction="none", **body).detach(),
        "gradient": torch.autograd.grad(loss.sum(), logits)[0],
        "probs": tempered.detach().softmax(1),
        "logsumexp": tempered.detach().logsumexp(1),
    }


def named(seen: dict[str, Any], name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [entry for entry in seen["shown"] if entry["name"] == name]
    assert len(found) == 1, name
    return found[0]


def numbers(values: list[str]) -> list[float]:
    return [float(value) for value in values]


def near(expected: torch.Tensor) -> Any:
    return pytest.approx(expected.tolist(), rel=2e-6, abs=1e-7)


EVERYTHING = [
    "at first",
    "One-hot target",
    "Confident, right",
    "Confident, wrong",
    "Knows nothing",
    "A masked class",
    "A teacher's opinion",
    "Student equals teacher",
    "Three rows",
    "slider: arrow keys",
    "slider: end",
    "number: arrow keys",
    "target: arrow key",
    "masked",
    "unmasked",
    "dragged",
    "a second row and a fourth class",
    "the first of two rows",
    "a row skipped",
    "the skipped row",
    "soft targets that do not sum to 1",
    "without the row and the class",
    "label smoothing",
    "temperature",
    "class weights",
    "sum",
    "none",
    "ignored",
    "before the steps",
    "after three steps",
    "a typed infinity",
    "margin 110, asked of the service",
    "copied",
    "overtaken",
]


@pytest.mark.parametrize("name", EVERYTHING)
def test_what_is_shown_is_what_torch_says_of_the_request(seen: dict[str, Any], name: str) -> None:
    shown = named(seen, name)
    row = shown["selected"]
    body = request_in(shown["snippet"])

    truth = torch_answer(body)

    loss = truth["row_losses"][row] if body.get("reduction") == "none" else truth["loss"]
    assert float(shown["loss"]) == near(loss)
    assert numbers(shown["rowLosses"]) == near(truth["row_losses"])
    assert numbers(shown["probs"]) == near(truth["probs"][row])
    assert numbers(shown["gradient"]) == near(truth["gradient"][row])
    assert float(shown["facts"]["logsumexp"]) == near(truth["logsumexp"][row])
    assert [bar["size"] for bar in shown["bars"]] == pytest.approx(truth["probs"][row].tolist(), abs=0.01)


def test_every_scene_was_compared(seen: dict[str, Any]) -> None:
    assert [entry["name"] for entry in seen["shown"]] == EVERYTHING


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name != "the skipped row"])
def test_arrows_point_against_the_gradient(seen: dict[str, Any], name: str) -> None:
    shown = named(seen, name)

    for number, (gradient, arrow, push) in enumerate(
        zip(numbers(shown["gradient"]), shown["arrows"], shown["pushes"], strict=True)
    ):
        if arrow is None:
            assert abs(gradient) < 0.01
        else:
            assert arrow["left"] == (gradient > 0), number
        if push is not None:
            assert push["left"] == (gradient > 0)


def test_an_arrow_on_a_bar_is_as_long_as_q_minus_p(seen: dict[str, Any]) -> None:
    shown = named(seen, "One-hot target")

    lengths = [arrow["size"] for arrow in shown["arrows"]]

    assert lengths == pytest.approx([abs(value) for value in numbers(shown["gradient"])], abs=0.01)


def test_a_skipped_row_has_no_arrows_and_no_ticks(seen: dict[str, Any]) -> None:
    shown = named(seen, "the skipped row")

    assert set(shown["arrows"] + shown["pushes"] + shown["ticks"]) == {None}


def test_the_controls_change_the_request(seen: dict[str, Any]) -> None:
    def body(name: str) -> dict[str, Any]:
        return request_in(named(seen, name)["snippet"])

    assert body("at first") == {"logits": [[1.1316, -0.7943, 0.1328]], "target": [0]}
    assert body("slider: arrow keys")["logits"][0][1] == pytest.approx(-0.1)
    assert body("slider: end")["logits"][0][1] == 10
    assert body("number: arrow keys")["logits"][0][2] == pytest.approx(1.0328)
    assert body("target: arrow key")["target"] == [1]
    assert body("masked")["logits"][0][0] == "-Infinity"
    assert body("unmasked")["logits"][0][0] == 1.1316
    assert 5 < body("dragged")["logits"][0][2] < 9
    two = body("a second row and a fourth class")
    assert (two["logits"], two["target"]) == ([[2.5, -0.7943, 0.1328, 0], [1, 0, -1, -1.25]], [0, 3])
    assert body("the skipped row")["target"] == [0, -100]
    assert body("soft targets that do not sum to 1")["target"][0] == [1, 0.5, 0, 0]
    assert body("without the row and the class")["target"] == [[1, 0.5, 0]]
    assert {**body("none"), "logits": 0, "target": 0} == {
        **{"logits": 0, "target": 0, "weight": [0.5, 1, 3]},
        **{"label_smoothing": 0.2, "temperature": 2.5, "reduction": "none"},
    }
    assert body("ignored")["ignore_index"] == 1
    assert body("overtaken")["logits"][0][0] == -5


def test_for_soft_targets_the_loss_is_divergence_plus_entropy(seen: dict[str, Any]) -> None:
    shown = named(seen, "A teacher's opinion")
    facts = shown["facts"]

    assert float(facts["divergence"]) + float(facts["entropy"]) == pytest.approx(float(shown["loss"]), rel=1e-6)
    assert float(facts["divergence"]) > 0.001
    student = named(seen, "Student equals teacher")
    assert float(student["facts"]["divergence"]) == pytest.approx(0, abs=1e-7)
    assert float(student["loss"]) == pytest.approx(-sum(p * math.log(p) for p in (0.7, 0.1, 0.2)), rel=1e-6)


def test_steps_downhill_lower_the_loss(seen: dict[str, Any]) -> None:
    assert float(named(seen, "after three steps")["loss"]) < float(named(seen, "before the steps")["loss"]) - 0.1


def test_the_loss_is_said_once_it_has_come_to_rest(seen: dict[str, Any]) -> None:
    assert seen["spokenAtRest"] == "The loss is 0.81073."


def test_the_route_apart_is_that_of_torch_in_float32(seen: dict[str, Any]) -> None:
    for entry in seen["margins"]:
        logits = torch.tensor([entry["margin"], 0.0], dtype=torch.float32, requires_grad=True)
        loss = -logits.softmax(0).log()[1]
        gradient = torch.autograd.grad(loss, logits)[0][1]

        assert float(entry["apart loss"]) == pytest.approx(loss.item(), rel=1e-6, nan_ok=True), entry
        assert float(entry["apart gradient"]) == pytest.approx(gradient.item(), rel=1e-6, nan_ok=True), entry


def test_the_fused_route_is_that_of_torch_in_float32(seen: dict[str, Any]) -> None:
    for entry in seen["margins"]:
        logits = torch.tensor([entry["margin"], 0.0], dtype=torch.float32, requires_grad=True)
        loss = functional.cross_entropy(logits, torch.tensor(1))
        gradient = torch.autograd.grad(loss, logits)[0][1]

        assert float(entry["fused loss"]) == pytest.approx(loss.item(), rel=1e-6)
        assert float(entry["fused gradient"]) == pytest.approx(gradient.item(), rel=1e-6)


def test_the_route_apart_breaks_where_the_page_says(seen: dict[str, Any]) -> None:
    by_margin = {entry["margin"]: entry for entry in seen["margins"]}

    assert by_margin[88]["apart gradient"] != "NaN"
    assert by_margin[89]["apart gradient"] == "NaN"
    assert by_margin[103]["apart loss"] != "Infinity"
    assert (by_margin[110]["apart loss"], by_margin[110]["apart gradient"]) == ("Infinity", "NaN")
    assert "infinity times 0" in by_margin[110]["verdict"]
    assert (by_margin[110]["fused loss"], by_margin[110]["fused gradient"]) == ("110", "-1")
    assert re.search(r"loss\s+Infinity\s+110", seen["marginTexts"])
    assert re.search(r"NaN\s+\S1", seen["marginTexts"])
    assert seen["marginByKeyboard"] == "0"


def test_a_problem_is_shown_beside_the_control_that_it_names(seen: dict[str, Any]) -> None:
    temperature, mended, logit = seen["problems"]

    assert temperature["isMarked"] == logit["isMarked"] == "true"
    assert temperature["message"].startswith("'temperature' must be a finite number greater than 0, but is 0.")
    assert temperature["mend"].endswith("/problems/invalid-option")
    assert temperature["loss"] == "–"  # noqa: RUF001
    assert (mended["isMarked"], mended["message"], mended["loss"]) == (None, None, "0.4148")
    assert "logits[0, 1] is 1e+39, which float32 cannot hold" in logit["message"]
    assert "summed weight of the kept rows is 0" in seen["nothingToAverage"]
    assert seen["unread"] == "Not a number"


LANGUAGES = {
    "curl": ("call.sh", ["bash"]),
    "Python": ("call.py", [sys.executable]),
    "JavaScript": ("call.mjs", ["node"]),
    "Go": ("call.go", ["go", "run"]),
    "Java": ("CrossEntropy.java", ["java"]),
}
"""How a program in each language is saved and run."""


def printed_by(language: str, text: str, folder: Path, **environment: str) -> list[float]:
    """Run a program and return the loss and the gradient that it prints."""
    name, command = LANGUAGES[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    (folder / name).write_text(text)
    done = subprocess.run(
        [*command, str(folder / name)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "GOCACHE": str(folder / "cache"), "GO111MODULE": "off", **environment},
    )
    if done.stdout.startswith("{"):
        answer = json.loads(done.stdout)
        return [answer["loss"], *(value for row in answer["grad_logits"] for value in row)]
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", done.stdout)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_copied_program_prints_what_the_page_shows(
    seen: dict[str, Any], services: tuple[str, str], language: str, tmp_path: Path
) -> None:
    text = seen["snippets"][language]

    printed = printed_by(language, text, tmp_path)

    shown = named(seen, "copied")
    truth = torch_answer(request_in(seen["snippets"]["curl"]))
    assert services[0] in text
    assert '"-Infinity"' in text
    assert printed == pytest.approx([truth["loss"].item(), *truth["gradient"].flatten().tolist()], rel=2e-6, abs=1e-7)
    assert printed[0] == float(shown["loss"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_copied_program_takes_the_key_from_its_environment(
    seen: dict[str, Any], language: str, tmp_path: Path
) -> None:
    text = seen["key"]["snippets"][language]

    printed = printed_by(language, text, tmp_path, LOSS_API_KEY=KEY)

    assert KEY not in text
    assert printed[0] == float(seen["key"]["loss"])


def test_an_api_key_is_asked_for_and_kept_in_memory_only(seen: dict[str, Any], services: tuple[str, str]) -> None:
    key = seen["key"]

    assert key["before"] == {"complaints": [], "loss": "–"}  # noqa: RUF001
    assert "not one that this service knows" in key["refused"]
    assert float(key["loss"]) == pytest.approx(0.4147985, rel=1e-6)
    assert (key["isHidden"], key["kept"], key["address"]) == (True, 0, services[1] + "/explore")


def test_a_request_that_was_overtaken_is_cancelled(seen: dict[str, Any]) -> None:
    assert seen["cancelled"] == "net::ERR_ABORTED"


def test_the_explorer_works_below_a_prefix(seen: dict[str, Any]) -> None:
    proxied = seen["proxied"]

    assert float(proxied["loss"]) == pytest.approx(0.4147985, rel=1e-6)
    assert f"curl '{proxied['outside']}/v1/cross-entropy/gradient'" in proxied["snippet"]
    assert all(link.startswith(proxied["outside"] + "/") for link in proxied["links"])


def test_no_request_leaves_the_host(seen: dict[str, Any]) -> None:
    assert seen["foreign"] == []


def test_nothing_is_written_to_the_console_and_no_policy_is_violated(seen: dict[str, Any]) -> None:
    assert seen["complaints"] == []


def test_the_explorer_is_never_wider_than_its_window(seen: dict[str, Any]) -> None:
    assert seen["overflowing"] == []


def test_every_control_is_reached_by_keyboard_has_a_name_and_shows_the_focus(seen: dict[str, Any]) -> None:
    assert seen["unfocused"] == []
    for control in ("Logit of class 0", "Mask class 2", "Take a step downhill", "Add class", "Margin", "Copy as curl"):
        assert control in seen["stops"]


def test_bars_do_not_move_by_themselves_for_those_who_ask_for_less_motion(seen: dict[str, Any]) -> None:
    assert seen["motion"]["reduce"] == "0s"
    assert seen["motion"]["free"] != "0s"
