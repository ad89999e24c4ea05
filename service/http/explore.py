"""Serves the explorer below /explore."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service import explorer
from service.http.pages import SCRIPTED_HEADERS, asset_reply, fill, not_found, page_reply


async def page(request: Request, *, has_keys: bool) -> Response:
    """The explorer; it asks for an API key first where the service has keys."""
    text = fill(explorer.read_asset(explorer.PAGE).decode(), keys="needed" if has_keys else "none")
    return page_reply(text, headers=SCRIPTED_HEADERS)


async def asset(request: Request) -> Response:
    """A file of the explorer; names come from a fixed list."""
    name = request.path_params["name"]
    if name not in explorer.ASSETS:
        return not_found(request)
    return asset_reply(request, name, explorer.read_asset(name))


def explorer_routes(*, has_keys: bool) -> list[Route]:
    """Return the routes of the explorer; `has_keys` tells whether the service has API keys."""
    return [Route("/explore", partial(page, has_keys=has_keys)), Route("/explore/{name}", asset)]
