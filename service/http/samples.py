"""Words that make an example of every sentence of every error, for whoever reads about it before it happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from string import Formatter

from service.errors import RequestError
from service.http.formats import MEDIA_TYPES
from service.ops import OPERATORS
from service.tensors import DTYPES

REQUEST_ID = "8f14e45fceea167a"

_FIELDS = ", ".join(["logits", *OPERATORS["softmax"].options.model_fields])
_MEDIA_TYPES = " or ".join(MEDIA_TYPES.values())

COMMON: Mapping[str, object] = {
    "classes": "3 classes",
    "element": "logits[1, 0]",
    "like": "logits",
    "like_shape": [2, 3],
    "most": 1,
    "name": "logits",
    "owner": "cross-entropy",
    "request_id": REQUEST_ID,
    "seconds": 1,
}
"""Words that fit into every sentence that needs them, unless it has its own."""

OWN: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "malformed-request": {
        "syntax": {"got": "Invalid header token"},
        "version": {"got": "2.0"},
        "chunks": {"limit": 32768},
        "two-hosts": {"got": 2},
        "host": {"got": "example.org", "expected": "localhost, *.localhost, 127.0.0.1, [::1]"},
        "origin": {"got": "'https://example.org'"},
        "preflight": {"got": "'https://example.org'", "reasons": "method"},
        "json-bytes": {"got": "'many'", "expected": "a number of bytes"},
        "compression": {"expected": "gzip"},
        "parts": {"limit": 1024},
    },
    "malformed-json": {
        "syntax": {"reason": "trailing comma in array", "offset": 24},
        "literal": {"got": "NaN", "offset": 18},
        "text": {"offset": 24},
        "object": {"got": "an array"},
        "kind": {"name": "inputs", "expected": "an array", "got": "an object"},
    },
    "malformed-tensor": {
        "dtype": {"expected": ", ".join(DTYPES), "got": "'float8'"},
        "shape": {"expected": 8},
        "elements": {"limit": 2**48},
        "size": {"needed": "24 bytes", "got": 20},
        "short": {"expected": 8, "got": "7 bytes"},
        "long-header": {"got": "100000 bytes", "limit": 65536},
        "header-beyond": {"expected": "100 bytes", "got": "80 bytes"},
        "count": {"got": 17, "limit": 16},
        "option-as-tensor": {"name": "temperature"},
        "span": {"needed": "24 bytes", "got": "20 bytes"},
        "place": {"got": 28, "expected": 24},
        "data": {"expected": "40 bytes", "got": "44 bytes"},
        "many": {"got": 17, "limit": 16},
        "option-as-input": {"name": "temperature"},
        "source": {"got": 2},
        "numbers": {"needed": "6 numbers", "got": 5},
        "nesting": {"got": [3, 2], "expected": [2, 3]},
        "binary": {"needed": "24 bytes", "got": "20 bytes"},
        "blocks": {"expected": "40 bytes", "got": "44 bytes"},
        "raw": {"expected": "'logits' and 'target'"},
        "raw-bytes": {"expected": "4 bytes", "got": "22 bytes"},
        "region": {"got": "batches"},
        "region-bytes": {"needed": "24 bytes", "offset": 4096, "region": "batches", "got": "16 bytes"},
    },
    "too-deep": {"depth": {"limit": 10}},
    "unknown-field": {
        "unknown": {"owner": "softmax", "name": "reduce", "expected": _FIELDS},
        "similar": {"name": "logit", "similar": "logits"},
        "gradient": {"name": "grad_output"},
        "query": {"name": "reduction"},
    },
    "duplicate-field": {
        "duplicate": {"name": "target"},
        "description": {"tensor": "logits", "name": "shape"},
        "part": {"owner": "The compact tensor 'logits'", "name": "shape"},
    },
    "missing-field": {
        "tensor": {"name": "target"},
        "upstream": {"owner": "softmax", "name": "grad_output", "like": "probs"},
        "part": {"owner": "The compact tensor 'logits'", "name": "shape"},
    },
    "shape-mismatch": {
        "rank": {"got": 9, "expected": 8},
        "classes": {"got": [2, 0], "dimension": 1},
        "shape": {"name": "weight", "got": [2], "expected": [3], "reason": "one number for each class of 'logits'"},
        "target": {"name": "target", "got": [3], "rows": [2]},
        "class-last": {"name": "target", "got": [2, 5], "like_shape": [2, 5, 3], "expected": [2, 3]},
    },
    "ragged-array": {
        "length": {"element": "logits[1]", "elements": "2 elements", "expected": 3},
        "mixed": {"element": "logits[1]", "got": "a number", "expected": "arrays"},
    },
    "dtype-mismatch": {
        "tensor": {"got": "true"},
        "element": {"got": "a string"},
        "spelling": {"got": "-inf", "similar": "-Infinity"},
        "floating": {"got": "int32"},
        "indices": {"name": "target", "got": "float32"},
        "probabilities": {"name": "target", "got": "int64"},
        "overflow": {"got": "70000", "expected": "float16"},
        "too-large": {"got": "70000", "expected": "float16", "wider": "float32"},
    },
    "invalid-option": {
        "value": {"name": "reduction", "expected": "one of 'none', 'mean' or 'sum'", "got": "'average'"},
        "list": {
            "name": "outputs",
            "expected": "a list of output names, not empty",
            "got": "'[loss]'",
            "similar": "loss",
        },
        "class-dim": {"expected": "from -2 to 1", "shape": [2, 3], "got": 2},
        "output-name": {"element": "outputs[1]", "got": 5},
        "output": {"owner": "softmax", "got": "'loss'", "expected": "'probs' or 'logsumexp'"},
        "gradient-output": {"got": "'grad_logits'"},
        "repeated-output": {"got": "'loss'"},
        "normalizer": {"got": "'sum'"},
        "soft-ignore": {"got": 0},
    },
    "target-out-of-range": {
        "range": {"element": "target[1]", "got": 3, "expected": "0 to 2"},
        "negative": {"element": "target[1]", "got": -1, "expected": "0 to 2", "ignored": -100},
        "int64": {"element": "target[1]", "expected": "0 to 2"},
    },
    "non-finite": {"row": {"name": "loss", "row": 1}, "whole": {"name": "loss"}},
    "content-too-large": {
        "json": {"limit": 8388608},
        "body": {"limit": 1073741824},
        "json-part": {"limit": 8388608},
        "json-outputs": {"got": 80000000, "limit": 33554432},
        "answer": {"got": 80000000, "limit": 33554432},
        "memory": {"got": 9000000000, "limit": 8589934592},
    },
    "request-timeout": {
        "silent": {"limit": 10},
        "head": {"limit": 10},
        "body": {"limit": 16384},
        "whole": {"limit": 60},
    },
    "uri-too-long": {"target": {"limit": 4096}},
    "headers-too-large": {"bytes": {"limit": 32768}, "fields": {"limit": 64}, "trailer": {"limit": 32768}},
    "unsupported-media-type": {
        "missing": {"expected": _MEDIA_TYPES},
        "type": {"got": "'text/plain'", "expected": _MEDIA_TYPES},
    },
    "unsupported-encoding": {"encoding": {"got": "'gzip'", "expected": "'identity'"}},
    "not-acceptable": {"accept": {"got": "'text/csv'", "expected": _MEDIA_TYPES}},
    "not-found": {
        "similar": {"similar": "/v1/softmax/gradient"},
        "operator": {"name": "cross_entropy", "similar": "cross-entropy"},
        "no-operator": {"name": "mse-loss", "expected": ", ".join(OPERATORS)},
        "version": {"owner": "softmax", "name": "2"},
        "region": {"name": "batches"},
    },
    "method-not-allowed": {"method": {"expected": "POST", "got": "GET"}},
    "rate-limited": {"rate": {"rate": 10}},
    "overloaded": {"deadline": {"limit": 50}},
    "deadline-exceeded": {"late": {"limit": 60000}},
}
"""Words of single sentences, by code and sentence."""


def parts(error: type[RequestError], sentence: str) -> Iterator[tuple[str, str | None]]:
    """Yield pieces of an example of a sentence: text, and the word after it (None at the end)."""
    words = {**COMMON, **OWN.get(error.code, {}).get(sentence, {})}
    for text, placeholder, _, _ in Formatter().parse(error.sentences[sentence]):
        yield text, None if placeholder is None else str(words[placeholder])


def example(error: type[RequestError], sentence: str) -> str:
    """Return an example of a sentence."""
    return "".join(text + (word or "") for text, word in parts(error, sentence))
