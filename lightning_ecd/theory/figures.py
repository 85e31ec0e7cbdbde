"""Figures of the theory: arrays -> matplotlib figures."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_ecd.figures import COLOURS, tidy
from lightning_ecd.theory.spectrum import (
    WINDOWS,
    Spectrum,
    fit_power_law,
    tail_sums,
)

#: Positions that a window which had to be cut must still have.
_LEAST = 10
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


def spectrum_panel(
    axes: Axes,
    spectrum: Spectrum,
    windows: Sequence[tuple[int, int]] = WINDOWS,
    index_from: int = 1,
) -> None:
    """Draw eigenvalues and the tail sums of the coefficients, with fitted laws.

    Args:
        axes: Where to.
        spectrum: Of the problem.
        windows: First and last position of the fits, cut to the positions there are;
            of a window cut to nothing there is no fit.
        index_from: k of the first value in the fits.
    """
    lam = spectrum.eigenvalues.cpu()
    tails = tail_sums(spectrum.coefficients.cpu()) / spectrum.coefficients.sum().cpu()
    k = torch.arange(1, len(lam) + 1)
    tidy(axes)
    rows: list[tuple[Tensor, str, str]] = [
        (lam, r"eigenvalues $\lambda_k$", r"$\nu$"),
        (tails, r"tail sums of $c_k$", r"$\kappa$"),
    ]
    for (values, label, name), (left, last), colour in zip(
        rows, windows, COLOURS, strict=False
    ):
        (curve,) = axes.plot(k, values.clamp_min(1e-16), color=colour, linewidth=1.5)
        right = min(last, len(lam) - 1)
        if right == last or right > left + _LEAST:
            fit = fit_power_law(values, left, right, index_from=index_from)
            x = k[left:] - 1 + index_from
            line = fit.amplitude * x**-fit.exponent
            axes.plot(k[left:], line, "--", color=colour, linewidth=1)
            label += f", {name} = {fit.exponent:.2f} ± {fit.exponent_error:.2f}"
        curve.set_label(label)
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


def spectrum_figure(
    spectrum: Spectrum,
    windows: Sequence[tuple[int, int]] = WINDOWS,
    index_from: int = 1,
) -> Figure:
    """Draw `spectrum_panel` alone."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    spectrum_panel(figure.subplots(), spectrum, windows, index_from)
    return figure


#: Batch, losses (A, B), momenta (M,) and critical rates (M,) of the border, γ.
Panel = tuple[int, Tensor, Tensor, Tensor, Any]


def loss_maps(
    alpha: Tensor, beta: Tensor, panels: Sequence[Panel], critical: float, steps: int
) -> Figure:
    """Draw losses over learning rate and momentum, a panel for each batch size.

    The solid line is the border of stability, dashed and dotted its two asymptotes,
    the star the lowest loss.

    Args:
        alpha: Learning rates, (A,).
        beta: Momenta, (B,).
        panels: Of the maps.
        critical: λ_crit of the second asymptote.
        steps: t.
    """
    figure = Figure(figsize=(4.2 * len(panels) + 0.8, 4), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    logs = [losses.clamp_min(1e-300).log10() for _, losses, *_ in panels]
    finite = torch.cat([log[log.isfinite()] for log in logs])
    low = max(finite.min().item(), finite.max().item() - 12) if len(finite) else -1.0
    high = finite.max().item() if len(finite) else 0.0
    mesh = None
    for axes, (batch, losses, inner, border, gamma), log in zip(
        row, panels, logs, strict=True
    ):
        shown = torch.where(log.isfinite(), log, torch.nan).T.numpy()
        mesh = axes.pcolormesh(alpha.numpy(), beta.numpy(), shown, vmin=low, vmax=high)
        axes.plot(border, inner, color="black", linewidth=1.5, label="U(1) = 1")
        axes.plot(2 * (1 + inner), inner, "--", color="black", linewidth=1)
        if gamma > 0:
            second = 1 - gamma * alpha * critical / 2
            axes.plot(alpha, second, ":", color="black", linewidth=1.2)
        if log.isfinite().any():
            i, j = divmod(int(losses.argmin()), losses.shape[1])
            place = alpha[i].item(), beta[j].item()
            axes.plot(
                *place, "*", color="white", markeredgecolor="black", markersize=12
            )
        axes.set(
            title=f"b = {batch}",
            xlabel=r"learning rate $\alpha$",
            xlim=(alpha[0].item(), alpha[-1].item()),
            ylim=(-1, 1),
        )
    row[0].set_ylabel(r"momentum $\beta$")
    if mesh is not None:
        bar = figure.colorbar(mesh, ax=row)
        bar.set_label(f"log10 of the loss after {steps} steps")
    return figure


def gain_figure(nu: Tensor, kappa: Tensor, gain: Tensor) -> Figure:
    """Draw where a negative momentum helps, over the exponents.

    Args:
        nu: Shape (A,).
        kappa: Shape (B,).
        gain: Of `gain_map`, (A, B).
    """
    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    axes = figure.subplots()
    bound = min(gain.abs().nan_to_num(0, 0, 0).max().item(), 5.0)
    plane = nu.numpy(), kappa.numpy(), gain.T.numpy()
    mesh = axes.pcolormesh(*plane, cmap="RdBu", vmin=-bound, vmax=bound)
    axes.contour(*plane, levels=[0.0], colors="black")
    axes.plot(nu, 2 * nu - 1, "--", color="black", label=r"$\kappa = 2\nu - 1$")
    axes.set(
        xlabel=r"$\nu$",
        ylabel=r"$\kappa$",
        ylim=(kappa[0].item(), kappa[-1].item()),
        title="negative momentum helps above the line",
    )
    axes.legend(loc="lower right")
    bar = figure.colorbar(mesh, ax=axes)
    bar.set_label("log of the condition's two sides")
    return figure


def momentum_figure(
    rows: Mapping[str, tuple[Tensor, Tensor, Tensor, Tensor]],
) -> Figure:
    """Draw losses over the learning rate without momentum, and over the momentum.

    Args:
        rows: Name -> learning rates, losses there, momenta, losses there.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, (alpha, over, beta, losses)), colour in zip(
        rows.items(), cycle(COLOURS), strict=False
    ):
        label = name.replace("nu_", r"$\nu$ = ").replace("_kappa_", r", $\kappa$ = ")
        left.plot(alpha, over / over.nan_to_num(torch.inf).min(), color=colour)
        right.plot(beta, losses / losses.min(), color=colour, label=label)
        best = losses.argmin()
        right.plot(beta[best], 1, "o", color=colour)
    left.set(xlabel=r"learning rate $\alpha$, $\beta$ = 0", ylabel="loss / lowest")
    right.set(xlabel=r"momentum $\beta$ at one $\alpha$")
    for axes in (left, right):
        tidy(axes)
    right.legend(frameon=False)
    return figure
