"""Everything that can be wrong with a request: one class a way, each with its code and its sentences.

    RequestError
    |-- MalformedRequest     malformed-request
    |-- MalformedJson        malformed-json
    |-- MalformedTensor      malformed-tensor
    |-- TooDeep              too-deep
    |-- UnknownField         unknown-field
    |-- DuplicateField       duplicate-field
    |-- MissingField         missing-field
    |-- ShapeMismatch        shape-mismatch
    |-- RaggedArray          ragged-array
    |-- DtypeMismatch        dtype-mismatch
    |-- InvalidOption        invalid-option
    |-- TargetOutOfRange     target-out-of-range
    |-- NonFinite            non-finite
    |-- UndefinedMean        undefined-mean
    |-- RequestTimeout       request-timeout
    |-- ContentTooLarge      content-too-large
    |-- UriTooLong           uri-too-long
    |-- HeadersTooLarge      headers-too-large
    |-- UnsupportedMediaType unsupported-media-type
    |-- UnsupportedEncoding  unsupported-encoding
    |-- NotAcceptable        not-acceptable
    |-- NotFound             not-found
    |-- MethodNotAllowed     method-not-allowed
    |-- Unauthorized         unauthorized
    |-- RateLimited          rate-limited
    |-- Overloaded           overloaded
    |-- MemoryBudget         memory-budget
    |-- Draining             draining
    |-- EngineRestarting     engine-restarting
    |-- DeadlineExceeded     deadline-exceeded
    `-- Internal             internal

Which HTTP status belongs to which class is decided in `http/problems.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

NAME_LIMIT = 64
"""Longest name of a caller's that a sentence repeats, in characters."""


def clip(name: object) -> str:
    """Return `name` as one printable word of at most 64 characters."""
    text = "".join(character if character.isprintable() else "?" for character in str(name)[: NAME_LIMIT + 1])
    return text if len(text) <= NAME_LIMIT else text[: NAME_LIMIT - 3] + "..."


class Quoted(str):
    """A word of the caller's: in quotes where a sentence holds it, and without them in a field of its own."""

    __slots__ = ()

    def __format__(self, _: str) -> str:
        return f"'{self!s}'"


def quoted(word: object) -> Quoted:
    """Return a word of the caller's, clipped."""
    return Quoted(clip(word))


def element_pointer(name: str, index: tuple[int, ...]) -> str:
    """Return the RFC 6901 pointer to an element: `/target/3/5`."""
    return "/" + "/".join([name, *map(str, index)])


def element_name(name: str, index: tuple[int, ...]) -> str:
    """Return an element as a sentence names it: `target[3, 5]`, or `target` when there is no index."""
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 byte`, `2 bytes`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


class RequestError(Exception):
    """A request that cannot be answered, and the sentence that says why.

    `RequestError("key", pointer=..., expected=..., got=..., **words)` fills the sentence of that key with the words.
    `seconds` is after how long the same request may succeed.
    """

    code: ClassVar[str]
    """Stable name of this way to be wrong; the last part of the problem type."""
    title: ClassVar[str]
    mend: ClassVar[str]
    """What the caller can do about it."""
    sentences: ClassVar[Mapping[str, str]]

    def __init__(
        self,
        sentence: str,
        /,
        *,
        pointer: str | None = None,
        expected: object = None,
        got: object = None,
        limit: int | None = None,
        seconds: int | None = None,
        **words: object,
    ) -> None:
        self.sentence = sentence
        self.pointer = pointer
        self.expected = expected
        self.got = got
        self.limit = limit
        self.seconds = seconds
        self.detail = self.sentences[sentence].format(expected=expected, got=got, limit=limit, seconds=seconds, **words)
        super().__init__(self.detail)


class MalformedRequest(RequestError):
    code = "malformed-request"
    title = "The form of the request or one of its headers is not what this service takes"
    mend = (
        "Send HTTP/1.1 or HTTP/1.0 as RFC 9112 writes it, with one Host header that holds a name which the service was "
        "set up to answer for (LOSS_ALLOWED_HOSTS), and with one Content-Length or 'Transfer-Encoding: chunked'. The "
        "connection is closed "
        "where nobody can tell where the next request would begin. Other headers that describe the body must be true."
    )
    sentences = {
        "syntax": "The request is not HTTP as RFC 9112 writes it: {got}.",
        "target": "The target of the request is neither a path nor an address with one.",
        "version": "The request is HTTP/{got}, but this service speaks HTTP/1.1 and HTTP/1.0.",
        "connect": "CONNECT asks for a tunnel, and this service is no proxy.",
        "websocket": "The request asks for a WebSocket, and this service has none.",
        "transfer-encoding": "The Transfer-Encoding must be 'chunked', alone and in HTTP/1.1.",
        "chunks": "A chunk of the body has an extension longer than {limit} bytes.",
        "no-host": "The request has no Host header, but HTTP/1.1 needs one.",
        "two-hosts": "The request has {got} Host headers, but must have one.",
        "host": (
            "The Host is '{got}', but this service answers only for {expected}; whoever runs it may set "
            "LOSS_ALLOWED_HOSTS."
        ),
        "origin": "The request comes from a page of {got}, but this service has shared memory, which is not for pages.",
        "preflight": "The preflight of a page of {got} is refused for its {reasons}.",
        "json-bytes": "The Inference-Header-Content-Length is {got}, but must be {expected}.",
        "compression": "The body is not whole and valid {expected}, as its Content-Encoding says.",
        "parts": "The body has more than {limit} gzip parts.",
    }


class MalformedJson(RequestError):
    code = "malformed-json"
    title = "The body is not the JSON this service reads"
    mend = (
        "Send one JSON object in UTF-8, without a byte order mark. NaN and infinities are the strings "
        '"NaN", "Infinity" and "-Infinity"; a number beyond float64, such as 1e999, is not accepted.'
    )
    sentences = {
        "syntax": "The body is not valid JSON: {reason} at byte {offset}.",
        "truncated": "The body is not valid JSON: it ends too early.",
        "surrogate": "The body is not valid JSON: a string holds half of a surrogate pair, such as \\ud800, alone.",
        "literal": 'The body is not valid JSON: {got} at byte {offset}; write it as a string, "{got}".',
        "mark": "The body begins with a byte order mark; JSON is sent in UTF-8 without one.",
        "text": "The body is not valid UTF-8: byte {offset} does not belong to a character.",
        "object": "The body must be one JSON object, but is {got}.",
        "stringify": (
            "The body is not JSON, but '[object Object]': what JavaScript makes of an object without JSON.stringify."
        ),
        "safetensors": "The body is not JSON, but looks like safetensors; /v1 takes it as application/x-safetensors.",
        "kind": "'{name}' must be {expected}, but is {got}.",
        "number": '\'{name}\' holds a number that float64 cannot hold; write infinities as "Infinity" and "-Infinity".',
    }


class MalformedTensor(RequestError):
    code = "malformed-tensor"
    title = "A tensor contradicts its own description"
    mend = (
        'In JSON a compact tensor is {"dtype": "float32", "shape": [2, 3], "base64": "..."}: a known type, a list of '
        "sizes, and the base64 (with padding) of exactly that many little-endian values in row-major order. In a "
        "safetensors body each tensor is described by its type, its shape and where its bytes are; the tensors follow "
        "each other and are the whole of the data, as the libraries write them. In an Open Inference request each "
        "input has its elements in one place, and exactly as many as its shape says."
    )
    sentences = {
        "dtype": "The 'dtype' of '{name}' must be one of {expected}, but is {got}.",
        "shape": "The 'shape' of '{name}' must be a list of at most {expected} sizes, each an integer from 0.",
        "elements": "The sizes in the 'shape' of '{name}', zeros apart, multiply to more than {limit}.",
        "base64": "The 'base64' of '{name}' must be a string of base64 with padding, and is not.",
        "size": "'{name}' needs {needed} for its dtype and shape, but its base64 holds {got}.",
        "json": "The body looks like JSON and not like safetensors; send it as application/json.",
        "short": "A safetensors body begins with {expected} bytes for the length of its header; this one has {got}.",
        "long-header": "The safetensors header is {got} long by its first 8 bytes, but at most {limit} are allowed.",
        "header-beyond": "The safetensors header is {expected} long by its first 8 bytes, but only {got} follow.",
        "header": "The safetensors header is not a JSON object.",
        "count": "The safetensors header describes {got} tensors, but at most {limit} are allowed.",
        "description": "The description of '{name}' must have 'dtype', 'shape' and 'data_offsets', and nothing else.",
        "option-as-tensor": "'{name}' is an option and no tensor; options go into the string map of the header.",
        "tensor-as-option": "'{name}' is a tensor and no option; tensors are described in the header.",
        "offsets": "The 'data_offsets' of '{name}' must be two byte positions, the first not after the second.",
        "span": "'{name}' needs {needed} for its dtype and shape, but its data_offsets span {got}.",
        "place": (
            "'{name}' begins at byte {got} of the data, but must begin at byte {expected}: "
            "tensors follow each other without gaps and overlaps."
        ),
        "data": "The tensors take {expected}, but the data after the safetensors header has {got}.",
        "options": "The options in the safetensors header must map strings to strings.",
        "many": "The request has {got} tensors, but at most {limit} are allowed.",
        "option-as-input": "'{name}' is an option and no tensor, but stands among the inputs.",
        "input-as-option": "'{name}' is a tensor and no option; it belongs among the inputs.",
        "source": (
            "'{name}' must have its elements in exactly one place: 'data', 'binary_data_size' or "
            "'shared_memory_region'; it has {got} of them."
        ),
        "numbers": "'{name}' needs {needed} for its shape, but its 'data' has {got}.",
        "nesting": "The 'data' of '{name}' is nested as {got}, but the shape is {expected}; a flat list is fine, too.",
        "binary": "'{name}' needs {needed} for its type and shape, but its 'binary_data_size' is {got}.",
        "blocks": "The tensors take {expected}, but {got} follow the JSON.",
        "raw": "A body without JSON is one tensor alone, but {owner} needs {expected}.",
        "raw-bytes": "A body without JSON holds numbers of {expected}, but has {got}.",
        "region": "'{name}' lies in the shared memory region '{got}', which is not registered.",
        "region-bytes": (
            "'{name}' needs {needed} from byte {offset} of the shared memory region '{region}', but may use {got}."
        ),
    }


class TooDeep(RequestError):
    code = "too-deep"
    title = "The JSON is nested too deeply"
    mend = "Nest at most 10 levels, the outer object counted; tensors have at most 8 dimensions."
    sentences = {"depth": "The JSON is nested deeper than {limit} levels."}


class UnknownField(RequestError):
    code = "unknown-field"
    title = "The request has a field that the operator does not know"
    mend = "Remove the field or correct its name; GET /v1/operators lists what each operator takes."
    sentences = {
        "unknown": "{owner} has no field '{name}'; its fields are {expected}.",
        "similar": "{owner} has no field '{name}'; did you mean '{similar}'?",
        "gradient": "{owner} has no field '{name}'; POST it to /v1/{owner}/gradient.",
        "query": "'{name}' stands in the address, but belongs in the body.",
    }


class DuplicateField(RequestError):
    code = "duplicate-field"
    title = "A field appears twice"
    mend = "Write every field once."
    sentences = {
        "duplicate": "'{name}' appears more than once.",
        "description": "The description of '{tensor}' has '{name}' more than once.",
        "part": "{owner} has '{name}' more than once.",
    }


class MissingField(RequestError):
    code = "missing-field"
    title = "A field that the operator needs is absent"
    mend = "Add the field; GET /v1/operators lists what each operator needs."
    sentences = {
        "tensor": "{owner} needs the tensor '{name}'; the request has none.",
        "upstream": ("{owner} needs the tensor '{name}', the gradient of your loss by '{like}'; the request has none."),
        "part": "{owner} needs '{name}'; it has none.",
    }


class ShapeMismatch(RequestError):
    code = "shape-mismatch"
    title = "Shapes do not fit together"
    mend = (
        "Logits are (C), (N, C) or (N, C, d1, ..., dk) unless class_dim says otherwise; an index target has that shape "
        "without the class dimension, a probability target has the whole of it, and weight is (C)."
    )
    sentences = {
        "rank": "'{name}' has {got} dimensions, but at most {expected} are allowed.",
        "scalar": "'{name}' is a single number, but must be an array with at least one dimension, that of the classes.",
        "classes": "'{name}' has shape {got}, but dimension {dimension} holds the classes and must not be empty.",
        "shape": "'{name}' has shape {got}, but must have shape {expected}: {reason}.",
        "target": (
            "'{name}' has shape {got}, but for '{like}' of shape {like_shape} it must have shape {rows} "
            "(class indices) or {like_shape} (class probabilities)."
        ),
        "class-last": (
            "'{name}' has shape {got}, but for '{like}' of shape {like_shape} it must have shape {expected}; "
            "it would fit with class_dim -1."
        ),
        "empty-rows": (
            "'{name}' holds empty rows; an empty tensor is written in the compact form "
            '{{"dtype": ..., "shape": ..., "base64": ""}}.'
        ),
    }


class RaggedArray(RequestError):
    code = "ragged-array"
    title = "A nested array is not rectangular"
    mend = "Give all arrays at the same depth the same length, and do not mix numbers with arrays."
    sentences = {
        "length": "{element} has {elements}, but the arrays before it have {expected}.",
        "mixed": "{element} is {got}, but the elements before it are {expected}.",
    }


class DtypeMismatch(RequestError):
    code = "dtype-mismatch"
    title = "A tensor has the wrong kind of elements"
    mend = (
        "Logits, log-probabilities, weights and upstream gradients are floating-point numbers, class indices are "
        "integers. Numbers in JSON are read as the option 'dtype' says (float32 unless given)."
    )
    sentences = {
        "tensor": "'{name}' must be a number, an array of numbers or a compact tensor, but is {got}.",
        "element": "{element} must be a number, but is {got}.",
        "null": (
            "{element} must be a number, but is null, as JSON.stringify writes NaN and infinities; "
            'they are the strings "NaN", "Infinity" and "-Infinity".'
        ),
        "spelling": '{element} must be a number, but is the string "{got}"; write it "{similar}".',
        "floating": "'{name}' must hold floating-point numbers, but holds {got}.",
        "indices": "'{name}' must hold class indices, which are integers, but holds {got}.",
        "probabilities": (
            "'{name}' has the shape of '{like}', so it must hold class probabilities as floating-point numbers, "
            "but holds {got}."
        ),
        "overflow": "{element} is {got}, which {expected} cannot hold; it needs another type.",
        "too-large": '{element} is {got}, which {expected} cannot hold; it needs "dtype": "{wider}".',
    }


class InvalidOption(RequestError):
    code = "invalid-option"
    title = "An option has a value it cannot take"
    mend = "GET /v1/operators lists every option with its default and bounds."
    sentences = {
        "value": "'{name}' must be {expected}, but is {got}.",
        "list": "'{name}' must be {expected}, but is the text {got}; a list is written [\"{similar}\"].",
        "class-dim": "'class_dim' must be {expected} for '{like}' of shape {shape}, but is {got}.",
        "output-name": "{element} must be the name of an output, but is {got}.",
        "output": "{owner} has no output {got}; ask for {expected}.",
        "gradient-output": "{owner} has no output {got}; POST to /v1/{owner}/gradient for it.",
        "repeated-output": "'outputs' names {got} more than once.",
        "normalizer": "'normalizer' only goes with reduction 'mean', but reduction is {got}.",
        "soft-ignore": "'ignore_index' must be negative when the target holds class probabilities, but is {got}.",
        "soft-output": (
            "'outputs' asks for 'grad_target', which exists only for a target of class probabilities, "
            "but this target holds class indices."
        ),
    }


class TargetOutOfRange(RequestError):
    code = "target-out-of-range"
    title = "A target is not a class"
    mend = "Class indices run from 0 to C - 1; rows to be skipped hold ignore_index (-100 unless given)."
    sentences = {
        "range": "{element} is {got}, but {like} have {classes} ({expected}).",
        "negative": (
            "{element} is {got}, but {like} have {classes} ({expected}); a row is skipped where it holds ignore_index, "
            "here {ignored}."
        ),
        "int64": "{element} is an integer that int64 cannot hold, but {like} have {classes} ({expected}).",
    }


class NonFinite(RequestError):
    code = "non-finite"
    title = "The answer would hold a NaN"
    mend = (
        "Look at the row that is named: it holds NaN, +Infinity, nothing but -Infinity, or numbers whose product "
        "overflows. Mask a class with -Infinity, skip a row with ignore_index, or ask for NaN with "
        '"non_finite": "propagate".'
    )
    sentences = {
        "row": (
            "'{name}' would be NaN in row {row}; see whether that row of the input holds NaN, Infinity, or nothing "
            "but -Infinity."
        ),
        "whole": "'{name}' would be NaN; see whether the input holds NaN, Infinity, or nothing but -Infinity.",
    }


class UndefinedMean(RequestError):
    code = "undefined-mean"
    title = "There is nothing to average over"
    mend = (
        "Every row is ignored, there are no rows, or their weights sum to zero. Use reduction 'sum', give a "
        '\'normalizer\', or ask for NaN with "non_finite": "propagate".'
    )
    sentences = {"zero": "The mean is undefined: the summed weight of the kept rows is 0."}


class ContentTooLarge(RequestError):
    code = "content-too-large"
    title = "The body or its answer is larger than the limit"
    mend = (
        "Send and accept application/x-safetensors, whose limit is far higher than that of JSON, cut the batch "
        "(GET /v1/limits tells the limits), or ask for fewer outputs."
    )
    sentences = {
        "json": (
            "The body is larger than the {limit} bytes allowed for application/json; "
            "send large tensors as application/x-safetensors."
        ),
        "body": "The body is larger than the {limit} bytes allowed.",
        "json-part": "The JSON is larger than the {limit} bytes allowed; send large tensors as binary data.",
        "json-outputs": (
            "The answer could take {got} bytes of JSON, but at most {limit} are allowed; ask for large outputs as "
            "binary data."
        ),
        "answer": (
            "The answer could take {got} bytes, but at most {limit} are allowed for application/json; "
            "large answers come as application/x-safetensors (say so in Accept)."
        ),
        "memory": "The request needs {got} bytes of memory, but all requests together may hold {limit}.",
    }


class RequestTimeout(RequestError):
    code = "request-timeout"
    title = "The request came too slowly"
    mend = (
        "Send the request as soon as the connection is open and its body without pauses; a body may come at any pace "
        "above LOSS_BODY_BYTES_PER_SECOND. Requests have no side effects: send it again."
    )
    sentences = {
        "silent": "Nothing was sent for {limit} s after the connection was opened.",
        "head": "The header of the request was not complete after {limit} s.",
        "body": "The body came more slowly than {limit} bytes a second.",
        "whole": "The body was not complete after {limit} s.",
    }


class UriTooLong(RequestError):
    code = "uri-too-long"
    title = "The address is too long"
    mend = "No address of this service is long; tensors and options go into the body."
    sentences = {"target": "The target of the request is longer than the {limit} bytes allowed."}


class HeadersTooLarge(RequestError):
    code = "headers-too-large"
    title = "The header of the request is too large"
    mend = "Send fewer and shorter header fields; tensors and options go into the body."
    sentences = {
        "bytes": "The header of the request is longer than the {limit} bytes allowed.",
        "fields": "The header of the request has more than the {limit} fields allowed.",
        "trailer": "The trailer of the body is longer than the {limit} bytes or has more fields than allowed.",
    }


class UnsupportedMediaType(RequestError):
    code = "unsupported-media-type"
    title = "The body is in a format this service does not read"
    mend = "Send the header Content-Type: application/json, or application/x-safetensors for binary bodies."
    sentences = {
        "missing": "The request has no Content-Type; it must be {expected}.",
        "type": "The Content-Type is {got}, but it must be {expected}.",
    }


class UnsupportedEncoding(RequestError):
    code = "unsupported-encoding"
    title = "The body is compressed"
    mend = "Send the body as it is, without Content-Encoding; below /v2, gzip and deflate are taken, too."
    sentences = {"encoding": "The Content-Encoding is {got}, but must be {expected}."}


class NotAcceptable(RequestError):
    code = "not-acceptable"
    title = "The service cannot answer in the format asked for"
    mend = "Accept application/json or application/x-safetensors, or leave Accept away."
    sentences = {"accept": "The Accept header is {got}, but the answer can only be {expected}."}


class NotFound(RequestError):
    code = "not-found"
    title = "There is nothing at this address"
    mend = "GET /v1/operators lists the operators; /docs shows every address."
    sentences = {
        "path": "There is nothing at this path; see /docs.",
        "similar": "There is nothing at this path; did you mean '{similar}'?",
        "listing": "There is nothing at this path; GET /v1/operators lists all operators.",
        "operator": "There is no operator '{name}'; did you mean '{similar}'?",
        "no-operator": "There is no operator '{name}'; the operators are {expected}.",
        "version": "{owner} has no version '{name}'; its only version is 1.",
        "region": "There is no shared memory region '{name}'.",
        "shared-memory": "Shared memory is switched off; whoever runs the service may set LOSS_SHARED_MEMORY.",
        "cuda-memory": "Shared memory of CUDA devices is not supported; use binary data, or the memory of the system.",
    }


class MethodNotAllowed(RequestError):
    code = "method-not-allowed"
    title = "This address does not take the method"
    mend = "Operators are called with POST, everything else with GET; the Allow header lists the methods."
    sentences = {"method": "This path takes {expected}, not {got}."}


class Unauthorized(RequestError):
    code = "unauthorized"
    title = "The request needs an API key"
    mend = "Send the header Authorization: Bearer KEY, with a key that whoever runs the service gave you."
    sentences = {
        "missing": "This path needs an API key; send it as Authorization: Bearer KEY.",
        "form": "The API key must come in one Authorization header, as Bearer KEY.",
        "unknown": "The API key is not one that this service knows.",
    }


class RateLimited(RequestError):
    code = "rate-limited"
    title = "There are too many requests with this API key"
    mend = (
        "Send it again after the seconds of Retry-After; requests have no side effects. Requests are what is counted, "
        "so few large batches go further than many small ones."
    )
    sentences = {
        "rate": (
            "There are more requests with this API key than the {rate} a second that it may send; "
            "send this one again in {seconds} s."
        )
    }


class Draining(RequestError):
    code = "draining"
    title = "The service is about to stop"
    mend = "Send it again on a new connection after the seconds of Retry-After; requests have no side effects."
    sentences = {"draining": "The service is about to stop and takes no more requests; send it again in a moment."}


class Overloaded(RequestError):
    code = "overloaded"
    title = "There is more work than the service can do in time"
    mend = (
        "Send it again after the seconds of Retry-After; requests have no side effects. A request that may wait longer "
        "says so in X-Request-Timeout-Ms, but none is admitted behind more work than LOSS_QUEUE_SECONDS allows."
    )
    sentences = {
        "queue": "The work ahead of this request would take longer than {most} s; send it again in {seconds} s.",
        "deadline": "This request would not be answered within its {limit} ms; send it again in {seconds} s.",
    }


class MemoryBudget(RequestError):
    code = "memory-budget"
    title = "There is no memory for the request at the moment"
    mend = (
        "Send it again after the seconds of Retry-After; requests have no side effects. Smaller batches find room "
        "sooner; GET /v1/limits tells how much all requests together may hold."
    )
    sentences = {
        "full": "Other requests hold the memory that this one needs; send it again in {seconds} s.",
        "arriving": (
            "As much is on its way to this service as it can receive within {most} s; send it again in {seconds} s."
        ),
        "engine": "Memory ran out while this request was worked on; send it again in {seconds} s.",
    }


class EngineRestarting(RequestError):
    code = "engine-restarting"
    title = "The engine has failed and is started anew"
    mend = "Send it again on a new connection after the seconds of Retry-After; requests have no side effects."
    sentences = {"restarting": "The device failed, and the service is starting anew; send it again in {seconds} s."}


class DeadlineExceeded(RequestError):
    code = "deadline-exceeded"
    title = "The request was not answered within its deadline"
    mend = (
        "Give it more time with the header X-Request-Timeout-Ms, in milliseconds from 1, or cut the batch. Without the "
        "header the deadline is that of LOSS_DEADLINE_SECONDS."
    )
    sentences = {"late": "The request was not answered within its {limit} ms, and has been given up."}


class Internal(RequestError):
    code = "internal"
    title = "The service has a bug"
    mend = "Report it with the request id; trying again will not help."
    sentences = {"bug": "This is a bug in the service. Please report it with request id {request_id}."}


def _subclasses() -> dict[str, type[RequestError]]:
    return {error.code: error for error in RequestError.__subclasses__()}


ERRORS: Mapping[str, type[RequestError]] = _subclasses()
"""Every way to be wrong, by code."""
