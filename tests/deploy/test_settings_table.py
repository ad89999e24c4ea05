"""The table of settings in deploy/README.md is the one that settings.py makes."""

from __future__ import annotations

from deploy.settings_table import PAGE, current_page, table
from service.settings import Settings


def test_the_table_is_current() -> None:
    assert PAGE.read_text() == current_page(), "stale: run `make settings-table`"


def test_the_table_has_every_setting_once_with_its_default_and_bounds() -> None:
    rows = [line.split(" | ") for line in table().splitlines()[2:]]

    assert [row[0] for row in rows] == [f"| `LOSS_{name.upper()}`" for name in Settings.model_fields]
    by_name = {row[0][3:-1]: row[1:3] for row in rows}
    assert by_name["LOSS_PORT"] == ["`8000`", "integer from 0 to 65535"]
    assert by_name["LOSS_MAX_BODY_BYTES"] == ["`1073741824`", "integer, at least 1024"]
    assert by_name["LOSS_RATE_PER_KEY"][1] == "number above 0, at most 1000000"
    assert by_name["LOSS_LOG_FORMAT"] == ["", "`text`, `json`"]
