"""What the documentation shows as answers, asked of the service itself.

`python -m tests.http.record_examples` writes them into the asset that the documentation is made of.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import orjson

from service import describe
from service.app import create_app
from service.http.docs import path_of
from service.http.samples import REQUEST_ID
from service.ops import OPERATORS
from service.settings import Settings

ASSET = Path(__file__).parents[2] / "service" / "http" / "assets" / "examples.json"

JSON = {"Content-Type": "application/json"}

PROVOKED: dict[str, tuple[dict[str, str], str]] = {
    "malformed-json": (JSON, '{"logits": [[0.5, NaN]], "target": [0]}'),
    "malformed-tensor": (
        JSON,
        '{"logits": {"dtype": "float32", "shape": [1, 2], "base64": "AAAAPwAAgD8AAMA/"}, "target": [0]}',
    ),
    "too-deep": (JSON, '{"logits": [[[[[[[[[[0.5]]]]]]]]]], "target": [0]}'),
    "unknown-field": (JSON, '{"logit": [[0.5, 1.5]], "target": [0]}'),
    "duplicate-field": (JSON, '{"logits": [[0.5, 1.5]], "target": [0], "target": [1]}'),
    "not-acceptable": (JSON | {"Accept": "text/csv"}, '{"logits": [[0.5, 1.5]], "target": [0]}'),
    "unsupported-media-type": ({"Content-Type": "text/plain"}, '{"logits": [[0.5, 1.5]], "target": [0]}'),
    "unsupported-encoding": (JSON | {"Content-Encoding": "gzip"}, '{"logits": [[0.5, 1.5]], "target": [0]}'),
    "missing-field": (JSON, '{"logits": [[0.5, 1.5]]}'),
    "shape-mismatch": (JSON, '{"logits": [[0.5, 1.5], [2.0, 0.1]], "target": [0, 1, 0]}'),
    "ragged-array": (JSON, '{"logits": [[0.5, 1.5], [2.0]], "target": [0, 1]}'),
    "dtype-mismatch": (JSON, '{"logits": [[0.5, 1.5], [2.0, 0.1]], "target": [0.5, 1.0]}'),
    "invalid-option": (JSON, '{"logits": [[0.5, 1.5]], "target": [0], "reduction": "average"}'),
    "target-out-of-range": (JSON, '{"logits": [[0.5, 1.5], [2.0, 0.1]], "target": [0, 2]}'),
    "non-finite": (JSON, '{"logits": [[0.5, 1.5], ["-Infinity", "-Infinity"]], "target": [0, 1]}'),
    "undefined-mean": (JSON, '{"logits": [[0.5, 1.5]], "target": [-100]}'),
}
"""A request to cross-entropy for each kind of problem that a request alone can bring about: headers and body."""


async def record() -> dict[str, Any]:
    """Ask every example and every provoking request, and return the answers."""
    app = create_app(Settings(device="cpu"))
    answers: dict[str, dict[str, Any]] = {}
    problems: dict[str, dict[str, Any]] = {}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1", headers={"X-Request-Id": REQUEST_ID}
    ) as client:
        for operator in OPERATORS.values():
            for gradient in (False, True):
                path = path_of(operator, gradient=gradient)
                for example in describe.examples(operator, gradient=gradient):
                    answer = await client.post(path, json=dict(example.request))
                    answer.raise_for_status()
                    answers.setdefault(path, {})[example.name] = answer.json()
        for code, (headers, body) in PROVOKED.items():
            answer = await client.post("/v1/cross-entropy", headers=headers, content=body)
            problems[code] = {"headers": headers, "request": body, "answer": answer.json()}
        body = b'{"logits": ' + b" " * Settings().max_json_bytes
        answer = await client.post("/v1/cross-entropy", headers=JSON, content=body)
        problems["content-too-large"] = {"answer": answer.json()}
        answer = await client.get("/v1/limits", headers={"Host": "example.org"})
        problems["malformed-request"] = {"answer": answer.json()}
    return {"answers": answers, "problems": problems}


if __name__ == "__main__":
    ASSET.write_bytes(orjson.dumps(asyncio.run(record()), option=orjson.OPT_INDENT_2) + b"\n")
