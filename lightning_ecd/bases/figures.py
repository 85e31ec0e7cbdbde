"""Pictures about random directions."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from lightning_ecd.figures import COLOURS, tidy


def losses_along(table: Tensor, distance: float, title: str = "") -> Figure:
    """Draw losses at equal distances along random directions.

    Args:
        table: Losses (bins, d), a column for every direction. The point itself is in
            the middle; of two rows, it is the first.
        distance: Between neighbours, in lengths of the directions.
        title: Of the figure.

    Returns:
        A figure: a thin line for every direction, at most 200 of them, and their mean.
    """
    F = table.detach().float().cpu().numpy()
    bins = len(F)
    places = distance * (np.arange(bins) - (bins // 2 if bins > 2 else 0))
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    shown = F[:, :: max(1, F.shape[1] // 200)]
    axes.plot(places, shown, color=COLOURS[0], linewidth=0.6, alpha=0.35)
    label = f"mean of {F.shape[1]} directions"
    axes.plot(places, F.mean(1), color="black", linewidth=2, label=label)
    axes.set(xlabel="distance along a direction φ", ylabel="loss", title=title)
    axes.legend(loc="best", frameon=False)
    tidy(axes)
    return figure


def cosines(
    dimensions: Sequence[int],
    means: Sequence[float],
    stds: Sequence[float],
    expected: tuple[Sequence[float], Sequence[float]],
) -> Figure:
    """Draw |cos| of random vectors against their dimension, and the theory.

    Args:
        dimensions: n, of length T.
        means: Of |cos|, length T.
        stds: Of |cos|, length T.
        expected: What theory says of both.
    """
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for values, theory, name, colour in (
        (means, expected[0], "mean", COLOURS[0]),
        (stds, expected[1], "standard deviation", COLOURS[1]),
    ):
        axes.plot(dimensions, values, "o", color=colour, label=f"{name} of |cos|")
        axes.plot(dimensions, theory, color=colour, linewidth=1.2)
    tidy(axes)
    axes.set(xscale="log", yscale="log", xlabel="dimension n")
    axes.set_title("random vectors are nearly orthogonal (lines: theory)")
    axes.legend(loc="best", frameon=False)
    return figure


def accuracy_by_dimensions(
    dimensions: Sequence[int],
    accuracies: Sequence[Sequence[float]],
    cosine: Sequence[Sequence[float]],
    parameters: int,
    name: str,
    baseline: float | None = None,
    share: float = 0.9,
) -> Figure:
    """Draw a metric and cos(g, s) against the number d of directions.

    Args:
        dimensions: d, of length T.
        accuracies: Of the runs at every d, T lists.
        cosine: cos(g, s) in a late step of the runs at every d, T lists.
        parameters: D, of the network.
        name: Of the metric.
        baseline: The metric in the whole space, drawn with its `share`.
        share: Of the baseline, as for the intrinsic dimension.

    Returns:
        A figure: the metric over d; the cosine over d beside its expectation for
        normal and for orthonormal rows. Numbers that are nan are left out.
    """
    accuracies, cosine = _finite(accuracies), _finite(cosine)
    panels = 2 if any(cosine) else 1
    figure = Figure(figsize=(5.2 * panels, 4.2), layout="constrained")
    left, *others = figure.subplots(1, panels, squeeze=False)[0]
    for axes, values, colour in zip(
        [left, *others], [accuracies, cosine], COLOURS, strict=False
    ):
        known = [(d, each) for d, each in zip(dimensions, values, strict=True) if each]
        for d, each in known:
            axes.plot([d] * len(each), each, "o", color=colour, markersize=4, alpha=0.5)
        means = [np.mean(each) for _, each in known]
        axes.plot([d for d, _ in known], means, color=colour, linewidth=1.5)
        tidy(axes)
        axes.set(xscale="log", xlabel="directions d")
    left.set_ylabel(name)
    if baseline is not None:
        left.axhline(baseline, color="black", linewidth=1, label="all parameters")
        style = {"color": "black", "linewidth": 1, "linestyle": "--"}
        left.axhline(share * baseline, label=f"{share:.0%} of it", **style)
        left.legend(loc="best", frameon=False)
    for axes in others:
        places = np.geomspace(min(dimensions), max(dimensions), 100)
        normal = (places / (parameters + places + 1)) ** 0.5
        frame = np.minimum(1, places / parameters) ** 0.5
        for theory, line, label in (
            (normal, "--", "$\\sqrt{d/(D+d+1)}$, normal rows"),
            (frame, ":", "$\\sqrt{d/D}$, orthonormal rows"),
        ):
            axes.plot(places, theory, line, color="black", label=label)
        axes.set(yscale="log", ylabel="cos(g, s) in a late step")
        axes.legend(loc="best", frameon=False)
    return figure


def _finite(values: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[value for value in each if np.isfinite(value)] for each in values]
