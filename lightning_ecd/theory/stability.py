r"""When mini-batch SGD converges, how fast it gets there, and how it blows up.

Legend: as in `lightning_ecd.theory.generating`; ξ = 2 - 1/ν, exponent of the noise;
r in (0, 1), root of r U~(r) = 1.

The necessary and sufficient conditions for τ2 <= τ1 are

1. every mode by itself decays: α_eff λ_max (q - γ τ2) < 2 (`modes_converge`);
2. U~(1) < 1 (`lightning_ecd.theory.generating.total_noise`).

For τ2 > τ1 the noise of a mode can be negative: `spectral_radius` decides.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs
from torch import Tensor

from lightning_ecd.theory.generating import (
    MiniBatchSGD,
    Real,
    real,
    total_noise,
    total_signal,
    transforms,
)
from lightning_ecd.theory.spectrum import Spectrum

#: Halvings that leave nothing of a float64 bracket.
_HALVINGS = 120


def modes_converge(sgd: MiniBatchSGD, spectrum: Spectrum) -> Tensor:
    """Return whether every mode by itself decays; see the module."""
    limit = sgd.alpha_eff * spectrum.largest * (sgd.q - sgd.gamma * sgd.tau2)
    return real(limit) < 2


def converges(sgd: MiniBatchSGD, spectrum: Spectrum) -> Tensor:
    """Return whether the mean loss tends to 0; for τ2 <= τ1.

    Args:
        sgd: The settings, any shape.
        spectrum: The problem.

    Returns:
        Booleans of the settings' shape.
    """
    alone = modes_converge(sgd, spectrum)
    return alone & (total_noise(sgd, spectrum) < 1).to(alone.device)


def mode_limit(sgd: MiniBatchSGD, spectrum: Spectrum) -> Tensor:
    """Return the α below which every mode by itself decays; inf if there is none.

    For γ τ2 = 0 it is 2 (1 + β)/λ_max, the first asymptote of the stable region.
    """
    slope = real(sgd.q - sgd.gamma * sgd.tau2)
    limit = 2 * (1 - real(sgd.beta)) / (spectrum.largest * slope)
    return torch.where(slope > 0, limit, math.inf)


def alpha_crit(sgd: MiniBatchSGD, spectrum: Spectrum) -> Tensor:
    r"""Return the α where :math:`\tilde U(1) = 1`, else the limit of the modes.

    :math:`\tilde U(1)` grows with α up to that limit. Above it the loss diverges; for
    τ2 > τ1 it may diverge below.

    Args:
        sgd: The settings; their α does not matter.
        spectrum: The problem.
    """
    limit = mode_limit(sgd, spectrum)
    shape = torch.broadcast_shapes(
        limit.shape, *(real(v).shape for v in (sgd.gamma, sgd.tau1))
    )
    limit = limit.expand(shape)
    high = torch.where(limit.isinf(), 1.0, limit)

    def below(alpha: Tensor) -> Tensor:
        return total_noise(replace(sgd, alpha=alpha), spectrum) < 1

    for _ in range(60):  # without a limit, find what is too large
        small = limit.isinf() & below(high)
        if not small.any():
            break
        high = torch.where(small, 4 * high, high)
    never = limit.isinf() & below(high)
    found = _root(below, torch.zeros_like(high), high)
    return torch.where(never, math.inf, found)


def _root(below: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Return where `below` turns false between low and high, by halving."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_below = below(middle)
        low = torch.where(is_below, middle, low)
        high = torch.where(is_below, high, middle)
    return (low + high) / 2


def lambda_crit(spectrum: Spectrum, tau1: float = 1.0, tau2: float = 1.0) -> float:
    r"""Return the root x > -τ2 λ_max of
    :math:`\sum_k \tau_1\lambda_k/(\tau_2\lambda_k + x) = 1`.

    The loss converges only if α_eff < 2/(γ x), the second asymptote of the stable
    region, tight as β -> 1.

    Args:
        spectrum: The problem.
        tau1: τ1 > 0.
        tau2: τ2.
    """  # noqa: D205
    lam, m = spectrum.eigenvalues, spectrum.counts
    ends = [-tau2 * spectrum.largest, tau1 * (m * lam).sum().item()]
    ends[1] = max(ends[1] + abs(tau2) * spectrum.largest, ends[0] + 1)

    def above_one(x: Tensor) -> Tensor:
        return tau1 * (m * lam / (tau2 * lam + x)).sum() > 1

    low, high = (torch.tensor(end, dtype=torch.float64) for end in ends)
    return _root(above_one, low, high).item()


def spectral_radius(sgd: MiniBatchSGD, spectrum: Spectrum) -> float:
    """Return the factor by which the second moments grow or shrink in the long run.

    It is the largest eigenvalue in magnitude of the recursion of
    `lightning_ecd.theory.regimes.spectral_diagonal`: for any τ1 and τ2.

    Args:
        sgd: Of numbers.
        spectrum: The problem.
    """
    lam, m = spectrum.eigenvalues.cpu().numpy(), spectrum.counts.cpu().numpy()
    a, b = float(sgd.alpha) * lam, float(sgd.beta)
    gamma, tau1, tau2 = (float(v) for v in (sgd.gamma, sgd.tau1, sgd.tau2))

    def step(v: np.ndarray) -> np.ndarray:
        C, J, P = v.reshape(3, -1)
        noise = gamma * a**2 * (tau1 * m * C.sum() - tau2 * C)
        P = a**2 * C - 2 * b * a * J + b**2 * P + noise
        C, J = C - 2 * a * C + 2 * b * J + P, b * J - a * C + P
        return np.concatenate([C, J, P])

    size = 3 * len(lam)
    if size <= 600:
        matrix = np.stack([step(row) for row in np.eye(size)], 1)
        return float(np.abs(np.linalg.eigvals(matrix)).max())
    operator = LinearOperator((size, size), matvec=step, dtype=np.float64)
    start = np.ones(size)  # else ARPACK draws one
    try:
        values = eigs(operator, k=2, ncv=60, v0=start, return_eigenvectors=False)
    except ArpackNoConvergence as error:
        values = error.eigenvalues
        if not len(values):
            raise ArithmeticError("the spectral radius was not found") from error
    return float(np.abs(values).max())


class PowerLaw(NamedTuple):
    r"""Power laws of a spectrum, given or fitted.

    Attributes:
        nu: ν of :math:`\lambda_k \approx \Lambda k^{-\nu}`.
        kappa: κ of :math:`\sum_{l \ge k} c_l \approx Q k^{-\kappa}`.
        Lambda: Λ.
        Q: Q.
    """

    nu: float
    kappa: float
    Lambda: float = 1.0
    Q: float = 1.0

    @property
    def zeta(self) -> float:
        """ζ = κ/ν, exponent of the signal's loss."""
        return self.kappa / self.nu

    @property
    def xi(self) -> float:
        """ξ = 2 - 1/ν, exponent of the noise's loss."""
        return 2 - 1 / self.nu


def phase(law: PowerLaw, noise: float = 0.0) -> str:
    r"""Return what becomes of the loss of infinitely many modes.

    Args:
        law: Exponents of the spectrum.
        noise: :math:`\tilde U(1)`; 0: far from the critical rate.

    Returns:
        "immediate divergence" (ν <= 1/2), "eventual divergence" (ν <= 1, or
        :math:`\tilde U(1) \ge 1`), "signal-dominated" (ζ < 2 - 1/ν) or
        "noise-dominated".
    """
    if law.nu <= 0.5:
        return "immediate divergence"
    if law.nu <= 1 or noise >= 1:
        return "eventual divergence"
    return "signal-dominated" if law.zeta < law.xi else "noise-dominated"


class Asymptotics(NamedTuple):
    r"""The late loss :math:`L_t \approx C_s t^{-\zeta} + C_n t^{-\xi}`.

    Attributes:
        signal: C_s.
        noise: C_n; 0 for ζ <= 1, where the signal's next terms come first.
        zeta: ζ.
        xi: ξ.
        transition: t_x, where the noise overtakes the signal; inf if ζ <= ξ.
    """

    signal: float
    noise: float
    zeta: float
    xi: float
    transition: float

    def loss(self, t: Real) -> Real:
        """Return the sum of both terms at step t."""
        return self.signal * t**-self.zeta + self.noise * t**-self.xi


def asymptotics(sgd: MiniBatchSGD, spectrum: Spectrum, law: PowerLaw) -> Asymptotics:
    r"""Return the late loss of a converging run with ν > 1.

    .. math::
        C_s &= \frac{Q \Lambda^{-\zeta} \Gamma(\zeta+1) (2\alpha_{eff})^{-\zeta}}
            {2N (1 - \tilde U(1))} \\
        C_n &= \frac{\tau_1\gamma \tilde V(1) \alpha_{eff}^2 \Lambda^{1/\nu}
            \Gamma(2 - 1/\nu) (2\alpha_{eff})^{-(2 - 1/\nu)}}
            {2N \nu (1 - \tilde U(1))^2}

    Args:
        sgd: Of numbers.
        spectrum: The problem.
        law: Its power laws.

    Raises:
        ValueError: If the run diverges, or ν <= 1.
    """
    noise = total_noise(sgd, spectrum).item()
    if not modes_converge(sgd, spectrum) or noise >= 1:
        raise ValueError(f"the loss diverges: U(1) is {noise:.3g}")
    if law.nu <= 1:
        raise ValueError(f"nu must lie in (1, inf), got {law.nu}")
    a, xi, zeta = float(sgd.alpha_eff), law.xi, law.zeta
    norm = 2 * spectrum.samples
    signal = law.Q * law.Lambda**-zeta * math.gamma(zeta + 1) * (2 * a) ** -zeta
    # below ζ = 1 the sum of all losses without noise, V(1), is infinite: no such term
    total = total_signal(sgd, spectrum).item() if zeta > 1 else 0.0
    late = float(sgd.tau1 * sgd.gamma) * total * a**2
    late *= law.Lambda ** (1 / law.nu) / law.nu * math.gamma(xi) * (2 * a) ** -xi
    C_s, C_n = signal / (norm * (1 - noise)), late / (norm * (1 - noise) ** 2)
    crossing = (C_s / C_n) ** (1 / (zeta - xi)) if zeta > xi and C_n else math.inf
    return Asymptotics(C_s, C_n, zeta, xi, crossing)


class BlowUp(NamedTuple):
    r"""A diverging run, :math:`L_t \approx a\, r^{-t}`.

    Attributes:
        r: Root of :math:`r \tilde U(r) = 1` in (0, 1).
        prefactor: a.
        time: 1/(1 - r), the steps in which the loss grows e-fold.
    """

    r: float
    prefactor: float
    time: float


def blow_up(sgd: MiniBatchSGD, spectrum: Spectrum) -> BlowUp:
    r"""Return how the loss grows where :math:`\tilde U(1) > 1`.

    .. math:: a = \frac{\tilde V(r)}{2N\, r\, \frac{d}{dz}(z\tilde U)(r)}

    Args:
        sgd: Of numbers, with converging modes.
        spectrum: The problem.

    Raises:
        ValueError: If the loss does not diverge by noise.
    """
    noise = total_noise(sgd, spectrum).item()
    if not modes_converge(sgd, spectrum) or noise <= 1:
        raise ValueError(
            f"U(1) must lie in (1, inf) with converging modes, got {noise:.3g}"
        )
    one = torch.ones((), dtype=torch.float64, device=spectrum.eigenvalues.device)

    def below(z: Tensor) -> Tensor:
        return z * transforms(sgd, spectrum, z)[0] < 1

    r = _root(below, 0 * one, one)
    z = r.clone().requires_grad_()
    with torch.enable_grad():
        U, V = transforms(sgd, spectrum, z)
        (slope,) = torch.autograd.grad(z * U, z)
    prefactor = V.detach() / (2 * spectrum.samples * slope * r)
    return BlowUp(r.item(), prefactor.item(), 1 / (1 - r.item()))


def blow_up_guide(sgd: MiniBatchSGD, law: PowerLaw) -> float:
    r"""Return 1 - r to leading order in α_eff, for infinitely many modes.

    .. math::
        1 - r \approx 2\alpha_{eff} \Big[\frac{\tau_1\gamma\alpha_{eff}
        \Lambda^{1/\nu}}{2\nu} \frac{\pi}{\sin(\pi(2 - 1/\nu))}\Big]^{\nu/(1 - \nu)}

    The exact value is some 0.6 to 0.8 of it at α_eff = 0.05 to 0.1; see `blow_up`.

    Args:
        sgd: Of numbers.
        law: With 1/2 < ν < 1.
    """
    if not 0.5 < law.nu < 1:
        raise ValueError(f"nu must lie in (0.5, 1), got {law.nu}")
    a, nu = float(sgd.alpha_eff), law.nu
    inner = float(sgd.tau1 * sgd.gamma) * a * law.Lambda ** (1 / nu) / (2 * nu)
    inner *= math.pi / math.sin(math.pi * law.xi)
    return 2 * a * inner ** (nu / (1 - nu))
