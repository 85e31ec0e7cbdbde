"""Search ranges that stand beside a hyper-parameter, in its annotation.

``lr: Annotated[float, LogUniform(1e-4, 1e1)] = 1e-2`` says where a search should
look; it never restricts what a user may set. Nothing here needs Ray: `tune` turns
these records into search domains. In a file a range stands as it does in Python,
``lr: LogUniform(1e-4, 1e1)``, and a choice also as a list.
"""

import ast
import math
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


@dataclass(frozen=True)
class Decay:
    """exp(-rate) with a rate between `low` and `high`: a momentum by its friction."""

    low: float
    high: float

    def __contains__(self, value: Any) -> bool:
        return math.exp(-self.high) <= value <= math.exp(-self.low)


Range = LogUniform | Uniform | Integers | Choice | Decay
_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (LogUniform, Uniform, Integers, Choice, Decay)
}


def read_range(value: Any) -> Range:
    """Return the range that a file or a flag states.

    Args:
        value: A range; its text; or a list, which is a choice.

    Raises:
        ValueError: If it is no range, or an empty one.

    Example:
        >>> read_range("LogUniform(1e-3, 1)"), read_range([0.1, 0.5])
        (LogUniform(low=0.001, high=1), Choice(values=(0.1, 0.5)))
    """
    if isinstance(value, Range):
        range_ = value
    elif isinstance(value, list | tuple):
        range_ = Choice(tuple(value))
    else:
        range_ = _called(str(value))
    if isinstance(range_, Choice):
        if not range_.values:
            raise ValueError("a choice must have at least one value")
        return range_
    low, high = range_.low, range_.high
    numbers = all(isinstance(end, int | float) for end in (low, high))
    if not numbers or not -math.inf < low < high < math.inf:
        raise ValueError(f"{range_} must go from a lower to a higher number")
    if isinstance(range_, Integers) and not isinstance(low + high, int):
        raise ValueError(f"{range_} must have whole ends")
    if isinstance(range_, LogUniform) and low <= 0:
        raise ValueError(f"{range_} must have positive ends")
    return range_


def _called(text: str) -> Range:
    """Return the range of a text such as ``Uniform(0, 1)``; nothing is evaluated."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        kind = _KINDS[node.func.id]
        values = [ast.literal_eval(argument) for argument in node.args]
        named = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        if kind is Choice and not named:
            return Choice(tuple(values))
        return kind(*values, **named)
    except (KeyError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f"{text!r} is no range: write LogUniform(low, high), Uniform(low, high), "
            "Integers(low, high), Decay(low, high) or a list of values"
        ) from error


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
