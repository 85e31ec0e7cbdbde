"""Search ranges that stand beside a hyper-parameter, in its annotation.

``lr: Annotated[float, LogUniform(1e-4, 1e1)] = 1e-2`` says where a search should
look; it never restricts what a user may set. Nothing here needs Ray: `tune` turns
these records into search domains.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints


@dataclass(frozen=True)
class LogUniform:
    """Floats between `low` and `high`, uniform in their logarithm."""

    low: float
    high: float

    def __contains__(self, value: Any) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Uniform:
    """Floats between `low` and `high`."""

    low: float
    high: float

    def __contains__(self, value: Any) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Integers:
    """Integers between `low` and `high`, both included."""

    low: int
    high: int

    def __contains__(self, value: Any) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Choice:
    """One of `values`."""

    values: tuple[Any, ...]

    def __contains__(self, value: Any) -> bool:
        return value in self.values


Range = LogUniform | Uniform | Integers | Choice


def annotated_ranges(constructor: Callable[..., Any]) -> dict[str, Range]:
    """Return the ranges written in a constructor's annotations.

    Args:
        constructor: A class or function whose arguments may be ``Annotated``.

    Returns:
        Argument name to range, only for arguments that have one.

    Example:
        >>> from typing import Annotated
        >>> def build(lr: Annotated[float, LogUniform(1e-3, 1.0)], steps: int): ...
        >>> annotated_ranges(build)
        {'lr': LogUniform(low=0.001, high=1.0)}
    """
    function: Any = constructor
    if isinstance(constructor, type):
        function = constructor.__init__  # type: ignore[misc]
    found: dict[str, Range] = {}
    for name, hint in get_type_hints(function, include_extras=True).items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Range):
                found[name] = extra
    return found
