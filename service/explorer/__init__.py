"""The explorer: the page and the files of its own that show what cross-entropy does. It knows no HTTP."""

from __future__ import annotations

from importlib.resources import files

PAGE = "explore.html"
"""The page itself, with `$words` to be filled in."""

ASSETS = (
    "explore.js",
    "explore.css",
    "state.js",
    "presets.js",
    "formulas.js",
    "float32.js",
    "requests.js",
    "snippets.js",
    "elements.js",
    "editor.js",
    "stage.js",
    "options.js",
    "result.js",
    "margin.js",
    "plot.js",
    "problems.js",
)
"""What the page loads: modules that a browser runs as they are, and a style sheet."""


def read_asset(name: str) -> bytes:
    """Return a file of the explorer."""
    return files(__name__).joinpath("assets", name).read_bytes()
