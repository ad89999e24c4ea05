"""Pages for people: the front page, the API documentation and the explanation of each problem, all from own assets."""

from __future__ import annotations

import html
import string
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service import __version__
from service.errors import ERRORS, NotFound
from service.http.problems import STATUS, problem, request_id_of

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


def read_asset(name: str) -> bytes:
    """Return a file that ships with the service."""
    return files("service.http").joinpath("assets", name).read_bytes()


def page(name: str, **words: str) -> Response:
    """Return an HTML page with its `$words` filled in, each escaped."""
    text = string.Template(read_asset(name).decode()).substitute(
        {key: html.escape(word) for key, word in words.items()}
    )
    return Response(text, media_type=MEDIA_TYPES["html"], headers=SECURITY_HEADERS)


ASSETS = (
    "swagger-ui-bundle.js",
    "swagger-ui.css",
    "docs.js",
    "pages.css",
    "favicon.svg",
    "LICENSE.txt",
    "NOTICE.txt",
    "swagger-ui-bundle.js.LICENSE.txt",
)
"""Files served as they are, below /docs."""


async def front(request: Request) -> Response:
    """The front page: what this is, and one example."""
    return page("front.html", version=__version__)


async def docs(request: Request) -> Response:
    """The API documentation."""
    return page("docs.html")


async def asset(request: Request) -> Response:
    """A file of the pages; names come from a fixed list."""
    name = request.path_params["name"]
    if name not in ASSETS:
        return _not_found(request)
    headers = {**SECURITY_HEADERS, "Cache-Control": "public, max-age=3600"}
    return Response(read_asset(name), media_type=MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)


async def problem_page(request: Request) -> Response:
    """What a problem type means and how to mend the request."""
    error = ERRORS.get(request.path_params["code"])
    if error is None:
        return _not_found(request)
    return page("problem.html", code=error.code, title=error.title, mend=error.mend, status=str(STATUS[error]))


def _not_found(request: Request) -> Response:
    reply = problem(NotFound("path"), request_id_of(request.scope))
    return Response(b"".join(reply.pieces), reply.status, media_type=reply.media_type)


def page_routes() -> list[Route]:
    """Return the routes of the pages."""
    return [
        Route("/", front),
        Route("/docs", docs),
        Route("/docs/{name}", asset),
        Route("/problems/{code}", problem_page),
    ]
