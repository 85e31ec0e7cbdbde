"""Plots of a search: records in, a matplotlib Figure out.

A dot is a trial, hollow if its scheduler ended it; trials that diverged or failed have
no value and are crosses in a grey strip along the worse edge. Everywhere `metric` is
what the search looked at, `mode` "min" or "max", and `ranges` what `Space.coordinates`
holds. Best are trials that ended by themselves, others only where there are no such.
"""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from lightning_ecd.figures import COLOURS
from lightning_ecd.ranges import Choice, Decay, Integers, LogUniform, Range
from tune.live import best_of, shown
from tune.trial import Mode, Record

#: How a trial looks: marker and fill; the last three have no value.
_MARKS: dict[str, tuple[str, Any]] = {
    **{"completed": ("o", "full"), "stopped": ("o", "none"), "running": ("D", "none")},
    **{"diverged": ("x", "full"), "failed": ("+", "full"), "no value": ("|", "full")},
}
_LOST = [*_MARKS][3:]
_INK = "0.3"
_VIRIDIS = colormaps["viridis"]


def history(records: Iterable[Record], metric: str, mode: Mode) -> Figure:
    """Draw every trial in the order of the search, and the best so far of each arm."""
    every = _Trials(records, metric, mode)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    handles = []
    for arm, trials, colour in every.arms():
        trials = trials[np.argsort(trials.numbers)]
        trials.dots(axes, trials.numbers, to_rgba_array(colour, 0.6))
        whole = trials.kinds == "completed"
        values = np.where(whole | ~whole.any(), trials.values, np.nan)
        best = (np.fmin if mode == "min" else np.fmax).accumulate(values)
        style: dict[str, Any] = {"color": colour, "linewidth": 2, "label": arm}
        handles += axes.step(trials.numbers, best, where="post", zorder=6, **style)
    every.finish(axes)
    _span(axes, "x", [*every.numbers] or [0])
    axes.set(xlabel="trial", ylabel=metric, title="trials, and the best so far (line)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, [*handles, *every.keys()], "outside right upper")
    return figure


def parallel(
    records: Iterable[Record], ranges: Mapping[str, Range], metric: str, mode: Mode
) -> Figure:
    """Draw every trial of one arm as a line through its hyper-parameters and metric.

    Returns:
        A figure: an axis for each coordinate and, at the right, the metric; lines are
        coloured by rank, the best one is thick, trials without a value are grey.
    """
    trials = _Trials(records, metric, mode)
    names, last = [*ranges, metric], len(ranges)
    pitch = max(1.5, 0.1 * max(map(len, names)))
    figure = Figure(figsize=(max(6, pitch * last + 2.5), 4.8), layout="constrained")
    host = figure.subplots()
    host.set(xlim=(0, max(last, 1)), ylim=(0, 1), yticks=[])
    heights = np.empty((len(trials.values), len(names)))
    for i, name in enumerate(names):
        axes = host.twinx()
        if name in ranges:
            values = _shape(axes, "y", name, ranges[name], trials)
        else:
            values = trials.values
            axes.plot(np.full(len(values), i), values, linestyle="")  # for its limits
            trials.finish(axes, strip=False)
            axes.autoscale_view()
        to_share = axes.transScale + axes.transLimits
        heights[:, i] = to_share.transform(np.stack([values, values], 1))[:, 1]
        axes.spines[["left", "top", "bottom"]].set_visible(False)
        axes.spines["right"].set_position(("data", i))
        for label in axes.get_yticklabels():
            label.set_path_effects([withStroke(linewidth=3, foreground="white")])
    order = np.argsort(
        -trials.values if mode == "min" else trials.values
    )  # worst first
    known = np.isfinite(trials.values[order])
    rank = np.cumsum(known[::-1])[::-1]
    scale = Normalize(1, max(2, rank.max(initial=1)))
    colours = to_rgba_array(_INK).repeat(len(order), 0)
    colours[order[known]] = _VIRIDIS(scale(rank[known]))
    ends = heights[:, last].copy()
    trials.dots(host, np.full(len(ends), last), colours, ends)
    heights[np.isnan(ends), last] = trials.edge
    style: dict[str, Any] = {"linewidth": 1.5 if len(order) <= 30 else 0.9}
    for i in order:
        look = {"color": colours[i], "alpha": 0.8}
        if trials.kinds[i] in _LOST:
            look = {"color": "0.65", "linestyle": "--", "zorder": 1}
        host.plot(heights[i], **look, **style)
    handles = trials.keys()
    if trials.best:
        halo = [withStroke(linewidth=5, foreground="white")]
        style = {"color": COLOURS[0], "linewidth": 3, "path_effects": halo}
        style["label"] = f"best: trial {trials.best.number}"
        handles += host.plot(heights[trials.records.index(trials.best)], **style)
        mappable = ScalarMappable(scale, _VIRIDIS)
        bar = figure.colorbar(mappable, ax=figure.axes, label="rank (1 = best)")
        bar.ax.invert_yaxis()
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    host.set_xticks(range(len(names)), names)
    host.tick_params(axis="x", length=0, pad=8, labeltop=True, labelbottom=False)
    host.spines[:].set_visible(False)
    figure.suptitle(trials.title)
    _legend(figure, handles, "outside lower center")
    return figure


def slices(
    records: Iterable[Record], ranges: Mapping[str, Range], metric: str, mode: Mode
) -> Figure:
    """Draw the metric of one arm over each hyper-parameter, a panel each.

    Returns:
        A figure, coloured by the trial's number; dots of a category are spread a
        little, by the number, to be told apart.
    """
    trials = _Trials(records, metric, mode)
    rows = max(1, math.ceil(len(ranges) / 4))
    columns = max(1, math.ceil(len(ranges) / rows))
    size = (max(5, 3 * columns + 1), 2.8 * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    scale = Normalize(trials.numbers.min(initial=0), trials.numbers.max(initial=1))
    for axes, (name, range_) in zip(panels.flat, ranges.items(), strict=False):
        x = _shape(axes, "x", name, range_, trials)
        if isinstance(range_, Choice):
            x += 0.4 * ((trials.numbers * 0.618) % 1 - 0.5)
        trials.dots(axes, x, _VIRIDIS(scale(trials.numbers)))
        axes.set(xlabel=name)
    for axes in panels.flat[len(ranges) :]:
        axes.remove()
    for axes in figure.axes:
        trials.finish(axes)
    for axes in panels[:, 0]:
        axes.set(ylabel=metric)
    bar = figure.colorbar(
        ScalarMappable(scale, _VIRIDIS), ax=figure.axes, label="trial"
    )
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_xlabels()
    figure.suptitle(trials.title)
    _legend(figure, trials.keys(), "outside lower center")
    return figure


def sensitivity(
    records: Iterable[Record],
    spaces: Mapping[str, Mapping[str, Range]],
    metric: str,
    mode: Mode,
    key: str = "lr",
) -> Figure:
    """Draw how the metric depends on one hyper-parameter, for every arm.

    Bins of equal width (in log(key) if the axis is logarithmic) are the same for all
    arms; where there are fewer values than bins, each has its own. A solid line joins
    the best trials of the bins, a dashed one the medians, in which a diverged trial
    counts as the worst there is and a failed one not.

    Args:
        records: Of any number of arms.
        spaces: Arm -> ranges; arms without the key are left out.
        metric: What the search looked at.
        mode: "min" or "max".
        key: A coordinate whose values are numbers.

    Returns:
        A figure: the metric over the key, and over key / best key of the arm (their
        difference if the axis is linear), where widths of basins can be compared.

    Raises:
        ValueError: If no arm has the key, or if it is not a number.
    """
    every = _Trials(records, metric, mode)
    arms = [entry for entry in every.arms() if key in spaces.get(entry[0], {})]
    if every.records and not arms:
        known = ", ".join(sorted({name for space in spaces.values() for name in space}))
        raise ValueError(f"key: no arm has {key!r}; there are {known}")
    ranges = [spaces[arm][key] for arm, *_ in arms]
    try:
        arms = [(arm, t[~np.isnan(t.at(key))], colour) for arm, t, colour in arms]
        log = any(map(_is_log, ranges))
        edges = _edges([trials.at(key) for _, trials, _ in arms], ranges, log)
    except (TypeError, ValueError):
        raise ValueError(f"key: {key} must have numbers as values") from None
    every = _Trials([r for _, t, _ in arms for r in t.records], metric, mode)
    shifted, origin = (np.divide, 1.0) if log else (np.subtract, 0.0)
    ends = [[end for range_ in ranges for end in _ends(range_)] or [origin], [origin]]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    panels[1].axvline(origin, color=_INK, linewidth=0.8, zorder=1)
    handles = []
    for arm, trials, colour in arms:
        bins = np.digitize(trials.at(key), edges)
        groups = [trials[bins == number] for number in np.unique(bins)]
        centres = np.array([np.median(group.at(key)) for group in groups])
        medians = [group.median() for group in groups]
        leaders = _Trials([g.best for g in groups if g.best], metric, mode)
        origins = [origin, *([_found(trials.best, key)] if trials.best else [])]
        note = f"\n(best {key} {origins[1]:.3g})" if trials.best else ""
        handles.append(Line2D([], [], color=colour, linewidth=2, label=arm + note))
        style: dict[str, Any] = {"color": colour, "zorder": 6}
        for axes, zero, limits in zip(panels, origins, ends, strict=False):
            x = shifted(trials.at(key), zero)
            limits.extend(x)
            trials.dots(axes, x, to_rgba_array(colour, 0.45))
            x = shifted(leaders.at(key), zero)
            axes.plot(x, leaders.values, linewidth=2, marker=".", **style)
            x = shifted(centres, zero)
            axes.plot(x, medians, linewidth=1.2, linestyle="--", **style)
    names = (key, f"{key} {'/' if log else '−'} best {key}")
    for axes, name, limits in zip(panels, names, ends, strict=True):
        axes.set(xlabel=name)
        every.finish(axes)
        _span(axes, "x", limits, log)
    panels[0].set(ylabel=metric, title=f"sensitivity to {key}")
    panels[1].set(title="relative to each arm's best")
    handles.append(Line2D([], [], color=_INK, label="best of a bin"))
    handles.append(Line2D([], [], color=_INK, label="median of a bin", linestyle="--"))
    _legend(figure, [*handles, *every.keys()], "outside right upper")
    return figure


def twin_curves(runs: Mapping[str, Sequence[Path]], loss: str, accuracy: str) -> Figure:
    """Draw mean loss and accuracy of several runs over the epoch.

    Args:
        runs: Arm -> its runs' metrics.csv, as Lightning's CSVLogger writes them, or
            the folders with them; what is missing is left out.
        loss: Its column, for the left axis; of several values in an epoch the mean.
        accuracy: Its column, for the right axis.

    Returns:
        A figure: means over runs, in bands of one standard deviation to each side, at
        epochs where every run of the arm that logs the metric has a finite value.

    Raises:
        ValueError: If no run logs a metric.
    """
    read = {arm: [c for path in p if (c := _read(path))] for arm, p in runs.items()}
    known = sorted({name for courses in read.values() for c in courses for name in c})
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    left = figure.subplots()
    sides = {"loss": (left, loss, "-"), "accuracy": (left.twinx(), accuracy, "--")}
    for argument, (axes, metric, dash) in sides.items():
        if known and metric not in known:
            there = ", ".join(known)
            raise ValueError(f"{argument}: no run logs {metric!r}; there are {there}")
        means = np.empty(0)
        for courses, colour in zip(read.values(), cycle(COLOURS), strict=False):
            epochs, values = _common([c[metric] for c in courses if metric in c])
            mean, std = values.mean(0), values.std(0, ddof=min(1, len(values) - 1))
            marker = "." if len(epochs) <= 25 else ""
            axes.plot(epochs, mean, dash, color=colour, marker=marker)
            band: dict[str, Any] = {"color": colour, "alpha": 0.15, "linewidth": 0}
            axes.fill_between(epochs, mean - std, mean + std, **band)
            means = np.append(means, mean)
        if _is_wide(means):  # a band down to 0 would have no end
            axes.set(yscale="log", ylim=(means.min() / 2, means.max() * 2))
        axes.set(ylabel=f"{metric} ({'solid' if dash == '-' else 'dashed'})")
        axes.spines["top"].set_visible(False)
        if not known:
            axes.set(xticks=[], yticks=[])
    left.set(xlabel="epoch", title="mean over runs ± one standard deviation")
    left.grid(alpha=0.25)
    if known:
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        _note(left, "no run has left metrics")
    handles = [
        Line2D([], [], color=colour, linewidth=2, label=f"{arm} (runs: {len(courses)})")
        for (arm, courses), colour in zip(read.items(), cycle(COLOURS), strict=False)
    ]
    _legend(figure, handles, "outside right upper")
    return figure


class _Trials:
    """Trials of a search and how they are drawn."""

    def __init__(self, records: Iterable[Record], metric: str, mode: Mode):
        self.records = list(records)
        self.metric, self.mode = metric, mode
        self.numbers = np.array([record.number for record in self.records], float)
        self.arm = np.array([record.arm for record in self.records], str)
        status = np.array([record.status for record in self.records], str)
        raw = np.array([r.metrics.get(metric, math.nan) for r in self.records], float)
        lost = np.isin(status, _LOST)
        #: nan where there is none.
        self.values = np.where(lost | ~np.isfinite(raw), np.nan, raw)
        self.kinds = np.where(lost | np.isfinite(raw), status, "no value")
        kept = [record for record in self.records if record.status not in _LOST]
        self.best = best_of(kept, metric, mode)
        self.title = ", ".join(dict.fromkeys(self.arm))
        #: Height of the worse edge, as a share.
        self.edge = 0.97 if mode == "min" else 0.03

    def __getitem__(self, chosen: NDArray[Any]) -> "_Trials":
        places = np.arange(len(self.records))[chosen]
        return _Trials([self.records[i] for i in places], self.metric, self.mode)

    def arms(self) -> Iterator[tuple[str, "_Trials", str]]:
        """Yield name, trials and colour of each arm."""
        for arm, colour in zip(dict.fromkeys(self.arm), cycle(COLOURS), strict=False):
            yield str(arm), self[self.arm == arm], colour

    def at(self, name: str) -> NDArray[Any]:
        """Return a coordinate as numbers, nan where it is missing."""
        return np.array([_found(record, name) for record in self.records], float)

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
            if kind in _LOST:
                style["transform"] = axes.get_xaxis_transform()
                heights = np.full(len(heights), self.edge)
            axes.scatter(x[chosen], heights, **style)

    def keys(self) -> list[Line2D]:
        """Return entries of a legend for the marks that were drawn."""
        plain: dict[str, Any] = {"color": _INK, "linestyle": ""}
        return [
            Line2D([], [], marker=symbol, fillstyle=fill, label=kind, **plain)
            for kind, (symbol, fill) in _MARKS.items()
            if kind in self.kinds
        ]

    def finish(self, axes: Axes, strip: bool = True) -> None:
        """Scale the metric's axis, and set the trials without a value apart."""
        lost = np.isnan(self.values)
        axes.set_yscale("log" if _is_wide(self.values) else "linear")
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
            _note(axes, f"no trial has a finite {self.metric}")


def _found(record: Record, name: str) -> Any:
    """Return a hyper-parameter, element i of a list by ``name[i]``."""
    base, _, index = name.removesuffix("]").rpartition("[")
    if name in record.values or base not in record.values:
        return record.values.get(name)
    return record.values[base][int(index)]


def _shape(
    axes: Axes, which: str, name: str, range_: Range, trials: _Trials
) -> NDArray[Any]:
    """Make an axis, "x" or "y", that of a coordinate; return places on it."""
    axis = getattr(axes, f"{which}axis")
    if isinstance(range_, Choice):
        raw = [_text(_found(record, name)) for record in trials.records]
        known = [*dict.fromkeys([*map(_text, range_.values), *raw])]
        axes.set(**{f"{which}lim": (-0.5, len(known) - 0.5)})
        axis.set_ticks(range(len(known)), known)
        return np.array([known.index(text) for text in raw], float)
    values = trials.at(name)
    _span(axes, which, [*_ends(range_), *values], _is_log(range_))
    if not _is_log(range_):
        axis.set_major_locator(MaxNLocator(5, integer=isinstance(range_, Integers)))
    return values


def _span(axes: Axes, which: str, values: Sequence[float], log: bool = False) -> None:
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


def _ends(range_: Range) -> tuple[float, float]:
    if isinstance(range_, Choice):
        return min(range_.values), max(range_.values)
    if isinstance(range_, Decay):
        return math.exp(-range_.high), math.exp(-range_.low)
    return range_.low, range_.high


def _is_log(range_: Range) -> bool:
    wide = isinstance(range_, Choice) and _is_wide(np.array(_ends(range_)), 9)
    return wide or isinstance(range_, LogUniform)


def _is_wide(values: NDArray[Any], factor: float = 100) -> bool:
    """Whether numbers call for a logarithmic scale."""
    known = values[np.isfinite(values)]
    return bool(len(known) and known.min() > 0 and known.max() > factor * known.min())


def _edges(
    places: Sequence[NDArray[Any]], ranges: Sequence[Range], log: bool
) -> NDArray[Any]:
    """Return the inner edges of bins, few for few trials and 20 for many."""
    values = np.unique(np.concatenate([[], *places]))
    count = min(20, math.ceil((2 * max(map(len, places), default=0)) ** 0.5))
    if len(values) <= count:
        return (values[1:] + values[:-1]) / 2
    ends = [end for range_ in ranges for end in _ends(range_)]
    return (np.geomspace if log else np.linspace)(min(ends), max(ends), count + 1)[1:-1]


def _note(axes: Axes, text: str) -> None:
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": _INK}
    style["bbox"] = {"facecolor": "white", "linewidth": 0}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, **style)


def _legend(figure: Figure, handles: Sequence[Any], place: Any) -> None:
    columns = 6 if "lower" in place else 1
    if handles:
        figure.legend(handles=handles, loc=place, ncols=columns, frameon=False)


def _read(path: Path) -> dict[str, dict[int, float]]:
    """Return metric -> epoch -> mean of what a run logged; nothing if it is missing."""
    found: dict[str, dict[int, list[float]]] = {}
    file = path / "metrics.csv" if path.is_dir() else path
    lines = file.read_text().splitlines() if file.is_file() else []
    for row in csv.DictReader(lines):
        for name in row.keys() - {"epoch", "step"}:
            if row[name] and row["epoch"]:
                course = found.setdefault(name, {})
                course.setdefault(int(row["epoch"]), []).append(float(row[name]))
    return {n: {e: fmean(v) for e, v in course.items()} for n, course in found.items()}


def _common(courses: Sequence[dict[int, float]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return epochs (T,) at which all runs have a finite value, and these (runs, T)."""
    epochs = sorted(set.intersection(*map(set, courses))) if courses else []
    values = np.array([[c[e] for e in epochs] for c in courses] or [[]], float)
    kept = np.isfinite(values).all(0)
    return np.array(epochs)[kept], values[:, kept]
