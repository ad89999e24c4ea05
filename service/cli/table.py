"""Tensors and lists as text that a person reads on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

MOST_ROWS = 10
MOST_COLUMNS = 8
GAP = "..."


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the tensors one below the other: name, type, shape and values, long ones with a gap in the middle."""
    return "\n".join(_described(name, tensor) for name, tensor in tensors.items())


def _described(name: str, tensor: Tensor) -> str:
    head = f"{name}  {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.ndim == 0:
        return f"{head}  {number(tensor)}"
    head += f"  {' x '.join(map(str, tensor.shape))}"
    if tensor.numel() == 0:
        return head
    if tensor.ndim == 1:
        return f"{head}\n{_lines(tensor.unsqueeze(1), tensor.shape, has_columns=False)}"
    # A line is a row along the last dimension, named by its place in the others.
    return f"{head}\n{_lines(tensor.reshape(-1, tensor.shape[-1]), tensor.shape[:-1], has_columns=True)}"


def _lines(rows: Tensor, shape: Sequence[int], *, has_columns: bool) -> str:
    columns = _ends(list(range(rows.shape[1])), MOST_COLUMNS)
    table = [["", *(GAP if column is None else str(column) for column in columns)]] if has_columns else []
    for line in _ends(list(range(len(rows))), MOST_ROWS):
        if line is None:
            table.append([GAP] * (1 + len(columns)))
            continue
        place = ", ".join(str(int(part)) for part in torch.unravel_index(torch.tensor(line), tuple(shape)))
        cells = (GAP if column is None else number(rows[line, column]) for column in columns)
        table.append([f"[{place}]", *cells])
    return of_cells(table, right=True)


def _ends(items: list[T], most: int) -> list[T | None]:
    """Return the items, or those at both ends with None for what is between them."""
    if len(items) <= most:
        return list(items)
    return [*items[: most // 2], None, *items[-(most // 2) :]]


def number(value: Tensor) -> str:
    """Return a number with the digits that it has in JSON: the fewest that give it back; halves as float32."""
    return str((value.float() if value.dtype.itemsize == 2 else value).numpy()[()])


def of_cells(rows: Sequence[Sequence[str]], *, right: bool = False) -> str:
    """Return rows of cells in columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    justified = (
        [cell.rjust(width) if right else cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        for row in rows
    )
    return "\n".join(("  " + "  ".join(cells)).rstrip() for cells in justified)
