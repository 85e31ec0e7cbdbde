"""Plots: arrays in, a matplotlib Figure out."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure


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
