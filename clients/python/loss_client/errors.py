"""What can go wrong with a call: one tree.

    LossClientError
    |-- NoAnswerError            the service could not be reached, or broke off
    |-- CallTimeoutError         the time of the call was over (also a TimeoutError)
    |-- BadAnswerError           an answer that is not the service's
    `-- ServiceError             the service says what is wrong: all fields of its problem
        |-- RequestRefusedError  4xx: the request is at fault
        |-- UnavailableError     429, 502 and 503: not now; retried until the policy says no
        `-- ServiceFaultError    500 and other 5xx: the service is at fault

Below the last three there is one class for each code of the service, in `loss_client.problems`.
"""

from __future__ import annotations

from dataclasses import dataclass


class LossClientError(Exception):
    """Base of everything that this package raises because of the service."""


class NoAnswerError(LossClientError):
    """The service could not be reached, or the connection broke before the answer was complete."""


class CallTimeoutError(LossClientError, TimeoutError):
    """The time that the call had was over before the answer was complete."""


class BadAnswerError(LossClientError):
    """The answer is not one that the service gives; something else may be listening at this address."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What the service said is wrong (RFC 9457), and where."""

    status: int
    code: str = ""
    """Stable name of the way to be wrong, such as `shape-mismatch`; empty when the answer names none."""
    title: str = ""
    detail: str = ""
    pointer: str | None = None
    """Which tensor, element or option, as a JSON pointer: `/target/17`. Counted in the tensors that were passed to
    the call, even where they were sent in parts."""
    expected: object = None
    got: object = None
    limit: int | None = None
    request_id: str | None = None
    retry_after: float | None = None
    """Seconds after which the same request may succeed."""
    part: str | None = None
    """Which part of the batch `detail` speaks of, when the batch was cut: `rows [4096:8192]`."""


class ServiceError(LossClientError):
    """The service refused the request, or could not answer it; it has the fields of the service's problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        problem = self.problem
        known = [f"of {problem.part}" if problem.part else "", problem.code or f"status {problem.status}"]
        known.append(f"request {problem.request_id}" if problem.request_id else "")
        return f"{problem.detail} ({', '.join(filter(None, known))})"

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status

    @property
    def code(self) -> str:
        """Stable name of the way to be wrong, such as `shape-mismatch`."""
        return self.problem.code

    @property
    def title(self) -> str:
        """The way to be wrong in a few words."""
        return self.problem.title

    @property
    def detail(self) -> str:
        """The sentence that names the thing, what was wanted, and what came."""
        return self.problem.detail

    @property
    def pointer(self) -> str | None:
        """Which tensor, element or option, as a JSON pointer: `/target/17`."""
        return self.problem.pointer

    @property
    def expected(self) -> object:
        """What was wanted."""
        return self.problem.expected

    @property
    def got(self) -> object:
        """What came."""
        return self.problem.got

    @property
    def limit(self) -> int | None:
        """The limit that was passed, where there is one."""
        return self.problem.limit

    @property
    def request_id(self) -> str | None:
        """The id under which the service has logged the request."""
        return self.problem.request_id

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the same request may succeed."""
        return self.problem.retry_after


class RequestRefusedError(ServiceError):
    """The request cannot be answered as it is (4xx); sending it again does not help."""


class UnavailableError(ServiceError):
    """The service cannot answer now (429, 502, 503), and still could not after the retries that the policy allows."""


class ServiceFaultError(ServiceError):
    """The service failed (500 and other 5xx)."""
