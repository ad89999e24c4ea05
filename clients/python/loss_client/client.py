"""The clients: `LossClient` blocks, `AsyncLossClient` is awaited; both have every operator as a method."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from importlib.metadata import version
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar, cast

import httpx

from loss_client.answers import Answer
from loss_client.calls import Caller, Flow, report_of
from loss_client.exchange import Inbox, Pause, Received, Send
from loss_client.operators import AsyncOperators, BlockingOperators
from loss_client.options import CLIENT_DEFAULT, Call, Default, Outputs, ProgressOption, TimeoutOption
from loss_client.progress import ProgressBar
from loss_client.retries import RetryBudget, RetryPolicy

DEFAULT_TIMEOUT = 60.0
"""Seconds that a request may take, unless the caller says otherwise: as long as the service gives it by itself."""

KEEPALIVE_SECONDS = 4.0
"""How long an unused connection is kept: less than the 5 s of the service, so that it is us who close it."""

POLL_SECONDS = 0.1
"""How long to wait before asking again whether the service is ready."""

PROBE_SECONDS = 5.0
"""How long a service that is ready takes at most to say so."""

T = TypeVar("T")
HttpClientT = TypeVar("HttpClientT", httpx.Client, httpx.AsyncClient)


class _Client:
    """What both clients have in common."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        timeout: float | None,
        retries: RetryPolicy | None,
        retry_budget: RetryBudget | None,
        progress: ProgressOption,
    ) -> None:
        self.url = _checked(url).rstrip("/")
        self._headers = {
            "Accept": "application/x-safetensors, application/json;q=0.5",
            "Accept-Encoding": "identity",
            "User-Agent": f"loss-client/{version('loss-client')}",
        }
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout
        self._progress = progress
        shown = str(httpx.URL(self.url).copy_with(userinfo=b""))
        self._caller = Caller(shown, retries or RetryPolicy(), retry_budget or RetryBudget())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the client itself: a copy of a model that holds it shares its connections."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse: what is pickled with a model may travel, and must not take an API key with it."""
        raise TypeError(f"a {type(self).__name__} cannot be pickled; save a model's state_dict instead")

    def _seconds(self, timeout: TimeoutOption) -> float | None:
        return self._timeout if isinstance(timeout, Default) else timeout

    def _flow(self, call: Call) -> Flow[Outputs]:
        progress = self._progress if call.progress is None else call.progress
        return self._caller.call(call, timeout=self._seconds(call.timeout), report=report_of(progress, ProgressBar))

    def _get(self, path: str, timeout: TimeoutOption = CLIENT_DEFAULT) -> Flow[Received]:
        return self._caller.get(path, self._seconds(timeout))

    def _request_of(self, send: Send, http: HttpClientT, content: Any) -> httpx.Request:
        headers = {**self._headers, **send.headers}
        url = self.url + send.path
        return http.build_request(send.method, url, headers=headers, content=content, timeout=send.deadline.timeout())


def _checked(url: str) -> str:
    """Return an address if it is one; raises ValueError."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"the address of a service must be like http://127.0.0.1:8000, but is {url!r}")
    if parsed.path.rstrip("/").endswith(("/v1", "/v2")):
        raise ValueError(f"the address of a service ends before /v1: leave {parsed.path.rstrip('/')[-3:]} away")
    return url


def _pool() -> httpx.Limits:
    return httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=KEEPALIVE_SECONDS)


class LossClient(_Client, BlockingOperators):
    """A blocking client of a Loss Service; may be shared between threads.

    Use it in a `with` statement, or call `close` when it is no longer needed. Its methods know nothing of autograd:
    tensors come back detached. `RemoteCrossEntropyLoss` is for training.

    Args:
        url: where the service is, such as `http://127.0.0.1:8000`.
        api_key: sent as `Authorization: Bearer KEY`.
        timeout: seconds within which each request must be answered, its retries included; the service is told, and
            does not start what it cannot finish. A call is one request unless its batch has to be cut. None: no bound
            of the client's, the service has its own.
        retries: when a request that failed in passing is sent again.
        retry_budget: bounds the retries of all calls together; clients may share one.
        progress: a function that is told how far each call has come, or True for a bar on the terminal.
        http: an `httpx.Client` to use instead of an own one (proxies, certificates, Unix sockets); who made it
            closes it.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        retries: RetryPolicy | None = None,
        retry_budget: RetryBudget | None = None,
        progress: ProgressOption = False,
        http: httpx.Client | None = None,
    ) -> None:
        super().__init__(
            url, api_key=api_key, timeout=timeout, retries=retries, retry_budget=retry_budget, progress=progress
        )
        self._is_own = http is None
        self._http = httpx.Client(limits=_pool()) if http is None else http

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._is_own:
            self._http.close()

    def compute(
        self,
        operator: str,
        tensors: Mapping[str, object],
        options: Mapping[str, object] | None = None,
        *,
        gradient: bool = False,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> Answer[Any]:
        """Compute an operator by its name, such as `cross-entropy`; what its own method does, for programs.

        Raises ValueError for an operator or a tensor that it does not know.
        """
        return Answer(*self._call(Call(operator, tensors, options or {}, gradient, timeout, progress)))

    def operators(self) -> list[dict[str, Any]]:
        """Return the operator table of the service: tensors, options and outputs."""
        return cast("list[dict[str, Any]]", self._drive(self._get("/v1/operators")).json()["operators"])

    def limits(self) -> dict[str, int]:
        """Return the limits in force, by name: `max_body_bytes` and others."""
        return cast("dict[str, int]", self._drive(self._get("/v1/limits")).json())

    def is_ready(self) -> bool:
        """Return whether the service takes requests; never raises because it does not."""
        try:
            response = self._http.get(self.url + "/health/ready", timeout=PROBE_SECONDS)
        except httpx.TransportError:
            return False
        return response.status_code == 200

    def wait_until_ready(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Wait until the service takes requests; raises TimeoutError after so many seconds."""
        end = time.monotonic() + timeout
        while not self.is_ready():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.url} was not ready within {timeout:g} s")
            time.sleep(POLL_SECONDS)

    def _call(self, call: Call) -> Outputs:
        return self._drive(self._flow(call))

    def _drive(self, flow: Flow[T]) -> T:
        resume: Callable[[], Send | Pause] = partial(next, flow)
        while True:
            try:
                step = resume()
            except StopIteration as stop:
                return cast(T, stop.value)
            try:
                resume = partial(flow.send, self._do(step))
            except httpx.TransportError as error:
                resume = partial(flow.throw, error)

    def _do(self, step: Send | Pause) -> Received | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        content = None if step.body is None else step.slices()
        response = self._http.send(self._request_of(step, self._http, content), stream=True)
        try:
            inbox = Inbox(response, step)
            for chunk in response.iter_bytes():
                inbox.add(chunk)
        finally:
            response.close()
        return inbox.received()


class AsyncLossClient(_Client, AsyncOperators):
    """An asynchronous client of a Loss Service (asyncio); calls of one client may run at the same time.

    Use it in an `async with` statement, or await `aclose` when it is no longer needed. The arguments are those of
    `LossClient`, but for `http`, an `httpx.AsyncClient`.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        retries: RetryPolicy | None = None,
        retry_budget: RetryBudget | None = None,
        progress: ProgressOption = False,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        super().__init__(
            url, api_key=api_key, timeout=timeout, retries=retries, retry_budget=retry_budget, progress=progress
        )
        self._is_own = http is None
        self._http = httpx.AsyncClient(limits=_pool()) if http is None else http

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._is_own:
            await self._http.aclose()

    async def compute(
        self,
        operator: str,
        tensors: Mapping[str, object],
        options: Mapping[str, object] | None = None,
        *,
        gradient: bool = False,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> Answer[Any]:
        """Compute an operator by its name, such as `cross-entropy`; what its own method does, for programs.

        Raises ValueError for an operator or a tensor that it does not know.
        """
        return Answer(*await self._call(Call(operator, tensors, options or {}, gradient, timeout, progress)))

    async def operators(self) -> list[dict[str, Any]]:
        """Return the operator table of the service: tensors, options and outputs."""
        return cast("list[dict[str, Any]]", (await self._drive(self._get("/v1/operators"))).json()["operators"])

    async def limits(self) -> dict[str, int]:
        """Return the limits in force, by name: `max_body_bytes` and others."""
        return cast("dict[str, int]", (await self._drive(self._get("/v1/limits"))).json())

    async def is_ready(self) -> bool:
        """Return whether the service takes requests; never raises because it does not."""
        try:
            response = await self._http.get(self.url + "/health/ready", timeout=PROBE_SECONDS)
        except httpx.TransportError:
            return False
        return response.status_code == 200

    async def wait_until_ready(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Wait until the service takes requests; raises TimeoutError after so many seconds."""
        end = time.monotonic() + timeout
        while not await self.is_ready():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.url} was not ready within {timeout:g} s")
            await asyncio.sleep(POLL_SECONDS)

    async def _call(self, call: Call) -> Outputs:
        return await self._drive(self._flow(call))

    async def _drive(self, flow: Flow[T]) -> T:
        resume: Callable[[], Send | Pause] = partial(next, flow)
        while True:
            try:
                step = resume()
            except StopIteration as stop:
                return cast(T, stop.value)
            try:
                resume = partial(flow.send, await self._do(step))
            except httpx.TransportError as error:
                resume = partial(flow.throw, error)

    async def _do(self, step: Send | Pause) -> Received | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        content = None if step.body is None else _each(step)
        response = await self._http.send(self._request_of(step, self._http, content), stream=True)
        try:
            inbox = Inbox(response, step)
            async for chunk in response.aiter_bytes():
                inbox.add(chunk)
        finally:
            await response.aclose()
        return inbox.received()


async def _each(send: Send) -> AsyncIterator[bytes]:
    for piece in send.slices():
        yield piece
