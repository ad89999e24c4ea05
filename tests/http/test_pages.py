"""Pages for people: own assets only, everything escaped, links that lead somewhere."""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from urllib.parse import urljoin

import httpx
import orjson
import pytest
from fastapi import FastAPI

from service import errors, explorer
from service.app import create_app
from service.errors import ERRORS
from service.http import samples
from service.http.pages import ASSETS, formula
from service.http.problems import STATUS
from service.ops import OPERATORS
from service.settings import Settings
from tests.http.calling import client_of

pytestmark = pytest.mark.anyio

HTML = "text/html; charset=utf-8"


class Links(HTMLParser):
    """The addresses that a page names, its text, and the elements that it must not have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self.text = ""
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [found[name] or "" for name in ("href", "src") if name in found]
        if tag == "style" or "style" in found or (tag == "script" and "src" not in found):
            self.inline.append(tag)
        self.inline += [name for name in found if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings(device="cpu", allowed_hosts="*"))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1:8000") as client:
        yield client


PAGES = ["/", "/docs", "/explore", "/problems", *(f"/problems/{code}" for code in ERRORS)]

FILES = [*(f"/docs/{name}" for name in ASSETS), *(f"/explore/{name}" for name in explorer.ASSETS)]

KINDS = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "txt": "text/plain"}


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_is_html_whose_links_all_lead_somewhere(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)

    found = Links(answer.text)

    assert (answer.status_code, answer.headers["content-type"]) == (200, HTML)
    assert found.inline == []
    for address in {urljoin(path, address).partition("#")[0] for address in found.addresses}:
        assert address.startswith("/"), address
        if address != "/health/ready":  # not ready: no lifespan here
            assert (await client.get(address)).status_code == 200, address


@pytest.mark.parametrize("path", PAGES[:5])
async def test_a_page_may_load_only_what_the_service_serves(client: httpx.AsyncClient, path: str) -> None:
    policy = (await client.get(path)).headers["content-security-policy"]

    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert not re.search(r"https?:|\*", policy)
    assert ("script-src 'self'" in policy) == (path in ("/docs", "/explore"))


@pytest.mark.parametrize("path", [*PAGES, *FILES])
async def test_head_works_where_get_does(client: httpx.AsyncClient, path: str) -> None:
    head, get = await client.head(path), await client.get(path)

    assert (head.status_code, head.headers["content-type"]) == (200, get.headers["content-type"])
    assert head.content == b""


@pytest.mark.parametrize("path", FILES)
async def test_a_file_of_a_page_says_what_it_is(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)

    assert answer.headers["content-type"].partition(";")[0] == KINDS[path.rpartition(".")[2]]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("path", FILES)
async def test_a_file_is_sent_again_only_when_it_has_changed(client: httpx.AsyncClient, path: str) -> None:
    tag = (await client.get(path)).headers["etag"]

    for known in (tag, f'"other", W/{tag}', "*"):
        answer = await client.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    changed = await client.get(path, headers={"If-None-Match": '"other"'})
    assert (changed.status_code, changed.headers["cache-control"]) == (200, "no-cache")


async def test_every_file_of_the_explorer_is_served_and_needed() -> None:
    folder = resources.files("service.explorer") / "assets"
    texts = {file.name: file.read_text() for file in folder.iterdir()}

    named = set(re.findall(r'"(?:explore|\.)/([\w.]+)"', "".join(texts.values())))

    assert named == set(explorer.ASSETS) == set(texts) - {explorer.PAGE}


async def test_nothing_of_the_explorer_speaks_of_another_host() -> None:
    for name in (*explorer.ASSETS, explorer.PAGE):
        addresses = re.findall(r"https?://[^\"'`\s]+", explorer.read_asset(name).decode())
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, name


async def test_the_explorer_says_what_soft_targets_minimise(client: httpx.AsyncClient) -> None:
    text = " ".join(Links((await client.get("/explore")).text).text.split())

    assert "For soft targets p, cross-entropy is the divergence ∑ p ln(p / q) plus the entropy of p" in text


@pytest.mark.parametrize("has_keys", [False, True])
async def test_the_explorer_knows_whether_a_key_is_needed(has_keys: bool, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-some-length")
    settings = Settings(device="cpu", allowed_hosts="*", api_keys=keys if has_keys else None)
    async with client_of(create_app(settings)) as client:
        text = (await client.get("/explore")).text

    assert (f'data-keys="{"needed" if has_keys else "none"}"') in text


@pytest.mark.parametrize(
    "path",
    [
        "/explore/nothing.js",
        "/explore/explore.html",
        "/explore/",
        "/redoc",
        "/problems/nothing",
        "/docs/nothing.js",
        "/docs/examples.json",
        "/docs/",
    ],
)
async def test_what_is_not_a_page_is_a_problem(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)

    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_the_command_of_the_front_page_is_answered_as_it_says(client: httpx.AsyncClient) -> None:
    text = Links((await client.get("/")).text).text
    command = text[text.index("curl ") : text.index("and the answer is")].replace("\\\n", "")
    _, url, _, header, _, body = shlex.split(command)
    shown = orjson.loads(text[text.index('{"loss"') : text.index("Operators", text.index('{"loss"'))])

    answer = await client.post(url, headers=[tuple(header.split(": "))], content=body)

    assert url == "http://127.0.0.1:8000/v1/cross-entropy/gradient"
    assert answer.json()["loss"] == pytest.approx(shown["loss"], rel=1e-6)
    assert answer.json()["grad_logits"][0] == pytest.approx(shown["grad_logits"][0], rel=1e-6)


async def test_the_front_page_shows_the_address_that_it_was_reached_at(app: FastAPI) -> None:
    transport = httpx.ASGITransport(app=app, root_path="/loss")
    async with httpx.AsyncClient(transport=transport, base_url="https://example.org") as client:
        answer = await client.get("/")

    assert "curl https://example.org/loss/v1/cross-entropy/gradient" in answer.text
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("host", ["<script>alert(1)</script>", "a'b", "$(id)", '"><b', "a b", ""])
async def test_a_strange_host_cannot_write_into_the_page(client: httpx.AsyncClient, host: str) -> None:
    answer = await client.get("/", headers={"Host": host})

    assert Links(answer.text).inline == []
    assert "<b" not in answer.text.replace("<body>", "")
    if answer.status_code == 200:
        command = Links(answer.text).text.replace("\\\n", "")
        words = shlex.split(command[command.index("curl ") : command.index("and the answer is")])
        assert len(words) == 6


@pytest.mark.parametrize("code", ERRORS)
async def test_a_problem_page_says_what_is_wrong_and_how_to_mend_it(client: httpx.AsyncClient, code: str) -> None:
    text = Links((await client.get(f"/problems/{code}")).text).text
    error = ERRORS[code]

    assert error.title in text
    assert error.mend in text
    assert str(STATUS[error]) in text
    assert not re.search(r"\{\w+\}", text)
    assert all(samples.example(error, sentence) in text for sentence in error.sentences)


@pytest.mark.parametrize("code", ERRORS)
async def test_every_sentence_has_a_sample_for_each_of_its_words(code: str) -> None:
    for sentence, text in ERRORS[code].sentences.items():
        words = {word for _, word, _, _ in string.Formatter().parse(text) if word is not None}
        own = samples.OWN.get(code, {}).get(sentence, {})

        assert words - set(own) <= set(samples.COMMON), sentence
        assert set(own) <= words, sentence
    assert set(samples.OWN.get(code, {})) <= set(ERRORS[code].sentences)
    assert set(samples.OWN) <= set(ERRORS)


async def test_a_sentence_with_a_word_without_a_sample_is_no_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors.TooDeep, "sentences", {"depth": "The JSON is {colour}."})

    with pytest.raises(KeyError, match="colour"):
        samples.example(errors.TooDeep, "depth")


async def test_programs_get_the_list_of_problems_in_json(client: httpx.AsyncClient) -> None:
    for accept in ("application/json", "application/json, text/plain, */*"):
        answer = await client.get("/problems", headers={"Accept": accept})

        assert answer.headers["vary"] == "Accept"
        listed = {problem.pop("code"): problem for problem in answer.json()["problems"]}
        assert listed == {
            error.code: {"status": status, "title": error.title, "mend": error.mend} for error, status in STATUS.items()
        }
    for accept in ("*/*", "text/html", "text/html, application/json;q=0.9", ""):
        answer = await client.get("/problems", headers={"Accept": accept})

        assert (answer.headers["content-type"], answer.headers["vary"]) == (HTML, "Accept")


async def test_the_front_page_shows_every_operator(client: httpx.AsyncClient) -> None:
    text = Links((await client.get("/")).text).text

    for operator in OPERATORS.values():
        assert operator.formula
        assert operator.gradient_formula
        assert operator.title in text
        assert f"POST /v1/{operator.name}" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q_j", "<i>q</i><sub><i>j</i></sub>"),
        ("-w", "&minus;<i>w</i>"),
        ("e^(z_k)", "<i>e</i><sup><i>z</i><sub><i>k</i></sub></sup>"),
        ("sum_k g", "&sum;<sub><i>k</i></sub>&thinsp;<i>g</i>"),
        ("a < b", "<i>a</i> &lt; <i>b</i>"),
    ],
)
async def test_a_formula_is_set_in_html(text: str, expected: str) -> None:
    assert formula(text) == expected
