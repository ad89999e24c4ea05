"""What a name that nobody knows was probably meant to be: flags and `LOSS_` variables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping

from service.settings import PREFIX, Settings

SIMILAR = 0.7
"""From which likeness on, from 0 to 1, a name is a misspelling of another."""

KEY_VARIABLE = "LOSS_API_KEY"
"""Environment variable with the API key for `compute --url`: on the command line everyone could read it."""


def similar(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like this one, if any is."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=SIMILAR)), None)


def with_flag(message: str, flags: Iterable[str]) -> str:
    """Return what argparse says of arguments that it does not know, with the flag that was probably meant."""
    found = re.search(r"^unrecognized arguments: .*?(--[^\s=]+)", message)
    meant = similar(found[1], flags) if found else None
    return f"{message}; did you mean {meant}?" if meant else message


def doubtful_variables(environment: Mapping[str, str], settings: Settings) -> Iterator[str]:
    """Yield a sentence for every variable that looks like a setting and is none; its value is never told."""
    known = [name.upper() for name in Settings.model_fields]
    for name in sorted(environment):
        own = name.upper().removeprefix(PREFIX)
        if not name.upper().startswith(PREFIX) or own in known:
            continue
        if name == KEY_VARIABLE:
            if settings.api_keys is None:
                yield (
                    f"{KEY_VARIABLE} is the key that `loss-service compute --url` sends; LOSS_API_KEYS, the file of "
                    "the keys that the service accepts, is not set, so that anybody may ask"
                )
            continue
        meant = similar(own, known)
        yield f"{name} is no setting" + (f"; did you mean {PREFIX}{meant}?" if meant else "")
