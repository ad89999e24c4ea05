"""JSON that nobody sends by mistake, and JSON that somebody does: refused in one short sentence, never with a 5xx."""

from __future__ import annotations

import json
import random

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.settings import Settings
from tests.http.calling import COMPACT, ENDPOINTS, JSON, NESTED, Endpoint, body_of, check_problem, client_of

DEPTHS = (11, 12, 200, 1024, 10**5, 10**6)

MALFORMED = {
    "nothing": b"",
    "blank": b" \t\r\n",
    "byte order mark": b'\xef\xbb\xbf{"logits": [1, 2]}',
    "utf-16 with mark": '{"logits": [1, 2]}'.encode("utf-16"),
    "utf-16 little-endian": '{"logits": [1, 2]}'.encode("utf-16-le"),
    "utf-16 big-endian": '{"logits": [1, 2]}'.encode("utf-16-be"),
    "utf-32": '{"logits": [1, 2]}'.encode("utf-32"),
    "latin-1": '{"lögits": [1, 2]}'.encode("latin-1"),
    "overlong utf-8": b'{"logits\xc0\xaf": [1, 2]}',
    "surrogate in utf-8": b'{"dtype": "\xed\xa0\x80"}',
    "truncated utf-8": b'{"dtype": "\xe2\x82',
    "beyond unicode": b'{"dtype": "\xf5\x80\x80\x80"}',
    "NUL": b"\x00",
    "NUL between": b'{"logits": [1,\x002]}',
    "NUL after": b'{"logits": [1, 2]}\x00',
    "NUL in a string": b'{"dtype": "\x00"}',
    "line break in a string": b'{"dtype": "a\nb"}',
    "high surrogate alone": rb'{"dtype": "\ud800"}',
    "low surrogate alone": rb'{"dtype": "\udc00"}',
    "high surrogate in a name": rb'{"\ud800": 1}',
    "surrogates in the wrong order": rb'{"dtype": "\udc00\ud800"}',
    "short escape": rb'{"dtype": "\u12"}',
    "unknown escape": rb'{"dtype": "\x41"}',
    "open brace": b"{",
    "open name": b'{"logits',
    "no colon": b'{"logits"',
    "no value": b'{"logits":',
    "open array": b'{"logits": [1, 2',
    "open string": b'{"dtype": "float',
    "open escape": b'{"dtype": "\\',
    "open literal": b'{"logits": tru',
    "closed by the wrong bracket": b'{"logits": [1, 2}]',
    "closed twice": b'{"logits": [1, 2]}}',
    "second value": b'{"logits": [1, 2]}{}',
    "trailing comma": b'{"logits": [1, 2]},',
    "trailing word": b'{"logits": [1, 2]} true',
    "comma before the end": b'{"logits": [1, 2],}',
    "comma in an array": b'{"logits": [1, 2,]}',
    "comma alone": b'{"logits": [,]}',
    "two commas": b'{"logits": [1,, 2]}',
    "no comma": b'{"logits": [1 2]}',
    "single quotes": b"{'logits': [1, 2]}",
    "name without quotes": b"{logits: [1, 2]}",
    "number as a name": b"{1: 2}",
    "comment": b'{"logits": [1, 2] /* two */}',
    "NaN": b'{"logits": [NaN, 2]}',
    "nan": b'{"logits": [nan, 2]}',
    "Infinity": b'{"logits": [Infinity, 2]}',
    "-Infinity": b'{"logits": [1, -Infinity]}',
    "None": b'{"logits": None}',
    "leading zero": b'{"logits": [01, 2]}',
    "leading plus": b'{"logits": [+1, 2]}',
    "leading dot": b'{"logits": [.5, 2]}',
    "trailing dot": b'{"logits": [1., 2]}',
    "minus alone": b'{"logits": [-, 2]}',
    "open exponent": b'{"logits": [1e, 2]}',
    "hexadecimal": b'{"logits": [0x10, 2]}',
    "underscore": b'{"logits": [1_0, 2]}',
    "float beyond float64": b'{"logits": [1e999, 2]}',
    "negative beyond float64": b'{"logits": [0.5, -1e999]}',
    "integer beyond float64": b'{"logits": [' + b"9" * 400 + b", 2]}",
    "integer of a million digits": b'{"logits": [' + b"9" * 10**6 + b", 2]}",
    "array": b"[1, 2]",
    "string": b'"logits"',
    "number": b"1",
    "null": b"null",
    "not closed at the deepest level": b'{"logits": ' + b"[" * 9,
}


@pytest.mark.anyio
@pytest.mark.parametrize("body", MALFORMED.values(), ids=list(MALFORMED))
async def test_what_is_not_json_is_malformed_json(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/v1/softmax", content=body, headers=JSON)

    check_problem(response, code="malformed-json")


@pytest.mark.anyio
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
@pytest.mark.parametrize("is_closed", [True, False])
async def test_deep_nesting_is_too_deep(client: httpx.AsyncClient, depth: int, opening: bytes, is_closed: bool) -> None:
    body = b'{"logits": ' + opening * (depth - 1)
    if is_closed:
        closing = {b"[": b"]", b'{"a":': b"}", b'[{"a":': b"}]"}[opening]
        body += b"1" + closing * (depth - 1) + b"}"

    response = await client.post("/v1/softmax", content=body, headers=JSON)

    check_problem(response, code="too-deep")


@pytest.mark.anyio
async def test_ten_levels_are_not_too_deep(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/v1/softmax", content=b'{"logits": ' + b"[" * 9 + b"1" + b"]" * 9 + b"}", headers=JSON
    )

    assert check_problem(response)["detail"] == "'logits' has 9 dimensions, but at most 8 are allowed."


@pytest.mark.anyio
async def test_brackets_in_strings_are_not_nesting(client: httpx.AsyncClient) -> None:
    body = b'{"logits": [1, 2], "dtype": "' + rb"\"[\\" * 20 + b'"}'

    response = await client.post("/v1/softmax", content=body, headers=JSON)

    check_problem(response, code="invalid-option")


ALSO_VALID = {
    "escaped name": (rb'{"\u006cogits": [1, 2]}', {"probs": [0.26894143, 0.7310586]}),
    "escaped name beside an escaped quote in a value": (
        rb'{"\u006cog\u0069ts": [1, 2], "encoding": "\u0061rray"}',
        {"probs": [0.26894143, 0.7310586]},
    ),
    "blanks everywhere": (b'\r\n\t {"logits"\n:\t[ 1 , 2 ]\r}\n', {"probs": [0.26894143, 0.7310586]}),
    "-0": (b'{"logits": [-0, -0.0]}', {"probs": [0.5, 0.5]}),
    "exponents": (b'{"logits": [1E0, 20e-1]}', {"probs": [0.26894143, 0.7310586]}),
    "denormals": (b'{"logits": [1e-320, 1e-999]}', {"probs": [0.5, 0.5]}),
    "1e20 as JavaScript writes it": (b'{"logits": [100000000000000000000, 0]}', {"probs": [1.0, 0.0]}),
    "2**63": (b'{"logits": [9223372036854775808, 9223372036854775808]}', {"probs": [0.5, 0.5]}),
    "-2**63 - 1": (b'{"logits": [-9223372036854775809, 0.5]}', {"probs": [0.0, 1.0]}),
    "a mask beside 2**64": (b'{"logits": ["-Infinity", 18446744073709551616]}', {"probs": [0.0, 1.0]}),
    "a mask beside -(2**64)": (b'{"logits": ["-Infinity", -18446744073709551616]}', {"probs": [0.0, 1.0]}),
    "integers and masks": (b'{"logits": [["-Infinity", 3], [2, 2]]}', {"probs": [[0.0, 1.0], [0.5, 0.5]]}),
    "a million digits": (b'{"logits": [0.' + b"5" * 10**6 + b", 0." + b"5" * 10**6 + b"]}", {"probs": [0.5, 0.5]}),
}


@pytest.mark.anyio
@pytest.mark.parametrize(("body", "answer"), ALSO_VALID.values(), ids=list(ALSO_VALID))
async def test_unusual_json_is_json(client: httpx.AsyncClient, body: bytes, answer: object) -> None:
    response = await client.post("/v1/softmax", content=body, headers=JSON)

    assert response.json() == answer


@pytest.mark.anyio
@pytest.mark.parametrize("shape", [[0, 2**40], [0, 2, 2**40], [2**40, 2, 0], [2**16, 2, 0, 2**16], [2**40, 3, 0, 0]])
async def test_an_empty_tensor_costs_nothing_however_large_its_other_sizes(
    client: httpx.AsyncClient, shape: list[int]
) -> None:
    first = {"dtype": "float32", "shape": shape, "base64": ""}
    target = {"dtype": "int8", "shape": shape[:1] + shape[2:], "base64": ""}

    response = await client.post(
        "/v1/nll-loss", json={"log_probs": first, "target": target, "reduction": "sum", "encoding": "base64"}
    )

    assert response.status_code == 200
    assert response.json()["total_weight"] == {"dtype": "float32", "shape": [], "base64": "AAAAAA=="}


LARGE = {
    "[[0, 0, ...]]": (b"[[", b"0,", b"0]]", "content-too-large", None),
    "[[], [], ...]": (b"[", b"[],", b"[]]", "shape-mismatch", "/logits"),
    "[{}, {}, ...]": (b"[", b"{},", b"{}]", "dtype-mismatch", "/logits/0"),
    "[[[]], [[]], ...]": (b"[", b"[[]],", b"[[]]]", "shape-mismatch", "/logits"),
    '[["x"], ["x"], ...]': (b"[", b'["x"],', b'["x"]]', "dtype-mismatch", "/logits/0/0"),
    "[[0], ..., []]": (b"[", b"[0],", b"[]]", "ragged-array", "/logits/{count}"),
    "[0, ..., [0]]": (b"[", b"0,", b"[0]]", "ragged-array", "/logits/{count}"),
    "[0, ..., null]": (b"[", b"0,", b"null]", "dtype-mismatch", "/logits/{count}"),
    "[null, null, ...]": (b"[", b"null,", b"null]", "dtype-mismatch", "/logits/0"),
    '["NaN", ..., "x"]': (b"[", b'"NaN",', b'"x"]', "dtype-mismatch", "/logits/{count}"),
    "not closed": (b"[", b"[0],", b"[0]", "malformed-json", None),
    "not closed strings": (b"[", b'"\\"', b"", "malformed-json", None),
}
"""Bodies of 8 MiB: their start, what is repeated, their end."""


@pytest.mark.anyio
@pytest.mark.parametrize("case", LARGE.values(), ids=list(LARGE))
async def test_a_large_body_gets_the_same_answer_as_a_small_one(
    client: httpx.AsyncClient, case: tuple[bytes, bytes, bytes, str, str | None]
) -> None:
    start, item, end, code, pointer = case
    count = ((8 << 20) - 20 - len(start + end)) // len(item)
    body = b'{"logits": ' + start + item * count + end + b"}"

    response = await client.post("/v1/softmax", content=body, headers=JSON)

    expected = None if pointer is None else pointer.format(count=count)
    assert check_problem(response, code=code).get("pointer") == expected


@pytest.mark.anyio
async def test_a_field_repeated_half_a_million_times_is_a_duplicate(client: httpx.AsyncClient) -> None:
    body = b"{" + b'"outputs": 1, ' * 500_000 + b'"outputs": 1}'

    response = await client.post("/v1/softmax", content=body, headers=JSON)

    assert check_problem(response, code="duplicate-field")["pointer"] == "/outputs"


@pytest.fixture(scope="module")
def service() -> FastAPI:
    return create_app(Settings(threads=1, device="cpu", max_json_bytes=1 << 20, max_json_answer_bytes=1 << 20))


FRAGMENTS = [
    b"", b"0", b"-", b"1e5", b"1e999", b'"', b"\\", b"\\u", b"[", b"]", b"{", b"}", b",", b":", b"null", b"true",
    b"NaN", b'"NaN"', b'"-Infinity"', b"\x00", b"\xff", b"\xef\xbb\xbf", b"9" * 30, b'"logits":', b'"dtype":"float16",',
    b"[]", b"{}", b"[[],1]", b"\xe2\x82\xac", b'"shape":[0],', b"1234567890123456789012",
]  # fmt: skip


@st.composite
def mutated_bodies(draw: st.DrawFn) -> tuple[Endpoint, bytes]:
    """Return a valid body with up to three pieces cut out, doubled or replaced."""
    endpoint = draw(st.sampled_from(ENDPOINTS))
    body = body_of(endpoint.valid(), form=draw(st.sampled_from([NESTED, COMPACT])))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.sampled_from([0, 1, 1, 2, 5, 20])))
        body = body[:start] + draw(st.sampled_from([*FRAGMENTS, body[start:end] * 2])) + body[end:]
    return endpoint, body


@settings(max_examples=1500)
@given(mutated_bodies())
def test_a_damaged_body_is_answered_or_refused_never_a_failure(service: FastAPI, case: tuple[Endpoint, bytes]) -> None:
    import asyncio

    endpoint, body = case

    async def ask() -> httpx.Response:
        async with client_of(service) as client:
            return await client.post(endpoint.path, content=body, headers=JSON)

    response = asyncio.run(ask())

    if response.status_code == 200:
        json.loads(body, parse_constant=pytest.fail)  # whatever is answered is JSON for others too
        assert "NaN" not in response.text
    else:
        assert response.status_code in (400, 413, 422)
        check_problem(response)


@pytest.mark.anyio
async def test_a_refusal_repeats_nothing_but_a_short_name_or_one_number(client: httpx.AsyncClient) -> None:
    secret = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=200))
    bodies = [
        {"logits": [secret]},
        {"logits": secret},
        {"logits": [1, 2], "dtype": secret},
        {"logits": [1, 2], "outputs": [secret]},
        {"logits": [1, 2], "outputs": {secret: 1}},
        {"logits": [1, 2], secret: 1},
        {"logits": {"dtype": secret, "shape": [1], "base64": ""}},
        {"logits": {"dtype": "float32", "shape": [secret], "base64": ""}},
        {"logits": {"dtype": "float32", "shape": [1], "base64": secret}},
        {"logits": {secret: 1}},
    ]

    responses = [await client.post("/v1/softmax", json=body) for body in bodies]

    for response in responses:
        check_problem(response)
        assert secret[:65] not in response.text


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["a" * 10**6, "\x00\x1b[31m\r\n" * 50, "\U0001f600" * 300, '"\\' * 1000, "~/" * 400])
async def test_a_strange_name_stays_short_and_printable(client: httpx.AsyncClient, name: str) -> None:
    response = await client.post("/v1/softmax", json={"logits": [1, 2], name: 1})

    problem = check_problem(response, code="unknown-field")
    assert problem["detail"].isprintable()
    assert problem["pointer"].isprintable()
