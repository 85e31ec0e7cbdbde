r"""Neural tangent kernels of one hidden layer in closed form; kernels as files.

Legend: N, samples; d, inputs; h, hidden units; X, inputs (N, d).

For other networks see `lightning_ecd.theory.tangent`.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lightning_ecd.errors import UserError


def shallow_kernel(
    X: Tensor,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    X2: Tensor | None = None,
) -> Tensor:
    r"""Return the kernel of one hidden layer in the neural tangent parametrisation.

    .. math::
        f(x) = W_2\, \sigma(u)/\sqrt h, \qquad u = W_1 x/\sqrt d + b_1 \\
        K = [R R^T + (G G^T) \circ (X X^T/d + 1)]/h, \qquad
        R = \sigma(u), \quad G = \sigma'(u) \circ W_2

    Args:
        X: Shape (N, d).
        W1: Shape (h, d).
        b1: Shape (h,).
        W2: Shape (1, h).
        activation: σ, elementwise.
        X2: Of the columns, shape (M, d); None: X.

    Returns:
        Shape (N, N), or (N, M), float64.
    """
    W1, b1, W2 = (w.detach().double() for w in (W1, b1, W2))

    def parts(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        X = X.detach().double().flatten(1)
        u = torch.addmm(b1, X, W1.T, alpha=X.shape[1] ** -0.5)
        R, slope = _with_slope(activation, u)
        return X, R, slope.mul_(W2)

    X, R, G = parts(X)
    Y, S, H = (X, R, G) if X2 is None else parts(X2)
    h, d = W1.shape
    K = (X @ Y.T).div_(d).add_(1).mul_(G @ H.T)
    return K.addmm_(R, S.T).div_(h)


def _with_slope(
    activation: Callable[[Tensor], Tensor], u: Tensor
) -> tuple[Tensor, Tensor]:
    """Return σ(u) and σ'(u)."""
    with torch.enable_grad():
        leaf = u.requires_grad_()
        values = activation(leaf)
        (slope,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), slope


def analytic_kernel(
    X: Tensor,
    X2: Tensor | None = None,
    sigma_w: float = 1.0,
    sigma_b: float = 1.0,
    factors: bool = False,
    reference: bool = False,
) -> Tensor:
    r"""Return the kernel of infinitely many hidden ReLU units.

    .. math::
        S &= \sigma_w^2 X X^T/d + \sigma_b^2, \quad n_i = \sqrt{S_{ii}}, \quad
        \theta = \arccos(S/nn^T) \\
        J_0 &= (\pi - \theta)/2\pi, \qquad
        J_1 = (\sin\theta + (\pi - \theta)\cos\theta)/2\pi \\
        K &= nn^T J_1 + \sigma_w^2 J_0 (X X^T/d + 1)

    Args:
        X: Shape (N, d).
        X2: Of the columns, shape (M, d); None: X.
        sigma_w: Standard deviation σ_w of the weights' draw.
        sigma_b: Of the hidden biases' draw, σ_b.
        factors: σ_w and σ_b multiply weights and biases in the forward pass instead:
            :math:`K = \sigma_w^2 (S J_0 + nn^T J_1)`.
        reference: As the released code, without nnᵀ and with other angles; only to
            compare with its plots.

    Returns:
        Shape (N, N), or (N, M), float64.
    """
    A = X.double().flatten(1)
    B = A if X2 is None else X2.double().flatten(1)
    d = A.shape[1]
    inner = A @ B.T / d
    S = sigma_w**2 * inner + sigma_b**2
    norms = [(sigma_w**2 * V.square().sum(1) / d + sigma_b**2).sqrt() for V in (A, B)]
    nn_T = torch.outer(*norms)
    theta = (S / nn_T).clamp(-1, 1).arccos()
    if X2 is None:
        theta.fill_diagonal_(0)
    J0 = (math.pi - theta) / (2 * math.pi)
    J1 = (theta.sin() + (math.pi - theta) * theta.cos()) / (2 * math.pi)
    if reference:
        return sigma_w**2 * (S * J0 + J1)
    if factors:
        return sigma_w**2 * (S * J0 + nn_T * J1)
    return nn_T * J1 + sigma_w**2 * J0 * (inner + 1)


def save_kernel(file: str | Path, K: Tensor, targets: Tensor) -> None:
    """Write a kernel (N, N) and the targets (N,) of its samples to a file."""
    data = {"NTK_train_train": K.cpu(), "target_train_train": targets.cpu()}
    torch.save(data, file)


def load_kernel(file: str | Path) -> tuple[Tensor, Tensor]:
    """Return the kernel (N, N) and targets (N,) that `save_kernel` wrote, float64.

    Raises:
        UserError: If the file is missing, unreadable or of something else.
    """
    path = Path(file).expanduser()
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
        K, y = (data[name] for name in ("NTK_train_train", "target_train_train"))
    except FileNotFoundError as error:
        raise UserError(f"kernel: there is no file {path}") from error
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"kernel: {path} cannot be read: {reason}") from error
    K, y = K.squeeze().double(), y.squeeze().double()
    if K.dim() != 2 or K.shape[0] != K.shape[1] or y.shape != K.shape[:1]:
        raise UserError(
            f"kernel: {path} holds shapes {tuple(K.shape)} and {tuple(y.shape)}; "
            "(N, N) and (N,) are needed"
        )
    return K, y


def require_room(N: int, matrices: float, memory: float) -> None:
    """Raise unless matrices of N x N float64 numbers fit.

    Args:
        N: Samples.
        matrices: How many are there at once.
        memory: Bytes.

    Raises:
        UserError: Says what N fits.
    """
    needed = 8 * N * N * matrices
    if needed > memory:
        fits = int(math.sqrt(memory / (8 * matrices)))
        raise UserError(
            f"memory: {N} samples need {needed / 2**30:.3g} GiB, above the "
            f"{memory / 2**30:.3g} GiB allowed: at most {fits} samples fit"
        )
