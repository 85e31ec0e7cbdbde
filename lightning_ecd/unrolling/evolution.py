"""Meta-gradients by evolution strategies: losses of perturbed weights alone."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_ecd.errors import UserError
from lightning_ecd.rules import UpdateRule
from lightning_ecd.unrolling.problem import FlatProblem, Window
from lightning_ecd.unrolling.runs import Runs, Scales, unroll

EvolutionEstimator = Literal["es", "pes", "nres"]


class Evolution(NamedTuple):
    """What goes on from window to window.

    Attributes:
        runs: With the weights plus and with the weights minus the noise, 2 B of them.
        noise: Accumulated (pes) or of the present episode (nres), shape (B, P).
    """

    runs: Runs
    noise: Tensor


class Evolved(NamedTuple):
    """What a window gives.

    Attributes:
        losses: Means of the antithetic pairs before every update, shape (W, B).
        gradients: Estimates, one for every weight of the rule.
        after: What goes on.
    """

    losses: Tensor
    gradients: list[Tensor]
    after: Evolution


def evolution_gradient(
    estimator: EvolutionEstimator,
    rule: UpdateRule,
    problem: FlatProblem,
    window: Window,
    before: Evolution | None,
    lr: float,
    like: Tensor,
    noise: Tensor,
    *,
    std: float = 0.01,
    worst: float = 20.0,
    inclusive: bool = False,
    scales: Scales | None = None,
) -> Evolved:
    r"""Return losses of a window and an estimate of the gradient of their mean.

    Every run has a twin on the same problem and mini-batches; they move with the
    weights :math:`\varphi \pm \sigma \epsilon`. With the differences
    :math:`d_t = L_t^+ - L_t^-` of the losses,

    .. math::
        \hat g = \frac1{2 \sigma^2} \Big\langle \frac1W \sum_t d_t\, \xi_t \Big\rangle

    over the runs. es: :math:`\xi` is the window's noise :math:`\sigma \epsilon`; both
    twins begin the window where the first is: cheap, blind to what a weight does
    beyond it. pes: the twins part for good, and :math:`\xi` is the sum of all noise
    that a run has met, the window's alone after a run's end: unbiased. nres: one noise
    for the whole run.

    Args:
        estimator: "es", "pes" or "nres".
        rule: The rule.
        problem: What it descends on.
        window: The steps; runs may begin anywhere in it, but for nres only at its
            beginning.
        before: As the last window returned it; None: all begin.
        lr: Factor of the updates.
        like: Device and dtype of the parameters.
        noise: Standard normal numbers :math:`\epsilon`, shape (B, P).
        std: Of the perturbations, :math:`\sigma` > 0.
        worst: In place of losses that are larger or not finite.
        inclusive: pes as in the released code: the loss of a run's last step counts
            for the window's noise alone, a slight bias.
        scales: See `begin`.

    Raises:
        UserError: If a run ends within a window of nres.

    Reference:
        P. Vicol, L. Metz, J. Sohl-Dickstein, "Unbiased gradient estimation in unrolled
        computation graphs with persistent evolution strategies", ICML 2021;
        O. Li et al., "Noise-reuse in online evolution strategies", arXiv 2304.12180.
    """
    B = window.step.shape[1]
    if estimator == "nres" and window.last[:-1].any():
        raise UserError(
            "nres needs runs of whole windows, whose noise stays: let data.stagger be "
            "false, or model.estimator be pes"
        )
    names = [name for name, w in rule.named_parameters() if w.requires_grad]
    weights = [w.detach() for w in rule.parameters() if w.requires_grad]
    fresh = noise.to(weights[0]) * std
    former = torch.zeros_like(fresh) if before is None else before.noise
    if not inclusive:  # as in the released code the last window's noise stays
        begun = torch.from_numpy(window.step[0] == 0).to(fresh.device)
        former = torch.where(begun.unsqueeze(1), 0.0, former)
    used = fresh
    if estimator == "nres":
        used = torch.where(former.any(1, keepdim=True), former, fresh)
    flat = torch.cat([w.flatten() for w in weights])
    both = torch.cat([flat + used, flat - used])
    perturbed = _by_name(both, names, weights)
    steps = list(
        unroll(
            rule,
            problem,
            window,
            None if before is None else before.runs,
            lr,
            like,
            scales=scales,
            weights=perturbed,
            copies=2,
        )
    )
    losses = torch.stack([found for found, _ in steps])  # (W, 2 B)
    losses = torch.nan_to_num(losses, worst, worst, worst).clamp_max(worst)
    plus, minus = losses.chunk(2, 1)
    last = torch.from_numpy(window.last).to(fresh.device)
    ended = last.cumsum(0) > 0
    if not inclusive:
        ended = torch.cat([torch.zeros_like(ended[:1]), ended[:-1]])
    d = plus - minus
    early, late = (d * ~ended).mean(0), (d * ended).mean(0)
    carried, runs = used, steps[-1][1]
    some_ended, kept = last.any(0).unsqueeze(1), used
    if estimator == "pes":
        carried = former + used
        kept = torch.where(some_ended, used, carried)
    elif estimator == "nres":
        kept = torch.where(some_ended, 0.0, used)  # zeros: to be drawn
    else:
        runs = _doubled(runs.rows(slice(B)))
    total = early.unsqueeze(1) * carried + late.unsqueeze(1) * used
    gradient = total.mean(0) / (2 * std**2)
    pieces = gradient.split([w.numel() for w in weights])
    return Evolved(
        (plus + minus) / 2,
        [piece.view_as(w) for piece, w in zip(pieces, weights, strict=True)],
        Evolution(runs, kept),
    )


def _by_name(
    rows: Tensor, names: list[str], weights: list[Tensor]
) -> dict[str, Tensor]:
    """Return rows (R, P) as weights (R, ...) by name."""
    pieces = rows.split([w.numel() for w in weights], 1)
    triples = zip(names, pieces, weights, strict=True)
    return {name: piece.reshape(-1, *w.shape) for name, piece, w in triples}


def _doubled(runs: Runs) -> Runs:
    state = {name: torch.cat([h, h]) for name, h in runs.state.items()}
    scale = None if runs.scale is None else torch.cat([runs.scale] * 2)
    return Runs(torch.cat([runs.x, runs.x]), state, scale)
