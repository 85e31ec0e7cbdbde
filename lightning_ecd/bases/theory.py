"""What random bases do to noisy descent on a quadratic, in closed form."""

import torch
from torch import Tensor


def noise_floor(
    curvatures: Tensor, noise: float, lr: float, dimensions: int
) -> tuple[Tensor, Tensor]:
    r"""Return the stationary mean squares of w under RBD, and under SGD at lr d/D.

    On :math:`f(w) = \frac12 \sum_j h_j w_j^2` with gradients :math:`g_j = h_j w_j +
    \xi_j`, :math:`E[\xi_j^2] = \sigma^2`, the step :math:`w \leftarrow w - \eta P^T P
    g` with d normal rows of entries :math:`N(0, 1/D)` has

    .. math:: E[s] = \tfrac dD g, \qquad E[s_j^2] = \frac{d}{D^2} \left((d + 1) g_j^2
        + |g|^2\right),

    so that the mean squares m of w obey a linear equation,

    .. math:: 2 \eta \tfrac dD h_j m_j = \frac{\eta^2 d}{D^2} \Big((d + 1) (h_j^2 m_j
        + \sigma^2) + \sum_i (h_i^2 m_i + \sigma^2)\Big).

    Its sum is the noise of all coordinates that the random directions spread over
    each of them; SGD at the rate :math:`\eta d/D` lacks it: :math:`m_j =
    \rho \sigma^2 / (h_j (2 - \rho h_j))` with :math:`\rho = \eta d/D`.

    Args:
        curvatures: h, shape (D,), above 0.
        noise: Standard deviation σ of the gradient's noise, per coordinate.
        lr: η.
        dimensions: d.

    Returns:
        Mean squares m of w, (D,), float64: with RBD and with SGD.

    Raises:
        ValueError: If RBD or SGD diverges at this rate.
    """
    h = curvatures.double()
    D, d = len(h), dimensions
    rate = lr * d / D
    size = lr**2 * d / D**2
    matrix = torch.diag(2 * rate * h - size * (d + 1) * h**2) - size * h.square()
    m = torch.linalg.solve(matrix, torch.full_like(h, size * (d + 1 + D)))
    sgd = rate / (h * (2 - rate * h))
    if not (m.min() >= 0 and sgd.min() >= 0):
        raise ValueError(f"lr must be below where descent diverges, got {lr}")
    return m * noise**2, sgd * noise**2
