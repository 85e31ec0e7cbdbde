"""How trials of a search are drawn: marks, axes, bins, legends."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from lightning_ecd.figures import COLOURS
from lightning_ecd.ranges import Choice, Decay, Integers, LogUniform, Range
from tune.live import best_of, shown
from tune.trial import Mode, Record

#: How a trial looks: marker and fill; the last four have no value.
_MARKS: dict[str, tuple[str, Any]] = {
    **{"completed": ("o", "full"), "stopped": ("o", "none"), "running": ("D", "none")},
    **{"diverged": ("x", "full"), "infeasible": ("1", "full")},
    **{"failed": ("+", "full"), "no value": ("|", "full")},
}
LOST = [*_MARKS][3:]
INK = "0.3"


class Trials:
    """Trials of a search and how they are drawn."""

    def __init__(self, records: Iterable[Record], metric: str, mode: Mode):
        self.records = list(records)
        self.metric, self.mode = metric, mode
        self.numbers = np.array([record.number for record in self.records], float)
        self.arm = np.array([record.arm for record in self.records], str)
        status = np.array([record.status for record in self.records], str)
        raw = np.array([r.metrics.get(metric, math.nan) for r in self.records], float)
        lost = np.isin(status, LOST)
        #: nan where there is none.
        self.values = np.where(lost | ~np.isfinite(raw), np.nan, raw)
        self.kinds = np.where(lost | np.isfinite(raw), status, "no value")
        kept = [record for record in self.records if record.status not in LOST]
        self.best = best_of(kept, metric, mode)
        self.title = ", ".join(dict.fromkeys(self.arm))
        #: Height of the worse edge, as a share.
        self.edge = 0.97 if mode == "min" else 0.03

    def __getitem__(self, chosen: NDArray[Any]) -> "Trials":
        places = np.arange(len(self.records))[chosen]
        return Trials([self.records[i] for i in places], self.metric, self.mode)

    def arms(self) -> Iterator[tuple[str, "Trials", str]]:
        """Yield name, trials and colour of each arm."""
        for arm, colour in zip(dict.fromkeys(self.arm), cycle(COLOURS), strict=False):
            yield str(arm), self[self.arm == arm], colour

    def at(self, name: str) -> NDArray[Any]:
        """Return a coordinate as numbers, nan where it is missing."""
        return np.array([found_in(record, name) for record in self.records], float)

    def median(self) -> float:
        """Return the median; a trial that diverged is the worst."""
        worst = math.inf if self.mode == "min" else -math.inf
        values = np.where(self.kinds == "diverged", worst, self.values)
        values = values[~np.isnan(values)]
        return float(np.median(values)) if len(values) else math.nan

    def dots(
        self, axes: Axes, x: NDArray[Any], colours: NDArray[Any], y: Any = None
    ) -> None:
        """Mark the trials over x, those without a value at the worse edge."""
        y = self.values if y is None else y
        colours = np.broadcast_to(colours, (len(x), 4))
        for kind in dict.fromkeys(self.kinds):
            chosen = self.kinds == kind
            style: dict[str, Any] = {"linewidths": 1.1, "zorder": 5, "label": kind}
            style |= {"c": colours[chosen], "marker": MarkerStyle(*_MARKS[kind])}
            style["s"] = 28 if len(x) <= 60 else 16
            heights = y[chosen]
            if kind in LOST:
                style["transform"] = axes.get_xaxis_transform()
                heights = np.full(len(heights), self.edge)
            axes.scatter(x[chosen], heights, **style)

    def keys(self) -> list[Line2D]:
        """Return entries of a legend for the marks that were drawn."""
        plain: dict[str, Any] = {"color": INK, "linestyle": ""}
        return [
            Line2D([], [], marker=symbol, fillstyle=fill, label=kind, **plain)
            for kind, (symbol, fill) in _MARKS.items()
            if kind in self.kinds
        ]

    def finish(self, axes: Axes, strip: bool = True) -> None:
        """Scale the metric's axis, and set the trials without a value apart."""
        lost = np.isnan(self.values)
        axes.set_yscale("log" if is_wide(self.values) else "linear")
        axes.margins(y=0.1 if lost.any() else 0.05)
        if strip:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
        if strip and lost.any():
            style: dict[str, Any] = {"color": "0.93", "zorder": 0, "linewidth": 0}
            style["transform"] = axes.transAxes
            axes.add_patch(Rectangle((0, self.edge - 0.03), 1, 0.06, **style))
        if lost.all():
            axes.set(yticks=[])
            note(axes, f"no trial has a finite {self.metric}")


def found_in(record: Record, name: str) -> Any:
    """Return a hyper-parameter, element i of a list by ``name[i]``."""
    base, _, index = name.removesuffix("]").rpartition("[")
    if name in record.values or base not in record.values:
        return record.values.get(name)
    return record.values[base][int(index)]


def shape(
    axes: Axes, which: str, name: str, range_: Range, trials: Trials
) -> NDArray[Any]:
    """Make an axis, "x" or "y", that of a coordinate; return places on it."""
    axis = getattr(axes, f"{which}axis")
    if isinstance(range_, Choice):
        raw = [_text(found_in(record, name)) for record in trials.records]
        known = [*dict.fromkeys([*map(_text, range_.values), *raw])]
        axes.set(**{f"{which}lim": (-0.5, len(known) - 0.5)})
        short = [text if len(text) <= 16 else f"…{text[-15:]}" for text in known]
        axis.set_ticks(range(len(known)), short)
        if which == "x" and len("".join(short)) > 24:
            axes.tick_params(axis="x", rotation=20)
        return np.array([known.index(text) for text in raw], float)
    values = trials.at(name)
    span(axes, which, [*ends_of(range_), *values], is_log(range_))
    if not is_log(range_):
        axis.set_major_locator(MaxNLocator(5, integer=isinstance(range_, Integers)))
    return values


def span(axes: Axes, which: str, values: Sequence[float], log: bool = False) -> None:
    """Set the limits of an axis, "x" or "y", so that all values are well inside."""
    low, high = np.nanmin(values), np.nanmax(values)
    if not log:
        pad = 0.04 * (high - low) or 0.5
        axes.set(**{f"{which}lim": (low - pad, high + pad)})
        return
    pad = (high / low) ** 0.04 if high > low else 2
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low / pad, high * pad)})
    if high < 30 * low:  # too few powers of ten
        axis = getattr(axes, f"{which}axis")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def _text(value: Any) -> str:
    return shown([*value] if isinstance(value, tuple) else value)


def ends_of(range_: Range) -> tuple[float, float]:
    """Return the lowest and the highest value."""
    if isinstance(range_, Choice):
        return min(range_.values), max(range_.values)
    if isinstance(range_, Decay):
        return math.exp(-range_.high), math.exp(-range_.low)
    return range_.low, range_.high


def is_log(range_: Range) -> bool:
    """Whether an axis of the range is logarithmic; lists may be grids of rates."""
    wide = isinstance(range_, Choice) and is_wide(np.array(ends_of(range_)), 9)
    return wide or isinstance(range_, LogUniform)


def is_wide(values: NDArray[Any], factor: float = 100) -> bool:
    """Whether numbers call for a logarithmic scale."""
    known = values[np.isfinite(values)]
    return bool(len(known) and known.min() > 0 and known.max() > factor * known.min())


def edges_of_bins(
    places: Sequence[NDArray[Any]], ranges: Sequence[Range], log: bool
) -> NDArray[Any]:
    """Return the inner edges of bins, few for few trials and 20 for many."""
    values = np.unique(np.concatenate([[], *places]))
    count = min(20, math.ceil((2 * max(map(len, places), default=0)) ** 0.5))
    if len(values) <= count:
        return (values[1:] + values[:-1]) / 2
    ends = [end for range_ in ranges for end in ends_of(range_)]
    return (np.geomspace if log else np.linspace)(min(ends), max(ends), count + 1)[1:-1]


def note(axes: Axes, text: str) -> None:
    """Say in the middle why there is nothing."""
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": INK}
    style["bbox"] = {"facecolor": "white", "linewidth": 0}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, **style)


def legend(figure: Figure, handles: Sequence[Any], place: Any) -> None:
    """Put a legend outside, in a row below or in a column at the right."""
    columns = 6 if "lower" in place else 1
    if handles:
        figure.legend(handles=handles, loc=place, ncols=columns, frameon=False)
