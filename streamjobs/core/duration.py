"""Durations as people write them: `"250ms"`, `"90s"`, `"1h30m"`, `"7d"`; inside, always float seconds.
And instants as people read them."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta

Duration = str | int | float | timedelta

_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_NUMBER = r"\d{1,12}(?:\.\d{1,9})?"
_BARE = re.compile(_NUMBER, re.ASCII)
# Each unit at most once, the larger before the smaller: "30m1h" is more often a typing error than a sum.
_TEXT = re.compile(r"\s*".join(rf"(?:({_NUMBER}){unit})?" for unit in _MS), re.ASCII)


def seconds(value: Duration) -> float:
    """A duration in seconds.

    Text is a number with a unit (`d`, `h`, `m`, `s`, `ms`) or several from large to small ("1h30m"); a bare
    number is seconds.
    Raises ValueError for anything else, and for what is negative or endless.
    """
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, timedelta):
        return _checked(value.total_seconds(), value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refusal(value)
    return _checked(value, value)


def text(seconds: float) -> str:
    """A duration as `seconds` reads it, exact to the millisecond: 5400 is "1h30m", 0.25 is "250ms"."""
    left = round(seconds * 1000)
    if left < 0:
        return "-" + text(-seconds)
    parts = []
    for unit, size in _MS.items():
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_S = (datetime.max.replace(tzinfo=UTC) - _EPOCH).total_seconds() - 1


def instant(at: float) -> str:
    """Epoch seconds as RFC 3339 in UTC, to the millisecond; what a damaged header puts beyond the calendar is its end."""
    return (_EPOCH + timedelta(seconds=min(at, _LAST_S))).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _of_text(value: str) -> float:
    stripped = value.strip()
    if _BARE.fullmatch(stripped):
        return float(stripped)
    match = _TEXT.fullmatch(stripped)
    if not stripped or not match:
        raise _refusal(value)
    counts = zip(match.groups(), _MS.values(), strict=True)
    return sum(float(count) * size for count, size in counts if count) / 1000


def _checked(number: float, value: Duration) -> float:
    try:
        found = float(number)
    except OverflowError:
        raise _refusal(value) from None
    if not math.isfinite(found) or found < 0:
        raise _refusal(value)
    return found


def _refusal(value: object) -> ValueError:
    return ValueError(
        f"{value!r} is not a duration: write a number with its unit, such as '250ms', '90s', '10m',"
        " '1h30m' or '7d', or give seconds as a number (not negative)"
    )
