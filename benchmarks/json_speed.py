"""Reading and writing JSON beside `list[list[float]]` in pydantic, and orjson."""

from __future__ import annotations

import orjson
import torch
from pydantic import BaseModel

from benchmarks.rounds import Contestants, medians
from service.ops import OPERATORS
from service.ops.bind import fields_of
from service.wire import json_codec

SHAPES = ((8, 10), (256, 1000))


class Body(BaseModel):
    logits: list[list[float]]


def measure(*, quick: bool) -> None:
    """Print megabytes of text per second, in and out."""
    print(f"{'JSON, MB/s':42}{'text':>12}{'pydantic':>10}{'orjson':>10}{'ours':>10}{'than pydantic':>15}")
    seconds = 0.5 if quick else 3.0
    fields = fields_of(OPERATORS["softmax"], gradient=False)
    for shape in SHAPES:
        torch.manual_seed(0)
        logits = torch.randn(shape) * 3
        array = logits.numpy()
        text = orjson.dumps({"logits": array}, option=orjson.OPT_SERIALIZE_NUMPY)
        body = Body(logits=array.tolist())
        reading = {
            "pydantic": lambda text=text: Body.model_validate_json(text),
            "orjson": lambda text=text: orjson.loads(text),
            "ours": lambda text=text: json_codec.decode(text, fields),
        }
        writing = {
            "pydantic": lambda body=body: body.__pydantic_serializer__.to_json(body),
            "orjson": lambda array=array: orjson.dumps({"logits": array}, option=orjson.OPT_SERIALIZE_NUMPY),
            "ours": lambda logits=logits: json_codec.encode({"logits": logits}, "array"),
        }
        _print(f"{list(shape)} in (orjson: to lists)", reading, len(text), seconds)
        _print(f"{list(shape)} out (pydantic: from lists)", writing, len(text), seconds)


def _print(title: str, contestants: Contestants, size: int, seconds: float) -> None:
    rate = {name: size / taken / 1e6 for name, taken in medians(contestants, seconds=seconds).items()}
    print(
        f"{title:42}{size:>10} B{rate['pydantic']:>10.0f}{rate['orjson']:>10.0f}{rate['ours']:>10.0f}"
        f"{rate['ours'] / rate['pydantic']:>14.2f}x",
        flush=True,
    )
