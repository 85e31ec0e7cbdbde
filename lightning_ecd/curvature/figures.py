"""Plots of spectra, slices and probes: numbers in, a matplotlib Figure out."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from lightning_ecd.curvature.inspection import Findings, Inspection
from lightning_ecd.curvature.spectrum import Spectrum
from lightning_ecd.figures import COLOURS

Curve = NDArray[np.float64]
#: Densities below this share of the highest are not drawn.
_FLOOR = 1e-8


def spectrum_figure(
    spectrum: Spectrum,
    width: float | None = None,
    top: Sequence[float] = (),
    center: float = 1e-4,
) -> Figure:
    """Draw a spectrum: its density, and counts of eigenvalues in four panels.

    Args:
        spectrum: Estimated or exact.
        width: Of the Gaussians; default: see `Spectrum.width`.
        top: Eigenvalues known for themselves, marked on the axis.
        center: Where the tails begin, on either side of 0.

    Returns:
        A figure: above the density over the whole range on a logarithmic scale, with
        its standard error over the probes; below the expected number of eigenvalues
        per bin, in the negative tail, the centre and the positive tail, as in the
        figure of Entropy-SGD's paper, and in bins of the logarithm.
    """
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    plan = [["whole"] * 4, [*"abcd"]]
    places = figure.subplot_mosaic(plan, height_ratios=(1.15, 1))
    _density(places["whole"], spectrum, width or spectrum.width(), top)
    nodes = spectrum.nodes.flatten().numpy()
    counts = spectrum.weights.flatten().numpy() * spectrum.size / len(spectrum.nodes)
    low, high = min(nodes.min(), -center), max(nodes.max(), center)
    panels = [places[name] for name in "abcd"]
    ranges = {
        f"negative tail, below −{center:g}": (-np.inf, -center),
        f"centre, within ±{center:g}": (-center, center),
        f"positive tail, above {center:g}": (center, np.inf),
    }
    for axes, (title, (least, most)) in zip(panels, ranges.items(), strict=False):
        inside = (nodes > least) & (nodes < most)
        ends = max(least, low * 1.02), min(most, high * 1.02)
        _counts(axes, nodes[inside], counts[inside], np.linspace(*ends, 41))
        axes.set_title(f"{title}\n{_share(spectrum, least, most)}", fontsize=9)
        axes.set_xlim(*ends)
        axes.locator_params(axis="x", nbins=4)
        axes.ticklabel_format(axis="x", scilimits=(-3, 3))
    panels[0].set_ylabel("eigenvalues in a bin")
    _logarithmic(panels[3], nodes, counts)
    return figure


def _share(spectrum: Spectrum, low: float, high: float) -> str:
    """Return the share in (low, high) in words, with its bounds if they differ."""
    share = 100 * spectrum.share(low, high)[0]
    least, most = (100 * bound for bound in spectrum.share_bounds(low, high))
    if most - least < 0.01:
        return f"{share:.3g} %"
    return f"{share:.3g} %, bounds {least:.3g}, {most:.3g} %"


def _density(
    axes: Axes, spectrum: Spectrum, width: float, top: Sequence[float]
) -> None:
    low = spectrum.nodes.min().item() - 5 * width
    high = spectrum.nodes.max().item() + 5 * width
    grid = torch.linspace(low, high, 3000, dtype=torch.float64)
    phi, error = spectrum.density(grid, width)
    floor = max(phi.max().item() * _FLOOR, 1e-300)
    axes.plot(grid, phi.clamp(min=floor), color=COLOURS[1], linewidth=1.2)
    if error.isfinite().all():
        band = (phi - error).clamp(min=floor), (phi + error).clamp(min=floor)
        axes.fill_between(grid, *band, color=COLOURS[1], alpha=0.25, linewidth=0)
    if len(top):
        bars = axes.vlines(top, 0, 0.06, transform=axes.get_xaxis_transform())
        bars.set(color=COLOURS[0], linewidth=1.5, label="leading eigenvalues")
        axes.legend(loc="upper right", frameon=False)
    axes.set(yscale="log", xlim=(low, high), ylim=(floor, None))
    title = f"density of {spectrum.size:,} eigenvalues, broadened by {width:.2g}"
    axes.set(xlabel="eigenvalue", ylabel="density", title=title)
    axes.grid(alpha=0.25)


def _counts(axes: Axes, nodes: Curve, counts: Curve, edges: Curve) -> None:
    """Draw the expected number of eigenvalues per bin."""
    values, _ = np.histogram(nodes, edges, weights=counts)
    axes.stairs(values, edges, fill=True, color=COLOURS[2], alpha=0.85)
    seen = values[values > 0]
    if len(seen):  # what is empty has no logarithm
        low = max(0.5 * seen.min(initial=1.0), 1e-3)
        axes.set(yscale="log", ylim=(low, 2 * seen.max(initial=1.0)))
    axes.set_xlabel("eigenvalue")
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)


def _logarithmic(axes: Axes, nodes: Curve, counts: Curve, bins: int = 6) -> None:
    """Draw counts in bins of the logarithm, negative eigenvalues to the left."""
    largest = float(np.abs(nodes).max()) or 1.0
    edge = 10.0 ** np.ceil(np.log10(largest))
    smallest = edge * 1e-8
    outer = np.geomspace(smallest, edge, bins * 8 + 1)
    _counts(axes, nodes, counts, np.concatenate([-outer[::-1], outer]))
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.3)
    ticks = [edge * 10.0**-p for p in (0, 3, 6)]
    axes.set_xticks([-t for t in ticks] + [0.0, *ticks[::-1]])
    axes.minorticks_off()
    axes.set_xlim(-edge, edge)
    axes.set_title("bins of the logarithm", fontsize=9)


def slice_figure(
    places: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    way: Sequence[float] | None = None,
    plane: Tensor | None = None,
    reach: float = 1.0,
) -> Figure:
    """Draw slices of a loss.

    Args:
        places: Where on a direction, (T,), 0 the point itself.
        lines: Direction -> losses, (T,).
        way: Losses on the straight way to another point, evenly spaced.
        plane: Losses on a square, (S, S).
        reach: Of the square on either side.

    Returns:
        A figure with one panel for each.
    """
    panels = 1 + (way is not None) + (plane is not None)
    figure = Figure(figsize=(5 * panels, 4), layout="constrained")
    first, *others = figure.subplots(1, panels, squeeze=False)[0]
    for (name, losses), colour in zip(lines.items(), cycle(COLOURS)):
        first.plot(places, losses, color=colour, linewidth=1.3, label=name)
    first.set(xlabel="distance along the direction", ylabel="loss", title="slices")
    first.legend(loc="best", frameon=False)
    first.grid(alpha=0.25)
    if way is not None:
        axes = others.pop(0)
        axes.plot(np.linspace(0, 1, len(way)), way, color=COLOURS[1], linewidth=1.3)
        axes.set(xlabel="share of the way", ylabel="loss", title="to the other point")
        axes.grid(alpha=0.25)
    if plane is not None:
        axes = others.pop(0)
        ticks = np.linspace(-reach, reach, len(plane))
        filled = axes.contourf(ticks, ticks, plane.log10(), 20, cmap="viridis")
        axes.plot(0, 0, "+", color="white", markersize=12)
        axes.set(xlabel="first direction", ylabel="second direction", aspect="equal")
        axes.set_title("loss, decimal logarithm")
        figure.colorbar(filled, ax=axes)
    return figure


def probe_figure(distances: Sequence[float], losses: Sequence[float]) -> Figure:
    """Draw the loss of noisy descent against the distance that it went.

    Args:
        distances: From the start, (T,).
        losses: Shape (T,).
    """
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(distances, losses, color=COLOURS[1], marker=".", linewidth=1)
    axes.set(
        xlabel="distance from the point", ylabel="loss", title="noisy descent from here"
    )
    axes.grid(alpha=0.25)
    return figure


def drawn(found: Findings, plan: Inspection) -> dict[str, Figure]:
    """Return name -> figure of what was found."""
    figures: dict[str, Figure] = {}
    arrays = found.arrays
    if found.spectrum is not None:
        top = [v for name, (v, _) in found.numbers.items() if name.startswith("top_")]
        figures["spectrum"] = spectrum_figure(found.spectrum, plan.width, top)
    if "places" in arrays:
        lines = {f"random {i}": arrays[f"slice_{i}"].tolist() for i in (1, 2)}
        figures["slices"] = slice_figure(
            arrays["places"].tolist(),
            lines,
            arrays["way"].tolist() if "way" in arrays else None,
            torch.from_numpy(arrays["plane"]) if "plane" in arrays else None,
            plan.reach,
        )
    if "probe_distances" in arrays:
        figures["probe"] = probe_figure(
            arrays["probe_distances"].tolist(), arrays["probe_losses"].tolist()
        )
    return figures
