"""A coverage-guided fuzzer on the safetensors reader: whatever the bytes are, they are read or refused with a sentence.

`python -m tests.fuzz_safetensors` tries a million inputs or for a minute, whichever ends first; arguments are passed on
to libFuzzer (`-max_total_time=3600 -runs=-1`, or a file that has failed). What is read is read by the library too, to
the same bits.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import atheris
import safetensors.torch
import torch

with atheris.instrument_imports(include=["service.wire", "service.tensors", "service.errors"]):
    from service.errors import RequestError
    from service.tensors import Fields
    from service.wire import safetensors_codec

DEFAULTS = ["-runs=1000000", "-max_total_time=60", "-max_len=4096", "-print_final_stats=1"]

FIELDS = Fields(owner="test", tensors=("logits", "target", "weight"), options=("reduction", "class_dim", "outputs"))

WORDS = (
    *FIELDS.tensors,
    *FIELDS.options,
    *("__metadata__", "dtype", "shape", "data_offsets", "F32", "I64", "BF16", "format"),
    *("[0, 8]", "18446744073709551616", "1e999", "[[[[[[[[[[["),
)
"""What a fuzzer would take long to find by itself."""

TOKENS = (
    *("{", "}", "[", "]", ",", ":", "0", "1", "4", "8", "-", ".5", "null", "true", '""', " ", "\\"),
    *(f'"{word}"' for word in WORDS),
    *(f'"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' for name in FIELDS.tensors),
    *(f'"{name}":{{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}' for name in FIELDS.tensors),
    *(f'"{name}":{{"dtype":"I64","shape":[0,3],"data_offsets":[0,0]}}' for name in FIELDS.tensors),
    *(
        '"dtype":"F16"',
        '"shape":[2,1]',
        '"data_offsets":[0,4]',
        '"__metadata__":{',
        '"class_dim":"[1,',
        '"format":"pt"',
    ),
)
"""What headers of words are made of."""


def seeds() -> list[bytes]:
    """Return files to begin with."""
    files = [
        safetensors.torch.save({}, {}),
        safetensors.torch.save({"logits": torch.ones(2, 3), "target": torch.tensor([0, 2])}, {"reduction": "sum"}),
        safetensors.torch.save(
            {"logits": torch.ones(0, 5, dtype=torch.float16), "weight": torch.ones((), dtype=torch.bfloat16)},
            {"outputs": '["loss", "grad_logits"]', "class_dim": "-1", "format": "pt"},
        ),
        *(len(text).to_bytes(8, "little") + text for text in (b"{}", b'{"logits":{}}', b'{"__metadata__":{}}')),
    ]
    words = [bytes([3, 0, TOKENS.index('"reduction"'), 1]), bytes([3, 0, 33, 1]) + b"\0" * 4]
    return (
        [b"\0" + file for file in files] + [b"\x80" + file[8:] for file in files] + [b"\xff" + text for text in words]
    )


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return (first.dtype, first.shape) == (second.dtype, second.shape) and torch.equal(
        first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8)
    )


def file_of(data: bytes) -> bytes:
    """Make a body of what the fuzzer gives: as it is, with the right length of a header, or with a header of words."""
    kind, data = data[:1] or b"\0", data[1:]
    if kind < b"\x55":
        return data
    if kind < b"\xaa":
        end = data.rfind(b"}") + 1
        return end.to_bytes(8, "little") + data
    count = data[0] if data else 0
    header = "".join(TOKENS[byte % len(TOKENS)] for byte in data[1 : count + 1]).encode()
    return len(header).to_bytes(8, "little") + header + data[count + 1 :]


def try_bytes(data: bytes) -> None:
    """Read a body; whatever is raised but a refusal is a failure."""
    body = file_of(data)
    refusal = None
    try:
        message = safetensors_codec.decode(memoryview(bytearray(body)), FIELDS)
    except RequestError as error:
        refusal = error
    if refusal is not None:
        assert refusal.detail.isprintable(), refusal.detail
        assert len(refusal.detail) < 512, refusal.detail
        return
    expected = safetensors.torch.load(body)
    assert set(message.tensors) == set(expected)
    for name, tensor in message.tensors.items():
        assert same_bits(tensor.values, expected[name]), name


def main(arguments: list[str]) -> None:
    """Fuzz, from seeds in a temporary directory unless files or directories are given."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(seeds()):
            (corpus / str(number)).write_bytes(seed)
        dictionary = Path(folder, "words")
        dictionary.write_text("".join(json.dumps(word) + "\n" for word in WORDS))
        given = [argument for argument in arguments if not argument.startswith("-")]
        options = [*DEFAULTS, f"-dict={dictionary}", f"-artifact_prefix={Path.cwd()}/"]
        atheris.Setup([sys.argv[0], *options, *arguments, *([] if given else [str(corpus)])], try_bytes)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
