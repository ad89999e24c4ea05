"""Whether two JSON values say the same, numbers to about float32's precision."""

from __future__ import annotations

import math
from typing import Any


def assert_close(value: Any, expected: Any, where: str = "") -> None:
    """Raise AssertionError, naming the place, unless the values agree; members called base64 are not compared."""
    if isinstance(expected, dict):
        assert list(value) == list(expected), where
        for name in expected:
            if name != "base64":
                assert_close(value[name], expected[name], f"{where}/{name}")
    elif isinstance(expected, list):
        assert len(value) == len(expected), where
        for place, (one, other) in enumerate(zip(value, expected, strict=True)):
            assert_close(one, other, f"{where}/{place}")
    elif isinstance(expected, float):
        assert math.isclose(value, expected, rel_tol=2e-6, abs_tol=1e-7), f"{where}: {value} is not {expected}"
    else:
        assert value == expected, where
