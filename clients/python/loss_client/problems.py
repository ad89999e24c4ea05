"""Every way to be wrong that the service knows, as an exception.

Generated from the service's table of errors by `generate.py`; not to be edited."""

from __future__ import annotations

from typing import ClassVar

from loss_client.errors import RequestRefusedError, ServiceError, ServiceFaultError, UnavailableError


class MalformedRequestError(RequestRefusedError):
    """The form of the request or one of its headers is not what this service takes.

    Send HTTP/1.1 or HTTP/1.0 as RFC 9112 writes it, with one Host header that holds a name which the service was set up
    to answer for (LOSS_ALLOWED_HOSTS), and with one Content-Length or 'Transfer-Encoding: chunked'. The connection is
    closed where nobody can tell where the next request would begin. Other headers that describe the body must be true.
    """

    CODE: ClassVar[str] = "malformed-request"
    TITLE: ClassVar[str] = "The form of the request or one of its headers is not what this service takes"
    STATUS: ClassVar[int] = 400


class MalformedJsonError(RequestRefusedError):
    """The body is not the JSON this service reads.

    Send one JSON object in UTF-8, without a byte order mark. NaN and infinities are the strings "NaN", "Infinity" and
    "-Infinity"; a number beyond float64, such as 1e999, is not accepted.
    """

    CODE: ClassVar[str] = "malformed-json"
    TITLE: ClassVar[str] = "The body is not the JSON this service reads"
    STATUS: ClassVar[int] = 400


class MalformedTensorError(RequestRefusedError):
    """A tensor contradicts its own description.

    In JSON a compact tensor is {"dtype": "float32", "shape": [2, 3], "base64": "..."}: a known type, a list of sizes,
    and the base64 (with padding) of exactly that many little-endian values in row-major order. In a safetensors body
    each tensor is described by its type, its shape and where its bytes are; the tensors follow each other and are the
    whole of the data, as the libraries write them. In an Open Inference request each input has its elements in one
    place, and exactly as many as its shape says.
    """

    CODE: ClassVar[str] = "malformed-tensor"
    TITLE: ClassVar[str] = "A tensor contradicts its own description"
    STATUS: ClassVar[int] = 400


class TooDeepError(RequestRefusedError):
    """The JSON is nested too deeply.

    Nest at most 10 levels, the outer object counted; tensors have at most 8 dimensions.
    """

    CODE: ClassVar[str] = "too-deep"
    TITLE: ClassVar[str] = "The JSON is nested too deeply"
    STATUS: ClassVar[int] = 400


class UnknownFieldError(RequestRefusedError):
    """The request has a field that the operator does not know.

    Remove the field or correct its name; GET /v1/operators lists what each operator takes.
    """

    CODE: ClassVar[str] = "unknown-field"
    TITLE: ClassVar[str] = "The request has a field that the operator does not know"
    STATUS: ClassVar[int] = 400


class DuplicateFieldError(RequestRefusedError):
    """A field appears twice.

    Write every field once.
    """

    CODE: ClassVar[str] = "duplicate-field"
    TITLE: ClassVar[str] = "A field appears twice"
    STATUS: ClassVar[int] = 400


class MissingFieldError(RequestRefusedError):
    """A field that the operator needs is absent.

    Add the field; GET /v1/operators lists what each operator needs.
    """

    CODE: ClassVar[str] = "missing-field"
    TITLE: ClassVar[str] = "A field that the operator needs is absent"
    STATUS: ClassVar[int] = 422


class ShapeMismatchError(RequestRefusedError):
    """Shapes do not fit together.

    Logits are (C), (N, C) or (N, C, d1, ..., dk) unless class_dim says otherwise; an index target has that shape
    without the class dimension, a probability target has the whole of it, and weight is (C).
    """

    CODE: ClassVar[str] = "shape-mismatch"
    TITLE: ClassVar[str] = "Shapes do not fit together"
    STATUS: ClassVar[int] = 422


class RaggedArrayError(RequestRefusedError):
    """A nested array is not rectangular.

    Give all arrays at the same depth the same length, and do not mix numbers with arrays.
    """

    CODE: ClassVar[str] = "ragged-array"
    TITLE: ClassVar[str] = "A nested array is not rectangular"
    STATUS: ClassVar[int] = 422


class DtypeMismatchError(RequestRefusedError):
    """A tensor has the wrong kind of elements.

    Logits, log-probabilities, weights and upstream gradients are floating-point numbers, class indices are integers.
    Numbers in JSON are read as the option 'dtype' says (float32 unless given).
    """

    CODE: ClassVar[str] = "dtype-mismatch"
    TITLE: ClassVar[str] = "A tensor has the wrong kind of elements"
    STATUS: ClassVar[int] = 422


class InvalidOptionError(RequestRefusedError):
    """An option has a value it cannot take.

    GET /v1/operators lists every option with its default and bounds.
    """

    CODE: ClassVar[str] = "invalid-option"
    TITLE: ClassVar[str] = "An option has a value it cannot take"
    STATUS: ClassVar[int] = 422


class TargetOutOfRangeError(RequestRefusedError):
    """A target is not a class.

    Class indices run from 0 to C - 1; rows to be skipped hold ignore_index (-100 unless given).
    """

    CODE: ClassVar[str] = "target-out-of-range"
    TITLE: ClassVar[str] = "A target is not a class"
    STATUS: ClassVar[int] = 422


class NonFiniteError(RequestRefusedError):
    """The answer would hold a NaN.

    Look at the row that is named: it holds NaN, +Infinity, nothing but -Infinity, or numbers whose product overflows.
    Mask a class with -Infinity, skip a row with ignore_index, or ask for NaN with "non_finite": "propagate".
    """

    CODE: ClassVar[str] = "non-finite"
    TITLE: ClassVar[str] = "The answer would hold a NaN"
    STATUS: ClassVar[int] = 422


class UndefinedMeanError(RequestRefusedError):
    """There is nothing to average over.

    Every row is ignored, there are no rows, or their weights sum to zero. Use reduction 'sum', give a 'normalizer', or
    ask for NaN with "non_finite": "propagate".
    """

    CODE: ClassVar[str] = "undefined-mean"
    TITLE: ClassVar[str] = "There is nothing to average over"
    STATUS: ClassVar[int] = 422


class ContentTooLargeError(RequestRefusedError):
    """The body or its answer is larger than the limit.

    Send and accept application/x-safetensors, whose limit is far higher than that of JSON, cut the batch (GET
    /v1/limits tells the limits), or ask for fewer outputs.
    """

    CODE: ClassVar[str] = "content-too-large"
    TITLE: ClassVar[str] = "The body or its answer is larger than the limit"
    STATUS: ClassVar[int] = 413


class RequestTimeoutError(RequestRefusedError):
    """The request came too slowly.

    Send the request as soon as the connection is open and its body without pauses; a body may come at any pace above
    LOSS_BODY_BYTES_PER_SECOND. Requests have no side effects: send it again.
    """

    CODE: ClassVar[str] = "request-timeout"
    TITLE: ClassVar[str] = "The request came too slowly"
    STATUS: ClassVar[int] = 408


class UriTooLongError(RequestRefusedError):
    """The address is too long.

    No address of this service is long; tensors and options go into the body.
    """

    CODE: ClassVar[str] = "uri-too-long"
    TITLE: ClassVar[str] = "The address is too long"
    STATUS: ClassVar[int] = 414


class HeadersTooLargeError(RequestRefusedError):
    """The header of the request is too large.

    Send fewer and shorter header fields; tensors and options go into the body.
    """

    CODE: ClassVar[str] = "headers-too-large"
    TITLE: ClassVar[str] = "The header of the request is too large"
    STATUS: ClassVar[int] = 431


class UnsupportedMediaTypeError(RequestRefusedError):
    """The body is in a format this service does not read.

    Send the header Content-Type: application/json, or application/x-safetensors for binary bodies.
    """

    CODE: ClassVar[str] = "unsupported-media-type"
    TITLE: ClassVar[str] = "The body is in a format this service does not read"
    STATUS: ClassVar[int] = 415


class UnsupportedEncodingError(RequestRefusedError):
    """The body is compressed.

    Send the body as it is, without Content-Encoding; below /v2, gzip and deflate are taken, too.
    """

    CODE: ClassVar[str] = "unsupported-encoding"
    TITLE: ClassVar[str] = "The body is compressed"
    STATUS: ClassVar[int] = 415


class NotAcceptableError(RequestRefusedError):
    """The service cannot answer in the format asked for.

    Accept application/json or application/x-safetensors, or leave Accept away.
    """

    CODE: ClassVar[str] = "not-acceptable"
    TITLE: ClassVar[str] = "The service cannot answer in the format asked for"
    STATUS: ClassVar[int] = 406


class NotFoundError(RequestRefusedError):
    """There is nothing at this address.

    GET /v1/operators lists the operators; /docs shows every address.
    """

    CODE: ClassVar[str] = "not-found"
    TITLE: ClassVar[str] = "There is nothing at this address"
    STATUS: ClassVar[int] = 404


class MethodNotAllowedError(RequestRefusedError):
    """This address does not take the method.

    Operators are called with POST, everything else with GET; the Allow header lists the methods.
    """

    CODE: ClassVar[str] = "method-not-allowed"
    TITLE: ClassVar[str] = "This address does not take the method"
    STATUS: ClassVar[int] = 405


class UnauthorizedError(RequestRefusedError):
    """The request needs an API key.

    Send the header Authorization: Bearer KEY, with a key that whoever runs the service gave you.
    """

    CODE: ClassVar[str] = "unauthorized"
    TITLE: ClassVar[str] = "The request needs an API key"
    STATUS: ClassVar[int] = 401


class RateLimitedError(UnavailableError):
    """There are too many requests with this API key.

    Send it again after the seconds of Retry-After; requests have no side effects. Requests are what is counted, so few
    large batches go further than many small ones.
    """

    CODE: ClassVar[str] = "rate-limited"
    TITLE: ClassVar[str] = "There are too many requests with this API key"
    STATUS: ClassVar[int] = 429


class DrainingError(UnavailableError):
    """The service is about to stop.

    Send it again on a new connection after the seconds of Retry-After; requests have no side effects.
    """

    CODE: ClassVar[str] = "draining"
    TITLE: ClassVar[str] = "The service is about to stop"
    STATUS: ClassVar[int] = 503


class OverloadedError(UnavailableError):
    """There is more work than the service can do in time.

    Send it again after the seconds of Retry-After; requests have no side effects. A request that may wait longer says
    so in X-Request-Timeout-Ms, but none is admitted behind more work than LOSS_QUEUE_SECONDS allows.
    """

    CODE: ClassVar[str] = "overloaded"
    TITLE: ClassVar[str] = "There is more work than the service can do in time"
    STATUS: ClassVar[int] = 503


class MemoryBudgetError(UnavailableError):
    """There is no memory for the request at the moment.

    Send it again after the seconds of Retry-After; requests have no side effects. Smaller batches find room sooner; GET
    /v1/limits tells how much all requests together may hold.
    """

    CODE: ClassVar[str] = "memory-budget"
    TITLE: ClassVar[str] = "There is no memory for the request at the moment"
    STATUS: ClassVar[int] = 503


class EngineRestartingError(UnavailableError):
    """The engine has failed and is started anew.

    Send it again on a new connection after the seconds of Retry-After; requests have no side effects.
    """

    CODE: ClassVar[str] = "engine-restarting"
    TITLE: ClassVar[str] = "The engine has failed and is started anew"
    STATUS: ClassVar[int] = 503


class DeadlineExceededError(ServiceFaultError, TimeoutError):
    """The request was not answered within its deadline.

    Give it more time with the header X-Request-Timeout-Ms, in milliseconds from 1, or cut the batch. Without the header
    the deadline is that of LOSS_DEADLINE_SECONDS.
    """

    CODE: ClassVar[str] = "deadline-exceeded"
    TITLE: ClassVar[str] = "The request was not answered within its deadline"
    STATUS: ClassVar[int] = 504


class InternalError(ServiceFaultError):
    """The service has a bug.

    Report it with the request id; trying again will not help.
    """

    CODE: ClassVar[str] = "internal"
    TITLE: ClassVar[str] = "The service has a bug"
    STATUS: ClassVar[int] = 500


PROBLEMS: dict[str, type[ServiceError]] = {
    error.CODE: error
    for error in (
        MalformedRequestError,
        MalformedJsonError,
        MalformedTensorError,
        TooDeepError,
        UnknownFieldError,
        DuplicateFieldError,
        MissingFieldError,
        ShapeMismatchError,
        RaggedArrayError,
        DtypeMismatchError,
        InvalidOptionError,
        TargetOutOfRangeError,
        NonFiniteError,
        UndefinedMeanError,
        ContentTooLargeError,
        RequestTimeoutError,
        UriTooLongError,
        HeadersTooLargeError,
        UnsupportedMediaTypeError,
        UnsupportedEncodingError,
        NotAcceptableError,
        NotFoundError,
        MethodNotAllowedError,
        UnauthorizedError,
        RateLimitedError,
        DrainingError,
        OverloadedError,
        MemoryBudgetError,
        EngineRestartingError,
        DeadlineExceededError,
        InternalError,
    )
}
"""Every exception by its code."""
