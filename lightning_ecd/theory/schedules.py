r"""Learning rate, momentum and batch size of every step, as arrays.

Legend: s = 0, 1, ..., T - 1, number of a step; α_s, β_s, b_s: see
`lightning_ecd.theory.generating`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ecd.theory.generating import noise_strength, real

#: A number, one for every step, or a function of the step's number.
Course = float | Sequence[float] | Tensor | Callable[[int], float]


#: Steps, learning rate and momentum -> α and β of every step, (T,) each.
Rates = Callable[[int, float, float], tuple[Tensor, Tensor]]


class Schedule(NamedTuple):
    """What T steps are made with.

    Attributes:
        alpha: α_s, shape (T,), float64.
        beta: β_s, shape (T,), float64.
        batch: b_s, shape (T,), integers.
    """

    alpha: Tensor
    beta: Tensor
    batch: Tensor

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alpha)

    def gamma(self, samples: int) -> Tensor:
        """Return the noise strengths γ_s for N samples, shape (T,)."""
        return real(noise_strength(self.batch.double(), samples))


def schedule(steps: int, alpha: Course, beta: Course, batch: Course) -> Schedule:
    """Return the arrays of constants, sequences or functions of the step.

    Args:
        steps: T.
        alpha: α.
        beta: β, in (-1, 1].
        batch: b >= 1.
    """
    courses = (
        _course("alpha", alpha, steps),
        _course("beta", beta, steps),
        _course("batch", batch, steps).round().long(),
    )
    if (courses[1].abs() > 1).any():
        raise ValueError("beta must lie in (-1, 1]")
    if (courses[2] < 1).any():
        raise ValueError("batch must be at least 1")
    return Schedule(*courses)


def _course(name: str, course: Course, steps: int) -> Tensor:
    if callable(course):
        return torch.tensor([course(s) for s in range(steps)], dtype=torch.float64)
    values = torch.as_tensor(course, dtype=torch.float64)
    if values.dim() == 0:
        return values.repeat(steps)
    if len(values) < steps:
        raise ValueError(f"{name} has {len(values)} values, there are {steps} steps")
    return values[:steps]


def jacobi(
    steps: int, lr: float, a: float = 1.0, b: float = 1.0, index_from: int = 0
) -> tuple[Tensor, Tensor]:
    r"""Return the learning rates and momenta of the Jacobi-accelerated heavy ball.

    .. math::
        \alpha_n &= lr \frac{(2n+a+b+1)(2n+a+b+2)}{2(n+a+1)(n+a+b+1)} \\
        \beta_n &= \frac{n(n+b)(2n+a+b+2)}{(n+a+1)(n+a+b+1)(2n+a+b)}

    Without noise the error of a mode after n steps is the Jacobi polynomial
    :math:`P_n^{(a,b)}(1 - lr\,\lambda)/P_n^{(a,b)}(1)`, and the loss falls like
    :math:`t^{-\min(2\zeta, 2a + 1)}`. With noise it diverges in the end, as β_n -> 1.

    Args:
        steps: T.
        lr: Below 2/λ_max.
        a: > -1; choose a > ζ - 1/2.
        b: > -1.
        index_from: n of the first step; 1 reproduces the released code.

    Returns:
        Two tensors (T,), float64.
    """
    for name, value in {"a": a, "b": b}.items():
        if not value > -1:
            raise ValueError(f"{name} must lie in (-1, inf), got {value}")
    n = torch.arange(index_from, index_from + steps, dtype=torch.float64)
    m = 2 * n + a + b
    alpha = lr * (m + 1) * (m + 2) / (2 * (n + a + 1) * (n + a + b + 1))
    if index_from == 0 and a + b == -1 and steps:
        alpha[0] = lr * (m[0] + 2) / (2 * (a + 1))  # 0/0 there
    below = (n + a + 1) * (n + a + b + 1) * m
    beta = torch.where(n == 0, 0.0, n * (n + b) * (m + 2) / below)
    return alpha, beta


def log_spaced(steps: int, points: int) -> list[int]:
    """Return up to `points` step numbers from 1 to T, even in their logarithm.

    Args:
        steps: T.
        points: The most that are returned, at least 2.
    """
    spread = torch.logspace(0, 1, points, max(steps, 2), dtype=torch.float64)
    return [t for t in spread.round().long().unique().tolist() if t <= steps]


def power(steps: int, lr: float, exponent: float) -> Tensor:
    """Return α_s = lr (s + 1)^-exponent, shape (T,)."""
    return lr * torch.arange(1, steps + 1, dtype=torch.float64) ** -exponent


class Constant:
    """The same learning rate and momentum at every step."""

    def __call__(self, steps: int, lr: float, momentum: float) -> tuple[Tensor, Tensor]:
        """Return α and β of all steps, (T,) each."""
        return _course("alpha", lr, steps), _course("beta", momentum, steps)


class Power:
    """The learning rate lr (s + 1)^-exponent; see `power`.

    Args:
        exponent: >= 0.
    """

    def __init__(self, exponent: float = 0.5):
        self.exponent = exponent

    def __call__(self, steps: int, lr: float, momentum: float) -> tuple[Tensor, Tensor]:
        """Return α and β of all steps, (T,) each."""
        return power(steps, lr, self.exponent), _course("beta", momentum, steps)


class Jacobi:
    """The Jacobi-accelerated heavy ball, which sets its own momentum; see `jacobi`.

    Args:
        a: > -1.
        b: > -1.
        index_from: n of the first step.
    """

    def __init__(self, a: float = 1.0, b: float = 1.0, index_from: int = 0):
        self.settings = a, b, index_from

    def __call__(self, steps: int, lr: float, momentum: float) -> tuple[Tensor, Tensor]:
        """Return α and β of all steps, (T,) each."""
        return jacobi(steps, lr, *self.settings)
