"""What a call gives: the outputs by name, in the caller's kind of array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, cast

from loss_client.arrays import ArrayT


class Answer(Mapping[str, ArrayT], Generic[ArrayT]):
    """The outputs that were asked for: `answer["loss"]`, or `answer.loss`.

    Attributes:
        request_ids: the ids under which the service has logged the requests of the call; one, unless it was cut.
    """

    def __init__(self, outputs: Mapping[str, ArrayT], request_ids: tuple[str, ...] = ()) -> None:
        self._outputs: dict[str, Any] = dict(outputs)
        self.request_ids = request_ids

    def __getitem__(self, name: str) -> ArrayT:
        return cast(ArrayT, self._outputs[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._outputs.items())})"

    def _output(self, name: str) -> ArrayT:
        if name not in self._outputs:
            raise AttributeError(f"the call did not ask for '{name}'; name it in `outputs`")
        return cast(ArrayT, self._outputs[name])
