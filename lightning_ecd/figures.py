"""Plots: arrays in, a matplotlib Figure out."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LightSource, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lightning_ecd.functions import Function, TwoBasins


def phase_space(
    step: Sequence[float], V: Sequence[float], momentum: Sequence[float]
) -> Figure:
    """Draw a particle's way through phase space.

    Args:
        step: Step of every point, length T.
        V: Potential, length T; points with V <= 0 are left out.
        momentum: Size of the momentum, length T.

    Returns:
        A figure: |p| over V, coloured by the step, and V over the step.
    """
    table = np.array([step, V, momentum])
    when, potential, size = table[:, (table[1] > 0) & (table[2] > 0)]
    figure = Figure(figsize=(9, 4), layout="constrained")
    plane, course = figure.subplots(1, 2)
    dots = plane.scatter(potential, size, c=when, s=6, cmap="viridis")
    plane.set(
        xscale="log",
        yscale="log",
        xlabel="potential V",
        ylabel="momentum |p|",
        title="phase space",
    )
    figure.colorbar(dots, ax=plane, label="step")
    course.plot(when, potential, linewidth=1)
    course.set(yscale="log", xlabel="step", ylabel="potential V", title="descent")
    return figure


#: Colours that colour-blind readers tell apart, also on grey (after Paul Tol).
COLOURS = (
    *("#cc3311", "#0077bb", "#009988", "#aa4499", "#ee7733", "#332288"),
    *("#117733", "#882255", "#33bbee", "#000000"),
)
_GREYS = LinearSegmentedColormap.from_list("greys", ["#56616b", "#fcfcfc"])
#: Steps and values, both of length T.
Curve = tuple[Sequence[float], Sequence[float]]


def surface(
    function: Function, paths: Mapping[str, ArrayLike], resolution: int = 200
) -> Figure:
    """Draw ways of points on a function of two variables.

    Heights are compressed by a power that shows valleys and slopes alike; the labels
    are true values. A ring marks a start, a disc an end, a plus a minimizer, a dashed
    line a basin. Way points that are not finite are left out.

    Args:
        function: Of dimension 2.
        paths: Name -> points (T, 2); the legend holds at most ten names.
        resolution: Points of the grid along each axis.

    Returns:
        A figure: filled contours, and the surface in three dimensions.
    """
    ways = {name: _finite(np.asarray(path, float)) for name, path in paths.items()}
    low, high = _extent(function, [*ways.values()])
    x, y = np.linspace(low, high, resolution).T
    grid = np.stack(np.meshgrid(x, y), -1)
    F = _values(function, grid)
    heights = _Heights(F, function.minimum)
    X, Y, Z = grid[..., 0], grid[..., 1], heights(F)

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    plane = figure.add_subplot(1, 2, 1)
    space: Any = figure.add_subplot(1, 2, 2, projection="3d", computed_zorder=False)
    levels = np.linspace(0, 1, 21)
    filled = plane.contourf(X, Y, Z, levels, cmap=_GREYS)
    plane.contour(X, Y, Z, levels, colors="white", linewidths=0.5, alpha=0.5)
    bar = figure.colorbar(filled, ax=plane, ticks=heights.ticks)
    bar.set_ticklabels(heights.labels)
    bar.set_label("F", rotation=0)
    relief: dict[str, Any] = {"vert_exag": resolution / 3, "blend_mode": "soft"}
    colours = LightSource(azdeg=300, altdeg=45).shade(Z, _GREYS, **relief)
    cells: dict[str, Any] = {"rcount": 100, "ccount": 100, "zorder": 1}
    space.plot_surface(X, Y, Z, facecolors=colours, antialiased=False, **cells)
    space.set_zticks(heights.ticks, heights.labels)
    for axes in (plane, space):
        axes.set(xlabel="$x_1$", ylabel="$x_2$", xlim=x[[0, -1]], ylim=y[[0, -1]])
    space.view_init(elev=40, azim=-60)
    space.set_box_aspect((1, 1, 0.65), zoom=1.05)

    for ring in _basins(function):
        style: dict[str, Any] = {"color": "black", "linewidth": 1.2, "zorder": 2}
        plane.plot(*ring.T, "--", **style)
        space.plot(*ring.T, heights(_values(function, ring)), "--", **style)
    for (name, way), colour in zip(ways.items(), cycle(COLOURS)):
        inside = np.where((way >= [x[0], y[0]]) & (way <= [x[-1], y[-1]]), way, np.nan)
        lifted = np.column_stack([inside, heights(_values(function, way))])
        for axes, points in ((plane, way), (space, lifted)):
            axes.plot(*points.T, color=colour, linewidth=1.3, label=name, zorder=3)
            rim: dict[str, Any] = {"markeredgecolor": "black", "zorder": 5}
            axes.plot(*points[:1].T, "o", color="white", markersize=7, **rim)
            axes.plot(*points[-1:].T, "o", color=colour, markersize=7, **rim)
    for point in function.minimizers:
        plane.plot(*point, "+", color="black", markersize=12, zorder=6)
    if 1 <= len(ways) <= len(COLOURS):
        named = plane.get_legend_handles_labels()
        figure.legend(*named, loc="outside lower center", ncols=5, frameon=False)
    return figure


def running_ratio(
    first: ArrayLike, second: ArrayLike, theory: float, published: float | None = None
) -> Figure:
    """Draw the ratio of two counts as runs are added, with its standard error.

    The standard error of n1/n2 is (n1/n2) (1/n1 + 1/n2)^½.

    Args:
        first: Runs that ended in basin 1 among the first k, for k = 1, ..., T.
        second: The same for basin 2.
        theory: The ratio that a particle which mixes has by Liouville's theorem.
        published: The paper's ratio, if there is one.

    Returns:
        A figure with the ratio, its band of one standard error, and the theory line.
    """
    one, two = np.asarray(first, float), np.asarray(second, float)
    runs = np.arange(1, len(one) + 1)
    seen = (one > 0) & (two > 0)
    runs, one, two = runs[seen], one[seen], two[seen]
    ratio = one / two
    error = ratio * np.sqrt(1 / one + 1 / two)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(theory, color="black", linestyle="--", label=f"mixing: {theory:.4f}")
    if published is not None:
        label = f"published: {published:.4f}"
        axes.axhline(published, color=COLOURS[0], linestyle=":", label=label)
    if len(runs):
        axes.fill_between(
            runs,
            ratio - error,
            ratio + error,
            color=COLOURS[1],
            alpha=0.25,
            linewidth=0,
        )
        label = f"measured: {ratio[-1]:.4f} ± {error[-1]:.4f}"
        axes.plot(runs, ratio, color=COLOURS[1], label=label)
        settled = ratio[len(ratio) // 10 :]  # the first few swing over everything
        low, high = min(settled.min(), theory), max(settled.max(), theory)
        axes.set_ylim(max(0, low - 0.5 * (high - low)), high + 0.5 * (high - low))
    axes.set(xlabel="runs", ylabel="basin 1 : basin 2", xlim=(0, runs.max(initial=1)))
    tidy(axes)
    axes.legend(loc="best", frameon=False)
    return figure


def curves(
    losses: Mapping[str, Curve], distances: Mapping[str, Curve] | None = None
) -> Figure:
    """Draw losses of optimizers on a logarithmic scale, and the best so far.

    Args:
        losses: Name -> steps and losses; what is not positive is left out.
        distances: Name -> steps and distances to the minimizer.

    Returns:
        A figure: losses (thin) with the best so far (thick), and the distances.
    """
    panels = 1 if distances is None else 2
    figure = Figure(figsize=(5 * panels, 4), layout="constrained")
    left, *others = figure.subplots(1, panels, squeeze=False)[0]
    for (name, (steps, values)), colour in zip(losses.items(), cycle(COLOURS)):
        loss = _positive(values)
        best = np.fmin.accumulate(loss)
        left.plot(steps, loss, color=colour, linewidth=0.8, alpha=0.5)
        left.plot(steps, best, color=colour, linewidth=1.8, label=name)
    left.set(yscale="log", xlabel="step", ylabel="F", title="loss and best so far")
    left.legend(loc="best", frameon=False)
    tidy(left)
    for axes in others:
        for (_, (steps, values)), colour in zip(
            (distances or {}).items(), cycle(COLOURS)
        ):
            axes.plot(steps, _positive(values), color=colour, linewidth=1.2)
        axes.set(yscale="log", xlabel="step", title="distance to the minimizer")
        tidy(axes)
    return figure


def radial_slice(
    radius: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    curves: Mapping[str, Sequence[float]],
) -> Figure:
    """Draw solutions along a radius, and how the deviations fell.

    Args:
        radius: Of length T.
        lines: Name -> values, of length T; the first one dashed, above the others.
        curves: Name -> positive values, and their "step", all of the same length;
            "loss", of another scale, is left out.

    Returns:
        A figure: values over the radius; deviations over the step, logarithmic.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    plane, course = figure.subplots(1, 2)
    for number, (name, values) in enumerate(lines.items()):
        first = number == 0
        style = {"color": "black", "linestyle": "--", "zorder": 3} if first else {}
        plane.plot(radius, values, label=name, linewidth=1.2, **style)
    plane.set(xlabel="radius r", ylabel="u", title="solution along the first axis")
    plane.legend(loc="best")
    for name, values in curves.items():
        if name not in ("step", "loss"):
            label = name.replace("_", " ")
            course.plot(curves["step"], values, label=label, linewidth=1.2, marker=".")
    course.set(yscale="log", xlabel="step", title="deviations")
    if course.lines:
        course.legend(loc="best")
    return figure


def average_curve(accuracies: Sequence[float], part: str) -> Figure:
    """Draw accuracies over the number of averaged epochs.

    Args:
        accuracies: In [0, 1], for k = 1, 2, ... averaged epochs.
        part: What they were measured on.

    Returns:
        A figure that marks the best; its title names the accuracy of the last weights
        and the best.
    """
    percent = [100 * value for value in accuracies]
    best = max(percent)
    k_best = percent.index(best) + 1
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    ks = range(1, len(percent) + 1)
    axes.plot(ks, percent, marker=".", linewidth=1)
    axes.plot(k_best, best, "o", fillstyle="none", markersize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        xlabel="averaged epochs k, counted from the last",
        ylabel=f"{part} accuracy (%)",
        title=f"last weights: {percent[0]:.2f} %, best (k = {k_best}): {best:.2f} %",
    )
    return figure


def ratios(
    exact: Tensor, found: Tensor, curves: Sequence[Tensor] | None = None
) -> Figure:
    """Draw estimated against exact ratios.

    Args:
        exact: Ratio of every sample, (B,); what is not positive is left out.
        found: Its estimate, (B,), likewise.
        curves: In one dimension: x (N,), the exact ratio (N,), every member's (M, N).

    Returns:
        A matplotlib figure of the samples, and of the curves if they are given.
    """
    figure = Figure(figsize=(9 if curves else 4.5, 4), layout="constrained")
    *left, right = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
    if curves:
        x, truth, members = curves
        if len(members) > 1:
            names = ["members", *["_"] * (len(members) - 1)]  # one line in the legend
            style = {"color": "tab:blue", "alpha": 0.4, "linewidth": 1}
            left[0].plot(x, members.T, label=names, **style)
        left[0].plot(x, members.mean(0), color="tab:blue", label="estimated")
        left[0].plot(x, truth, color="black", linestyle="--", label="exact")
        left[0].set(xlabel="x", ylabel="p1(x) / p0(x)")
        left[0].legend()
    kept = (exact > 0) & (found > 0) & found.isfinite()
    if kept.any():
        ends = exact[kept].aminmax()
        wide = ends[1] > 30 * ends[0]
        right.plot(ends, ends, color="black", linestyle="--", linewidth=1)
        right.scatter(exact[kept], found[kept], s=3, alpha=0.4)
        scale = "log" if wide else "linear"
        right.set(xscale=scale, yscale=scale)
    right.set(xlabel="exact ratio", ylabel="estimated ratio")
    return figure


def pixels(figure: Figure, dpi: int = 110) -> NDArray[np.uint8]:
    """Return a figure as an image (height, width, 3), drawn once for all its uses."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class _Heights:
    """Heights between 0 and 1 by a power that sends the median to the middle."""

    def __init__(self, F: NDArray[Any], minimum: float | None):
        self.low = F.min() if minimum is None else minimum
        self.span = (F.max() - self.low) or 1.0
        middle = (np.median(F) - self.low) / self.span
        self.power = 1 / np.clip(np.log(middle + 1e-9) / np.log(0.5), 1, 6)
        values = self.low + self.span * np.linspace(0, 1, 6) ** (1 / self.power)
        self.labels = [f"{float(f'{value:.2g}'):g}" for value in values]
        self.ticks = [*self([float(label) for label in self.labels])]

    def __call__(self, F: ArrayLike) -> NDArray[Any]:
        share = (np.asarray(F, float) - self.low) / self.span
        return np.clip(share, 0, 1) ** self.power


def tidy(axes: Axes) -> None:
    """Make a frame lighter; call it before a logarithmic x-axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.locator_params(axis="x", nbins=6)


def _values(function: Function, points: NDArray[Any]) -> NDArray[Any]:
    return function(torch.from_numpy(points)).numpy()


def _finite(way: NDArray[Any]) -> NDArray[Any]:
    return way[np.isfinite(way).all(1)]


def _positive(values: Sequence[float]) -> NDArray[Any]:
    array = np.asarray(values, float)
    return np.where(array > 0, array, np.nan)


def _extent(function: Function, ways: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the lowest and the highest corner (2, 2) of a square to be drawn."""
    low, high = function.box
    if not sum(map(len, ways)):
        return np.array([[low, low], [high, high]])
    points = np.concatenate([*ways, np.reshape(function.minimizers, (-1, 2))])
    reach = 0.5 * (high - low)  # a point that flew away shall not shrink the rest
    points = np.clip(points, low - reach, high + reach)
    middle = (points.min(0) + points.max(0)) / 2
    half = 0.55 * np.ptp(points, axis=0).max() or 1.0
    return np.stack([middle - half, middle + half])


def _basins(function: Function) -> Iterator[NDArray[Any]]:
    """Yield the rims (200, 2) of the basins, where |√h (x - c)| = 1."""
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    if isinstance(function, TwoBasins):
        for centre, h in zip(function.minimizers, function.curvatures, strict=True):
            yield np.array(centre) + circle / np.sqrt(h)
