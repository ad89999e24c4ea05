"""Pages for people: the front page, the API documentation and the explanation of each problem, all from own assets."""

from __future__ import annotations

import html
import json
import re
import shlex
import string
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache, partial
from hashlib import sha256
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service import __version__
from service.errors import ERRORS, NotFound, RequestError
from service.http import samples
from service.http.docs import example_problem, operation_id, path_of, recorded
from service.http.formats import MEDIA_TYPES as FORMATS
from service.http.problems import STATUS, problem, request_id_of, statuses_of
from service.ops import OPERATORS
from service.ops.spec import Operator

POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'self'; img-src 'self' data:; connect-src {connections}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a page may load: its own files. Only the documentation and the explorer run scripts, and call the service."""


def _headers(*, scripted: bool) -> dict[str, str]:
    own = "'self'" if scripted else "'none'"
    return {
        "Content-Security-Policy": POLICY.format(scripts=own, connections=own),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


SECURITY_HEADERS = _headers(scripted=False)
SCRIPTED_HEADERS = _headers(scripted=True)

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


@cache
def read_asset(name: str) -> bytes:
    """Return a file that ships with the service, the same memory to everyone who asks."""
    return files("service.http").joinpath("assets", name).read_bytes()


def fill(template: str, **words: str) -> Markup:
    """Return a piece of HTML with its `$words` filled in, each escaped unless it is Markup."""
    escaped = {key: word if isinstance(word, Markup) else html.escape(word) for key, word in words.items()}
    return Markup(string.Template(template).substitute(escaped))


def joined(pieces: Iterable[Markup]) -> Markup:
    """Return pieces of HTML one after the other."""
    return Markup("\n".join(pieces))


def asset_reply(request: Request, name: str, content: bytes) -> Response:
    """Return a file of a page, or 304 when the browser has it. It asks each time, so that no two releases mix."""
    tag = _tag(content)
    headers = {**SECURITY_HEADERS, "Cache-Control": "no-cache", "ETag": tag}
    known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)


@lru_cache(maxsize=64)
def _tag(content: bytes) -> str:
    return f'"{sha256(content).hexdigest()[:32]}"'


def page(name: str, *, headers: Mapping[str, str] = SECURITY_HEADERS, **words: str) -> Response:
    """Return an HTML page with its `$words` filled in, each escaped unless it is Markup."""
    return page_reply(fill(read_asset(name).decode(), **words), headers=headers)


def page_reply(text: Markup, *, headers: Mapping[str, str]) -> Response:
    """Return the answer that is a page."""
    # The front page shows the address that it was reached at, so a shared cache must not keep it.
    return Response(text, media_type=MEDIA_TYPES["html"], headers={**headers, "Cache-Control": "no-cache"})


_FORMULA = re.compile(r"sum_(\w)|\^\(([^()]*)\)|_(\w)|( - |^-)|([a-zA-Z]+)|(.)")


def formula(text: str) -> Markup:
    """Return a formula such as `ln q_j = z_j - ln sum_k e^(z_k)` as HTML."""

    def piece(found: re.Match[str]) -> str:
        over, exponent, index, minus, word, other = found.groups()
        if over:
            return f"&sum;<sub><i>{over}</i></sub>&thinsp;"
        if exponent:
            return f"<sup>{formula(exponent)}</sup>"
        if index:
            return f"<sub><i>{index}</i></sub>"
        if minus:
            return minus.replace("-", "&minus;")
        if word:
            return word + "&thinsp;" if word == "ln" else f"<i>{word}</i>"
        return html.escape(other)

    return Markup(_FORMULA.sub(piece, text).replace("&thinsp; ", "&thinsp;"))


def shown_json(value: Mapping[str, Any]) -> str:
    """Return a JSON object for people: matrices with one row a line."""
    members = []
    for key, member in value.items():
        name = json.dumps(key) + ": "
        if isinstance(member, list) and member and isinstance(member[0], list):
            text = "[" + (",\n" + " " * (len(name) + 2)).join(json.dumps(row) for row in member) + "]"
        else:
            text = json.dumps(member)
        members.append(name + text)
    return "{" + ",\n ".join(members) + "}"


def curl(url: str, body: str, *, has_keys: bool) -> str:
    """Return the command that posts a body, to be pasted into a shell; KEY stands for an API key."""
    data = shlex.quote(body).replace("\n", "\n      ")
    key = "-H 'Authorization: Bearer KEY' \\\n  " if has_keys else ""
    return f"curl {shlex.quote(url)} \\\n  {key}-H 'Content-Type: application/json' \\\n  -d {data}"


ASSETS = (
    "swagger-ui-bundle.js",
    "swagger-ui.css",
    "docs.js",
    "docs.css",
    "pages.css",
    "house.css",
    "favicon.svg",
    "LICENSE.txt",
    "NOTICE.txt",
    "swagger-ui-bundle.js.LICENSE.txt",
)
"""Files served as they are, below /docs."""


async def front(request: Request, *, has_keys: bool) -> Response:
    """The front page: what this is, and one example."""
    operator = OPERATORS["cross-entropy"]
    path = path_of(operator, gradient=True)
    return page(
        "front.html",
        version=__version__,
        command=curl(
            str(request.base_url).rstrip("/") + path, shown_json(operator.gradient_example), has_keys=has_keys
        ),
        answer=shown_json(recorded()["answers"][path]["example"]),
        operators=joined(_operator_card(operator) for operator in OPERATORS.values()),
    )


def _operator_card(operator: Operator) -> Markup:
    return fill(
        '<li><h3><a href="docs#/$tag/$id">$title</a></h3>'
        '<p class="formula">$formula</p><p class="formula slope">$gradient</p>'
        '<p class="path"><code>POST /v1/$name</code></p></li>',
        tag=quote(operator.title),
        id=operation_id(operator, gradient=False),
        title=operator.title,
        name=operator.name,
        formula=formula(operator.formula),
        gradient=Markup('<span class="label">gradient</span> ' + formula(operator.gradient_formula)),
    )


async def docs(request: Request) -> Response:
    """The API documentation."""
    return page("docs.html", headers=SCRIPTED_HEADERS)


async def asset(request: Request) -> Response:
    """A file of the pages; names come from a fixed list."""
    name = request.path_params["name"]
    if name not in ASSETS:
        return not_found(request)
    return asset_reply(request, name, read_asset(name))


async def problem_page(request: Request) -> Response:
    """What a problem type means and how to mend the request."""
    error = ERRORS.get(request.path_params["code"])
    if error is None:
        return not_found(request)
    provoked = recorded()["problems"].get(error.code, {})
    return page(
        "problem.html",
        code=error.code,
        title=error.title,
        mend=error.mend,
        status=" or ".join(map(str, statuses_of(error))),
        sentences=joined(_sentence(error, sentence) for sentence in error.sentences),
        request=_provoking(provoked),
        answer=shown_json(example_problem(error)),
        others=_neighbours(error),
    )


VARY = {"Vary": "Accept"}
"""Sent with what is different for callers who accept something else."""


async def problem_index(request: Request) -> Response:
    """Every problem type by status; in JSON for programs, which ask for that and not for HTML."""
    by_status = sorted(STATUS.items(), key=lambda item: item[1])
    accepted = request.headers.get("accept", "").lower()
    if FORMATS["json"] in accepted and "text/html" not in accepted:
        problems = [
            {"code": error.code, "status": status, "title": error.title, "mend": error.mend}
            for error, status in by_status
        ]
        return JSONResponse({"problems": problems}, headers=VARY)
    lines = joined(
        fill(
            '<tr><td class="status">$status</td><td><a href="problems/$code"><code>$code</code></a></td>'
            "<td>$title</td></tr>",
            status=str(status),
            code=error.code,
            title=error.title,
        )
        for error, status in by_status
    )
    return page("problems.html", headers={**SECURITY_HEADERS, **VARY}, lines=lines)


def _sentence(error: type[RequestError], sentence: str) -> Markup:
    pieces = (
        html.escape(text) + ("" if word is None else f"<var>{html.escape(word)}</var>")
        for text, word in samples.parts(error, sentence)
    )
    return Markup(f"<li>{''.join(pieces)}</li>")


def _provoking(provoked: Mapping[str, Any]) -> Markup:
    """Return the request that brings a problem about, where one that can be shown does."""
    if "request" not in provoked:
        return Markup("")
    headers = "".join(f"{name}: {value}\n" for name, value in provoked["headers"].items())
    text = f"POST /v1/cross-entropy\n{headers}\n{provoked['request']}"
    return fill('<h2>For example</h2><pre tabindex="0"><code>$text</code></pre><p>is answered with</p>', text=text)


def _neighbours(error: type[RequestError]) -> Markup:
    """Return links to the problems with the same status, where there are any."""
    others = [other for other, status in STATUS.items() if status == STATUS[error] and other is not error]
    links = joined(
        fill('<li><a href="$code"><code>$code</code></a> $title</li>', code=other.code, title=other.title)
        for other in others
    )
    heading = f"<h2>Also {STATUS[error]}</h2>"
    return Markup(f'<section>\n{heading}\n<ul class="links">\n{links}\n</ul>\n</section>' if others else "")


def not_found(request: Request) -> Response:
    """Return the problem that says that there is no such page."""
    reply = problem(NotFound("path"), request_id_of(request.scope))
    return Response(b"".join(reply.pieces), reply.status, media_type=reply.media_type)


def page_routes(*, has_keys: bool) -> list[Route]:
    """Return the routes of the pages; `has_keys` tells whether the service has API keys."""
    return [
        Route("/", partial(front, has_keys=has_keys)),
        Route("/docs", docs),
        Route("/docs/{name}", asset),
        Route("/problems", problem_index),
        Route("/problems/{code}", problem_page),
    ]
