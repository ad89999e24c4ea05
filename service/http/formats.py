"""Which format a request is in, and in which it is answered."""

from __future__ import annotations

from typing import Literal

from service.errors import NotAcceptable, Quoted, UnsupportedEncoding, UnsupportedMediaType, quoted
from service.wire import json_codec, safetensors_codec

Format = Literal["json", "safetensors", "open-inference"]

MEDIA_TYPES: dict[Format, str] = {"json": json_codec.MEDIA_TYPE, "safetensors": safetensors_codec.MEDIA_TYPE}

_BY_MEDIA_TYPE = {media_type.encode(): name for name, media_type in MEDIA_TYPES.items()}
_ALL = " or ".join(MEDIA_TYPES.values())


def request_format(headers: dict[bytes, bytes]) -> Format:
    """Return the format of a body; raises UnsupportedMediaType, and UnsupportedEncoding when it is compressed."""
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding.strip().lower() not in (b"identity", b""):
        raise UnsupportedEncoding("encoding", got=quoted(encoding.decode("latin-1")), expected=Quoted("identity"))
    value = headers.get(b"content-type")
    if value is None:
        raise UnsupportedMediaType("missing", expected=_ALL)
    if value in _BY_MEDIA_TYPE:
        return _BY_MEDIA_TYPE[value]
    text = value.decode("latin-1")
    media_type, *parts = (part.strip().lower() for part in text.split(";"))
    charsets = [part.partition("=")[2].strip('" ') for part in parts if part.startswith("charset")]
    found = _BY_MEDIA_TYPE.get(media_type.encode("latin-1"))
    if found is None or any(charset not in ("utf-8", "utf8") for charset in charsets):
        raise UnsupportedMediaType("type", got=quoted(text), expected=_ALL)
    return found


def answer_format(headers: dict[bytes, bytes], of_request: Format) -> Format:
    """Return the format that the `Accept` header prefers (RFC 9110, 12.5.1), that of the request among equals.

    Raises NotAcceptable when it takes none.
    """
    value = headers.get(b"accept")
    if value is None or value in (b"*/*", b"", MEDIA_TYPES[of_request].encode()):
        return of_request
    text = value.decode("latin-1")
    ranges = [_media_range(part) for part in text.lower().split(",") if part.strip()]
    if not ranges:
        return of_request
    ordered = sorted(MEDIA_TYPES, key=lambda name: name != of_request)
    qualities = {name: _quality(MEDIA_TYPES[name], ranges) for name in ordered}
    best = max(ordered, key=lambda name: qualities[name])
    if qualities[best] == 0:
        raise NotAcceptable("accept", got=quoted(text), expected=_ALL)
    return best


def _media_range(part: str) -> tuple[str, float]:
    """Return a media range and its quality; one that is not a number counts as 1."""
    name, *parameters = (piece.strip() for piece in part.split(";"))
    for parameter in parameters:
        key, _, number = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, float(number)
            except ValueError:
                return name, 1.0
    return name, 1.0


def _quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """Return the quality of the most specific range that matches, 0 when none does."""
    for wanted in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        found = [quality for name, quality in ranges if name == wanted]
        if found:
            return max(found)
    return 0.0
