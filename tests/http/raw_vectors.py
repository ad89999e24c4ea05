"""Requests as bytes, good and bad, and what each is answered with.

What is refused by the HTTP protocol itself has a code; the rest is answered by the application, with a status.
"""

from __future__ import annotations

from dataclasses import dataclass

PATH = "/v1/softmax"
BODY = b'{"logits": [1, 2]}'
CHUNKS = b"12\r\n" + BODY + b"\r\n0\r\n\r\n"
JSON = "Content-Type: application/json"
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"

KIB = 1024


@dataclass(frozen=True)
class Vector:
    """Bytes, and the statuses of the answers to them in their order; `code` is that of the last, if it is a problem."""

    name: str
    sent: bytes
    statuses: tuple[int, ...]
    code: str | None = None
    is_request: bool = False
    """Whether it is a request for all that, refused by the application and not by the protocol."""

    @property
    def is_refused_by_the_protocol(self) -> bool:
        return self.code in ("malformed-request", "uri-too-long", "headers-too-large") and not self.is_request


def _lines(*lines: str | bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([line if isinstance(line, bytes) else line.encode("latin-1") for line in lines] + [body])


def post(*lines: str | bytes, body: bytes = BODY, start: str = f"POST {PATH} HTTP/1.1") -> bytes:
    return _lines(start, "Host: localhost", JSON, *lines, "", body=body)


def get(*lines: str | bytes, start: str = "GET /health/live HTTP/1.1") -> bytes:
    return _lines(start, "Host: localhost", *lines, "")


def _bad(name: str, sent: bytes, *before: int) -> Vector:
    return Vector(name, sent, (*before, 400), "malformed-request")


GOOD = get()

_CONTROL_CHARACTERS = [0, 1, 7, 8, 11, 12, 13, 14, 27, 31, 127]

VECTORS: list[Vector] = [
    # Lengths that are none.
    *(
        _bad(f"length {text!r}", post(f"Content-Length:{text}"))
        for text in (
            " -1",
            " +5",
            " 0x10",
            " 1e1",
            " 5.0",
            " 5,5",
            " 5, 5",
            " 5, 6",
            " 5 5",
            " 1_0",
            " ",
            "",
            " \t",
            " a",
            " 5a",
            " \xb3",
            " 18446744073709551616",
            " " + "9" * 100,
            " " + "9" * 5000,
            " --5",
            " 5;q=1",
            ' "5"',
            " NaN",
            " inf",
            " 0b1",
            " '5'",
            " 5\x00",
            " \x0b5",
            " \xa05",
        )
    ),
    # Lengths that are too large, and lengths that are some.
    *(
        Vector(f"length {length}", post(f"Content-Length: {length}", body=b""), (413,), "content-too-large")
        for length in (1 << 24, 10**9, 10**12, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
    ),
    *(
        Vector(f"length {text!r}", post(f"Content-Length:{text}"), (200,))
        for text in ("18", " 18", " 018", " 00000018", " 18 ", "\t18\t", "   18")
    ),
    # Two lengths, or none where a body comes.
    _bad("two lengths that differ", post("Content-Length: 18", "Content-Length: 19")),
    _bad("two lengths alike", post("Content-Length: 18", "Content-Length: 18")),
    _bad("three lengths", post("Content-Length: 18", "content-length: 18", "CONTENT-LENGTH: 18")),
    _bad("length and chunks", post(LENGTH, CHUNKED, body=CHUNKS)),
    _bad("chunks and length", post(CHUNKED, LENGTH, body=CHUNKS)),
    _bad("length 0 and chunks", post("Content-Length: 0", CHUNKED, body=CHUNKS)),
    _bad("a body nobody announced", post(), 400),
    # Transfer codings.
    *(
        _bad(f"coding {coding!r}", post(f"Transfer-Encoding:{coding}", body=CHUNKS))
        for coding in (
            " gzip, chunked",
            " chunked, chunked",
            " chunked, gzip",
            " gzip",
            " identity",
            " chunked, identity",
            " identity, chunked",
            " xchunked",
            " chunkedx",
            " chunked;q=1",
            ' "chunked"',
            "",
            " ",
            " ,chunked",
            " chunked,",
            " chunked, ",
            " deflate, chunked",
            " \x0bchunked",
            " chunked\x0c",
            " chun\tked",
            " trailers",
            " cow",
            " \x00chunked",
        )
    ),
    *(
        Vector(f"coding {coding!r}", post(f"Transfer-Encoding:{coding}", body=CHUNKS), (200,))
        for coding in ("chunked", " chunked", " Chunked", " CHUNKED", "\tchunked", " chunked ")
    ),
    _bad("two codings", post(CHUNKED, CHUNKED, body=CHUNKS)),
    _bad("two codings, one identity", post("Transfer-Encoding: identity", CHUNKED, body=CHUNKS)),
    _bad("two codings, one last", post(CHUNKED, "Transfer-Encoding: cow", body=CHUNKS)),
    _bad("chunks in HTTP/1.0", post(CHUNKED, body=CHUNKS, start=f"POST {PATH} HTTP/1.0")),
    # Names of fields.
    *(
        _bad(f"field {line!r}", post(line, LENGTH))
        for line in (
            "Content-Length : 18",
            "Content-Length\t: 18",
            "Transfer-Encoding : chunked",
            "X : 1",
            "X\t: 1",
            ": 1",
            " : 1",
            "X",
            "X Y: 1",
            " X: 1",
            "\tX: 1",
            "X\x00: 1",
            "X\x7f: 1",
            "X\xe9: 1",
            "X(: 1",
            "X@Y: 1",
            "X[: 1",
            "X/: 1",
            '"X": 1',
            "X{}: 1",
            "X\\: 1",
            "X;: 1",
            "X,Y: 1",
            "X=1",
            "X<: 1",
        )
    ),
    # Values of fields.
    *(_bad(f"value with {code:#x}", post(f"X: a{chr(code)}b", LENGTH)) for code in _CONTROL_CHARACTERS),
    *(
        Vector(f"value {value!r}", post(f"X: {value}", LENGTH), (200,))
        for value in ("", "a\tb", "\xe9\xff", "a: b", ":", '"', "x" * 4000)
    ),
    _bad("a folded value", post("X: a", " b", LENGTH)),
    _bad("a folded value with a tab", post("X: a", "\tb", LENGTH)),
    _bad("a folded length", post("Content-Length:", " 18")),
    _bad("a folded coding", post("Transfer-Encoding:", " chunked", body=CHUNKS)),
    # Line ends.
    _bad("line feeds only", post(LENGTH).replace(b"\r\n", b"\n")),
    _bad("carriage returns only", post(LENGTH).replace(b"\r\n", b"\r") + b"\r\n\r\n"),
    _bad("a line feed after the start", post(LENGTH).replace(b"1.1\r\n", b"1.1\n")),
    _bad("a line feed after a field", post("X: 1\nY: 2", LENGTH)),
    _bad("a line feed before the end", post(LENGTH).replace(b"\r\n\r\n", b"\r\n\n")),
    _bad("a line feed hides a length", post("X: 1\nContent-Length: 18")),
    _bad("a carriage return hides a length", post("X: 1\rContent-Length: 18")),
    _bad("two carriage returns", post("X: 1\r", LENGTH)),
    Vector("empty lines before a request", b"\r\n\r\n" + GOOD, (200,)),
    # Chunks.
    *(
        _bad(f"chunk {chunks[:40]!r}", post(CHUNKED, body=chunks))
        for chunks in (
            b"xyz\r\n",
            b"-1\r\n",
            b"+12\r\n" + BODY,
            b"0x12\r\n" + BODY,
            b"12 \r\n" + BODY,
            b" 12\r\n" + BODY,
            b"12\n" + BODY,
            b"\r\n",
            b"12\r" + BODY,
            b"11\r\n" + BODY + b"\r\n0\r\n\r\n",
            b"13\r\n" + BODY + b"\r\n0\r\n\r\n",
            b"12\r\n" + BODY + b"\n0\r\n\r\n",
            b"12\r\n" + BODY + b"0\r\n\r\n",
            b"fffffffffffffffff\r\n",
            b"10000000000000000\r\n",
            b"12\r\n" + BODY + b"\r\n0\n\r\n",
            b"1_2\r\n" + BODY,
            b"12\x00\r\n" + BODY,
            b"12;a\x00=b\r\n" + BODY,
            b"12;a=b\n" + BODY,
            b"12\r\n" + BODY + b"\r\n0\r\nT : 1\r\n\r\n",
            b"12\r\n" + BODY + b"\r\n0\r\nT: \x00\r\n\r\n",
            b"12\r\n" + BODY + b"\r\n0\r\n T: 1\r\n\r\n",
            b"12\r\n" + BODY + b"\r\n0\r\nT: 1\nU: 2\r\n\r\n",
            b"12,12\r\n" + BODY,
            b"12\r\n" + BODY + b"\r\n0\r\nContent-Length: 5\r\n\r\n",
            b"12\r\n" + BODY + b"\r\n0\r\nTransfer-Encoding: gzip\r\n\r\n",
        )
    ),
    *(
        Vector(f"chunk {chunks[:40]!r}", post(CHUNKED, body=chunks), (200,))
        for chunks in (
            CHUNKS,
            b"012\r\n" + BODY + b"\r\n0\r\n\r\n",
            b"0000000000000012\r\n" + BODY + b"\r\n0000\r\n\r\n",
            b"12;a=b\r\n" + BODY + b"\r\n0;c\r\n\r\n",
            b'12;a="b"\r\n' + BODY + b"\r\n0\r\nT: 1\r\nU: 2\r\n\r\n",
            b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n",
        )
    ),
    Vector(
        "an extension of 20 KiB",
        post(CHUNKED, body=b"12;" + b"a" * 20 * KIB + b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (200,),
    ),
    _bad("an extension of 1 MiB", post(CHUNKED, body=b"12;" + b"a" * KIB * KIB)),
    Vector(
        "a trailer of 1 MiB",
        post(CHUNKED, body=b"12\r\n" + BODY + b"\r\n0\r\nT: " + b"a" * KIB * KIB),
        (431,),
        "headers-too-large",
    ),
    Vector(
        "a trailer of 66 fields",
        post(CHUNKED, body=b"12\r\n" + BODY + b"\r\n0\r\n" + b"T: 1\r\n" * 66),
        (431,),
        "headers-too-large",
    ),
    # Start lines.
    *(
        _bad(f"start {start!r}", get(start=start))
        for start in (
            "nonsense",
            "",
            "GET",
            "GET /health/live",
            "GET /health/live HTTP/9.9",
            "GET /health/live HTTP/1.2",
            "GET /health/live HTTP/2.0",
            "GET /health/live HTTP/0.9",
            "GET /health/live HTTP/1",
            "GET /health/live HTTP/1.",
            "GET /health/live HTTP/.1",
            "GET /health/live HTTP/1.1.1",
            "GET /health/live http/1.1",
            "GET /health/live HTTPS/1.1",
            "GET /health/live HTTP/1.1 ",
            "GET /health/live  HTTP/1.1x",
            "get /health/live HTTP/1.1",
            "Get /health/live HTTP/1.1",
            "BREW /health/live HTTP/1.1",
            "G\x00T /health/live HTTP/1.1",
            " GET /health/live HTTP/1.1",
            "GET\t/health/live HTTP/1.1",
            "GET /health/live\tHTTP/1.1",
            "GET /health /live HTTP/1.1",
            "GET /\x00 HTTP/1.1",
            "GET /\x7f HTTP/1.1",
            "GET /\xff HTTP/1.1",
            "GET /\x0b HTTP/1.1",
            "GET health/live HTTP/1.1",
            "GET /health/live#x HTTP/1.1",
            "GET http:// HTTP/1.1",
            "GET ? HTTP/1.1",
            "GET \\ HTTP/1.1",
            "PRI * HTTP/2.0",
            "GET http://[::1 HTTP/1.1",
        )
    ),
    *(
        _bad(f"connect {target}", get(start=f"CONNECT {target} HTTP/1.1"))
        for target in ("localhost:80", "/health/live", "example.org:443", "*")
    ),
    *(
        Vector(f"start {start!r}", get(start=start), (status,), code)
        for start, status, code in (
            ("GET http://localhost/health/live HTTP/1.1", 200, None),
            ("GET http://[::1]:80/v1/softmax HTTP/1.1", 405, "method-not-allowed"),
            ("GET /health/live?x=1 HTTP/1.1", 200, None),
            ("GET /health/live HTTP/1.0", 200, None),
            ("GET /% HTTP/1.1", 404, "not-found"),
            ("GET /%zz HTTP/1.1", 404, "not-found"),
            ("GET //health/live HTTP/1.1", 404, "not-found"),
            ("GET /health/live%0A HTTP/1.1", 404, "not-found"),
            ("GET /v1/softmax%0A HTTP/1.1", 404, "not-found"),
            ("GET /v1/softmax%0D HTTP/1.1", 404, "not-found"),
            ("GET /v1/softmax%00 HTTP/1.1", 404, "not-found"),
            ("TRACE /health/live HTTP/1.1", 405, "method-not-allowed"),
            ("TRACE /v1/softmax HTTP/1.1", 405, "method-not-allowed"),
            ("OPTIONS /v1/softmax HTTP/1.1", 405, "method-not-allowed"),
            ("DELETE /v1/softmax HTTP/1.1", 405, "method-not-allowed"),
            ("PROPFIND /v1/softmax HTTP/1.1", 405, "method-not-allowed"),
            ("GET /" + "a" * 4095 + " HTTP/1.1", 404, "not-found"),
        )
    ),
    Vector("an operator with a line feed", post(LENGTH, start=f"POST {PATH}%0A HTTP/1.1"), (404,), "not-found"),
    Vector("a gradient with a line feed", post(LENGTH, start=f"POST {PATH}/gradient%0a HTTP/1.1"), (404,), "not-found"),
    # Hosts.
    Vector("no host", _lines("GET /health/live HTTP/1.1", ""), (400,), "malformed-request", is_request=True),
    Vector("two hosts", get("Host: localhost"), (400,), "malformed-request", is_request=True),
    Vector("no host in HTTP/1.0", _lines("GET /health/live HTTP/1.0", ""), (200,)),
    # Sizes.
    *(
        Vector(f"address of {size}", get(start=f"GET /{'a' * size} HTTP/1.1"), (414,), "uri-too-long")
        for size in (4096, 5000, 40 * KIB, 300 * KIB)
    ),
    Vector("a query of 4 KiB", get(start=f"GET /health/live?{'a' * 4096} HTTP/1.1"), (414,), "uri-too-long"),
    Vector("an endless address", b"GET /" + b"a" * KIB * KIB, (414,), "uri-too-long"),
    Vector("62 more fields", get(*["X: 1"] * 63), (200,)),
    *(
        Vector(f"{count} more fields", get(*["X: 1"] * count), (431,), "headers-too-large")
        for count in (64, 65, 1000, 30_000)
    ),
    Vector("a value of 31 KiB", get("X: " + "a" * 31 * KIB), (200,)),
    *(
        Vector(f"a value of {size} KiB", get("X: " + "a" * size * KIB), (431,), "headers-too-large")
        for size in (32, 64, 200, 300, 1024)
    ),
    Vector("a name of 40 KiB", get("X" * 40 * KIB + ": 1"), (431,), "headers-too-large"),
    Vector("an endless value", b"GET / HTTP/1.1\r\nX: " + b"a" * KIB * KIB, (431,), "headers-too-large"),
    Vector("an endless name", b"GET / HTTP/1.1\r\n" + b"a" * KIB * KIB, (431,), "headers-too-large"),
    Vector("endless spaces before a value", b"GET / HTTP/1.1\r\nX:" + b" " * KIB * KIB, (431,), "headers-too-large"),
    _bad("endless empty lines", b"\r\n" * 512 * KIB),
    # Other protocols.
    _bad("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
    _bad("TLS without TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)),
    _bad(
        "a WebSocket",
        get(
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: eHh4eHh4eHh4eHh4eHh4eA==",
        ),
    ),
    _bad("a WebSocket, spelt otherwise", get("Upgrade: WebSocket", "Connection: keep-alive, upgrade")),
    _bad("a WebSocket at an operator", get("Upgrade: websocket", "Connection: Upgrade", start=f"GET {PATH} HTTP/1.1")),
    Vector(
        "an upgrade to HTTP/2 is not taken",
        get("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__") + GOOD,
        (200, 200),
    ),
    Vector(
        "an upgrade to HTTP/2 with a body is not taken",
        post("Upgrade: h2c", "Connection: Upgrade", LENGTH) + GOOD,
        (200, 200),
    ),
    _bad("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
    _bad("SMTP", b"EHLO localhost\r\n"),
    _bad("a PROXY line", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + GOOD),
    # One connection, several requests.
    Vector("three in a row", GOOD + post(LENGTH) + GOOD, (200, 200, 200)),
    Vector("chunks, then another", post(CHUNKED, body=CHUNKS) + GOOD, (200, 200)),
    Vector("twenty in a row", GOOD * 20, (200,) * 20),
    Vector("the last word of a caller", get("Connection: close") + GOOD, (200,)),
    Vector("HTTP/1.0 waits for no word", post("Expect: 100-continue", LENGTH, start=f"POST {PATH} HTTP/1.0"), (200,)),
    Vector("HTTP/1.0 is one request", get(start="GET /health/live HTTP/1.0") + GOOD, (200,)),
    Vector(
        "the host of a whole URL counts, not the header's",
        get(start="GET http://other/health/live HTTP/1.1"),
        (421,),
        "malformed-request",
        is_request=True,
    ),
    _bad("good, then bad", GOOD + b"nonsense\r\n\r\n", 200),
    _bad("three good, then bad", post(LENGTH) * 3 + post("Content-Length: -1"), 200, 200, 200),
    _bad("a body longer than said", post("Content-Length: 18", body=BODY + b"}"), 200),
    Vector(
        "a request hidden in a body is no request", post("Content-Length: 64", body=GOOD.ljust(64)) + GOOD, (400, 200)
    ),
    Vector(
        "a request hidden in a chunk is no request",
        post(CHUNKED, body=b"40\r\n" + GOOD.ljust(64) + b"\r\n0\r\n\r\n") + GOOD,
        (400, 200),
    ),
    Vector("good, then a long address", GOOD + b"GET /" + b"a" * 5000, (200, 414), "uri-too-long"),
    Vector("good, then a large header", GOOD + get(*["X: 1"] * 70), (200, 431), "headers-too-large"),
]
