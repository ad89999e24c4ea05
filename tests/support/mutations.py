"""Requests that are almost right: valid ones of every form, with something broken in them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator

from tests.http.calling import BINARY, COMPACT, ENDPOINTS, NESTED, Endpoint, body_of
from tests.support.raw_http import request

MEDIA_TYPES = {NESTED: "application/json", COMPACT: "application/json", BINARY: "application/x-safetensors"}

ODD_TOKENS = [
    "null", "true", "false", '""', "[]", "{}", "[[]]", "[null]", "-0", "1e999", "-1e999", "NaN", "Infinity", '"NaN"',
    '"Infinity"', '"-Infinity"', "0.1e-400", "9" * 40, "-" + "9" * 40, "9" * 5000, "1.5", "[[[[[[[[[1]]]]]]]]]",
    "[" * 60, '"\\ud800"', '"\\u0000"', '"float32"', '"../../etc/passwd"', '"\\r\\nSet-Cookie: a=b"', "1 2", "01", "+1",
    '{"dtype": "float32", "shape": [2, 3], "base64": "AAAA"}', '{"dtype": "float32", "shape": [-1], "base64": ""}',
    '{"dtype": "int64", "shape": [4611686018427387904, 4], "base64": ""}', '{"shape": []}', '{"a": {"a": {"a": 1}}}',
    '"' + "x" * 9000 + '"', "-9223372036854775809", "9223372036854775808", '"mean"', "0", "-100",
]  # fmt: skip

NAMES = [
    "logits", "log_probs", "target", "weight", "grad_output", "class_dim", "outputs", "dtype", "encoding", "accuracy",
    "non_finite", "temperature", "reduction", "normalizer", "ignore_index", "label_smoothing", "target_kind", "", "é",
    "__metadata__", "__proto__", "constructor", "x" * 300, "a\\nb", "logits\\u0000", "Logits", "data_offsets", "shape",
]  # fmt: skip

ODD_BYTES = [
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b",",
    b"\\",
    b"\x1b",
    b"e",
]

ODD_HEADERS = [
    "Content-Type: text/plain", "Content-Type: application/json; charset=utf-16", "Content-Type: ", "Accept: text/html",
    "Content-Type: application/x-safetensors", "Content-Type: application/json", "Accept: ;q=", "Accept: */*;q=0",
    "Content-Encoding: gzip", "Content-Encoding: identity, gzip", "X-Request-Timeout-Ms: -1",
    "X-Request-Timeout-Ms: 1e9", "X-Request-Timeout-Ms: abc",
    "X-Request-Timeout-Ms: 99999999999999999999", "X-Request-Timeout-Ms: 60000",
    "X-Request-Id: " + "x" * 65, "X-Request-Id: a b", "X-Request-Id: \x1b[31m", "Host: evil.example", "Host: [::1",
    "Origin: null", "Authorization: Bearer \x00", "Accept-Encoding: gzip", "traceparent: 00-zz-zz-00",
]  # fmt: skip

_TOKEN = re.compile(rb'-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|"(?:[^"\\]|\\.)*"|true|false|null')

Mutation = Callable[[random.Random, bytearray], None]


def generated(seed: int, count: int) -> Iterator[bytes]:
    """Yield requests, most of them broken in one to three places."""
    draw = random.Random(seed)
    for _ in range(count):
        yield one(draw)


def one(draw: random.Random) -> bytes:
    """Return one request."""
    endpoint = draw.choice(ENDPOINTS)
    form = draw.choice([NESTED, COMPACT, BINARY])
    body = bytearray(body_of(_with_odd_options(draw, endpoint), form=form))
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
        mutate = draw.choice(BINARY_MUTATIONS if form == BINARY and len(body) > 8 else MUTATIONS)
        mutate(draw, body)
    lines = [f"Content-Type: {MEDIA_TYPES[form]}"]
    if draw.random() < 0.15:
        lines[draw.randrange(2) :] = [draw.choice(ODD_HEADERS)]
    path = endpoint.path if draw.random() < 0.98 else endpoint.path[: draw.randrange(1, len(endpoint.path))] + "%0a"
    return request("POST", path, *lines, body=bytes(body))


def _with_odd_options(draw: random.Random, endpoint: Endpoint) -> dict[str, object]:
    fields = endpoint.valid()
    for _ in range(draw.choice([0, 0, 1, 2])):
        fields[draw.choice(NAMES[5:17])] = draw.choice(
            [-1, 0, 1, 2, 1.5, -1e30, 10**30, "mean", "none", "sum", "", "float64", "float16", "base64", "accurate",
             "propagate", "probs", ["loss"], ["loss", "loss"], [], [1], ["probs"], "\x00", "x" * 500]
        )  # fmt: skip
    return fields


def _replace_token(draw: random.Random, body: bytearray) -> None:
    if found := list(_TOKEN.finditer(body)):
        place = draw.choice(found)
        body[place.start() : place.end()] = draw.choice(ODD_TOKENS).encode()


def _add_element(draw: random.Random, body: bytearray) -> None:
    """Make a row longer, or a shape, or a list of options."""
    if found := [place for place in _TOKEN.finditer(body) if body[place.end() : place.end() + 1] in (b",", b"]")]:
        place = draw.choice(found)
        body[place.end() : place.end()] = b", " + draw.choice([place[0], b"1", b"2", b"7"])


def _change_number(draw: random.Random, body: bytearray) -> None:
    if found := [place for place in _TOKEN.finditer(body) if place[0][:1] in b"-0123456789"]:
        place = draw.choice(found)
        body[place.start() : place.end()] = draw.choice([b"0", b"-1", b"1", b"2", b"3", b"5", b"0.5", b"-100", b"1e40"])


def _rename(draw: random.Random, body: bytearray) -> None:
    names = [found for found in _TOKEN.finditer(body) if body[found.end() : found.end() + 1] == b":"]
    if names:
        place = draw.choice(names)
        body[place.start() : place.end()] = f'"{draw.choice(NAMES)}"'.encode()


def _add_member(draw: random.Random, body: bytearray) -> None:
    place = body.rfind(b"}")
    body[max(place, 0) : max(place, 0)] = f', "{draw.choice(NAMES)}": {draw.choice(ODD_TOKENS)}'.encode()


def _truncate(draw: random.Random, body: bytearray) -> None:
    del body[draw.randrange(len(body) + 1) :]


def _cut_out(draw: random.Random, body: bytearray) -> None:
    start = draw.randrange(len(body) + 1)
    del body[start : start + draw.choice([1, 1, 2, 10])]


def _double(draw: random.Random, body: bytearray) -> None:
    start = draw.randrange(len(body) + 1)
    body[start:start] = body[start : start + draw.choice([1, 4, 30])]


def _flip(draw: random.Random, body: bytearray) -> None:
    if body:
        body[draw.randrange(len(body))] ^= 1 << draw.randrange(8)


def _insert(draw: random.Random, body: bytearray) -> None:
    start = draw.randrange(len(body) + 1)
    body[start:start] = draw.choice(ODD_BYTES) * draw.choice([1, 1, 3, 2000])


def _append(draw: random.Random, body: bytearray) -> None:
    body += draw.choice([b" ", b"{}", b"\x00", b"]", b"garbage", bytes(draw.randbytes(16))])


def _wrong_length(draw: random.Random, body: bytearray) -> None:
    """Lie about the length of a safetensors header."""
    length = draw.choice([0, 1, 7, len(body), 65536, 65537, 2**31, 2**63, 2**64 - 1, draw.randrange(2 * len(body) + 1)])
    body[:8] = length.to_bytes(8, "little")


def _in_the_header(mutate: Mutation) -> Mutation:
    """Change a safetensors header, and tell its length truly."""

    def change(draw: random.Random, body: bytearray) -> None:
        end = min(8 + int.from_bytes(body[:8], "little"), len(body))
        header = body[8:end]
        mutate(draw, header)
        body[:end] = len(header).to_bytes(8, "little") + header

    return change


def _shuffle(draw: random.Random, body: bytearray) -> None:
    """Write the members of a JSON object in another order."""
    try:
        members = list(json.loads(body).items())
    except (ValueError, AttributeError, RecursionError):
        return
    draw.shuffle(members)
    body[:] = json.dumps(dict(members)).encode(errors="surrogatepass")


ANYWHERE: list[Mutation] = [_truncate, _cut_out, _double, _flip, _insert, _append]
MUTATIONS: list[Mutation] = [
    _replace_token,
    _replace_token,
    _add_element,
    _change_number,
    _change_number,
    _rename,
    _add_member,
    _shuffle,
    *ANYWHERE,
]
BINARY_MUTATIONS: list[Mutation] = [*map(_in_the_header, MUTATIONS), _wrong_length, *ANYWHERE]
