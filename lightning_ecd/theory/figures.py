"""Figures of the theory: arrays -> matplotlib figures."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_ecd.figures import COLOURS, tidy
from lightning_ecd.theory.spectrum import Spectrum, fit_power_law, tail_sums

#: Loss at steps, and its standard error or None.
Curve = tuple[Sequence[float], Sequence[float], Sequence[float] | None]


def regimes(
    curves: Mapping[str, Curve], spectrum: Spectrum | None = None, title: str = ""
) -> Figure:
    """Draw losses of regimes over the steps, and the spectrum with its power laws.

    Args:
        curves: Name -> steps, losses, and standard errors or None.
        spectrum: Of the problem, if it is to be drawn.
        title: Above the losses.
    """
    panels = 2 if spectrum is not None else 1
    figure = Figure(figsize=(6 * panels, 4.2), layout="constrained")
    left, *others = figure.subplots(1, panels, squeeze=False)[0]
    tidy(left)
    styles = cycle(["-", "--", "-.", ":"])
    for (name, (steps, losses, errors)), colour in zip(
        curves.items(), cycle(COLOURS), strict=False
    ):
        x = [max(step, 0.5) for step in steps]  # step 0 has no place on the axis
        left.plot(x, losses, next(styles), color=colour, label=name, linewidth=1.5)
        if errors is not None:
            low = [loss - 2 * e for loss, e in zip(losses, errors, strict=True)]
            high = [loss + 2 * e for loss, e in zip(losses, errors, strict=True)]
            left.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    left.set(xscale="log", yscale="log", xlabel="step", ylabel="loss", title=title)
    left.legend(frameon=False)
    for axes in others:
        assert spectrum is not None
        spectrum_panel(axes, spectrum)
    return figure


def spectrum_panel(axes: Axes, spectrum: Spectrum) -> None:
    """Draw eigenvalues and the tail sums of the coefficients, with fitted laws."""
    lam = spectrum.eigenvalues.cpu()
    tails = tail_sums(spectrum.coefficients.cpu()) / spectrum.coefficients.sum().cpu()
    k = torch.arange(1, len(lam) + 1)
    tidy(axes)
    rows: list[tuple[Tensor, str, int]] = [
        (lam, r"eigenvalues $\lambda_k$, $\nu$", min(300, len(lam) - 1)),
        (tails, r"tail sums of $c_k$, $\kappa$", min(310, len(lam) - 1)),
    ]
    for (values, label, right), colour in zip(rows, COLOURS, strict=False):
        axes.plot(k, values.clamp_min(1e-16), color=colour, linewidth=1.5)
        text = label.rsplit(", ", 1)
        if right > 20:
            fit = fit_power_law(values, 5, right)
            line = fit.amplitude * k**-fit.exponent
            axes.plot(k, line, "--", color=colour, linewidth=1)
            value = f" = {fit.exponent:.2f} ± {fit.exponent_error:.2f}"
            axes.lines[-2].set_label(f"{text[0]}, {text[1]}{value}")
        else:
            axes.lines[-1].set_label(text[0])
    low = max(float(lam[lam > 0].min()), 1e-10) / 3
    axes.set(xscale="log", yscale="log", xlabel="k", title="spectrum", ylim=(low, 3))
    axes.legend(frameon=False)


def as_curve(steps: Sequence[float], losses: Any) -> Curve:
    """Return the mean of runs (T, R) and its standard error, or a curve (T,)."""
    table = torch.as_tensor(losses, dtype=torch.float64)
    if table.dim() == 1:
        return steps, table.tolist(), None
    mean = table.mean(1).tolist()
    if table.shape[1] == 1:
        return steps, mean, None
    return steps, mean, (table.std(1) / table.shape[1] ** 0.5).tolist()
