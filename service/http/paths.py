"""What may have been meant by a path where there is nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from service import describe
from service.errors import NAME_LIMIT, NotFound, clip
from service.ops.spec import Operator


def is_right_without_slash(scope: Scope, routes: Iterable[BaseRoute]) -> bool:
    """Return whether a path ends with a slash, and there is something at it without."""
    path: str = scope["path"]
    shorter = {**scope, "path": path.rstrip("/")}
    return path.endswith("/") and any(route.matches(shorter)[0] != Match.NONE for route in routes)


def not_found(path: str, operators: Mapping[str, Operator], *, is_right_without_slash: bool = False) -> NotFound:
    """Return the error for an unknown path, with the path or the operator that may have been meant."""
    if is_right_without_slash:
        return NotFound("similar", similar=clip(path.rstrip("/")))
    if path.startswith("/v2/models/"):
        return unknown_model(path.split("/")[3], operators)
    names = [name for name in path.split("/") if name]
    if names[:1] == ["v1"] and names[1:] and names[1] not in ("operators", *operators):
        return _unknown_operator(names[1], list(operators))
    if names[:2] == ["v1", "operators"]:
        return NotFound("listing")
    similar = None if names[:1] == ["v2"] else _endpoint_among(names, operators)
    return NotFound("path") if similar is None else NotFound("similar", similar=similar)


def _endpoint_among(names: Sequence[str], operators: Mapping[str, Operator]) -> str | None:
    """Return the path of the endpoint whose operator is among the parts of a path."""
    for name, further in zip(names, [*names[1:], ""], strict=True):
        if (operator := name.replace("_", "-")) in operators:
            wants_gradient = further.startswith("grad") or further == "backward"
            return f"/v1/{operator}" + ("/gradient" if wants_gradient else "")
    return None


def unknown_model(name: str, operators: Mapping[str, Operator]) -> NotFound:
    """Return the error for a path of a model that may or may not exist, with the one that may have been meant."""
    models = [describe.model_name(*model) for model in describe.models(operators)]
    if name in models:
        return NotFound("path")
    return _unknown_operator(name, models)


def _unknown_operator(name: str, known: Sequence[str]) -> NotFound:
    """Return the error for a name that is none of those known, with the one that may have been meant.

    What names of losses have in common does not make them alike.
    """
    stems = {_stem(each): each for each in known}
    if similar := get_close_matches(_stem(name[:NAME_LIMIT]), stems, n=1, cutoff=0.8):
        return NotFound("operator", name=clip(name), similar=stems[similar[0]])
    return NotFound("no-operator", name=clip(name), expected=", ".join(known))


def _stem(name: str) -> str:
    return name.lower().replace("_", "-").removesuffix("loss").rstrip("-")
