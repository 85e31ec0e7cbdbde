"""Checks of arguments: the error names the argument, what is allowed and what it is."""

from collections.abc import Iterable, Sequence
from typing import Any


def at_least(least: float, **values: float | None) -> None:
    """Refuse values below `least`, and NaN; None passes.

    Raises:
        ValueError: If one is; it names the first.

    Example:
        >>> at_least(1, epochs=3, runs=0)
        Traceback (most recent call last):
        ValueError: runs must be at least 1, got 0
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def above(limit: float, **values: float | None) -> None:
    """Refuse values that are not above `limit`, and NaN; None passes.

    Raises:
        ValueError: If one is; it names the first.
    """
    for name, value in values.items():
        if value is not None and not value > limit:
            raise ValueError(f"{name} must be above {limit}, got {value}")


def within(interval: str, **values: float | Sequence[float] | None) -> None:
    """Refuse values outside an interval, and NaN; None passes.

    Args:
        interval: Such as "[0, 1)"; a square bracket includes its end.
        values: Numbers, or several under one name.

    Raises:
        ValueError: If one is; it names the first.

    Example:
        >>> within("[0, 1)", dropout=1.0)
        Traceback (most recent call last):
        ValueError: dropout must lie in [0, 1), got 1.0
    """
    low, high = map(float, interval[1:-1].split(","))
    for name, value in values.items():
        numbers = value if isinstance(value, Sequence) else [value]
        for number in numbers:
            if number is None:
                continue
            above = low <= number if interval[0] == "[" else low < number
            below = number <= high if interval[-1] == "]" else number < high
            if not (above and below):
                raise ValueError(f"{name} must lie in {interval}, got {value}")


def one_of(allowed: Iterable[Any], **values: Any) -> None:
    """Refuse values that are not among those allowed.

    Raises:
        ValueError: If one is; it names the first.

    Example:
        >>> one_of(("short", "drop"), last="long")
        Traceback (most recent call last):
        ValueError: last must be one of short, drop, got 'long'
    """
    choices = tuple(allowed)
    for name, value in values.items():
        if value not in choices:
            listed = ", ".join(map(str, choices))
            raise ValueError(f"{name} must be one of {listed}, got {value!r}")
