r"""Which momentum is best: negative ones where noise dominates.

Legend: as in `lightning_ecd.theory.stability`; a = α_eff; D_k = 2 + a λ_k (γ τ2 - 1).

In the noise-dominated phase the late loss at fixed t is proportional to
:math:`a^{1/\nu} \tilde V(1)/(1 - \tilde U(1))^2`, which here is minimised; in the
signal-dominated one a momentum below zero never helps.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ecd.theory.generating import (
    MiniBatchSGD,
    Real,
    real,
    talbot_loss,
    total_noise,
)
from lightning_ecd.theory.spectrum import Spectrum
from lightning_ecd.theory.stability import converges


def momentum_slope(sgd: MiniBatchSGD, spectrum: Spectrum) -> Tensor:
    r"""Return d log L/dβ of the late, noise-dominated loss at β = 0 and fixed a.

    .. math::
        \frac{d \log L}{dq} = -\frac{\sum_k c_k (D_k - 1)/D_k^2}
        {\sum_k c_k/(a\lambda_k D_k)} + \frac{2 \tau_1\gamma \sum_k
        (a\lambda_k/D_k)^2}{1 - \tilde U(1)}, \qquad \frac{dq}{d\beta} = -2

    Where it is positive a negative momentum helps.

    Args:
        sgd: The settings; their β counts as 0 and α as a.
        spectrum: The problem.
    """
    plain = replace(sgd, alpha=sgd.alpha_eff, beta=0.0)
    lam, c = spectrum.eigenvalues, spectrum.coefficients
    al = real(plain.alpha, lam).unsqueeze(-1) * lam
    g = real(sgd.gamma * sgd.tau2, lam).unsqueeze(-1)
    D = 2 + al * (g - 1)
    signal = (c * (D - 1) / D**2).sum(-1) / _where_carried(c, c / (al * D)).sum(-1)
    squares = sgd.tau1 * sgd.gamma * (spectrum.counts * (al / D) ** 2).sum(-1)
    return 2 * signal - 4 * squares / (1 - total_noise(plain, spectrum))


def _where_carried(c: Tensor, terms: Tensor) -> Tensor:
    """Return 0 for modes that carry none of the error, whose terms are 0/0."""
    return torch.where(c == 0, 0.0, terms)


def best_rate(spectrum: Spectrum, nu: float) -> float:
    r"""Return the best a at β = 0, b = 1, τ = 1 in the noise-dominated phase.

    .. math:: a = \frac{2 (\nu - 1)}{(3\nu - 1) \sum_k \lambda_k}

    Args:
        spectrum: The problem.
        nu: ν > 1.
    """
    if not nu > 1:
        raise ValueError(f"nu must lie in (1, inf), got {nu}")
    total = (spectrum.counts * spectrum.eigenvalues).sum().item()
    return 2 * (nu - 1) / ((3 * nu - 1) * total)


def negative_momentum_gain(spectrum: Spectrum, nu: float) -> float:
    r"""Return what is positive exactly where a negative momentum helps.

    .. math::
        \log\frac{\sum\lambda \sum c}
        {\frac{\nu - 1}{\nu} \sum\lambda^2 \sum c/\lambda}

    For b = 1, τ = 1, at the best learning rate, late in the noise-dominated phase.

    Args:
        spectrum: The problem, with c of the output error.
        nu: ν > 1.
    """
    lam, c, m = spectrum.eigenvalues, spectrum.coefficients, spectrum.counts
    left = (m * lam).sum() * c.sum()
    right = (nu - 1) / nu * (m * lam**2).sum() * _where_carried(c, c / lam).sum()
    return (left / right).log().item()


def gain_map(nu: Tensor, kappa: Tensor, samples: int) -> Tensor:
    r"""Return `negative_momentum_gain` of power laws :math:`c_k = k^{-\kappa - 1}`.

    Args:
        nu: Shape (A,).
        kappa: Shape (B,).
        samples: N.

    Returns:
        Shape (A, B).
    """
    k = torch.arange(1, samples + 1, dtype=torch.float64, device=nu.device)
    nu, kappa = nu.double()[:, None], kappa.double()[:, None]
    lam, c = k**-nu, k ** -(kappa + 1)
    left = lam.sum(1)[:, None] * c.sum(1)
    right = ((nu - 1) / nu * lam.square().sum(1, keepdim=True)) * ((1 / lam) @ c.T)
    return (left / right).log()


class Optimum(NamedTuple):
    """The best settings found.

    Attributes:
        alpha: α.
        beta: β.
        loss: There.
    """

    alpha: float
    beta: float
    loss: float


def optimum(
    sgd: MiniBatchSGD,
    spectrum: Spectrum,
    t: Real,
    fixed: tuple[str, ...] = (),
    span: float = 0.99,
    rounds: int = 200,
) -> Optimum:
    r"""Return the α and β of the lowest mean loss at step t.

    L-BFGS on :math:`\log\alpha` and :math:`\mathrm{artanh}(\beta/span)` differentiates
    through `talbot_loss`; where the run diverges the loss is infinite.

    Args:
        sgd: Where to begin, of numbers, converging.
        spectrum: The problem.
        t: Steps.
        fixed: "alpha" or "beta": what stays as it is.
        span: The largest |β| looked at.
        rounds: The most evaluations.

    Raises:
        ValueError: If the beginning diverges.
    """
    unknown = set(fixed) - {"alpha", "beta"}
    if unknown or len(set(fixed)) > 1:
        raise ValueError(f"fixed must be alpha, beta or nothing, got {sorted(fixed)}")
    if not converges(sgd, spectrum):
        raise ValueError(f"alpha = {sgd.alpha}, beta = {sgd.beta} diverges")
    device = spectrum.eigenvalues.device
    start = [math.log(float(sgd.alpha)), math.atanh(float(sgd.beta) / span)]
    at = torch.tensor(start, dtype=torch.float64, device=device, requires_grad=True)
    free = torch.tensor(["alpha" not in fixed, "beta" not in fixed], device=device)

    def settings(point: Tensor) -> MiniBatchSGD:
        return replace(sgd, alpha=point[0].exp(), beta=span * point[1].tanh())

    best = Optimum(float(sgd.alpha), float(sgd.beta), math.inf)

    def evaluated() -> Tensor:
        nonlocal best
        search.zero_grad()
        here = settings(at)
        if not converges(here, spectrum):
            at.grad = torch.zeros_like(at)
            return torch.tensor(1e6, dtype=torch.float64)  # the line search turns back
        value = talbot_loss(here, spectrum, t).log()
        value.backward()
        at.grad = torch.where(free, at.grad, 0.0)  # type: ignore[arg-type]
        loss = value.detach().exp().item()
        if loss < best.loss:
            found = settings(at.detach())
            best = Optimum(float(found.alpha), float(found.beta), loss)
        return value.detach()

    search = torch.optim.LBFGS(
        [at],
        lr=0.5,
        max_iter=rounds,
        max_eval=rounds,
        tolerance_grad=1e-10,
        tolerance_change=1e-13,
        line_search_fn="strong_wolfe",
    )
    with torch.enable_grad():
        search.step(evaluated)
    return best
