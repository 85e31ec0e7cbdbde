"""Pictures of many runs."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from lightning_ecd.figures import COLOURS, tidy


def learning_curves(tables: Mapping[str, Tensor], title: str = "") -> Figure:
    """Draw losses over steps, on a logarithmic scale.

    Args:
        tables: Losses (T, R) of R runs, by the name of the optimizer.
        title: Of the figure.

    Returns:
        A figure: means with bands of two standard errors, medians dashed.
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for index, (name, table) in enumerate(tables.items()):
        losses = table.double().cpu().numpy()
        colour = COLOURS[index % len(COLOURS)]
        steps = np.arange(len(losses))
        mean, median = losses.mean(1), np.median(losses, 1)
        axes.plot(steps, mean, color=colour, linewidth=1.6, label=name)
        axes.plot(steps, median, color=colour, linewidth=0.9, linestyle="--")
        runs = losses.shape[1]
        if runs > 1:
            band = 2 * losses.std(1, ddof=1) / runs**0.5
            low = np.maximum(mean - band, mean / 10)  # a band that leaves the axes
            axes.fill_between(steps, low, mean + band, color=colour, alpha=0.18)
    axes.plot([], [], color="grey", linewidth=0.9, linestyle="--", label="median")
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=title)
    axes.legend(loc="best", frameon=False, ncols=2)
    tidy(axes)
    return figure
