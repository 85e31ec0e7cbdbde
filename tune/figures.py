"""Plots of a search: records in, a matplotlib Figure out.

A dot is a trial, hollow if its scheduler ended it; trials that diverged, failed or are
infeasible have no value and are marks in a grey strip along the worse edge. Everywhere
`metric` is what the search looked at, `mode` "min" or "max", and `ranges` what
`Space.coordinates` holds. Best are trials that ended by themselves, others only where
there are no such.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lightning_ecd.figures import COLOURS
from lightning_ecd.ranges import Choice, Range
from tune.drawing import (
    INK,
    LOST,
    Trials,
    edges_of_bins,
    ends_of,
    found_in,
    is_log,
    is_wide,
    legend,
    note,
    shape,
    span,
)
from tune.trial import Mode, Record

_VIRIDIS = colormaps["viridis"]


def history(records: Iterable[Record], metric: str, mode: Mode) -> Figure:
    """Draw every trial in the order of the search, and the best so far of each arm."""
    every = Trials(records, metric, mode)
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
    span(axes, "x", [*every.numbers] or [0])
    axes.set(xlabel="trial", ylabel=metric, title="trials, and the best so far (line)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(figure, [*handles, *every.keys()], "outside right upper")
    return figure


def parallel(
    records: Iterable[Record], ranges: Mapping[str, Range], metric: str, mode: Mode
) -> Figure:
    """Draw every trial of one arm as a line through its hyper-parameters and metric.

    Returns:
        A figure: an axis for each coordinate and, at the right, the metric; lines are
        coloured by rank, the best one is thick, trials without a value are grey.
    """
    trials = Trials(records, metric, mode)
    names, last = [*ranges, metric], len(ranges)
    pitch = max(1.6, 0.1 * max(map(len, names)))
    figure = Figure(figsize=(max(6, pitch * last + 2.5), 4.8), layout="constrained")
    host = figure.subplots()
    host.set(xlim=(0, max(last, 1)), ylim=(0, 1), yticks=[])
    heights = np.empty((len(trials.values), len(names)))
    for i, name in enumerate(names):
        axes = host.twinx()
        if i < last:
            values = shape(axes, "y", name, ranges[name], trials)
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
    order = np.argsort(trials.values * (-1 if mode == "min" else 1))  # worst first
    known = np.isfinite(trials.values[order])
    rank = np.cumsum(known[::-1])[::-1]
    scale = Normalize(1, max(2, rank.max(initial=1)))
    colours = to_rgba_array(INK).repeat(len(order), 0)
    colours[order[known]] = _VIRIDIS(scale(rank[known]))
    ends = heights[:, last].copy()
    trials.dots(host, np.full(len(ends), last), colours, ends)
    heights[np.isnan(ends), last] = trials.edge
    style: dict[str, Any] = {"linewidth": 1.5 if len(order) <= 30 else 0.9}
    for i in order:
        look = {"color": colours[i], "alpha": 0.8}
        if trials.kinds[i] in LOST:
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
    legend(figure, handles, "outside lower center")
    return figure


def slices(
    records: Iterable[Record], ranges: Mapping[str, Range], metric: str, mode: Mode
) -> Figure:
    """Draw the metric of one arm over each hyper-parameter, a panel each.

    Returns:
        A figure, coloured by the trial's number; dots of a category are spread a
        little, by the number, to be told apart.
    """
    trials = Trials(records, metric, mode)
    rows = max(1, math.ceil(len(ranges) / 4))
    columns = max(1, math.ceil(len(ranges) / rows))
    size = (max(5, 3 * columns + 1), 2.8 * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    scale = Normalize(trials.numbers.min(initial=0), trials.numbers.max(initial=1))
    for axes, (name, range_) in zip(panels.flat, ranges.items(), strict=False):
        x = shape(axes, "x", name, range_, trials)
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
    mappable = ScalarMappable(scale, _VIRIDIS)
    bar = figure.colorbar(mappable, ax=figure.axes, label="trial")
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_xlabels()
    figure.suptitle(trials.title)
    legend(figure, trials.keys(), "outside lower center")
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
    counts as the worst there is, a failed or infeasible one not.

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
    every = Trials(records, metric, mode)
    arms = [entry for entry in every.arms() if key in spaces.get(entry[0], {})]
    known = sorted({name for space in spaces.values() for name in space})
    if key not in known:
        raise ValueError(f"key: no arm has {key!r}; there are {', '.join(known)}")
    ranges = [spaces[arm][key] for arm, *_ in arms]
    try:
        arms = [(arm, t[~np.isnan(t.at(key))], colour) for arm, t, colour in arms]
        log = any(map(is_log, ranges)) and all(min(ends_of(r)) > 0 for r in ranges)
        edges = edges_of_bins([trials.at(key) for _, trials, _ in arms], ranges, log)
    except (TypeError, ValueError):
        raise ValueError(f"key: {key} must have numbers as values") from None
    every = Trials([r for _, t, _ in arms for r in t.records], metric, mode)
    shifted, origin = (np.divide, 1.0) if log else (np.subtract, 0.0)
    ends = [[end for range_ in ranges for end in ends_of(range_)] or [origin], [origin]]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    panels[1].axvline(origin, color=INK, linewidth=0.8, zorder=1)
    handles = []
    for arm, trials, colour in arms:
        bins = np.digitize(trials.at(key), edges)
        groups = [trials[bins == number] for number in np.unique(bins)]
        centres = np.array([np.median(group.at(key)) for group in groups])
        medians = [group.median() for group in groups]
        leaders = Trials([g.best for g in groups if g.best], metric, mode)
        origins = [origin, *([found_in(trials.best, key)] if trials.best else [])]
        told = f"\n(best {key} {origins[1]:.3g})" if trials.best else ""
        handles.append(Line2D([], [], color=colour, linewidth=2, label=arm + told))
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
        span(axes, "x", limits, log)
    panels[0].set(ylabel=metric, title=f"sensitivity to {key}")
    panels[1].set(title="relative to each arm's best")
    handles.append(Line2D([], [], color=INK, label="best of a bin"))
    handles.append(Line2D([], [], color=INK, label="median of a bin", linestyle="--"))
    legend(figure, [*handles, *every.keys()], "outside right upper")
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
        if argument == "loss" and is_wide(means):  # a band down to 0 would have no end
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
        note(left, "no run has left metrics")
    handles = [
        Line2D([], [], color=colour, linewidth=2, label=f"{arm} (runs: {len(courses)})")
        for (arm, courses), colour in zip(read.items(), cycle(COLOURS), strict=False)
    ]
    legend(figure, handles, "outside right upper")
    return figure


def _read(path: Path) -> dict[str, dict[int, float]]:
    """Return metric -> epoch -> mean of what a run logged; nothing if it is missing."""
    found: dict[str, dict[int, list[float]]] = {}
    file = path / "metrics.csv" if path.is_dir() else path
    lines = file.read_text().splitlines() if file.is_file() else []
    for row in csv.DictReader(lines):
        for name in row.keys() - {"epoch", "step"}:
            if row[name] and row["epoch"]:
                course = found.setdefault(name, {})
                course.setdefault(int(float(row["epoch"])), []).append(float(row[name]))
    return {n: {e: fmean(v) for e, v in course.items()} for n, course in found.items()}


def _common(courses: Sequence[dict[int, float]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return epochs (T,) at which all runs have a finite value, and these (runs, T)."""
    epochs = sorted(set.intersection(*map(set, courses))) if courses else []
    values = np.array([[c[e] for e in epochs] for c in courses] or [[]], float)
    kept = np.isfinite(values).all(0)
    return np.array(epochs)[kept], values[:, kept]
