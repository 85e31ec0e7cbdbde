"""Plots of a comparison: scores in, a matplotlib Figure out."""

import math
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_ecd.figures import COLOURS, tidy
from tune.drawing import is_wide, legend
from tune.scores import PRICES, TAU_MAX, Scores, profile

_COLUMNS = 3


def profiles(scores: Scores) -> Figure:
    """Draw the share of tasks solved within τ times the best price, for both prices."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    taus = np.linspace(1, TAU_MAX, 601)
    handles = {}
    for axes, price in zip(figure.subplots(1, 2, sharey=True), PRICES, strict=True):
        table = profile(scores.table(price), taus)
        for i, (name, colour) in enumerate(_coloured(scores)):
            shift = 0.004 * (i - len(scores.optimizers) / 2)  # equal ones stay apart
            (handles[name],) = axes.plot(
                taus, table[name] + shift, color=colour, label=name
            )
        axes.set(xlabel=f"τ: {price} / those of the best", xlim=(1, TAU_MAX))
        axes.set_ylim(-0.03, 1.03)
        tidy(axes)
    figure.axes[0].set_ylabel("share of tasks solved")
    legend(figure, list(handles.values()), "outside right upper")
    return figure


def curves(scores: Scores) -> Figure:
    """Draw the best value so far of each study's best trial: median, and range."""
    figure, panels = _panels(scores)
    for axes, task in zip(panels, scores.tasks, strict=False):
        low = scores.rules.modes[task] == "min"
        budget = scores.rules.budgets[task]
        grid = np.linspace(0, budget, 101)[1:]
        shown = []
        for name, colour in _coloured(scores):
            rows = scores.curves_of_best(task, name)
            studies = []
            for _, study in rows.groupby("study"):
                values = study.sort_values("evaluations")
                best = values["value"].cummin() if low else values["value"].cummax()
                places = np.searchsorted(values["evaluations"], grid, side="right") - 1
                known = np.where(places < 0, np.nan, best.to_numpy()[places])
                studies.append(known)
            if not studies or np.isnan(studies).all():
                continue
            table = np.array(studies)
            middle = np.where(np.isnan(table).any(0), np.nan, np.median(table, 0))
            ends = np.sort(table, 0)[[0, -1]]
            axes.plot(grid, middle, color=colour, label=name)
            axes.fill_between(grid, *ends, color=colour, alpha=0.12, linewidth=0)
            shown.append(middle[np.isfinite(middle)])
        _target(axes, scores, task)
        axes.set(title=task, xlabel="evaluations", xlim=(0, budget))
        axes.set_ylabel(scores.rules.metrics[task])
        every = np.concatenate(shown) if shown else np.array([1.0])
        if low and len(every) and every.min() > 0 and is_wide(every):
            axes.set_yscale("log")
        elif len(every):  # the first values would hide what happens later
            bottom, top = np.quantile(every, [0, 0.9] if low else [0.1, 1])
            pad = 0.05 * (top - bottom) or 1e-3
            axes.set_ylim(bottom - pad, top + pad)
    _finish(figure, panels, len(scores.tasks))
    return figure


def sensitivity(scores: Scores) -> Figure:
    """Draw every trial's best value over its learning rate."""
    figure, panels = _panels(scores)
    for axes, task in zip(panels, scores.tasks, strict=False):
        low = scores.rules.modes[task] == "min"
        shown = []
        for name, colour in _coloured(scores):
            table = scores.best_of_trials(task, name)
            if "config/lr" not in table:
                continue
            known = table[np.isfinite(table["value"])]
            axes.scatter(
                known["config/lr"], known["value"], 14, color=colour, label=name
            )
            shown.extend(known["value"])
        _target(axes, scores, task)
        axes.set(title=task, xlabel="lr", ylabel=scores.rules.metrics[task])
        if shown:
            axes.set_xscale("log")
        values = np.array(shown)
        if low and len(values) and values.min() > 0 and is_wide(values):
            axes.set_yscale("log")
    _finish(figure, panels, len(scores.tasks))
    return figure


def _coloured(scores: Scores) -> list[tuple[str, str]]:
    return list(zip(scores.optimizers, cycle(COLOURS), strict=False))


def _panels(scores: Scores) -> tuple[Figure, list[Axes]]:
    rows = math.ceil(len(scores.tasks) / _COLUMNS)
    columns = min(_COLUMNS, len(scores.tasks))
    figure = Figure(figsize=(4 * columns + 1.5, 3.2 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        tidy(axes)
    return figure, panels


def _target(axes: Axes, scores: Scores, task: str) -> None:
    if math.isfinite(target := scores.target(task)):
        axes.axhline(target, color="0.4", linestyle="--", linewidth=1)


def _finish(figure: Figure, panels: list[Axes], tasks: int) -> None:
    """Take empty panels out; one legend for all."""
    for axes in panels[tasks:]:
        axes.remove()
    handles: dict[str, object] = {}
    for axes in panels[:tasks]:
        found, names = axes.get_legend_handles_labels()
        handles.update(zip(names, found, strict=True))
    legend(figure, list(handles.values()), "outside right upper")
