"""`loss-service compute`: files in, the numbers of the service out, in a table or a file."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from service.__main__ import main
from service.cli import compute, table
from service.cli.progress import Bar
from service.ops import OPERATORS
from service.wire import json_codec
from tests.support.asking import ask
from tests.support.running import RunningService, running_service

RANDOM = torch.Generator().manual_seed(7)
LOGITS = torch.randn(30, 12, generator=RANDOM)
TARGET = torch.randint(12, (30,), generator=RANDOM)
ANSWERS = ["answer.safetensors", "answer.npz", "answer.json"]
KEY = "the-key-of-these-tests"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, with the batch in every format."""
    monkeypatch.chdir(tmp_path)
    safetensors.torch.save_file({"logits": LOGITS, "target": TARGET}, "batch.safetensors")
    np.savez("batch.npz", logits=LOGITS.numpy(), target=TARGET.numpy())
    np.save("logits.npy", LOGITS.numpy())
    np.save("target.npy", TARGET.numpy())
    Path("batch.json").write_text(json.dumps({"logits": LOGITS.tolist(), "target": TARGET.tolist()}))
    return tmp_path


INPUTS = {
    "safetensors": ["batch.safetensors"],
    "npz": ["batch.npz"],
    "json": ["batch.json"],
    "npy": ["--tensor", "logits=logits.npy", "--tensor", "target=target.npy"],
}


def read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    if path.suffix == ".json":
        return {name: torch.tensor(value) for name, value in json.loads(path.read_text()).items()}
    return {name: torch.from_numpy(value) for name, value in np.load(path).items()}


@pytest.mark.parametrize("output", ANSWERS)
@pytest.mark.parametrize("files", INPUTS.values(), ids=INPUTS)
def test_every_format_goes_in_and_comes_out(folder: Path, files: list[str], output: str) -> None:
    status = main(["compute", "cross-entropy", *files, "--gradient", "--label-smoothing", "0.1", "--output", output])

    expected = ask("cross-entropy", gradient=True, logits=LOGITS, target=TARGET, label_smoothing=0.1)
    answer = read(folder / output)
    assert status == 0
    assert set(answer) == set(expected)
    for name, value in expected.items():
        assert torch.equal(answer[name], value)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_answers_its_example(
    operator: str, gradient: bool, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    example = OPERATORS[operator].gradient_example if gradient else OPERATORS[operator].example
    path = tmp_path / "example.json"
    path.write_text(json.dumps(dict(example)))

    status = main(["compute", operator, str(path), "--output", "-", *(["--gradient"] if gradient else [])])

    answer = json.loads(capsysbinary.readouterr().out)
    assert status == 0
    assert set(answer) == {
        output.name for output in OPERATORS[operator].outputs_of(gradient=gradient) if output.default
    }


def test_every_option_is_a_flag(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for operator in OPERATORS.values():
        with pytest.raises(SystemExit):
            main(["compute", operator.name, "--help"])
        usage = capsys.readouterr().out

        for name in operator.options.model_fields:
            assert f"--{name.replace('_', '-')}" in usage


def test_options_of_flags_win_over_those_of_files(folder: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    Path("request.json").write_text('{"logits": [[1, 2], [3, 4]], "target": [0, 1], "reduction": "sum"}')

    main(["compute", "cross-entropy", "request.json", "--output", "-"])
    main(["compute", "cross-entropy", "request.json", "--reduction", "none", "--outputs", "loss", "--output", "-"])

    first, second = capsysbinary.readouterr().out.splitlines()
    assert json.loads(first)["loss"] == pytest.approx(1.6265233)
    assert json.loads(second) == {"loss": [pytest.approx(1.3132616), pytest.approx(0.3132617)]}


def test_json_may_come_from_the_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    text = io.TextIOWrapper(io.BytesIO(b'{"logits": [[0.0, 0.0]], "encoding": "base64", "dtype": "float64"}'))
    monkeypatch.setattr(sys, "stdin", text)

    main(["compute", "softmax", "-", "--output", "-"])

    assert json.loads(capsysbinary.readouterr().out) == {
        "probs": {"dtype": "float64", "shape": [1, 2], "base64": "AAAAAAAA4D8AAAAAAADgPw=="}
    }


def test_what_is_computed_never_changes_the_files(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    for files in INPUTS.values():
        main(["compute", "cross-entropy", *files, "--gradient", "--outputs", "grad_logits", "--output", "out.npy"])

    for name, content in before.items():
        assert (folder / name).read_bytes() == content
    expected = ask("cross-entropy", gradient=True, logits=LOGITS, target=TARGET)["grad_logits"]
    assert torch.equal(torch.from_numpy(np.load("out.npy")), expected)


@pytest.mark.parametrize(
    "array", [LOGITS.numpy().astype(">f8"), np.asfortranarray(LOGITS.numpy()), LOGITS.numpy()[::2]]
)
def test_arrays_may_lie_in_any_order(folder: Path, array: Any) -> None:
    np.save("odd.npy", array)

    main(["compute", "softmax", "--tensor", "logits=odd.npy", "--output", "probs.npy"])

    expected = torch.softmax(torch.from_numpy(array.astype("float64")), 1).numpy()
    np.testing.assert_allclose(np.load("probs.npy"), expected, rtol=1e-6)


def test_a_table_shows_scalars_whole_and_the_ends_of_the_long(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compute", "cross-entropy", "batch.npz", "--gradient"])

    lines = capsys.readouterr().out.splitlines()
    expected = ask("cross-entropy", gradient=True, logits=LOGITS, target=TARGET)
    assert lines[0] == "loss  float32  " + str(expected["loss"].numpy())
    assert lines[1] == "total_weight  float32  30.0"
    assert lines[2] == "grad_logits  float32  30 x 12"
    assert lines[3].split() == ["0", "1", "2", "3", "...", "8", "9", "10", "11"]
    assert [line.split()[0] for line in lines[4:]] == [
        *(f"[{row}]" for row in range(5)),
        "...",
        *(f"[{row}]" for row in range(25, 30)),
    ]
    assert lines[-1].split()[-1] == str(expected["grad_logits"][-1, -1].numpy())
    assert len({len(line) for line in lines[3:]}) == 1


def test_a_table_names_rows_by_their_place() -> None:
    text = table.of_tensors({"empty": torch.empty(0, 3), "cube": torch.arange(8.0).view(2, 2, 2), "one": torch.ones(1)})

    assert text.splitlines() == [
        "empty  float32  0 x 3",
        "cube  float32  2 x 2 x 2",
        "            0    1",
        "  [0, 0]  0.0  1.0",
        "  [0, 1]  2.0  3.0",
        "  [1, 0]  4.0  5.0",
        "  [1, 1]  6.0  7.0",
        "one  float32  1",
        "  [0]  1.0",
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_numbers_of_a_table_are_those_of_json(dtype: torch.dtype) -> None:
    numbers = torch.tensor([0.1, -1 / 3, 31463519e-9, 2.0]).to(dtype)

    written = b"".join(json_codec.encode({"x": numbers}, "array"))

    assert [table.number(each) for each in numbers] == json.loads(written, parse_float=str)["x"]


MISTAKES: list[tuple[list[str], int, str]] = [
    (["batch.npz", "--reduction", "median"], 65, "'reduction' must be one of 'none', 'mean' or 'sum', but is 'median'"),
    (["batch.npz", "--temperature", "warm"], 65, "'temperature' must be a finite number greater than 0, but is 'warm'"),
    (["batch.npz", "--outputs", "loss,lost"], 65, "cross-entropy has no output 'lost'"),
    (["batch.npz", "--class-dim", "0"], 65, "'target' has shape [30]"),
    ([], 66, "there are no tensors; name a file, or - for JSON on the standard input"),
    (["bad.json"], 65, "The body is not valid JSON"),
    (["bad.safetensors"], 65, "looks like JSON"),
    (["empty.safetensors"], 65, "byte"),
    (["batch.npz", "batch.json"], 66, "'logits' is given more than once"),
    (["absent.json"], 66, "absent.json cannot be read: No such file or directory"),
    (["absent.npz"], 66, "absent.npz cannot be read: No such file or directory"),
    (["absent.safetensors"], 66, "absent.safetensors cannot be read: No such file or directory"),
    (["bad.npz"], 66, "bad.npz cannot be read"),
    (["batch.csv"], 66, "the name of batch.csv must end in one of .safetensors, .json, .npz, .npy"),
    (["logits.npy"], 66, "logits.npy holds one tensor; say which: --tensor logits=logits.npy"),
    (["--tensor", "logits=words.npy"], 66, "'logits' in words.npy has elements of type <U1, but must have one of"),
    (["batch.npz", "--output", "answer.npy"], 66, "answer.npy holds one tensor, but the answer has loss, total_weight"),
    (["batch.npz", "--output", "nowhere/answer.npz"], 66, "there is no such folder"),
    (["batch.npz", "--output", "answer.txt"], 66, "the name of answer.txt must end in one of"),
    (["half.safetensors", "--outputs", "log_probs", "--output", "a.npz"], 66, "'log_probs' is bfloat16, which .npz"),
    (["batch.npz", "--device", "cuda:99"], 69, "cuda:99"),
    (["batch.npz", "--url", "http://127.0.0.1:1", "--timeout", "0.1"], 69, "http://127.0.0.1:1 gave no answer"),
    (["batch.npz", "--url", "http://a:b"], 69, "the address of a service must be like http://127.0.0.1:8000, but is"),
]


@pytest.mark.parametrize(("arguments", "status", "sentence"), MISTAKES, ids=[sentence for *_, sentence in MISTAKES])
def test_a_mistake_is_one_line_and_a_status(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, sentence: str
) -> None:
    for name in ("bad.json", "bad.safetensors", "bad.npz"):
        Path(name).write_bytes(b"{bad")
    Path("empty.safetensors").touch()
    np.save("words.npy", np.array(["a"]))
    safetensors.torch.save_file({"logits": LOGITS.bfloat16(), "target": TARGET}, "half.safetensors")

    returned = main(["compute", "cross-entropy", *arguments])

    output = capsys.readouterr()
    assert returned == status
    assert output.out == ""
    assert output.err.startswith("loss-service: ")
    assert sentence in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["compute"],
        ["compute", "hinge"],
        ["compute", "softmax", "--tensor", "logits"],
        ["compute", "softmax", "--what"],
        ["compute", "softmax", "--timeout", "0"],
    ],
)
def test_a_command_line_that_makes_no_sense_is_told_so(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)

    assert stopped.value.code == 2
    assert "usage: loss-service" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compute", "cross-entropy", "a.npz", "--gradiant"], "--gradiant; did you mean --gradient?"),
        (["operators", "--jsn"], "--jsn; did you mean --json?"),
        (["compute", "softmax", "a.npz", "--xyz"], "--xyz"),
    ],
)
def test_an_unknown_flag_comes_with_the_usage_of_its_command(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)

    error = capsys.readouterr().err
    command = " ".join(["loss-service", *arguments[: 2 if arguments[0] == "compute" else 1]])
    assert error.startswith(f"usage: {command} [-h]")
    assert error.endswith(f"{command}: error: unrecognized arguments: {said}\n")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    with running_service("--api-keys", str(keys)) as running:
        running.wait_until_ready()
        yield running


@pytest.mark.parametrize("files", INPUTS.values(), ids=INPUTS)
def test_a_running_service_gives_the_same(
    folder: Path, service: RunningService, monkeypatch: pytest.MonkeyPatch, files: list[str]
) -> None:
    monkeypatch.setenv(compute.KEY_VARIABLE, KEY)
    command = ["compute", "cross-entropy", *files, "--gradient", "--temperature", "2", "--outputs", "loss,grad_logits"]

    statuses = [main([*command, "--output", "here.npz"])]
    statuses += [main([*command, "--output", "there.npz", "--url", service.address])]

    assert statuses == [0, 0]
    here, there = read(folder / "here.npz"), read(folder / "there.npz")
    assert set(here) == set(there) == {"loss", "grad_logits"}
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_numbers_of_json_have_their_type_at_a_service_too(
    folder: Path, service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(compute.KEY_VARIABLE, KEY)
    request = {"logits": [[1, 2], [3, 4]], "target": [[1, 0], [0, 1]], "weight": [1, 2], "grad_output": 2}
    Path("request.json").write_text(json.dumps(request | {"dtype": "float64"}))
    command = ["compute", "cross-entropy", "request.json", "--gradient"]

    main([*command, "--output", "here.safetensors"])
    main([*command, "--output", "there.safetensors", "--url", service.address])

    here, there = read(folder / "here.safetensors"), read(folder / "there.safetensors")
    assert here["grad_logits"].dtype == torch.float64
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_what_the_service_refuses_is_said(
    folder: Path, service: RunningService, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["compute", "cross-entropy", "batch.npz", "--url", service.address])

    assert status == 65
    said = capsys.readouterr().err
    assert "This path needs an API key" in said
    assert said.endswith("; an API key goes into the variable LOSS_API_KEY\n")


def test_without_the_client_a_url_says_what_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "loss_client", None)

    status = main(["compute", "cross-entropy", "batch.npz", "--url", "http://127.0.0.1:1"])

    assert status == 69
    assert "--url needs the Python client; install loss-client" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_follows_the_blocks_and_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(compute, "Bar", lambda: Bar(terminal, after_seconds=0))
    monkeypatch.setattr("service.cli.progress.SECONDS_BETWEEN", 0)
    np.save("large.npy", np.zeros((3000, 1000), "float32"))

    main(["compute", "softmax", "--tensor", "logits=large.npy", "--output", "probs.npy"])

    drawn = terminal.getvalue().split("\r")[1:]
    percents = [int(line.partition("]")[2].split("%")[0]) for line in drawn[:-1]]
    assert len(percents) > 2
    assert percents == sorted(percents)
    assert percents[-1] == 100
    assert drawn[-1] == "\x1b[K"
    np.testing.assert_allclose(np.load("probs.npy"), 1e-3, rtol=1e-6)


def test_short_work_and_pipes_get_no_bar() -> None:
    for stream, seconds in ((Terminal(), 60.0), (io.StringIO(), 0.0)):
        bar = Bar(stream, after_seconds=seconds)

        bar.show(0.5)
        bar.close()

        assert stream.getvalue() == ""
