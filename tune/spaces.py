"""Spaces: names of hyper-parameters and where to look for them."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_ecd.errors import UserError
from lightning_ecd.ranges import (
    Choice,
    Decay,
    Integers,
    LogUniform,
    Range,
    Uniform,
    read_range,
)
from tune.domains import domain

#: A place in a space: coordinate to what a searcher suggests for it.
Point = dict[str, Any]


class Space:
    """Hyper-parameters and their ranges.

    Args:
        ranges: Name -> range, as `lightning_ecd.ranges.read_range` reads it; a list
            with ranges in it is a hyper-parameter that is a list, such as Adam's
            betas, each element with a range of its own.

    Attributes:
        coordinates: Coordinate -> range; element i of a list is ``name[i]``.

    Raises:
        UserError: For a bad range, naming it.

    Example:
        >>> space = Space({"lr": "LogUniform(1e-3, 1)", "nesterov": [True, False]})
        >>> space.at([0.5, 0.9])
        {'lr': 0.0316..., 'nesterov': False}
    """

    def __init__(self, ranges: Mapping[str, Any]):
        self.coordinates: dict[str, Range] = {}
        self._lengths: dict[str, int | None] = {}
        for name, value in ranges.items():
            try:
                if _is_list_of_ranges(value):
                    self._lengths[name] = len(value)
                    for i, element in enumerate(value):
                        self.coordinates[f"{name}[{i}]"] = read_range(element)
                else:
                    self._lengths[name] = None
                    self.coordinates[name] = read_range(value)
            except ValueError as error:
                raise UserError(f"space of {name}: {error}") from error

    @property
    def names(self) -> list[str]:
        """The hyper-parameters."""
        return list(self._lengths)

    def domains(self) -> dict[str, Any]:
        """Return coordinate -> domain of Ray Tune."""
        return {name: domain(range_) for name, range_ in self.coordinates.items()}

    def at(self, quantiles: Iterable[float]) -> Point:
        """Return the point at quantiles in [0, 1), one for each coordinate."""
        pairs = zip(self.coordinates.items(), quantiles, strict=True)
        return {name: _at(range_, float(u)) for (name, range_), u in pairs}

    def grid(self) -> list[Point]:
        """Return every point; the last coordinate changes first.

        Raises:
            UserError: For a range that has no end of values.
        """
        axes = []
        for name, range_ in self.coordinates.items():
            if isinstance(range_, Choice):
                axes.append(range_.values)
            elif isinstance(range_, Integers):
                axes.append(tuple(range(range_.low, range_.high + 1)))
            else:
                raise UserError(
                    f"space of {name}: a grid needs a list of values, got {range_}"
                )
        points = itertools.product(*axes)
        return [dict(zip(self.coordinates, point, strict=True)) for point in points]

    def values(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return the hyper-parameters, by name, at a point."""
        raw = {
            name: _plain(math.exp(-point[name]))
            if isinstance(range_, Decay)
            else _plain(point[name])
            for name, range_ in self.coordinates.items()
        }
        return {
            name: raw[name]
            if length is None
            else [raw[f"{name}[{i}]"] for i in range(length)]
            for name, length in self._lengths.items()
        }

    def inside(self, point: Mapping[str, Any]) -> Point:
        """Return a point with the numbers that left their range put on its edge."""
        kept = dict(point)
        for name, range_ in self.coordinates.items():
            if not isinstance(range_, Choice):
                kept[name] = min(max(point[name], range_.low), range_.high)
        return kept


def _plain(value: Any) -> Any:
    """Return a number of numpy's, which some searchers suggest, as Python's."""
    return value.item() if hasattr(value, "item") else value


def _is_list_of_ranges(value: Any) -> bool:
    if not isinstance(value, list | tuple):
        return False
    return any(isinstance(v, Range) or (isinstance(v, str) and "(" in v) for v in value)


def _at(range_: Range, u: float) -> Any:
    """Return what lies at a quantile of a range, for `Decay` the rate."""
    match range_:
        case LogUniform(low, high):
            return low * (high / low) ** u
        case Uniform(low, high) | Decay(low, high):
            return low + (high - low) * u
        case Integers(low, high):
            return low + int((high - low + 1) * u)
        case Choice(values):
            return values[int(len(values) * u)]
    raise TypeError(f"not a range: {range_!r}")
