"""Files of tensors: into the request that they stand for, and out of an answer."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.tensors import DTYPES, Fields, Message, WireTensor
from service.wire import json_codec, safetensors_codec

STANDARD = "-"
"""Stands for JSON on the standard input or output."""

INPUT_ENDINGS = (".safetensors", ".json", ".npz", ".npy")
OUTPUT_ENDINGS = (".safetensors", ".json", ".npz", ".npy")


class FileUnusableError(Exception):
    """A file cannot be read or written as what its name says it is."""


def read_request(files: Iterable[str], named: Iterable[tuple[str, str]], fields: Fields) -> Message:
    """Return the request that files hold together, those of `named` (name, `.npy` file) under their names.

    Arrays are mapped, not read: nothing is copied that is laid out as it is needed. What is computed may take their
    place in memory, never in the file. Raises FileUnusableError, and RequestError for what a request cannot be.
    """
    request = Message(owns_memory=True)
    parts = [_read(file, fields) for file in files]
    parts += [Message({name: _array_tensor(name, file, _load(file))}) for name, file in named]
    for part in parts:
        for name, value in part.tensors.items():
            fields.check(name)
            if name in request.tensors:
                raise FileUnusableError(f"'{name}' is given more than once")
            request.tensors[name] = value
        request.options.update(part.options)
    return request


def _read(file: str, fields: Fields) -> Message:
    if file == STANDARD:
        return json_codec.decode(sys.stdin.buffer.read(), fields)
    readers: dict[str, Callable[[str, Fields], Message]] = {
        ".safetensors": _read_safetensors,
        ".json": lambda file, fields: json_codec.decode(_contents(file), fields),
        ".npz": _read_npz,
        ".npy": _refuse_npy,
    }
    return readers[_ending(file, INPUT_ENDINGS)](file, fields)


def _ending(file: str, known: tuple[str, ...]) -> str:
    ending = Path(file).suffix.lower()
    if ending not in known:
        raise FileUnusableError(f"the name of {file} must end in one of {', '.join(known)}")
    return ending


def _contents(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise FileUnusableError(f"{file} cannot be read: {error.strerror}") from error


def _read_safetensors(file: str, fields: Fields) -> Message:
    try:
        mapped = np.memmap(file, np.uint8, mode="c")
    except OSError as error:
        raise FileUnusableError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError:  # an empty file cannot be mapped
        return safetensors_codec.decode(memoryview(bytearray()), fields)
    return safetensors_codec.decode(memoryview(cast(Any, mapped)), fields)


def _read_npz(file: str, fields: Fields) -> Message:
    archive = _load(file)
    try:
        return Message({name: _array_tensor(name, file, archive[name]) for name in archive.files})
    except (ValueError, zipfile.BadZipFile) as error:
        raise FileUnusableError(f"{file} cannot be read: {error}") from error


def _refuse_npy(file: str, fields: Fields) -> Message:
    raise FileUnusableError(f"{file} holds one tensor; say which: --tensor {fields.tensors[0]}={file}")


def _load(file: str) -> Any:
    try:
        return np.load(file, mmap_mode="c")
    except OSError as error:
        raise FileUnusableError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FileUnusableError(f"{file} cannot be read: {error}") from error


def _array_tensor(name: str, file: str, array: Any) -> WireTensor:
    if not isinstance(array, np.ndarray):
        raise FileUnusableError(f"{file} holds several arrays; name the file without --tensor")
    # bfloat16 is known here by the integers of its bytes, which an array does not say of itself.
    dtype = None if array.dtype.name == "bfloat16" else DTYPES.get(array.dtype.name)
    if dtype is None:
        known = ", ".join(each for each in DTYPES if each != "bfloat16")
        raise FileUnusableError(f"'{name}' in {file} has elements of type {array.dtype}, but must have one of {known}")
    native = np.require(array, dtype.numpy.newbyteorder("="), ["C", "W"])
    return WireTensor(torch.from_numpy(np.asarray(native)))


def check_output(file: str, outputs: Mapping[str, torch.dtype]) -> None:
    """Raise FileUnusableError unless outputs of these types could be written to a file of this name."""
    if file == STANDARD:
        return
    ending = _ending(file, OUTPUT_ENDINGS)
    if not Path(file).absolute().parent.is_dir():
        raise FileUnusableError(f"{file} cannot be written: there is no such folder")
    if ending == ".npy" and len(outputs) > 1:
        raise FileUnusableError(
            f"{file} holds one tensor, but the answer has {', '.join(outputs)}; choose one with --outputs"
        )
    halves = [name for name, dtype in outputs.items() if dtype == torch.bfloat16]
    if ending.startswith(".np") and halves:
        raise FileUnusableError(f"'{halves[0]}' is bfloat16, which {ending} cannot hold; write .safetensors instead")


def write_answer(file: str, tensors: Mapping[str, Tensor], encoding: str) -> None:
    """Write an answer in the format that the ending of the file's name says; raises FileUnusableError."""
    if file == STANDARD:
        sys.stdout.buffer.writelines([*json_codec.encode(tensors, encoding), b"\n"])
        return
    ending = _ending(file, OUTPUT_ENDINGS)
    try:
        if ending == ".npz":
            np.savez(file, **{name: _numpy(tensor) for name, tensor in tensors.items()})  # type: ignore[arg-type]
        elif ending == ".npy":
            (tensor,) = tensors.values()
            np.save(file, _numpy(tensor))
        else:
            pieces = json_codec.encode(tensors, encoding) if ending == ".json" else safetensors_codec.encode(tensors)
            with Path(file).open("wb") as opened:
                opened.writelines(pieces)
    except OSError as error:
        raise FileUnusableError(f"{file} cannot be written: {error.strerror}") from error


def _numpy(tensor: Tensor) -> NDArray[Any]:
    values: NDArray[Any] = tensor.numpy()
    return values
