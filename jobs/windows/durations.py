"""Durations as people write them: `90s`, `15m`, `6h`, `7d`."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["DAY_MS", "HOUR_MS", "duration_ms", "duration_text"]

DAY_MS: Final = 86_400_000
"""Milliseconds in a day of UTC, which has no leap seconds in epoch time."""
HOUR_MS: Final = 3_600_000
"""Milliseconds in an hour."""

_UNITS: Final = {"s": 1_000, "m": 60_000, "h": HOUR_MS, "d": DAY_MS}
_PATTERN: Final = re.compile(r"([1-9][0-9]*)([smhd])")


def duration_ms(text: str) -> int:
    """Return the milliseconds of a duration such as `7d`.

    >>> duration_ms("15m")
    900000

    Raises:
        ValueError: when the text is not a whole positive number followed by s, m, h or d.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        msg = f"expected a duration like '90s', '15m', '6h' or '7d', was {text!r}"
        raise ValueError(msg)
    return int(match[1]) * _UNITS[match[2]]


def duration_text(milliseconds: int) -> str:
    """Return the shortest way to write a whole number of seconds, as in `7d`.

    >>> duration_text(604_800_000)
    '7d'
    """
    for unit in ("d", "h", "m", "s"):
        if milliseconds % _UNITS[unit] == 0:
            return f"{milliseconds // _UNITS[unit]}{unit}"
    return f"{milliseconds}ms"
