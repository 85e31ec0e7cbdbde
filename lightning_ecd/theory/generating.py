r"""Generating functions of the mean loss of mini-batch SGD with momentum.

Legend: α, learning rate; β, momentum; γ, noise of the mini-batches; τ1, τ2, how their
covariance depends on the moments; λ, c, N: see `lightning_ecd.theory.spectrum`;
z, complex argument; U~, response of the loss to noise; V~, loss without noise.

.. math::
    S_\lambda(z) &= (1-z)(1-\beta z)(1-\beta^2 z) + 2\alpha\lambda z(1+\beta)(1-\beta z)
        + \alpha^2\lambda^2 z[\gamma\tau_2(1+\beta z) - (1-\beta z)] \\
    \tilde U(z) &= \tau_1\gamma\alpha^2 \sum_k \lambda_k^2 (1+\beta z)/S_k(z) \\
    \tilde V(z) &= \sum_k c_k [2\alpha\beta\lambda_k z + (1-\beta z)(1-\beta^2 z)]
        /S_k(z) \\
    \tilde L(z) &= \sum_t L_t z^t = \frac1{2N} \tilde V(z)/(1 - z\tilde U(z))

Every function is differentiable in α, β, γ, τ1, τ2 and the spectrum, and takes tensors
of them of any shapes that broadcast.

Reference:
    M. Velikanov, D. Kuznedelev, D. Yarotsky, "A view of mini-batch SGD via generating
    functions: conditions of convergence, phase transitions, benefit from negative
    momenta", ICLR 2023, arXiv 2206.11124.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightning_ecd.theory.spectrum import Spectrum

#: Entries (settings x nodes x modes) evaluated at once: what stays in a cache.
_AT_ONCE = 2**17

Real = float | Tensor


@dataclass(frozen=True)
class MiniBatchSGD:
    r"""SGD with heavy-ball momentum whose noise the spectrum expresses.

    .. math:: v \leftarrow \beta v - \alpha \nabla L_B(w), \qquad w \leftarrow w + v

    The covariance of the mini-batches is
    :math:`\gamma (\tau_1 H \mathrm{Tr}[HC] - \tau_2 H C H)`.

    Args:
        alpha: α > 0, for a kernel whose K/N has the spectrum's eigenvalues.
        beta: β in (-1, 1).
        gamma: γ in [0, 1]; see `noise_strength`.
        tau1: τ1.
        tau2: τ2: 1 is exact for translation-invariant data, -1 for Gaussian features.
    """

    alpha: Real
    beta: Real = 0.0
    gamma: Real = 1.0
    tau1: Real = 1.0
    tau2: Real = 1.0

    @property
    def alpha_eff(self) -> Real:
        """α/(1 - β)."""
        return self.alpha / (1 - self.beta)

    @property
    def q(self) -> Real:
        """(1 - β)/(1 + β)."""
        return (1 - self.beta) / (1 + self.beta)

    def each(self, changed: Callable[[Tensor], Tensor]) -> "MiniBatchSGD":
        """Return the settings with every tensor among them changed."""
        values = [getattr(self, field.name) for field in fields(self)]
        return MiniBatchSGD(*(changed(v) if torch.is_tensor(v) else v for v in values))


def real(value: Real, like: Tensor | None = None) -> Tensor:
    """Return a number or tensor as float64, on the device of `like`."""
    device = None if like is None else like.device
    return torch.as_tensor(value, dtype=torch.float64, device=device)


def noise_strength(batch: Real, samples: int) -> Real:
    r"""Return :math:`\gamma = (N - b)/((N - 1) b)` of batches without replacement.

    Args:
        batch: b in [1, N].
        samples: N.
    """
    return (samples - batch) / ((samples - 1) * batch)


def transforms(
    sgd: MiniBatchSGD, spectrum: Spectrum, z: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\tilde U(z)` and :math:`\tilde V(z)`.

    Args:
        sgd: The settings.
        spectrum: The problem.
        z: Real or complex; its shape broadcasts with those of the settings.

    Returns:
        Two tensors of the common shape, z's type (float64 or complex128).
    """
    alpha, b, tau1 = sgd.alpha, sgd.beta, sgd.tau1
    noise = sgd.gamma * sgd.tau2
    u, w = 1 - b * z, 1 - b**2 * z
    # S = A + B λ + C λ², and the numerators of V are D λ + E
    A = (1 - z) * u * w
    B = 2 * alpha * z * (1 + b) * u
    C = alpha**2 * z * (noise * (1 + b * z) - u)
    D, E = 2 * alpha * b * z, u * w
    lam = spectrum.eigenvalues
    sums = torch.stack(
        [
            spectrum.counts * lam**2,
            spectrum.coefficients * lam,
            spectrum.coefficients,
        ],
        1,
    )
    A, B, C, D, E = torch.broadcast_tensors(
        *(torch.as_tensor(x, device=lam.device) for x in (A, B, C, D, E))
    )
    shape, size = A.shape, max(1, _AT_ONCE // len(lam))
    parts = zip(*(x.reshape(-1, 1).split(size) for x in (A, B, C)), strict=True)
    found = [
        torch.addcmul(p, torch.addcmul(q, r, lam), lam).reciprocal() @ sums.to(p.dtype)
        for p, q, r in parts
    ]
    squares, first, zeroth = torch.cat(found).view(*shape, 3).unbind(-1)
    U = tau1 * sgd.gamma * alpha**2 * (1 + b * z) * squares
    return U, D * first + E * zeroth


def loss_transform(sgd: MiniBatchSGD, spectrum: Spectrum, z: Tensor) -> Tensor:
    r"""Return :math:`\tilde L(z) = \sum_t L_t z^t`; see `transforms`."""
    U, V = transforms(sgd, spectrum, z)
    return V / (1 - z * U) / (2 * spectrum.samples)


def total_noise(sgd: MiniBatchSGD, spectrum: Spectrum) -> Tensor:
    r"""Return :math:`\tilde U(1)`, which must be below 1 for the loss to converge.

    .. math::
        \tilde U(1) = \tau_1\gamma \sum_k
        \frac{\alpha_{eff}\lambda_k}{2 + \alpha_{eff}\lambda_k(\gamma\tau_2 - q)}

    It means nothing where `lightning_ecd.theory.stability.modes_converge` is false.
    """
    a, D = _modes_at_one(sgd, spectrum)
    total = (spectrum.counts * a / D).sum(-1)
    return total * sgd.tau1 * sgd.gamma


def total_signal(sgd: MiniBatchSGD, spectrum: Spectrum) -> Tensor:
    r"""Return :math:`\tilde V(1)`, 2N times the sum of all losses without noise.

    .. math::
        \tilde V(1) = \sum_k \frac{c_k}{\alpha_{eff}\lambda_k}\,
        \frac{1 + \alpha_{eff}\lambda_k (1/q - q)/2}
        {2 + \alpha_{eff}\lambda_k(\gamma\tau_2 - q)}
    """
    a, D = _modes_at_one(sgd, spectrum)
    q = real(sgd.q, a).unsqueeze(-1)
    c = spectrum.coefficients
    terms = c / a * (1 + a * (1 / q - q) / 2) / D
    return torch.where(c == 0, 0.0, terms).sum(-1)


def _modes_at_one(sgd: MiniBatchSGD, spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    """Return a = α_eff λ and 2 + a (γ τ2 - q), shape (..., M)."""
    lam = spectrum.eigenvalues
    slope = real(sgd.gamma * sgd.tau2 - sgd.q, lam)
    a = real(sgd.alpha_eff, lam).unsqueeze(-1) * lam
    return a, 2 + a * slope.unsqueeze(-1)


def series(sgd: MiniBatchSGD, spectrum: Spectrum, steps: int) -> tuple[Tensor, Tensor]:
    r"""Return the coefficients U_t and V_t, t < steps, of one setting's transforms.

    The loss obeys :math:`L_t = V_t/2N + \sum_{s<t} U_{t-1-s} L_s`.

    Args:
        sgd: Of numbers.
        spectrum: The problem, M rows.
        steps: T.

    Returns:
        Two tensors (T,).
    """
    lam, c = spectrum.eigenvalues, spectrum.coefficients
    a, b = sgd.alpha * lam, sgd.beta
    damping = sgd.gamma * sgd.tau2 * a**2
    U, V = [], []
    # second moments (C, J, P) of a mode that began as pure noise, or as pure signal
    start = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=lam.dtype)
    C, J, P = (s.unsqueeze(1).to(lam) * torch.ones_like(lam) for s in start.T)
    for _ in range(steps):
        U.append((spectrum.counts * lam**2 * C[0]).sum())
        V.append((c * C[1]).sum())
        P = a**2 * C - 2 * b * a * J + b**2 * P - damping * C
        C, J = C - 2 * a * C + 2 * b * J + P, b * J - a * C + P
    scale = sgd.tau1 * sgd.gamma * sgd.alpha**2
    return scale * torch.stack(U), torch.stack(V)


def talbot_loss(
    sgd: MiniBatchSGD, spectrum: Spectrum, t: Real, nodes: int = 24
) -> Tensor:
    r"""Return the mean loss at step t by inverting its generating function.

    .. math::
        L_t = \frac1{2\pi i} \int \tilde L(e^{-s}) e^{st} ds, \qquad
        s(\theta) = \frac nt (0.5017\,\theta \cot(0.6407\,\theta) - 0.6122
        + 0.2645\,i\theta)

    at n midpoints of Talbot's contour, half of them by symmetry: the cost does not
    depend on t.

    Args:
        sgd: The settings; must converge.
        spectrum: The problem.
        t: Steps; its shape broadcasts with those of the settings.
        nodes: n, even; 20 to 24 are best in float64.

    Note:
        For t >= 100, where |β|^t and the tail of a finite spectrum are negligible, the
        relative error is 1e-12 to 1e-8; for a diverging run or few steps use
        `lightning_ecd.theory.regimes.spectral_diagonal`.

    Reference:
        J. A. C. Weideman, "Optimizing Talbot's contours for the inversion of the
        Laplace transform", SIAM J. Numer. Anal. 44 (2006).
    """
    if nodes < 2 or nodes % 2:
        raise ValueError(f"nodes must be even and at least 2, got {nodes}")
    device = spectrum.eigenvalues.device
    t = real(t, spectrum.eigenvalues).unsqueeze(-1)
    number = torch.arange(nodes // 2, nodes, device=device, dtype=torch.float64)
    theta = (2 * number + 1) * math.pi / nodes - math.pi
    angle = 0.6407 * theta
    s = nodes / t * (0.5017 * theta / angle.tan() - 0.6122 + 0.2645j * theta)
    turned = 0.5017 / angle.tan() - 0.5017 * angle / angle.sin() ** 2
    slope = nodes / t * (turned + 0.2645j)
    rows = sgd.each(lambda value: value.unsqueeze(-1))
    terms = loss_transform(rows, spectrum, (-s).exp()) * (s * t).exp() * slope
    return 2 / nodes * terms.sum(-1).imag
