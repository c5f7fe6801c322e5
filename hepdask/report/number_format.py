"""Numbers as a person reads them."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

MISSING = "–"
THIN = "\N{NARROW NO-BREAK SPACE}"


def count(value: float | None) -> str:
    """Group the digits of an integer in threes: 12345 becomes 12 345."""
    return MISSING if value is None else f"{int(value):,}".replace(",", THIN)


def percent(value: float | None) -> str:
    """Write a fraction as a percentage with three significant digits at most."""
    if value is None or not math.isfinite(value):
        return MISSING
    hundred = 100 * value
    digits = 1 if hundred >= 10 or hundred == 0 else 2 if hundred >= 1 else 3
    text = f"{hundred:.{digits}f}" if hundred >= 0.1 or hundred == 0 else f"{hundred:.2g}"
    return f"{text}{THIN}%"


def share(value: float | None) -> str:
    """Write a fraction as a percentage with one decimal, for numbers that stand together."""
    if value is None:
        return MISSING
    return f"<0.1{THIN}%" if 0 < value < 0.0005 else f"{100 * value:.1f}{THIN}%"


def decimal(value: float | None, digits: int = 4) -> str:
    """Write a number with a fixed number of decimals."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def with_error(value: float | None, error: float | None) -> str:
    """Write an AUC and its standard error with the same number of decimals."""
    if value is None:
        return MISSING
    if error is None:
        return decimal(value)
    digits = 4 if error == 0 else min(6, max(3, 1 - math.floor(math.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def factor(value: float | None) -> str:
    """Write a reduction factor with two or three digits: 8.3 ×, 120 ×."""
    if value is None:
        return MISSING
    return f"{value:.1f}{THIN}×" if value < 100 else f"{count(round(value))}{THIN}×"


def seconds(value: float | None) -> str:
    """Write a duration in the unit that suits it."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 60:
        return f"{value:.1f}{THIN}s" if value >= 0.1 or value == 0 else f"{1000 * value:.0f}{THIN}ms"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{THIN}h {minutes:02d}{THIN}min" if hours else f"{minutes}{THIN}min {rest:02d}{THIN}s"


def fact(value: Any) -> str:
    """Write whatever a fact may be: counts grouped, other numbers with four significant digits."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, Real):
        return ", ".join(map(fact, value)) if isinstance(value, list | tuple) else str(value)
    if isinstance(value, Integral):
        return count(int(value))
    number = float(value)
    return count(round(number)) if 1e3 <= abs(number) < 1e15 else f"{number:.4g}"


def heading(key: str) -> str:
    """Turn a key into words: ``events_per_second`` becomes ``events per second``."""
    return key.replace("_", " ")
